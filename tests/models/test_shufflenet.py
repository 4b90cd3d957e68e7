import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import models
from cnn.errors import InputError
from cnn.inspection import cost
from cnn.layers import conv_layer, norm_layer
from cnn.models.shufflenet import UnitV1, UnitV2, channel_shuffle

TYPES = {'dtype': jnp.float32, 'param_dtype': jnp.float32}
TINY = {'depths': (1,), 'widths': (8,), 'stem_width': 6, 'last_width': 8, 'norm': 'none'}
X = np.random.default_rng(0).standard_normal((2, 6, 6, 24), 'float32')


def abstract(name='shufflenet/v2_x0_5', side=64, num_outputs=1000, **options):
    """A network and its abstract variables and input."""
    model = models.build(name, num_outputs=num_outputs, **options)
    x = jax.ShapeDtypeStruct((1, side, side, 3), 'float32')
    return model, jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x), x


def unit(kind, random_variables, x, **options):
    """A unit, of stride 1 unless told, as a function of its input."""
    fields = {'features': 24, 'stride': 1, 'groups': (1, 1), 'shuffle': True, 'residual': False}
    fields |= {'squeeze_excite': 0.0, 'drop_path': 0.0, 'activation': jax.nn.relu, 'pads': 'SAME'}
    fields |= {'conv': conv_layer('symmetric', **TYPES), 'norm': norm_layer('none', train=False, **TYPES)}
    module = kind(**(fields | options))
    variables = random_variables(module, x)
    rngs = {'dropout': jax.random.key(0)}
    return jax.jit(lambda x, train=False: module.apply(variables, x, train=train, rngs=rngs), static_argnames='train')


def test_shuffle_takes_a_channel_of_each_group_in_turn():
    np.testing.assert_array_equal(channel_shuffle(jnp.arange(6), 2), [0, 3, 1, 4, 2, 5])
    np.testing.assert_array_equal(channel_shuffle(jnp.arange(6), 3), [0, 2, 4, 1, 3, 5])
    np.testing.assert_array_equal(channel_shuffle(jnp.arange(6), 1), range(6))
    np.testing.assert_array_equal(channel_shuffle(channel_shuffle(jnp.asarray(X), 3), 8), X)


# Zhang et al. 2018 give millions of multiply-adds. Table 1 leaves out the dense layer, which is seen where groups are
# many (with it, four groups have 134.3 and eight 138.4); tables 2 and 5 have it (without it, 37.1, 291.0 and 522.1).
@pytest.mark.parametrize(
    ('name', 'millions', 'dense'),
    [
        ('v1_g1', 143, False),
        ('v1_g2', 140, False),
        ('v1_g3', 137, False),
        ('v1_g4', 133, False),
        ('v1_g8', 137, False),
        ('v1_g3_x0_5', 38, True),
        ('v1_g3_x1_5', 292, True),
        ('v1_g3_x2_0', 524, True),
    ],
)
def test_multiply_adds_of_v1_are_those_of_the_paper(name, millions, dense):
    model, variables, x = abstract(f'shufflenet/{name}', side=224, num_outputs=1000 if dense else None)
    traced = jax.make_jaxpr(functools.partial(model.apply, train=False))(variables, x)
    assert round(cost.multiply_adds(traced.jaxpr) / 1e6) == millions


def test_multiply_adds_of_v2_are_those_published():
    model, variables, x = abstract('shufflenet/v2_x1_0', side=224)
    traced = jax.make_jaxpr(functools.partial(model.apply, train=False))(variables, x)
    assert cost.multiply_adds(traced.jaxpr) == models.variant('shufflenet/v2_x1_0').multiply_adds


def test_first_convolution_of_the_first_unit_of_v1_is_not_grouped():
    params = abstract('shufflenet/v1_g3')[1]['params']
    shapes = {
        (stage, index): params[f'stage{stage}_unit0'][f'conv{index}']['kernel'].shape
        for stage in (2, 3)
        for index in (1, 3)
    }
    # Outputs of a unit of stride 2 are those of the paper less what the pool brings.
    assert shapes == {
        (2, 1): (1, 1, 24, 60),
        (2, 3): (1, 1, 20, 216),
        (3, 1): (1, 1, 80, 120),
        (3, 3): (1, 1, 40, 240),
    }


@pytest.mark.parametrize('shuffle', [True, False])
def test_groups_of_v1_exchange_channels_by_shuffling_only(random_variables, shuffle):
    """Section 3.1, figure 1."""
    run = unit(UnitV1, random_variables, X, groups=(2, 2), shuffle=shuffle, activation=jnp.tanh)
    jacobian = jax.jacrev(lambda x: run(x).sum((0, 1, 2)))(X)  # [outputs, N, H, W, inputs]
    depends = np.abs(jacobian).sum((1, 2, 3)) > 0
    same_group = np.kron(np.eye(2), np.ones((12, 12)))
    np.testing.assert_array_equal(depends, True if shuffle else same_group)


def test_unit_of_v1_of_stride_2_adds_channels_to_an_average(random_variables):
    """Figure 2 c; the average counts the zeros around the map, as the authors' does."""
    x = np.abs(X)
    run = unit(UnitV1, random_variables, x, features=40, stride=2, pads=((1, 1), (1, 1)))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [padded[:, i : i + 6 : 2, j : j + 6 : 2] for i in range(3) for j in range(3)]
    y = run(x)
    assert y.shape == (2, 3, 3, 40)
    np.testing.assert_allclose(y[..., :24], np.mean(taps, 0), rtol=1e-5)


def test_unit_of_v2_carries_half_of_its_channels(random_variables):
    y = unit(UnitV2, random_variables, X)(X)
    np.testing.assert_array_equal(y[..., ::2], X[..., :12])
    unshuffled = unit(UnitV2, random_variables, X, shuffle=False)(X)
    np.testing.assert_array_equal(channel_shuffle(unshuffled, 2), y)


def test_residual_adds_what_the_convolutions_read(random_variables):
    runs = {
        (kind, residual): unit(kind, random_variables, X, residual=residual, activation=lambda x: x)(X)
        for kind in (UnitV1, UnitV2)
        for residual in (True, False)
    }
    np.testing.assert_allclose(runs[UnitV1, True] - runs[UnitV1, False], X, atol=1e-5)
    difference = runs[UnitV2, True] - runs[UnitV2, False]
    np.testing.assert_allclose(difference[..., 1::2], X[..., 12:], atol=1e-5)


def test_drop_path_leaves_what_is_carried(random_variables):
    options = {'residual': True, 'drop_path': 1.0}
    v1 = unit(UnitV1, random_variables, X, **options)
    np.testing.assert_array_equal(v1(X, train=True), np.maximum(X, 0))
    assert not np.array_equal(v1(X), np.maximum(X, 0))
    v2 = unit(UnitV2, random_variables, X, **options)
    np.testing.assert_array_equal(v2(X, train=True), channel_shuffle(jnp.asarray(X), 2))


@pytest.mark.parametrize(('kind', 'width'), [(UnitV1, 24), (UnitV2, 12)])
def test_squeeze_excite_scales_the_branch(random_variables, kind, width):
    """Gates of an SE layer without weights are sigmoid(0)."""
    plain = unit(kind, random_variables, X, shuffle=False)(X)

    def silent(module, x):
        variables = random_variables(module, x)
        gate = variables['params'].get('squeeze_excite')
        if gate:
            assert gate['reduce']['kernel'].shape == (1, 1, width, width // 4)
            gate['expand'] = jax.tree.map(np.zeros_like, gate['expand'])
        return variables

    excited = unit(kind, silent, X, shuffle=False, squeeze_excite=0.25)(X)
    np.testing.assert_allclose(excited[..., -width:], plain[..., -width:] / 2, atol=1e-5)


def test_dropout_acts_on_what_enters_the_head(random_variables):
    model = models.build('shufflenet/v2_x0_5', num_outputs=10, dropout=1.0, **TINY)
    x = np.ones((1, 16, 16, 3), 'float32')
    variables = random_variables(model, x)
    run = jax.jit(
        lambda x, train: model.apply(variables, x, train=train, rngs={'dropout': jax.random.key(0)}), static_argnums=1
    )
    np.testing.assert_array_equal(run(x, True)[0], variables['params']['head']['bias'])
    assert not np.array_equal(run(x, False)[0], variables['params']['head']['bias'])


@pytest.mark.parametrize(('stem_stride', 'strides'), [(4, (2, 8, 16, 32)), (2, (2, 4, 8, 16)), (1, (1, 2, 4, 8))])
def test_stem_stride_is_that_before_the_stages(stem_stride, strides):
    model = models.build('shufflenet/v2_x0_5', num_outputs=None, stem_stride=stem_stride)
    found = {}

    def run(x):
        maps, _ = model.init_with_output(jax.random.key(0), x, train=False, method='features')
        found.update({name: (stride, array.shape[1] * stride) for name, (stride, array) in maps.items()})

    jax.eval_shape(run, jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32'))
    assert found == {
        name: (stride, 32) for name, stride in zip(('stem', 'stage2', 'stage3', 'stage4'), strides, strict=True)
    }


@pytest.mark.parametrize(
    ('name', 'widths'),
    [
        ('v2_x1_0', (58, 116, 232)),
        ('v1_g3', (120, 240, 480)),
        ('v1_g4', (144, 272, 544)),  # 136 is halfway between two multiples of 16
    ],
)
def test_scaled_widths_suit_the_groups(name, widths):
    options = {'stem_width': 12, 'width_multiplier': 0.5}
    params = abstract(f'shufflenet/{name}', **options)[1]['params']
    outputs = [params[f'stage{stage}_unit1']['conv3']['kernel'].shape[-1] for stage in (2, 3, 4)]
    assert tuple(outputs) == (tuple(width // 2 for width in widths) if name.startswith('v2') else widths)


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('v2_x0_5', {'unit': 'v3'}, "unit of shufflenet 'v3'"),
        ('v2_x0_5', {'pool': 'mean'}, "pool of shufflenet 'mean'"),
        ('v2_x0_5', {'stem_stride': 3}, "stem_stride of shufflenet '3'"),
        ('v2_x0_5', {'stem_stride': 2, 'pool': 'blur'}, 'pool=blur needs stem_stride=4'),
        ('v2_x0_5', {'groups': 2}, 'groups=2 needs unit=v1'),
        ('v2_x0_5', {'drop_path': 0.1}, 'drop_path=0.1 needs residual=True'),
        ('v2_x0_5', {'depths': (1, 1)}, 'widths=(48, 96, 192) must have an entry for each of depths=(1, 1)'),
        ('v1_g8', {'stem_width': 12}, 'stem_width=12 must be a multiple of groups=8'),
        ('v1_g1', {'widths': (24, 48, 96)}, 'widths=(24, 24, 48, 96), stem included, must grow'),
    ],
)
def test_errors_are_one_line(name, options, message):
    with pytest.raises(InputError) as error:
        abstract(f'shufflenet/{name}', **options)
    assert message in str(error.value)
    assert '\n' not in str(error.value)

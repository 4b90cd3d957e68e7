import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn import models
from cnn.errors import InputError
from cnn.layers import BatchNorm, conv_layer, norm_layer
from cnn.models.efficientnet import Block

TYPES = {'dtype': jnp.float32, 'param_dtype': jnp.float32}
TINY = {'stages': (('mbconv', 1, 3, 1, 8, 1), ('mbconv', 4, 3, 2, 8, 2)), 'stem_width': 8, 'last_width': 16}
X = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 8)), 'float32')


def parameters(name, **options):
    model = models.build(name, num_outputs=10, **options)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), 'float32')
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)['params']


def count(name, **options):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters(name, **options)))


def maps(name, **options):
    """Strides and channels of the features."""
    model = models.build(name, num_outputs=None, **options)
    found = {}

    def run(x):
        features, _ = model.init_with_output(jax.random.key(0), x, train=False, method='features')
        found.update({key: (stride, array.shape[-1]) for key, (stride, array) in features.items()})

    jax.eval_shape(run, jax.ShapeDtypeStruct((1, 64, 64, 3), 'float32'))
    return found


def met(name, kind, **options):
    """The modules of a kind that a network calls."""
    model = models.build(name, num_outputs=2, **options)
    found = []

    def keep(call, args, kwargs, context):
        if isinstance(context.module, kind) and context.method_name == '__call__':
            found.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        x = jax.ShapeDtypeStruct((1, 64, 64, 3), 'float32')
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    return found


def block(**fields):
    norm = norm_layer(fields.pop('norm', 'batch'), train=False, **TYPES)
    defaults = {
        'kind': 'mbconv',
        'expansion': 2,
        'kernel_size': 3,
        'stride': 1,
        'features': 8,
        'residual': True,
        'squeeze_excite': 0.25,
        'drop_path': 0.0,
        'zero_init': False,
    }
    conv = conv_layer('symmetric', **TYPES)
    return Block(**{**defaults, **fields}, conv=conv, norm=norm, activation=jax.nn.silu)


def run(module, x, train=False, **rngs):
    variables = module.init({'params': jax.random.key(0), **rngs}, x, train=train)
    return module.apply(variables, x, train=train, rngs=rngs)


KINDS = pytest.mark.parametrize(
    'fields', [{}, {'expansion': 1}, {'kind': 'fused'}, {'kind': 'fused', 'expansion': 1}], ids=str
)


@KINDS
def test_zero_init_starts_a_block_as_the_identity(fields):
    np.testing.assert_array_equal(run(block(zero_init=True, **fields), X), X)
    assert np.abs(run(block(**fields), X) - X).max() > 0.1


@KINDS
def test_block_without_residual_carries_nothing(fields):
    np.testing.assert_allclose(
        run(block(residual=False, **fields), X), run(block(**fields), X) - X, rtol=1e-5, atol=1e-5
    )


def test_blocks_that_change_size_or_width_carry_nothing_and_keep_their_last_scale():
    for fields in ({'stride': 2}, {'features': 16}):
        np.testing.assert_array_equal(run(block(zero_init=True, **fields), X), run(block(**fields), X))


def test_dropped_paths_leave_the_input():
    x = jnp.ones((64, 2, 2, 8))
    y = run(block(drop_path=0.5, norm='none'), x, train=True, dropout=jax.random.key(3))
    left = (y == x).all((1, 2, 3))
    assert 16 < left.sum() < 48


def test_paths_are_dropped_more_often_towards_the_end():
    rates = [module.drop_path for module in met('efficientnet/b0', Block)]
    np.testing.assert_allclose(rates, [0.2 * index / 16 for index in range(16)])


def test_multipliers_scale_widths_to_multiples_of_8_and_depths_upwards():
    """B1 and B2 by tables 1 and 2: 1.1 times as wide and 1.2 times as deep."""
    wide = maps('efficientnet/b0', width_multiplier=1.1)
    assert [channels for _, channels in wide.values()] == [32, 16, 24, 48, 88, 120, 208, 352, 1408]
    deep = parameters('efficientnet/b0', depth_multiplier=1.2)
    blocks = [sum(name.startswith(f'stage{stage}_block') for name in deep) for stage in range(1, 8)]
    assert blocks == [2, 3, 3, 4, 4, 5, 2]


def test_squeeze_and_excitation_is_as_wide_as_a_share_of_the_inputs_of_the_block():
    """(inputs, expanded channels) of all blocks of B0."""
    blocks = [(32, 32), (16, 96), *[(24, 144)] * 2, (40, 240), (40, 240), *[(80, 480)] * 3, *[(112, 672)] * 3]
    blocks += [*[(192, 1152)] * 4]
    for share in (1 / 4, 1 / 8):
        more = count('efficientnet/b0', squeeze_excite=share) - count('efficientnet/b0', squeeze_excite=0)
        widths = [int(share * inputs) for inputs, _ in blocks]
        expected = [
            2 * width * channels + width + channels for width, (_, channels) in zip(widths, blocks, strict=True)
        ]
        assert more == sum(expected)


def test_strides_and_widths_of_features():
    strides = {name: stride for name, (stride, _) in maps('efficientnet/b0').items()}
    assert list(strides) == ['stem', *(f'stage{stage}' for stage in range(1, 9))]
    assert list(strides.values()) == [2, 2, 4, 8, 16, 16, 32, 32, 32]
    assert maps('efficientnet/v2_s', stages=(('fused', 2, 3, 2, 16, 1),), squeeze_excite=0) == {
        'stem': (2, 24),
        'stage1': (4, 16),
        'stage2': (4, 1280),
    }


@pytest.mark.parametrize('padding', ['symmetric', 'SAME'])
def test_paddings_halve_odd_and_even_maps(padding):
    model = models.build('efficientnet/b0', num_outputs=None, padding=padding, **TINY)

    def size(pixels):
        x = jnp.zeros((1, pixels, pixels, 3))
        features, _ = model.init_with_output(jax.random.key(0), x, train=False, method='features')
        return features['stage3'][1]

    assert [jax.eval_shape(lambda pixels=pixels: size(pixels)).shape[1] for pixels in (32, 33, 36, 37)] == [8, 9, 9, 10]


@pytest.mark.parametrize(
    ('name', 'epsilon', 'momentum'),
    [('b4', 1e-5, 0.9), ('b5', 1e-3, 0.99), ('v2_l', 1e-3, 0.9)],
)
def test_constants_of_normalisation_are_the_published_ones(name, epsilon, momentum):
    norms = met(f'efficientnet/{name}', BatchNorm, **TINY)
    assert {(norm.epsilon, norm.momentum) for norm in norms} == {(epsilon, momentum)}


def test_dropout_grows_with_the_network():
    options = [models.options(f'efficientnet/b{index}', {}) for index in range(8)]
    np.testing.assert_allclose([option['dropout'] for option in options], [0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5])


def test_dropout_leaves_out_features_before_the_dense_layer(random_variables):
    options = {**TINY, 'stages': TINY['stages'][:1], 'dropout': 0.5, 'norm': 'none'}
    model = models.build('efficientnet/b0', num_outputs=None, **options)
    x = np.random.default_rng(0).standard_normal((64, 8, 8, 3), 'float32')
    variables = random_variables(model, x)
    y = model.apply(variables, x, train=True, rngs={'dropout': jax.random.key(1)})
    features = model.apply(variables, x, train=False)
    np.testing.assert_allclose(y, np.where(y == 0, 0, 2 * features), rtol=1e-5)
    assert 0.4 < (y == 0).mean() < 0.6


def test_without_norm_convolutions_have_biases():
    layers = parameters('efficientnet/b0', norm='none', **TINY)['stage2_block0']
    assert {name: set(layer['conv']) for name, layer in layers.items() if name != 'squeeze_excite'} == {
        name: {'kernel', 'bias'} for name in ('expand', 'depthwise', 'project')
    }
    assert 'norm' not in layers['project']


def test_kernels_start_by_their_outputs():
    """Normal of variance 2 over positions times outputs, and uniform up to the root of 1 over the classes."""
    options = {'stages': TINY['stages'][:1], 'last_width': 512, 'stem_width': 64}
    model = models.build('efficientnet/b0', num_outputs=16, **options)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)['params']
    head, depthwise = params['head']['kernel'], params['stage1_block0']['depthwise']['conv']['kernel']
    assert 0.24 < jnp.abs(head).max() <= 0.25
    np.testing.assert_allclose(depthwise.std(), math.sqrt(2 / (9 * 64)), rtol=0.1)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'stages': (('mbconvs', 1, 3, 1, 8, 1),)}, "unknown block of efficientnet 'mbconvs'; did you mean 'mbconv'"),
        ({'stages': (('mbconv', 1, 4, 1, 8, 1),)}, 'the kernel size odd'),
        ({'stages': (('mbconv', 1, 3, 1, 8, 0),)}, 'above 0'),
        ({'stages': (('mbconv', 1, 3, 1, 8),)}, 'stages'),
        ({'stages': (('fused', 1, 3, 1, 8, 1),)}, 'squeeze_excite needs a stage of mbconv'),
        ({'width_multiplier': 0}, 'must be above 0'),
        ({'depth_multiplier': -1.0}, 'must be above 0'),
        ({'residual': False}, 'drop_path needs residual=True'),
        ({'residual': False, 'drop_path': 0, 'zero_init': True}, 'zero_init needs residual=True'),
        ({'norm': 'none', 'zero_init': True}, 'zero_init needs a norm'),
        ({'padding': 'VALID'}, "unknown padding 'VALID'"),
        ({'activation': 'swish'}, "unknown activation 'swish'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message) as error:
        parameters('efficientnet/b0', **{**TINY, **options})
    assert '\n' not in str(error.value)

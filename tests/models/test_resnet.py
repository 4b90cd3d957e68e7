import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn import models
from cnn.errors import InputError
from cnn.layers import conv_layer, norm_layer
from cnn.models.resnet import Block

TYPES = {'dtype': jnp.float32, 'param_dtype': jnp.float32}
TINY = {'depths': (1, 1), 'width': 8}


def count(name, **options):
    model = models.build(name, num_outputs=10, **options)
    shape = jax.ShapeDtypeStruct((1, 64, 64, 3), 'float32')
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), shape)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))


def strides(name, **options):
    model = models.build(name, num_outputs=None, **options)
    x = jnp.zeros((1, 64, 64, 3))
    found = {}

    def run():
        maps, _ = model.init_with_output(jax.random.key(0), x, train=False, method='features')
        found.update({name: stride for name, (stride, _) in maps.items()})

    jax.eval_shape(run)
    return found


def block(**fields):
    norm = norm_layer(fields.pop('norm', 'batch'), train=fields.pop('train', False), **TYPES)
    defaults = {
        'convs': ((8, 3, 1, 1), (8, 3, 1, 1)),
        'residual': True,
        'shortcut': 'projection',
        'preactivation': False,
        'zero_init': False,
        'squeeze_excite': 0.0,
        'drop_path': 0.0,
    }
    conv = conv_layer('symmetric', **TYPES)
    return Block(**{**defaults, **fields}, conv=conv, norm=norm, activation=jax.nn.relu)


def run(module, x, train=False, **rngs):
    variables = module.init({'params': jax.random.key(0), **rngs}, x, train=train)
    return module.apply(variables, x, train=train, rngs=rngs)


X = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, (2, 6, 6, 8)), 'float32')


def test_zero_init_starts_a_block_as_the_identity():
    np.testing.assert_array_equal(run(block(zero_init=True), X), X)
    assert np.abs(run(block(), X) - X).max() > 0.1


def test_shortcut_a_takes_every_second_position_and_adds_zeros():
    y = run(block(convs=((12, 3, 2, 1), (12, 3, 1, 1)), shortcut='identity', zero_init=True), X)
    expected = np.zeros((2, 3, 3, 12), 'float32')
    expected[..., :8] = X[:, ::2, ::2]
    np.testing.assert_array_equal(y, expected)


def test_average_shortcut_sees_every_position():
    def loss(x, shortcut):
        return run(block(convs=((8, 3, 2, 1), (8, 3, 1, 1)), shortcut=shortcut, zero_init=True), x).sum()

    seen = {kind: int((jax.grad(loss)(X, kind) != 0).any((0, 3)).sum()) for kind in ('average', 'projection')}
    assert seen == {'average': 36, 'projection': 9}


def test_plain_block_carries_nothing():
    np.testing.assert_array_equal(run(block(residual=False, zero_init=True), X), np.zeros_like(X))


def test_preactivation_carries_the_input_unchanged():
    """He et al. 2016 (Identity Mappings): neither a normalisation nor an activation lies on the shortcut."""
    x = X - 0.5
    module = block(preactivation=True)
    variables = module.init(jax.random.key(0), x, train=False)
    silent = jax.tree.map(jnp.zeros_like, variables['params']['conv2'])
    variables = {**variables, 'params': {**variables['params'], 'conv2': silent}}
    np.testing.assert_array_equal(module.apply(variables, x, train=False), x)


def test_dropped_paths_leave_the_input():
    x = jnp.ones((64, 2, 2, 8))
    y = run(block(drop_path=0.5, norm='none'), x, train=True, dropout=jax.random.key(3))
    left = (y == x).all((1, 2, 3))
    assert 16 < left.sum() < 48


def test_paths_are_dropped_more_often_towards_the_end():
    model = models.build('resnet/cifar20', num_outputs=2, depths=(2, 2), width=8, drop_path=1.0)
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), 'float32')
    rates = []

    def keep(call, args, kwargs, context):
        if isinstance(context.module, Block) and context.method_name == '__call__':
            rates.append(context.module.drop_path)
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    assert rates == [0, 1 / 3, 2 / 3, 1]


def test_width_multiplier_multiplies_every_width():
    assert count('resnet/cifar20', width_multiplier=2) == count('resnet/cifar20', width=32)


def test_squeeze_and_excitation_adds_two_dense_layers_to_a_block():
    more = count('resnet/18', squeeze_excite=1 / 16) - count('resnet/18')
    assert more == 2 * sum(2 * width * (width // 16) + width + width // 16 for width in (64, 128, 256, 512))


@pytest.mark.parametrize(('place', 'strides'), [('3x3', [1, 2, 1]), ('1x1', [2, 1, 1])])
def test_a_bottleneck_has_its_stride_where_it_is_told(place, strides):
    model = models.build('resnet/50', num_outputs=None, depths=(1, 1), width=8, stride_on=place)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32')
    taken = {}

    def keep(call, args, kwargs, context):
        if isinstance(context.module, nn.Conv):
            taken['/'.join(context.module.path)] = context.module.strides[0]
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    assert [taken[f'stage2_block0/conv{index}'] for index in (1, 2, 3)] == strides


def test_strides_of_stems():
    assert strides('resnet/18') == {'stem': 2, 'stage1': 4, 'stage2': 8, 'stage3': 16, 'stage4': 32}
    assert strides('resnet/cifar20') == {'stem': 1, 'stage1': 1, 'stage2': 2, 'stage3': 4}
    assert strides('resnet/18', stem='deep', pool='blur', depths=(1,)) == {'stem': 2, 'stage1': 4}


@pytest.mark.parametrize('pool', ['max', 'average', 'conv', 'blur'])
@pytest.mark.parametrize('padding', ['symmetric', 'SAME'])
def test_pools_and_paddings_halve_odd_and_even_maps(pool, padding):
    model = models.build('resnet/18', num_outputs=None, depths=(1,), pool=pool, padding=padding)

    def map_of(size):
        x = jnp.zeros((1, size, size, 3))
        maps, _ = model.init_with_output(jax.random.key(0), x, train=False, method='features')
        return maps['stage1'][1]

    assert [jax.eval_shape(lambda size=size: map_of(size)).shape[1] for size in (32, 33, 64, 66)] == [8, 9, 16, 17]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'block': 'basics'}, "unknown block of resnet 'basics'; did you mean 'basic'"),
        ({'stem': '5x5'}, "unknown stem of resnet '5x5'"),
        ({'shortcut': 'project'}, "did you mean 'projection'"),
        ({'stride_on': '2x2'}, "unknown stride_on of resnet '2x2'"),
        ({'pool': 'median'}, "unknown pool 'median'"),
        ({'padding': 'VALID'}, "unknown padding 'VALID'"),
        ({'block': 'basic', 'groups': 2}, 'needs block=bottleneck'),
        ({'block': 'basic', 'group_width': 128}, 'needs block=bottleneck'),
        ({'block': 'basic', 'stride_on': '1x1'}, 'needs block=bottleneck'),
        ({'stem': '3x3', 'pool': 'blur'}, 'has no pool'),
        ({'residual': False, 'drop_path': 0.1}, 'need residual=True'),
        ({'preactivation': True, 'zero_init': True}, 'zero_init'),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        count('resnet/50', **TINY, **options)

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import models
from cnn.errors import InputError
from cnn.layers import conv_layer, norm_layer
from cnn.models.squeezenet import Fire, odd_sides
from cnn.ops.pool import max_pool

TYPES = {'dtype': jnp.float32, 'param_dtype': jnp.float32}
TINY = {'widths': (16, 16), 'stem_width': 16, 'pool_after': (1,), 'squeeze_ratio': 0.25}


def abstract(size=224, name='squeezenet/1_0', **options):
    """Abstract variables, and feature maps with their strides."""
    model = models.build(name, num_outputs=10, **options)
    strides = {}

    def run(x):
        variables = model.init(jax.random.key(0), x, train=False)
        maps = model.apply(variables, x, train=False, method='features')
        strides.update({key: stride for key, (stride, _) in maps.items()})
        return variables, {key: map for key, (_, map) in maps.items()}

    return *jax.eval_shape(run, jax.ShapeDtypeStruct((1, size, size, 3), 'float32')), strides


def count(**options):
    variables, *_ = abstract(**options)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))


@pytest.mark.parametrize(('height', 'width'), [(2, 7), (3, 6), (4, 5), (5, 2), (4, 6), (7, 5)])
def test_pools_leave_out_no_position(height, width):
    """Windows begin at even positions, for as long as they end less than one position beyond the map."""
    x = np.random.default_rng(0).uniform(-2, -1, (2, height, width, 3)).astype('float32')

    def pool(x):
        return max_pool(odd_sides(x), (3, 3), (2, 2))

    starts = [[start for start in range(0, side, 2) if start + 3 <= side + 1] for side in (height, width)]
    expected = np.stack(
        [np.stack([x[:, i : i + 3, j : j + 3].max((1, 2)) for j in starts[1]], 1) for i in starts[0]], 1
    )
    np.testing.assert_array_equal(pool(x), expected)
    gradient = jax.grad(lambda x: pool(x).sum())(x)
    assert gradient.sum() == expected.size
    np.testing.assert_array_equal(np.unique(x[gradient > 0]), np.unique(expected))


@pytest.mark.parametrize('pool', ['max', 'average', 'conv', 'blur'])
def test_maps_have_the_sizes_of_table_1(pool):
    for name, expected in {
        '1_0': {'conv1': (2, 109), 'fire4': (4, 54), 'fire8': (8, 27), 'fire9': (16, 13)},
        '1_1': {'conv1': (2, 111), 'fire3': (4, 55), 'fire5': (8, 27), 'fire9': (16, 13)},
    }.items():
        _, maps, strides = abstract(name=f'squeezenet/{name}', pool=pool)
        assert {key: (strides[key], map.shape[1]) for key, map in maps.items()} == expected


@pytest.mark.parametrize(('name', 'size'), [('squeezenet/1_0', 21), ('squeezenet/1_1', 17)])
def test_smallest_images(name, size):
    """torchvision publishes the same."""
    _, maps, _ = abstract(size, name)
    assert maps['fire9'].shape == (1, 1, 1, 512)
    with pytest.raises(InputError, match=f'at least {size} x {size}, not {size - 1} x {size - 1}'):
        abstract(size - 1, name)


def test_outputs_are_means_of_rectified_maps(random_variables):
    model = models.build('squeezenet/1_1', num_outputs=5, **TINY)
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    variables = random_variables(model, x)
    last = np.asarray(model.apply(variables, x, train=False, method='features')['fire3'][1], np.float64)
    head = variables['params'].pop('head')
    maps = last @ np.asarray(head['kernel'])[0, 0] + np.asarray(head['bias'])
    assert 0.2 < (maps < 0).mean() < 0.8
    expected = np.maximum(maps, 0).mean((1, 2))
    y = model.apply({'params': {**variables['params'], 'head': head}}, x, train=False)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-9)
    pooled = models.build('squeezenet/1_1', num_outputs=None, **TINY).apply(variables, x, train=False)
    np.testing.assert_allclose(pooled, last.mean((1, 2)), rtol=1e-5)


def fire(**fields):
    defaults = {'squeeze': 4, 'width': 16, 'width3x3': 8, 'bypass': 'none', 'squeeze_excite': 0.0, 'drop_path': 0.0}
    norm = norm_layer('none', train=False, **TYPES)
    conv = conv_layer('symmetric', **TYPES)
    return Fire(**{**defaults, **fields}, use_bias=True, conv=conv, norm=norm, activation=jax.nn.relu)


X = jnp.asarray(np.random.default_rng(0).standard_normal((64, 3, 3, 16)), 'float32')


def test_bypasses_add_the_input():
    plain = fire()
    variables = plain.init(jax.random.key(0), X, train=False)
    y = plain.apply(variables, X, train=False)
    for bypass in ('simple', 'complex'):
        np.testing.assert_allclose(fire(bypass=bypass).apply(variables, X, train=False), y + X, rtol=1e-6)
    narrow = X[..., :8]
    variables = fire(bypass='complex').init(jax.random.key(0), narrow, train=False)
    kernel = variables['params']['bypass']['kernel'][0, 0]
    bypassed = fire(bypass='complex').apply(variables, narrow, train=False)
    del variables['params']['bypass']
    y = fire(bypass='simple').apply(variables, narrow, train=False)
    np.testing.assert_allclose(bypassed, y + narrow @ kernel, rtol=1e-5, atol=1e-5)


def test_drop_path_leaves_out_fire_modules_of_some_examples():
    module = fire(bypass='simple', drop_path=0.5)
    variables = module.init(jax.random.key(0), X, train=False)
    y = np.asarray(module.apply(variables, X, train=False) - X)
    dropped = np.asarray(module.apply(variables, X, train=True, rngs={'dropout': jax.random.key(1)}) - X)
    kept = np.abs(dropped).max((1, 2, 3)) > 0
    assert 0.25 < kept.mean() < 0.75
    np.testing.assert_allclose(dropped[kept], 2 * y[kept], atol=1e-5)


def test_options_count():
    base = count()
    changes = ((96, 128), (128, 256), (256, 384), (384, 512))
    widths = (128, 128, 256, 256, 384, 384, 512, 512)
    assert count(bypass='simple') == base
    assert count(bypass='complex') == base + sum((before + 1) * after for before, after in changes)
    assert count(squeeze_excite=0.125) == base + sum(2 * w * w // 8 + w // 8 + w for w in widths)
    # Biases go, scales and biases of the normalisations come; the head keeps its own.
    assert count(norm='batch') == base + 96 + sum(w // 8 + w for w in widths)
    assert count(pool='conv') == base + 9 * (96**2 + 256**2 + 512**2)


def test_ratios_divide_the_filters():
    variables, *_ = abstract(width_multiplier=0.5, squeeze_ratio=0.25, share_3x3=0.75)
    params = variables['params']
    assert params['conv1']['kernel'].shape == (7, 7, 3, 48)
    shapes = {name: layer['kernel'].shape for name, layer in params['fire9'].items()}
    assert shapes == {'squeeze': (1, 1, 256, 64), 'expand1x1': (1, 1, 64, 64), 'expand3x3': (3, 3, 64, 192)}


def test_dropout_acts_in_training_only(random_variables):
    model = models.build('squeezenet/1_1', num_outputs=None, dropout=0.9, activation='gelu', **TINY)
    x = jax.random.normal(jax.random.key(1), (2, 9, 9, 3))
    variables = random_variables(model, x)
    y = functools.partial(model.apply, variables, x)
    assert (y(train=False) != 0).all()
    zeros = (y(train=True, rngs={'dropout': jax.random.key(2)}) == 0).mean()
    assert zeros > 0.3


def test_weights_start_as_torchvision_s():
    model = models.build('squeezenet/1_1', num_outputs=200, **TINY)
    params = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 17, 17, 3)), train=False)['params'])()
    bound = (6 / (9 * 4)) ** 0.5
    assert 0.95 < np.abs(params['fire3']['expand3x3']['kernel']).max() / bound <= 1
    assert np.std(params['head']['kernel']) == pytest.approx(0.01, rel=0.05)
    assert not np.any(params['head']['bias'])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'bypass': 'simpel'}, "unknown bypass of squeezenet 'simpel'; did you mean 'simple'"),
        ({'drop_path': 0.1}, 'set bypass=simple'),
        ({'pool_after': (1, 9)}, 'pool_after=(1, 9) must name layers from 1, the convolution, to 8'),
        ({'share_3x3': 1.0}, 'leave no filters of one kind in a module of width 128'),
        ({'squeeze_ratio': 0.0}, 'squeeze_ratio=0.0'),
        ({'norm': 'bach'}, "unknown norm 'bach'; did you mean 'batch'"),
        ({'pool': 'mox'}, "unknown pool 'mox'; did you mean 'max'"),
        ({'activation': 'rely'}, "did you mean 'relu'"),
    ],
)
def test_errors_are_one_line(options, message):
    with pytest.raises(InputError) as error:
        abstract(64, **options)
    assert message in str(error.value)
    assert '\n' not in str(error.value)

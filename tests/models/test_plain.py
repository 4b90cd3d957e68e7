import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn import models
from cnn.errors import InputError
from cnn.inspection import describe
from cnn.models.plain import LocalConv

X = np.random.default_rng(0).standard_normal((2, 8, 8, 3), 'float32')


def build(**options):
    """A network without normalisation and its variables for X."""
    model = models.build(
        'plain', num_outputs=5, **{'widths': (4, 6), 'layers': ('conv',) * 2, 'norm': 'none', **options}
    )
    return model, model.init(jax.random.key(0), X, train=False)


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


@pytest.mark.parametrize('kernel_size', [1, 2, 3, 5])
def test_local_convolution_is_that_of_flax(kernel_size):
    types = {'dtype': jnp.float32, 'param_dtype': jnp.float32}
    ours = LocalConv(4, kernel_size, **types)
    kernel = ours.init(jax.random.key(0), X)['params']['kernel']
    assert kernel.shape == (8, 8, kernel_size**2 * 3, 4)
    pads = ((kernel_size - 1) // 2, kernel_size // 2)
    theirs = nn.ConvLocal(4, (kernel_size,) * 2, padding=(pads, pads), use_bias=False)
    # Patches have the channel as their slowest index there.
    order = kernel.reshape(8, 8, kernel_size**2, 3, 4).swapaxes(2, 3).reshape(kernel.shape)
    expected = theirs.apply({'params': {'kernel': order}}, X)
    np.testing.assert_allclose(ours.apply({'params': {'kernel': kernel}}, X), expected, atol=1e-5)


def test_a_local_layer_with_equal_weights_everywhere_is_a_convolution():
    shared, variables = build()
    own, own_variables = build(layers=('local',) * 2)
    for layer, width in (('stage1_layer0', 4), ('stage2_layer0', 6)):
        kernel = variables['params'][layer]['conv']['kernel'].reshape(-1, width)
        there = own_variables['params'][layer]
        there['kernel'] = jnp.broadcast_to(kernel, there['kernel'].shape)
    own_variables['params']['head'] = variables['params']['head']
    expected = shared.apply(variables, X, train=False)
    np.testing.assert_allclose(own.apply(own_variables, X, train=False), expected, atol=1e-5)


def test_weights_of_each_kind_of_layer():
    head = 6 * 5 + 5
    assert count(build()[1]) == 9 * 3 * 4 + 9 * 4 * 6 + head
    assert count(build(layers=('local',) * 2)[1]) == 64 * 9 * 3 * 4 + 16 * 9 * 4 * 6 + head
    assert count(build(layers=('dense',) * 2)[1]) == (64 * 3) * (64 * 4) + (16 * 4) * (16 * 6) + head
    assert count(build(layers=('separable',) * 2)[1]) == 9 * 3 + 3 * 4 + 9 * 4 + 4 * 6 + head
    assert count(build(pool='conv')[1]) == 9 * 3 * 4 + 9 * 4 * 4 + 9 * 4 * 6 + head
    assert count(build(kernel_size=5, hidden=(7,))[1]) == 25 * 3 * 4 + 25 * 4 * 6 + 6 * 7 + 7 + 7 * 5 + 5


@pytest.mark.parametrize(
    ('kind', 'multiply_adds', 'seen'),
    [
        ('local', [80 * 9 * 3 * 4, 20 * 9 * 4 * 6], [3, 8]),
        ('conv', [80 * 9 * 3 * 4, 20 * 9 * 4 * 6], [3, 8]),
        ('dense', [(80 * 3) * (80 * 4), (20 * 4) * (20 * 6)], [None, None]),  # all
        ('separable', [80 * 9 * 3, 80 * 3 * 4, 20 * 9 * 4, 20 * 4 * 6], [3, 3, 8, 8]),
    ],
)
def test_what_each_kind_of_layer_costs_and_sees(kind, multiply_adds, seen):
    model, _ = build(layers=(kind,) * 2)
    figures = describe.describe(model, jax.ShapeDtypeStruct((1, 8, 10, 3), jnp.float32), train=False)
    *layers, head = [layer for layer in figures['layers'] if layer['multiply_adds']]
    assert [layer['multiply_adds'] for layer in layers] == multiply_adds
    assert figures['multiply_adds'] == sum(multiply_adds) + head['multiply_adds']
    assert [layer['receptive_field'] for layer in layers] == [[side, side] for side in seen]


def test_a_dense_layer_sees_the_whole_map():
    model, variables = build(widths=(4,), layers=('dense',))
    kernel = variables['params']['stage1_layer0']['dense']['kernel']
    expected = np.maximum(X.reshape(2, -1) @ kernel, 0).reshape(2, 8, 8, 4)
    _, found = model.apply(variables, X, train=False, method='features')['stage1']
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ('pool', 'sides'),
    [
        ('max', [8, 4, 2]),
        ('average', [8, 4, 2]),
        ('blur', [8, 4, 2]),
        ('conv', [8, 4, 2]),
        ('stride', [4, 2, 2]),
        ('none', [8] * 3),
    ],
)
def test_pools_stand_between_stages(pool, sides):
    model, variables = build(widths=(4, 4, 4), layers=('conv',) * 3, pool=pool, depth=2)
    maps = model.apply(variables, X, train=False, method='features')
    assert [array.shape[1] for _, array in maps.values()] == sides
    assert [8 // stride for stride, _ in maps.values()] == sides


def test_a_strided_layer_in_place_of_a_pool_is_normalised_and_activated():
    model, variables = build(pool='conv', norm='batch')
    assert set(variables['params']['pool1']) == {'conv', 'norm'}
    captured = model.apply(variables, X, train=False, capture_intermediates=True)[1]['intermediates']['pool1']
    (y,) = captured['__call__']
    (z,) = captured['norm']['__call__']
    np.testing.assert_array_equal(y, np.maximum(z, 0))


@pytest.mark.parametrize('summary', ['mean', 'max', 'flatten'])
def test_what_enters_the_head(summary):
    model, variables = build(summary=summary)
    _, last = model.apply(variables, X, train=False, method='features')['stage2']
    seen = {'mean': last.mean((1, 2)), 'max': last.max((1, 2)), 'flatten': last.reshape(2, -1)}[summary]
    head = variables['params']['head']
    np.testing.assert_allclose(model.apply(variables, X, train=False), seen @ head['kernel'] + head['bias'], atol=1e-5)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'layers': ('conv', 'locall')}, "unknown layer of plain 'locall'; did you mean 'local'"),
        ({'layers': ('conv',)}, 'must name a kind for each of widths'),
        ({'pool': 'mean'}, "unknown pool of plain 'mean'"),
        ({'summary': 'average'}, "unknown summary of plain 'average'"),
        ({'pool': 'stride', 'layers': ('conv', 'dense')}, 'pool=stride needs convolutions'),
        ({'widths': (4,) * 5, 'layers': ('conv',) * 5}, '5 stages need an image of 16 pixels a side'),
    ],
)
def test_refuses_what_can_not_be(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


@pytest.mark.parametrize('linear_stack', [True, False])
def test_a_linear_stack_is_one_linear_map_and_an_activation(linear_stack):
    model, variables = build(widths=(4,), layers=('conv',), depth=3, linear_stack=linear_stack)

    def odd_part(x):  # relu(z) - relu(-z) is z, which is additive where it is linear in x
        f = functools.partial(model.apply, variables, train=False, method='features')
        return f(x)['stage1'][1] - f(-x)['stage1'][1]

    x, y = X[:1], X[1:]
    additive = np.allclose(odd_part(x + y), odd_part(x) + odd_part(y), atol=1e-4)
    assert additive == linear_stack

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn.ops.pool import avg_pool, max_pool


def draw(seed):
    """A random input with many ties, and the arguments of a pooling that fits it."""
    rng = np.random.default_rng(seed)
    rank = 1 + seed % 3
    window = tuple(int(n) for n in rng.integers(1, 5, rank))
    strides = None if seed % 5 == 0 else tuple(int(n) for n in rng.integers(1, 5, rank))
    if seed % 4 == 0:
        strides = window
    sides = tuple(int(n) for n in rng.integers(4, 9, rank))
    padding = ['VALID', 'SAME', [(int(a), int(b)) for a, b in rng.integers(0, 3, (rank, 2))]][seed // 3 % 3]
    x = rng.integers(-3, 2, (2, *sides, 3)).astype('float64')
    return x, {'window_shape': window, 'strides': strides, 'padding': padding}


def with_gradient(pool, x, **arguments):
    @jax.jit
    def run(x):
        y, vjp = jax.vjp(functools.partial(pool, **arguments), x)
        return y, vjp(jnp.asarray(np.random.default_rng(0).standard_normal(y.shape), y.dtype))[0]

    return run(x)


def first_maximum(x, dy, window, strides, pads):
    """The definition, window by window, of the gradient of max pooling; x has no padding where it is -inf."""
    dx = np.zeros_like(dy, shape=x.shape)
    for place in np.ndindex(dy.shape):
        n, *at, c = place
        best = None
        for k in np.ndindex(*window):
            where = (n, *(a * s - p[0] + i for a, s, p, i in zip(at, strides, pads, k, strict=True)), c)
            inside = all(0 <= i < side for i, side in zip(where, x.shape, strict=True))
            if inside and (best is None or x[where] > x[best]):
                best = where
        if best is not None:
            dx[best] += dy[place]
    return dx


@pytest.mark.parametrize('seed', range(18))
def test_max_pool_is_that_of_flax_with_ties(seed):
    x, arguments = draw(seed)
    with jax.enable_x64(True):
        actual, expected = (with_gradient(pool, jnp.asarray(x), **arguments) for pool in (max_pool, nn.max_pool))
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_allclose(actual[1], expected[1], atol=1e-12)


@pytest.mark.parametrize('seed', range(18))
@pytest.mark.parametrize('count_include_pad', [True, False])
def test_avg_pool_is_that_of_flax(seed, count_include_pad):
    x, arguments = draw(seed)
    if not count_include_pad and not isinstance(arguments['padding'], str):
        arguments['padding'] = [(0, 0)] * (x.ndim - 2)  # a window of padding alone has no mean
    arguments['count_include_pad'] = count_include_pad
    with jax.enable_x64(True):
        actual, expected = (with_gradient(pool, jnp.asarray(x), **arguments) for pool in (avg_pool, nn.avg_pool))
    np.testing.assert_allclose(actual[0], expected[0], atol=1e-12)
    np.testing.assert_allclose(actual[1], expected[1], atol=1e-12)


@pytest.mark.parametrize(('window', 'strides', 'padding'), [((7, 6), (2, 3), 'SAME'), ((9, 9), (9, 9), 'VALID')])
def test_large_windows_go_axis_by_axis_to_the_same_result(window, strides, padding):
    x = np.random.default_rng(0).integers(0, 3, (2, 9, 10, 2)).astype('float32')
    arguments = {'window_shape': window, 'strides': strides, 'padding': padding}
    for pool, plain in ((max_pool, nn.max_pool), (avg_pool, nn.avg_pool)):
        actual, expected = with_gradient(pool, x, **arguments), with_gradient(plain, x, **arguments)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected)


@pytest.mark.parametrize('strides', [(2, 2), (3, 3), (1, 2)])
def test_the_first_maximum_gets_the_gradient_also_of_infinities(strides):
    x = np.random.default_rng(0).choice([-np.inf, 0, np.inf], (2, 7, 6, 2), p=[0.8, 0.1, 0.1]).astype('float32')
    pads = ((1, 1), (2, 0))
    pool = jax.jit(functools.partial(max_pool, window_shape=(3, 3), strides=strides, padding=pads))
    y, vjp = jax.vjp(pool, x)
    dy = np.random.default_rng(1).integers(1, 9, y.shape).astype('float32')
    np.testing.assert_array_equal(vjp(dy)[0], first_maximum(x, dy, (3, 3), strides, pads))


@pytest.mark.parametrize('strides', [(2, 2), (1, 1)])
def test_max_pool_has_all_derivatives_and_transformations(strides):
    """Forward mode, vmap, scan and the second derivative, against flax's on distinct numbers."""
    x = jnp.asarray(np.random.default_rng(0).permutation(2 * 6 * 4 * 3).reshape(2, 6, 4, 3).astype('float32')) / 50
    t = jnp.sin(x * 91)
    pools = [functools.partial(p, window_shape=(2, 2), strides=strides) for p in (max_pool, nn.max_pool)]
    losses = [lambda x, p=p: (jnp.sin(p(x)) ** 2).sum() for p in pools]
    new, old = (jax.jit(lambda x, t, p=p: jax.jvp(p, (x,), (t,)))(x, t) for p in pools)
    np.testing.assert_allclose(new[1], old[1], atol=1e-6)
    # flax's own second derivative by forward over reverse
    new, old = (jax.jit(lambda x, t, f=f: jax.jvp(jax.grad(f), (x,), (t,))[1])(x, t) for f in losses)
    np.testing.assert_allclose(new, old, atol=1e-5)
    reverse = jax.jit(jax.grad(lambda x: (jax.grad(losses[0])(x) * t).sum()))(x)
    np.testing.assert_allclose(reverse, old, atol=1e-5)
    gradient = jax.jit(jax.grad(losses[0]))
    np.testing.assert_allclose(jax.vmap(gradient)(jnp.stack([x, -x]))[1], gradient(-x), atol=1e-6)
    _, scanned = jax.lax.scan(lambda carry, x: (carry, gradient(x)), 0, jnp.stack([x, -x]))
    np.testing.assert_allclose(scanned[1], gradient(-x), atol=1e-6)


@pytest.mark.parametrize('strides', [(2, 2), (1, 1)])
def test_a_nan_makes_its_windows_nan_and_one_element_gets_the_gradient(strides):
    x = np.zeros((1, 4, 4, 1), 'float32')
    x[0, 1, 1] = np.nan
    y, vjp = jax.vjp(functools.partial(max_pool, window_shape=(2, 2), strides=strides), x)
    np.testing.assert_array_equal(y, nn.max_pool(x, (2, 2), strides))
    dx = vjp(jnp.ones_like(y))[0]
    assert dx.sum() == y.size


def test_bfloat16_stays_bfloat16():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 6, 3)), jnp.bfloat16)
    for pool, plain in ((max_pool, nn.max_pool), (avg_pool, nn.avg_pool)):
        for strides in ((2, 2), (1, 1)):
            actual = with_gradient(pool, x, window_shape=(2, 2), strides=strides)
            expected = with_gradient(plain, x.astype('float32'), window_shape=(2, 2), strides=strides)
            assert actual[0].dtype == actual[1].dtype == jnp.bfloat16
            for new, old in zip(actual, expected, strict=True):
                np.testing.assert_allclose(new.astype('float32'), old, atol=0.04)


def test_what_does_not_fit_is_refused():
    x = jnp.zeros((1, 4, 4, 1))
    with pytest.raises(ValueError, match='window'):
        max_pool(x, (2,))
    with pytest.raises(ValueError, match='padding'):
        avg_pool(x, (2, 2), padding=[(0, 0)])


def test_max_pool_takes_integers():
    x = jnp.asarray(np.random.default_rng(0).integers(-9, -1, (1, 5, 4, 2)))
    for pads in ('VALID', 'SAME'):
        y = max_pool(x, (2, 2), (2, 2), pads)
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, nn.max_pool(x, (2, 2), (2, 2), pads))

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn.ops.norm import batch_norm

EPSILON = 1e-3


def plain(x, scale, bias, axes):
    """The definition."""
    shape = [1 if axis in axes else side for axis, side in enumerate(x.shape)]
    mean, var = x.mean(axes), x.var(axes)
    y = (x - mean.reshape(shape)) / jnp.sqrt(var + EPSILON).reshape(shape)
    y = y if scale is None else y * scale.reshape(shape)
    return y if bias is None else y + bias.reshape(shape), mean, var


def draw(seed):
    rng = np.random.default_rng(seed)
    rank = 2 + seed % 4
    x = rng.normal(rng.uniform(-2, 2), rng.uniform(0.5, 2), rng.integers(2, 6, rank))
    count = rng.integers(1, rank + 1) if seed % 2 else rank - 1
    axes = tuple(sorted(int(a) for a in rng.choice(rank, count, replace=False))) if seed % 2 else tuple(range(rank - 1))
    features = tuple(side for axis, side in enumerate(x.shape) if axis not in axes)
    scale, bias = rng.normal(1, 0.5, features), rng.normal(0, 1, features)
    return x, None if seed % 3 == 1 else scale, None if seed % 3 == 2 else bias, axes


@pytest.mark.parametrize('seed', range(8))
def test_values_and_derivatives_are_those_of_the_definition(seed):
    """In float64: outputs, gradients of all three outputs, tangents, and the second derivative."""
    *arguments, axes = draw(seed)
    given = None if seed % 2 == 0 else axes
    with jax.enable_x64(True):
        arguments = [None if a is None else jnp.asarray(a) for a in arguments]
        weights = [np.random.default_rng(i).standard_normal(o.shape) for i, o in enumerate(plain(*arguments, axes))]

        def new(*arguments):
            return batch_norm(*arguments, EPSILON, given)

        def old(*arguments):
            return plain(*arguments, axes)

        def gradient(f):
            return jax.grad(lambda a: sum((w * jnp.sin(o)).sum() for w, o in zip(weights, f(*a), strict=True)))

        def second(f):
            squares = jax.grad(lambda a: sum((g**2).sum() for g in jax.tree.leaves(gradient(f)(a))))
            return squares(arguments)

        tangents = jax.tree.map(jnp.cos, arguments)

        def all_of(f):
            run = jax.jit(lambda a, t: (f(*a), gradient(f)(a), jax.jvp(f, a, t)[1], second(f)))
            return run(arguments, tangents)

        for actual, expected in zip(all_of(new), all_of(old), strict=True):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), actual, expected)


def test_statistics_are_accurate_far_from_zero():
    x = np.random.default_rng(0).normal(100, 1, (16, 8, 8, 4)).astype('float32')
    y, mean, var = batch_norm(x, None, None, 0.0)
    exact = x.astype('float64')
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(y, (exact - exact.mean((0, 1, 2))) / exact.std((0, 1, 2)), atol=1e-4)


def test_bfloat16_is_computed_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 1, (4, 5, 5, 3)), jnp.bfloat16)
    scale, bias = jnp.array([1.0, 2.0, 0.5], jnp.bfloat16), jnp.array([0.0, 1.0, -1.0], jnp.bfloat16)
    wide = [a.astype('float32') for a in (x, scale, bias)]
    (y, mean, var), vjp = jax.vjp(jax.jit(lambda *a: batch_norm(*a, EPSILON)), x, scale, bias)
    expected, vjp_wide = jax.vjp(jax.jit(lambda *a: plain(*a, (0, 1, 2))), *wide)
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(y.astype('float32'), expected[0], rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(mean, expected[1], rtol=1e-6)
    np.testing.assert_allclose(var, expected[2], rtol=1e-5)
    dy = jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(jnp.bfloat16)
    zeros = jnp.zeros(3)
    for new, old in zip(vjp((dy, zeros, zeros)), vjp_wide((dy.astype('float32'), zeros, zeros)), strict=True):
        assert new.dtype == jnp.bfloat16
        np.testing.assert_allclose(new.astype('float32'), old, rtol=2**-7, atol=1e-5)


def test_vmap_is_each_alone():
    x = np.random.default_rng(0).standard_normal((3, 4, 5, 2)).astype('float32')
    scale, bias = jnp.ones((3, 2)), jnp.zeros((3, 2))
    gradient = jax.jit(jax.grad(lambda x, s, b: (batch_norm(x, s, b, EPSILON)[0] ** 3).sum(), argnums=(0, 1, 2)))
    together = jax.jit(jax.vmap(gradient))(x, scale, bias)
    for i in range(3):
        alone = gradient(x[i], scale[i], bias[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5), together, alone)


def test_statistics_are_those_of_the_whole_sharded_batch():
    x = np.random.default_rng(0).normal(np.arange(8)[:, None, None], 1, (8, 5, 3)).astype('float32')
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P('data')))
    step = jax.jit(jax.value_and_grad(lambda x: (batch_norm(x, None, None, EPSILON)[0] ** 3).sum()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), step(sharded), step(x))


def test_one_axis_may_be_given_as_a_number_and_counted_from_the_end():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)), 'float32')
    np.testing.assert_allclose(batch_norm(x, None, None, EPSILON, -1)[1], x.mean(1), atol=1e-6)


def test_parameters_of_another_shape_are_refused():
    with pytest.raises(ValueError, match='bias'):
        batch_norm(jnp.zeros((2, 3)), None, jnp.zeros(2), EPSILON)

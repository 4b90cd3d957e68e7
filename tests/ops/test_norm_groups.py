"""Statistics of groups, of running averages and of one batch: `grouped_batch_norm`, and `forced` on a layer."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn.layers import BatchNorm
from cnn.ops.norm import Statistics, forced, grouped_batch_norm

EPSILON = 1e-3


def batch(examples=8, channels=3):
    """Examples whose means and deviations differ, so that every grouping gives other numbers."""
    rng = np.random.default_rng(0)
    return rng.normal(np.arange(examples)[:, None, None, None], 1 + np.arange(examples)[:, None, None, None] / 4,
                      (examples, 4, 3, channels))  # fmt: skip


def reference(x, scale, bias, groups):
    """The definition, group by group, in NumPy."""
    parts = np.split(x, groups)
    normal = [(part - part.mean((0, 1, 2))) / np.sqrt(part.var((0, 1, 2)) + EPSILON) * scale + bias for part in parts]
    mean, var = (np.mean([getattr(part, name)((0, 1, 2)) for part in parts], 0) for name in ('mean', 'var'))
    return np.concatenate(normal), mean, var


@pytest.mark.parametrize('groups', [1, 2, 4, 8])
def test_each_group_is_normalised_by_itself_and_statistics_are_the_mean_over_groups(groups):
    x, scale, bias = batch(), np.array([0.5, 1.0, 2.0]), np.array([0.0, 1.0, -1.0])
    with jax.enable_x64(True):
        actual = grouped_batch_norm(*map(jnp.asarray, (x, scale, bias)), EPSILON, groups)
    for value, expected in zip(actual, reference(x, scale, bias, groups), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-12)


def test_the_gradient_of_groups_is_that_of_separate_batches():
    x, scale, bias = batch(), jnp.array([0.5, 1.0, 2.0]), jnp.zeros(3)

    def whole(x, scale, bias):
        return (grouped_batch_norm(x, scale, bias, EPSILON, 4)[0] ** 3).sum()

    def apart(x, scale, bias):
        return sum((grouped_batch_norm(part, scale, bias, EPSILON, 1)[0] ** 3).sum() for part in jnp.split(x, 4))

    with jax.enable_x64(True):
        gradients = [jax.grad(f, argnums=(0, 1, 2))(jnp.asarray(x), scale, bias) for f in (whole, apart)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), *gradients)


def test_groups_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match='3 groups can not share a batch of 8'):
        grouped_batch_norm(jnp.asarray(batch()), None, None, EPSILON, 3)


def layer(choice, train=True, momentum=0.75):
    """The output of a layer in training, and its statistics afterwards; before, they are 2 and 4."""
    x = jnp.asarray(batch(), jnp.float32)
    norm = BatchNorm(use_running_average=not train, momentum=momentum, epsilon=EPSILON)
    before = {'mean': jnp.full(3, 2.0), 'var': jnp.full(3, 4.0)}
    params = {'scale': jnp.full(3, 3.0), 'bias': jnp.ones(3)}
    with forced(choice):
        y, after = norm.apply({'params': params, 'batch_stats': before}, x, mutable=['batch_stats'])
    return np.asarray(y), after['batch_stats']


def test_a_layer_takes_the_groups_in_force_and_moves_its_statistics_towards_their_mean():
    y, after = layer(Statistics(groups=4))
    expected, mean, var = reference(batch(), 3, 1, 4)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    np.testing.assert_allclose(after['mean'], 0.75 * 2 + 0.25 * mean, rtol=1e-5)
    np.testing.assert_allclose(after['var'], 0.75 * 4 + 0.25 * var, rtol=1e-5)
    assert np.abs(y - layer(Statistics())[0]).max() > 0.1


def test_a_frozen_layer_uses_its_statistics_in_training_and_keeps_them():
    y, after = layer(Statistics(groups=0))
    np.testing.assert_allclose(y, (batch() - 2) / np.sqrt(4 + EPSILON) * 3 + 1, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(after['mean'], 2)
    np.testing.assert_array_equal(after['var'], 4)


def test_a_measured_layer_has_the_statistics_of_the_batch_and_evaluation_heeds_no_choice():
    y, after = layer(Statistics(measured=True))
    _, mean, var = reference(batch(), 3, 1, 1)
    np.testing.assert_allclose(y, layer(Statistics())[0])
    np.testing.assert_allclose(after['mean'], mean, rtol=1e-5)
    np.testing.assert_allclose(after['var'], var, rtol=1e-5)
    for choice in (Statistics(), Statistics(groups=4), Statistics(measured=True)):
        assert (layer(choice, train=False)[0] == layer(Statistics(groups=0))[0]).all()


def test_groups_that_lie_on_one_device_need_no_communication():
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(batch(16).astype('float32'), jax.NamedSharding(mesh, jax.P('data')))

    def communication(groups, outputs):
        run = jax.jit(lambda x: grouped_batch_norm(x, None, jnp.ones(3), EPSILON, groups)[:outputs])
        compiled = run.lower(x).compile()
        np.testing.assert_allclose(compiled(x)[0], reference(np.asarray(x), 1, 1, groups)[0], atol=1e-4)
        operations = 'all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter'
        return re.findall(rf'= [^\n]*?({operations})(?:-start)?\(', compiled.as_text())

    assert communication(8, 1) == communication(16, 1) == []  # one for each device; two
    assert set(communication(8, 3)) == {'all-reduce'}  # of the running statistics alone, which wait for nothing
    assert 'all-reduce' in communication(1, 1)

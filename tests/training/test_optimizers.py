import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import config
from cnn.config import split_numbers
from cnn.training import optimizers

PARAMS = {'conv': {'kernel': np.array([[1.0, -2.0], [0.5, 3.0]]), 'bias': np.array([0.3, -0.1])}}


def numbers_of(optimizer, schedule, total=10, warmup=0, boundaries=()):
    _, numbers = split_numbers(config.Experiment(optimizer=optimizer, schedule=schedule))
    return {**numbers, 'steps': {'total': total, 'warmup': warmup, 'boundaries': list(boundaries)}}


def rates(schedule, steps, **counts):
    numbers = numbers_of(config.Optimizer(learning_rate=2.0), schedule, **counts)
    return np.array([optimizers.learning_rate(schedule, step, numbers) for step in steps])


def trajectory(optimizer, num_steps=5):
    """Parameters after steps on gradients cos(p) * (step + 1), by the chain and in NumPy."""
    schedule = config.Schedule()
    chain = optimizers.build(optimizer, schedule, numbers_of(optimizer, schedule))
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = chain.init(params)
    reference = {name: np.asarray(value, np.float64) for name, value in PARAMS['conv'].items()}
    moments = {name: [np.zeros_like(value), np.zeros_like(value)] for name, value in reference.items()}
    for step in range(num_steps):
        gradient = jax.tree.map(lambda leaf: jnp.cos(leaf) * (step + 1), params)  # noqa: B023
        updates, state = chain.update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        reference = numpy_step(optimizer, reference, moments, step)
    return params['conv'], reference


def numpy_step(optimizer, params, moments, step):
    gradients = {name: np.cos(value) * (step + 1) for name, value in params.items()}
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    stepped = {}
    for name, value in params.items():
        gradient = gradients[name] * min(1, (optimizer.clip_norm or norm) / norm)
        decay = 0.0 if name == 'bias' else optimizer.weight_decay
        first, second = moments[name]
        if optimizer.name != 'adamw':
            gradient = gradient + decay * value
        if optimizer.name == 'sgd':
            first[:] = optimizer.momentum * first + gradient
            direction = gradient + optimizer.momentum * first if optimizer.nesterov else first
        else:
            first[:] = optimizer.momentum * first + (1 - optimizer.momentum) * gradient
            second[:] = optimizer.second_momentum * second + (1 - optimizer.second_momentum) * gradient**2
            unbiased = first / (1 - optimizer.momentum ** (step + 1))
            direction = unbiased / (np.sqrt(second / (1 - optimizer.second_momentum ** (step + 1))) + optimizer.epsilon)
            if optimizer.name == 'adamw':
                direction = direction + decay * value
        stepped[name] = value - optimizer.learning_rate * direction
    return stepped


@pytest.mark.parametrize(
    'changes',
    [
        {'name': 'sgd', 'momentum': 0.0},
        {'name': 'sgd', 'weight_decay': 0.1},
        {'name': 'sgd', 'weight_decay': 0.1, 'nesterov': True},
        {'name': 'sgd', 'clip_norm': 0.5},
        {'name': 'adam', 'weight_decay': 0.1},
        {'name': 'adamw', 'weight_decay': 0.1, 'clip_norm': 2.0},
    ],
)
def test_trajectory_equals_the_published_update_in_numpy(changes):
    with jax.enable_x64(True):
        found, expected = trajectory(config.Optimizer(learning_rate=0.05, **changes))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)


def test_decay_spares_the_excluded_names_at_any_depth():
    tree = {'a': {'kernel': 0, 'bias': 0, 'norm': {'scale': 0, 'kernel': 0}}, 'scale': 0}
    mask = optimizers.decay_mask(tree, ('bias', 'scale'))
    assert mask == {'a': {'kernel': True, 'bias': False, 'norm': {'scale': False, 'kernel': True}}, 'scale': False}


def test_constant_rises_to_the_full_rate_at_the_last_step_of_the_warmup():
    np.testing.assert_allclose(rates(config.Schedule(), range(6), warmup=4), [0.5, 1, 1.5, 2, 2, 2], rtol=1e-6)


def test_cosine_is_half_a_cosine_after_the_warmup():
    schedule = config.Schedule(name='cosine', final=0.1)
    found = rates(schedule, range(13), total=12, warmup=4)
    expected = [0.5, 1, 1.5, 2] + [2 * (0.1 + 0.9 * (1 + np.cos(np.pi * step / 8)) / 2) for step in range(9)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_step_multiplies_at_each_boundary():
    schedule = config.Schedule(name='step', boundaries=('3', '5'), factor=0.1)
    found = rates(schedule, range(7), boundaries=(3, 5))
    np.testing.assert_allclose(found, [2, 2, 2, 0.2, 0.2, 0.02, 0.02], rtol=1e-6)


def test_one_cycle_goes_from_a_25th_to_the_peak_to_the_end_in_half_cosines():
    found = rates(config.Schedule(name='one_cycle'), [0, 1.5, 3, 6.5, 10], total=10, warmup=3)
    np.testing.assert_allclose(found, [2 / 25, 1 + 1 / 25, 2, 1, 0], rtol=1e-6, atol=1e-7)


def test_every_schedule_is_traced_in_step_and_numbers():
    for name in config.CHOICES['schedule.name']:
        schedule = config.Schedule(name=name, boundaries=('3',))
        optimizer = config.Optimizer(learning_rate=2.0)
        numbers = numbers_of(optimizer, schedule, warmup=2, boundaries=(3,))
        jitted = jax.jit(lambda step, numbers, schedule=schedule: optimizers.learning_rate(schedule, step, numbers))
        for step in range(10):
            eager = optimizers.learning_rate(schedule, step, numbers)
            np.testing.assert_allclose(jitted(step, numbers), eager, rtol=1e-6, atol=1e-9)


def test_every_numeric_field_changes_the_update():
    base = config.Optimizer(name='adamw', learning_rate=0.1, weight_decay=0.1, clip_norm=0.1, epsilon=0.01)
    for field in dataclasses.fields(base):
        if isinstance(getattr(base, field.name), float):
            changed = dataclasses.replace(base, **{field.name: getattr(base, field.name) * 0.5})
            assert not np.allclose(trajectory(changed)[0]['kernel'], trajectory(base)[0]['kernel'], rtol=1e-7), field

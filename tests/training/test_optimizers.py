import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import config, validation
from cnn.config import split_numbers
from cnn.training import muon, optimizers

REFERENCES = json.loads((pathlib.Path(__file__).parent / 'references' / 'optimizers.json').read_text())['optimizers']
SHAPES = {
    'block': {'bias': (3,), 'kernel': (2, 1, 2, 3)},
    'head': {'bias': (3,), 'kernel': (2, 3)},
    'norm': {'scale': (2,)},
    'point': {'kernel': (1, 1, 2, 4)},
}


def split(optimizer, schedule=None, total=10, unfreeze=()):
    """What is compiled, and the numbers."""
    experiment = config.Experiment(optimizer=optimizer, schedule=schedule or config.Schedule())
    structure, numbers = split_numbers(experiment)
    steps = {'total': total, 'warmup': 0, 'every': 1, 'boundaries': [], 'unfreeze': list(unfreeze)}
    return structure, {**numbers, 'steps': steps}


def build(optimizer):
    structure, numbers = split(optimizer)
    return optimizers.build(structure.optimizer, structure.schedule, numbers)


def initial():
    """The parameters that references/make_optimizers.py begins with."""
    shapes, tree = jax.tree.flatten(SHAPES, is_leaf=lambda node: isinstance(node, tuple))
    waves = (np.sin(np.arange(math.prod(shape)) + 0.7 * index).reshape(shape) for index, shape in enumerate(shapes))
    return jax.tree.unflatten(tree, map(jnp.asarray, waves))


COMPILED = {}  # optimizers that differ in numbers share a program


def trajectory(optimizer, num_steps=10, schedule='constant', begin=0, **settings):
    """The parameters after each step on gradients sin(3 p + step), and the last state."""
    structure, numbers = split(optimizer, config.Schedule(name=schedule), **settings)

    def update(params, state, step, numbers):
        gradient = jax.tree.map(lambda leaf: jnp.sin(3 * leaf + step), params)
        chain = optimizers.build(structure.optimizer, structure.schedule, numbers)
        updates, state = chain.update(gradient, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    jitted = COMPILED.setdefault(repr((structure.optimizer, schedule)), jax.jit(update))
    params = initial()
    state, visited = optimizers.build(structure.optimizer, structure.schedule, numbers).init(params), []
    for step in range(begin, begin + num_steps):
        params, state = jitted(params, state, step, numbers)
        visited.append(jax.device_get(params))
    return visited, state


def flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


@pytest.mark.parametrize('name', REFERENCES)
def test_trajectory_is_that_of_the_reference(name):
    reference = REFERENCES[name]
    optimizer = config.Optimizer(**reference['ours'])
    with jax.enable_x64(True):
        visited, _ = trajectory(optimizer, schedule='constant' if reference['constant'] else 'linear')
    for step in ('1', '10'):
        np.testing.assert_allclose(flat(visited[int(step) - 1]), reference[step], rtol=1e-6, atol=1e-7)
    assert np.abs(np.array(reference['10']) - reference['1']).max() > 0.05


def test_every_kind_of_optimizer_has_a_reference():
    assert {reference['ours']['name'] for reference in REFERENCES.values()} == set(validation.CHOICES['optimizer.name'])


def test_momentum_of_lars_holds_the_learning_rate_of_each_step():
    # Algorithm 1 of You et al. 2017: v = momentum v + rate * ratio * (g + decay w); w = w - v.
    optimizer = config.Optimizer(name='lars', weight_decay=0.1, trust_coefficient=0.1, epsilon=0.0, momentum=0.8)
    with jax.enable_x64(True):
        visited, _ = trajectory(optimizer, 5, 'linear')
        weight = np.asarray(initial()['head']['kernel'])
    velocity = 0
    for step in range(5):
        gradient = np.sin(3 * weight + step)
        norm, length = np.linalg.norm(weight), np.linalg.norm(gradient)
        local = 0.1 * norm / (length + 0.1 * norm)
        velocity = 0.8 * velocity + 0.1 * (1 - step / 10) * local * (gradient + 0.1 * weight)
        weight = weight - velocity
    np.testing.assert_allclose(visited[-1]['head']['kernel'], weight, rtol=1e-12)


def test_lamb_moves_each_layer_by_the_learning_rate_times_its_norm_unless_it_is_excluded_from_decay():
    visited, _ = trajectory(config.Optimizer(name='lamb', learning_rate=0.01), 1)
    for part in SHAPES:
        for name, before in initial()[part].items():
            moved = np.linalg.norm(visited[0][part][name] - before)
            expected = 0.01 * (np.linalg.norm(before) if name == 'kernel' else np.sqrt((before != 0).sum()))
            np.testing.assert_allclose(moved, expected, rtol=1e-4)


@pytest.mark.parametrize('shape', [(3, 3, 4, 8), (1, 1, 8, 32), (5, 4, 6), (2, 3, 3, 4, 8)])
def test_muon_gives_filters_directions_with_singular_values_near_one(shape):
    gradient = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    direction = np.asarray(muon.orthogonalize(gradient, 10)).reshape(-1, shape[-1])
    left, _, right = np.linalg.svd(gradient.reshape(-1, shape[-1]), full_matrices=False)
    values = np.linalg.svd(direction, compute_uv=False)
    assert 0.65 < values.min() < values.max() < 1.25
    # The singular vectors are the gradient's: in their basis the direction is diagonal.
    inside = left.T @ direction @ right.T
    assert np.abs(inside - np.diag(np.diag(inside))).max() < 1e-3


def test_muon_leaves_dense_kernels_to_the_other_optimizer_and_scales_tall_filters():
    optimizer = config.Optimizer(name='muon', momentum=0.0, other_momentum=0.0, learning_rate=1.0)
    visited, _ = trajectory(optimizer, 1)
    moved = jax.tree.map(jnp.subtract, visited[0], initial())
    np.testing.assert_allclose(moved['head']['kernel'], -jnp.sin(3 * initial()['head']['kernel']), rtol=1e-5)
    # 4 outputs of 2 inputs: singular values of about sqrt(2) instead of 1.
    values = np.linalg.svd(moved['point']['kernel'][0, 0], compute_uv=False)
    assert 0.65 * 2**0.5 < values.min() < values.max() < 1.25 * 2**0.5


def test_muon_survives_a_gradient_and_a_kernel_of_zeros():
    zeros = {'kernel': jnp.zeros((1, 1, 2, 2))}
    for transformation in (muon.orthogonalized(5, scaled=True), muon.unit_filters()):
        updates, _ = transformation.update(zeros, None, zeros)
        np.testing.assert_array_equal(updates['kernel'], zeros['kernel'])


@pytest.mark.parametrize('shape', [(4,), (3, 4), (5, 3, 4), (2, 2, 3, 4), (2, 2, 2, 3, 4)])
def test_adaptive_clipping_takes_the_norm_over_all_axes_but_the_last(shape):
    optimizer = config.Optimizer(momentum=0.0, learning_rate=1.0, clip_adaptive=0.25)
    chain = build(optimizer)
    weight = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    gradient = weight * jnp.array([0.1, 0.2, 3.0, 4.0]) if len(shape) > 1 else weight * 3
    params, gradients = {'a': {'kernel': weight}}, {'a': {'kernel': gradient}}
    updates, _ = chain.update(gradients, chain.init(params), params)
    share = jnp.array([0.1, 0.2, 0.25, 0.25]) if len(shape) > 1 else 0.25
    np.testing.assert_allclose(-updates['a']['kernel'], weight * share, rtol=1e-5)
    updates, _ = chain.update({'head': gradients['a']}, chain.init({'head': params['a']}), {'head': params['a']})
    np.testing.assert_allclose(-updates['head']['kernel'], gradient, rtol=1e-6)


def test_adaptive_clipping_lets_a_kernel_of_zeros_begin():
    params = {'a': {'kernel': jnp.zeros((1, 2))}}
    chain = build(config.Optimizer(momentum=0.0, learning_rate=1.0, clip_adaptive=0.25))
    updates, _ = chain.update({'a': {'kernel': jnp.array([[3.0, 0.0]])}}, chain.init(params), params)
    np.testing.assert_allclose(updates['a']['kernel'], [[-0.25e-3, 0]], rtol=1e-6)


def test_the_norm_of_the_whole_gradient_is_clipped():
    visited, _ = trajectory(config.Optimizer(momentum=0.0, learning_rate=1.0, clip_norm=0.5), 1)
    gradient = np.sin(3 * flat(initial()))
    assert np.linalg.norm(gradient) > 1
    expected = flat(initial()) - 0.5 * gradient / np.linalg.norm(gradient)
    np.testing.assert_allclose(flat(visited[0]), expected, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_stand_still_without_a_state():
    optimizer = config.Optimizer(name='adamw', weight_decay=0.1, frozen=('block/.*', '.*/scale'))
    visited, state = trajectory(optimizer, 3)
    free, _ = trajectory(dataclasses.replace(optimizer, frozen=()), 3)
    for part, name in (('block', 'kernel'), ('block', 'bias'), ('norm', 'scale')):
        np.testing.assert_array_equal(visited[-1][part][name], initial()[part][name])
    for part, name in (('head', 'kernel'), ('head', 'bias'), ('point', 'kernel')):
        np.testing.assert_array_equal(visited[-1][part][name], free[-1][part][name])
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state))
    assert sizes == sorted([1, 1, *2 * [3, 6, 8]])  # two counts, and two moments of what learns


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'rmsprop', 'muon'])
def test_what_is_unfrozen_later_learns_from_then_on_as_a_run_that_begins_there(name):
    optimizer = config.Optimizer(name=name, weight_decay=0.1, learning_rate=0.01)
    held = dataclasses.replace(optimizer, frozen=('(block|norm).*',), unfreeze=('block.*@3',))
    visited, _ = trajectory(held, 6, 'linear', unfreeze=(3,))
    for step in range(3):
        jax.tree.map(np.testing.assert_array_equal, visited[step]['block'], initial()['block'])
    jax.tree.map(np.testing.assert_array_equal, visited[-1]['norm'], initial()['norm'])
    # A run on the gradients of steps 3 to 5 whose learning rate is that of these steps: 7 / 10 of the peak at first.
    late = dataclasses.replace(optimizer, learning_rate=0.007)
    alone, _ = trajectory(late, 3, 'linear', begin=3, total=7)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, visited[-1]['block'], alone[-1]['block'])
    straight, _ = trajectory(optimizer, 6, 'linear')
    jax.tree.map(close, visited[-1]['head'], straight[-1]['head'])


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'rmsprop', 'muon'])
def test_factors_of_paths_are_factors_on_the_learning_rate(name):
    optimizer = config.Optimizer(name=name, weight_decay=0.1, learning_rate=0.01)
    by_path = dataclasses.replace(optimizer, rates=('head/kernel=3', '(head|point).*=0.5'))
    visited, _ = trajectory(by_path, 4)
    for factor, leaves in ((3, [('head', 'kernel')]), (0.5, [('head', 'bias'), ('point', 'kernel')]),
                           (1, [('block', 'kernel'), ('norm', 'scale')])):  # fmt: skip
        whole, _ = trajectory(dataclasses.replace(optimizer, learning_rate=0.01 * factor), 4)
        for part, leaf in leaves:
            np.testing.assert_allclose(visited[-1][part][leaf], whole[-1][part][leaf], rtol=1e-5)


@pytest.mark.parametrize(('rates', 'factor'), [((), 1), (('stage1/.*=3',), 3)])
def test_layer_decay_slows_a_stage_by_its_depth(rates, factor):
    optimizer = config.Optimizer(momentum=0.0, learning_rate=0.1, layer_decay=0.5, rates=rates)
    chain = build(optimizer)
    params = {part: {'kernel': jnp.ones(2)} for part in ('stem', 'stage1', 'stage2', 'head')}
    updates, _ = chain.update(params, chain.init(params), params)
    found = {part: float(leaf['kernel'][0] / -0.1) for part, leaf in updates.items()}
    assert found == pytest.approx({'stem': 0.5**3, 'stage1': factor * 0.5**2, 'stage2': 0.5, 'head': 1})


NUMBERS = {
    'sgd': {'clip_norm': 0.5, 'clip_adaptive': 0.3},
    'adamw': {'clip_norm': 0.5, 'epsilon': 0.1},
    'lars': {'trust_coefficient': 0.1, 'epsilon': 0.1},
    'lamb': {'epsilon': 0.1},
    'rmsprop': {'epsilon': 0.1},
    'lion': {'second_momentum': 0.9},
    'muon': {'other_momentum': 0.5},
}
UNUSED = {
    'sgd': {'second_momentum', 'epsilon'},
    'lars': {'second_momentum'},
    'lion': {'epsilon'},
    'muon': {'second_momentum', 'epsilon'},
}


@pytest.mark.parametrize('name', NUMBERS)
def test_every_numeric_field_that_an_optimizer_has_changes_the_update(name):
    base = config.Optimizer(name=name, **{'weight_decay': 0.1, 'momentum': 0.8, **NUMBERS[name]})
    params = flat(trajectory(base, 3)[0][-1])
    for field in dataclasses.fields(base):
        value = getattr(base, field.name)
        special = {'trust_coefficient': 'lars', 'other_momentum': 'muon'}.get(field.name, name) != name
        if isinstance(value, float) and not special and field.name not in UNUSED.get(name, ()):
            changed = flat(trajectory(dataclasses.replace(base, **{field.name: value * 0.5}), 3)[0][-1])
            assert not np.allclose(changed, params, rtol=1e-6, atol=1e-7), field.name

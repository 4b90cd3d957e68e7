"""Optimizers inside programs: shared compilations, sharded states, checkpoints, refusals."""

import copy

import jax
import numpy as np
import pytest

from cnn import config as configuration
from cnn.config import Experiment, Spec
from cnn.errors import InputError
from cnn.tasks.classification import Classification
from cnn.training import paths, program, sharding
from cnn.training.checkpoints import Checkpoints
from cnn.training.state import TRAIN, stream

SPEC = Spec(
    {'image': (8, 8, 1), 'label': ()},
    {'image': 'uint8', 'label': 'int64'},
    {'label': tuple('abcd')},
    {'train': 64, 'validation': 64, 'test': 64},
)


def experiment():
    """Everything at once."""
    config = Experiment()
    config.model.options = {'widths': (4, 4, 4), 'hidden': 8, 'norm': 'batch'}
    config.data.batch_size = 16
    config.optimizer = configuration.Optimizer(
        name='muon',
        learning_rate=0.02,
        other='adamw',
        weight_decay=0.1,
        clip_norm=1.0,
        clip_adaptive=0.05,
        sam=0.1,
        frozen=('norm1/.*', 'conv2/.*', 'dense/.*'),
        unfreeze=('conv2/.*@25%', 'dense/kernel@3'),
        rates=('head/.*=2', 'conv3/.*=0.5'),
        layer_decay=0.8,
    )
    config.schedule = configuration.Schedule(name='polynomial', warmup='2', start=0.1, power=2.0, final=0.05)
    config.ema = configuration.Ema(decay=0.5, every=2, warmup=True)
    config.train.duration = '8'
    config.mesh.data = 1
    return config


def train(config, num_steps=4):
    """The program and the state after a few steps on random examples."""
    config = program.resolve(config, SPEC)
    mesh = sharding.make_mesh(config)
    built, numbers = program.build(config, SPEC, 64, mesh)
    state, row = built.init(numbers), {}
    key, draw = stream(config.seed, TRAIN), np.random.default_rng(0)
    for step in range(num_steps):
        batch = {
            'image': draw.integers(0, 256, (16, 8, 8, 1), np.uint8),
            'label': draw.integers(0, 4, 16),
            'valid': np.ones(16, bool),
            'index': np.arange(16, dtype=np.int32),
            'epoch': np.full(16, step, np.int32),
        }
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        state, row = built.train_step(state, batch, key, numbers)
    return built, state, row


NUMBERS = [
    ('optimizer.learning_rate', 0.01),
    ('optimizer.momentum', 0.8),
    ('optimizer.other_momentum', 0.8),
    ('optimizer.weight_decay', 0.5),
    ('optimizer.clip_adaptive', 0.01),
    ('optimizer.sam', 0.5),
    ('optimizer.layer_decay', 0.5),
    ('optimizer.rates', ('head/.*=2', 'conv3/.*=0.25')),
    ('optimizer.unfreeze', ('conv2/.*@25%', 'dense/kernel@2')),
    ('schedule.start', 0.5),
    ('schedule.power', 1.0),
    ('ema.decay', 0.1),
]


def test_arms_that_differ_in_numbers_share_one_compilation_and_every_number_counts(monkeypatch):
    traces, held = [], []
    loss, learning = Classification.loss, paths.learning
    monkeypatch.setattr(Classification, 'loss', lambda *args: traces.append(1) or loss(*args))
    monkeypatch.setattr(paths, 'learning', lambda *args: held.append(1) or learning(*args))
    program._PROGRAMS.clear()
    first, state, row = train(experiment())
    before = jax.tree.leaves(jax.device_get(state))
    assert all(np.isfinite(leaf).all() for leaf in [*before, *row.values()])
    for path, value in NUMBERS:
        config = experiment()
        configuration.set_value(config, path, value)
        built, state, _ = train(config)
        assert built is first
        after = jax.tree.leaves(jax.device_get(state))
        assert any((old != new).any() for old, new in zip(before, after, strict=True)), path
    assert first.train_step._cache_size() == 1
    assert len(traces) == len(held) == 2  # one for each gradient of sharpness-aware minimisation


def test_parameters_begin_to_learn_when_they_are_to():
    states = [jax.device_get(train(experiment(), steps)[1]) for steps in range(5)]
    names = {
        'norm1/scale': 9, 'dense/bias': 9, 'conv2/kernel': 3, 'dense/kernel': 4, 'conv1/kernel': 1, 'head/kernel': 1
    }  # fmt: skip
    for name, begins in names.items():
        part, leaf = name.split('/')
        values = [state.params[part][leaf] for state in states]
        moved = [step for step in range(1, 5) if (values[step] != values[step - 1]).any()]
        assert moved == list(range(begins, 5)), name
    average, kernel = states[2].ema['params']['conv1']['kernel'], states[2].params['conv1']['kernel']
    np.testing.assert_allclose(average, 0.1 * states[0].params['conv1']['kernel'] + 0.9 * kernel, rtol=1e-5)
    shapes = [leaf.shape for leaf in jax.tree.leaves(states[0].opt_state)]
    assert states[0].params['dense']['bias'].shape not in shapes  # (8,): frozen, and no other array has this shape


def test_a_sharded_state_gives_the_result_of_one_device():
    _, alone, _ = train(experiment(), 3)
    config = experiment()
    config.mesh.fsdp = 2
    built, divided, _ = train(config, 3)
    assert any('fsdp' in leaf.sharding.spec for leaf in jax.tree.leaves(built.state.opt_state))

    def close(one, other):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)

    jax.tree.map(close, jax.device_get(alone), jax.device_get(divided))


def test_the_state_comes_back_from_a_checkpoint(tmp_path):
    built, state, _ = train(experiment(), 3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state, 0.5, {})
    restored, _ = checkpoints.last(built.state)
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        ('optimizer.frozen', ('norm_1/.*',), "config.optimizer.frozen: 'norm_1/.*' .* nearest is 'norm1/"),
        ('optimizer.unfreeze', ('hed/kernel@5%',), "config.optimizer.unfreeze: 'hed/kernel' .* 'head/kernel'"),
        ('optimizer.rates', ('conv4/kernel=2',), "config.optimizer.rates: 'conv4/kernel' .* 'conv./kernel'"),
    ],
)
def test_an_expression_that_matches_no_parameter_is_refused(path, value, message):
    config = copy.deepcopy(experiment())
    configuration.set_value(config, path, value)
    with pytest.raises(InputError, match=message) as caught:
        train(config, 0)
    assert 'image_size' not in str(caught.value)

"""Which statistics batch normalisation goes by in a run, and how they are taken anew at its end."""

import jax
import numpy as np
import pytest

from cnn import config as configuration
from cnn import models, validation
from cnn.config import Experiment
from cnn.data import sources
from cnn.data.batches import train_indices
from cnn.errors import InputError
from cnn.training import evaluation, loop, program, recalibration, sharding
from cnn.training.records import RunFolder, read_rows
from cnn.training.state import TRAIN, stream

OPTIONS = {'widths': (4,), 'pools': (True,), 'hidden': 8, 'norm': 'batch', 'dropout': 0.0}


def experiment(**settings):
    config = Experiment()
    config.model.options = dict(OPTIONS)
    config.data.batch_size, config.mesh.data = 32, 1
    config.train.duration, config.eval.every, config.log.every = '6', '3', '1'
    for path, value in settings.items():
        configuration.set_value(config, path.replace('__', '.'), value)
    validation.validate(config)
    return config


def prepared(config):
    """The resolved configuration, its mesh and its training batches."""
    spec = sources.spec(config.data)
    config = program.resolve(config, spec)
    mesh = sharding.make_mesh(config)
    return config, spec, mesh, evaluation.open_split(config, spec, 'train', mesh)


def steps(num_steps=2, **settings):
    """The program, the numbers, the state after a few steps, and the rows."""
    config, spec, mesh, train = prepared(experiment(**settings))
    built, numbers = program.build(config, spec, train.num_examples, mesh)
    state, key, rows = built.init(numbers), stream(config.seed, TRAIN), []
    order = train_indices(train.num_examples, config.data.batch_size, config.seed)
    for batch in train(order, 0, num_steps):
        state, row = built.train_step(state, batch, key, numbers)
        rows.append(jax.device_get(row))
    return jax.device_get(state), rows


def close(one, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


def test_statistics_by_device_are_those_of_ghost_batches_of_a_devices_share():
    device, rows = steps(model__batch_norm='device', mesh__data=8)
    ghost, _ = steps(model__batch_norm='ghost', model__ghost_batch=4)
    close(device.params, ghost.params, rtol=1e-3, atol=1e-5)
    close(device.model_state, ghost.model_state, rtol=1e-3, atol=1e-5)
    _, other = steps(mesh__data=8)
    assert abs(rows[0]['loss'] - other[0]['loss']) > 1e-3


def test_a_ghost_batch_is_of_a_microbatch():
    accumulated, _ = steps(1, model__batch_norm='ghost', model__ghost_batch=16, optimizer__accumulate=2)
    plain, _ = steps(1, optimizer__accumulate=2)
    close(accumulated.params, plain.params, rtol=1e-5, atol=1e-6)


def test_frozen_statistics_stay_and_parameters_learn():
    config, spec, mesh, train = prepared(experiment())
    built, numbers = program.build(config, spec, train.num_examples, mesh)
    first = jax.device_get(built.init(numbers))
    state, rows = steps(8, model__batch_norm='frozen', optimizer__learning_rate=0.02)
    close(state.model_state, first.model_state, rtol=0)
    assert abs(state.params['norm1']['scale'] - first.params['norm1']['scale']).max() > 0
    assert all(np.isfinite(row['loss']) for row in rows)


@pytest.mark.parametrize(
    ('ghost', 'settings', 'remedy'),
    [(5, {}, '32 examples that a device has at a time; try 4'),
     (32, {'mesh__data': 4}, '8 examples that a device has at a time; try 8'),
     (16, {'mesh__data': 2, 'optimizer__accumulate': 2}, '8 examples that a device has at a time; try 8')],
)  # fmt: skip
def test_a_ghost_batch_that_does_not_divide_a_devices_share_is_refused(ghost, settings, remedy):
    config = experiment(model__batch_norm='ghost', model__ghost_batch=ghost, **settings)
    with pytest.raises(InputError, match=rf'config\.model\.ghost_batch={ghost}: does not divide the {remedy}'):
        sharding.make_mesh(config)
    config.model.batch_norm = 'global'
    sharding.make_mesh(config)


def run(config, folder):
    config, spec, mesh, _ = prepared(config)
    return loop.train_and_evaluate(config, spec, mesh, RunFolder(folder), [])


def scores(folder):
    """What the best checkpoint of a run scores on the test split, and its state."""
    mesh = sharding.make_mesh(experiment())
    config, built, numbers, state, _ = evaluation.load_run(folder, mesh)
    batches = evaluation.open_split(config, sources.spec(config.data), 'test', mesh)
    return evaluation.evaluate(built, numbers, state.eval_variables, batches, 32)[0], jax.device_get(state)


def test_recalibrated_statistics_are_those_of_the_training_examples_together(tmp_path, monkeypatch):
    settings = {'ema__decay': 0.9, 'train__duration': '3'}
    plain = run(experiment(**settings), tmp_path / 'plain')
    done = run(experiment(**settings, eval__recalibrate=5), tmp_path / 'new')
    assert done['metrics']['loss'] != plain['metrics']['loss']
    again, state = scores(tmp_path / 'new')
    assert again == done['metrics']
    assert read_rows(tmp_path / 'new' / 'metrics.jsonl')[-1]['loss'] == done['metrics']['loss']

    # The first layer normalises a convolution of the images: its statistics are those of all examples at once.
    _, _, _, train = prepared(experiment())
    order = train_indices(train.num_examples, 32, 0)
    pixels = np.concatenate([np.asarray(batch['image']) for batch in train(order, 0, 5)]) / 255
    layers = jax.tree.map(np.float64, state.ema['params']['conv1'])
    framed = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(framed, (3, 3), (1, 2))  # [N, H, W, C, 3, 3]
    outputs = np.einsum('nhwcij,ijco->nhwo', windows, layers['kernel']) + layers.get('bias', 0)
    for statistics in (state.ema['batch_stats'], state.model_state['batch_stats']):
        np.testing.assert_allclose(statistics['norm1']['mean'], outputs.mean((0, 1, 2)), atol=1e-5)
        np.testing.assert_allclose(statistics['norm1']['var'], outputs.var((0, 1, 2)), rtol=1e-4)

    # Those of the folder are taken while they are of this step, and the run goes on from its own.
    monkeypatch.setattr(recalibration, 'train_indices', lambda *_: pytest.fail('taken anew'))
    (tmp_path / 'new' / 'DONE.json').unlink()
    assert run(experiment(**settings, eval__recalibrate=5), tmp_path / 'new')['metrics'] == done['metrics']
    monkeypatch.undo()
    longer = {**settings, 'train__duration': '6'}
    run(experiment(**longer), tmp_path / 'plain')
    run(experiment(**longer, eval__recalibrate=5), tmp_path / 'new')
    rows = [[row for row in read_rows(tmp_path / name / 'metrics.jsonl') if row['split'] == 'train'] for name in
            ('plain', 'new')]  # fmt: skip
    assert rows[0] == rows[1]


def test_features_are_what_the_head_reads_of_every_example():
    config, spec, mesh, _ = prepared(experiment())
    built, numbers = program.build(config, spec, 100, mesh)
    state = built.init(numbers)
    batches = evaluation.open_split(config, spec, 'test', mesh)
    arrays = evaluation.features(built, numbers, state.eval_variables, batches, 32)
    count = batches.num_examples
    assert count % 32
    assert {name: array.shape for name, array in arrays.items()} == {
        'features': (count, 8), 'label': (count,), 'index': (count,)
    }  # fmt: skip
    np.testing.assert_array_equal(arrays['index'], np.arange(count))
    source = sources.load(config.data, 'test', ('image', 'label'))
    assert [int(source[index]['label']) for index in range(count)] == arrays['label'].tolist()
    images = np.stack([source[index]['image'] for index in range(count)]) / np.float32(255)
    model = models.build('simple_cnn', num_outputs=10, **OPTIONS)
    outputs = model.apply(state.eval_variables, images, train=False)
    head = jax.device_get(state.params['head'])
    np.testing.assert_allclose(arrays['features'] @ head['kernel'] + head['bias'], outputs, rtol=1e-4, atol=1e-5)

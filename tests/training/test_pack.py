import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from cnn import config as configuration
from cnn.config import Experiment
from cnn.data import sources
from cnn.errors import RunFailed, RunStopped
from cnn.training import loop, pack, program, sharding
from cnn.training.records import RunFolder, read_rows


def experiment(seed, learning_rate=0.01, duration='6'):
    config = Experiment()
    config.model.options = {'widths': (4, 4, 4), 'hidden': 8, 'norm': 'batch'}
    config.data.train_split, config.data.test_split = 'validation', None
    config.data.batch_size = 32
    config.optimizer = configuration.Optimizer(name='adamw', learning_rate=learning_rate)
    config.augment.shift = 1
    config.train.duration, config.log.every, config.eval.every = duration, '1', '3'
    config.seed = seed
    return config


def start(config, path, device=0):
    config.mesh.data = 1
    spec = sources.spec(config.data)
    mesh = sharding.make_mesh(config)
    if device:
        mesh = jax.sharding.Mesh(
            np.array(jax.devices()[device : device + 1]).reshape(mesh.devices.shape), mesh.axis_names
        )
    return loop.training(program.resolve(config, spec), spec, mesh, RunFolder(path), ['test'])


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """Rows of three runs alone: seeds 0 and 1, and seed 1 at another learning rate."""
    folder = tmp_path_factory.mktemp('alone')
    for index, config in enumerate(CONFIGS()):
        pack.train([start(config, folder / str(index))], 'unrolled')
    return [read_rows(folder / str(index) / 'metrics.jsonl') for index in range(3)]


def CONFIGS():  # noqa: N802
    return experiment(0), experiment(1), experiment(1, learning_rate=0.02)


@pytest.mark.parametrize('strategy', pack.STRATEGIES)
def test_runs_of_a_pack_are_those_alone(strategy, alone, tmp_path):
    devices = range(3) if strategy == 'dispatched' else (0, 0, 0)
    runs = [
        start(config, tmp_path / str(index), device)
        for index, (config, device) in enumerate(zip(CONFIGS(), devices, strict=True))
    ]
    results = pack.train(runs, strategy)
    assert [result['step'] for result in results] == [6, 6, 6]
    for index, rows in enumerate(alone):
        packed = read_rows(tmp_path / str(index) / 'metrics.jsonl')
        if strategy != 'vmapped':
            assert packed == rows
        else:
            assert [row['step'] for row in packed] == [row['step'] for row in rows]
            first, own = packed[0], rows[0]
            np.testing.assert_allclose([*first.values()][2:], [*own.values()][2:], rtol=1e-5)
    assert alone[1] != alone[2] != alone[0]


def test_the_choice_is_told_and_what_is_measured_enters_no_run(alone, tmp_path, monkeypatch):
    told = []
    for choice in ('none', 'unrolled'):
        monkeypatch.setattr(pack, 'choose', lambda seconds, choice=choice: choice)
        runs = [start(config, tmp_path / f'{choice}-{index}') for index, config in enumerate(CONFIGS())]
        pack.train(runs, 'auto', lambda seconds, strategy: told.append((sorted(seconds), strategy)))
        for index, rows in enumerate(alone):
            assert read_rows(tmp_path / f'{choice}-{index}' / 'metrics.jsonl') == rows
    assert [strategy for _, strategy in told] == ['none', 'unrolled']
    assert all(seconds[0] == 'none' for seconds, _ in told)


def test_a_cpu_that_computes_for_long_is_not_asked_to_compile(monkeypatch):
    monkeypatch.setattr(pack, '_seconds', lambda steps, strategy: 2 * pack.CPU_STEP)
    assert pack.measure(None, 3) == {'none': 6 * pack.CPU_STEP}
    monkeypatch.setattr(pack, '_seconds', lambda steps, strategy: pack.CPU_STEP / 2)
    assert sorted(pack.measure(None, 3)) == ['none', 'unrolled', 'vmapped']
    assert sorted(pack.measure(None, 1)) == ['none']


def test_a_run_that_fails_leaves_the_others_to_go_on(tmp_path):
    runs = [start(experiment(0, rate), tmp_path / str(index)) for index, rate in enumerate((0.01, 1e30, 0.01))]
    first, failed, last = pack.train(runs, 'unrolled')
    assert isinstance(failed, RunFailed)
    assert first['step'] == last['step'] == 6
    assert first['metrics'] == last['metrics']


def test_a_run_that_was_cut_off_goes_on_in_a_pack(alone, tmp_path):
    short = experiment(0, duration='3')
    pack.train([start(short, tmp_path / '0')], 'unrolled')
    runs = [start(config, tmp_path / str(index)) for index, config in enumerate(CONFIGS()[:2])]
    results = pack.train(runs, 'unrolled')
    assert [result['step'] for result in results] == [6, 6]
    assert read_rows(tmp_path / '1' / 'metrics.jsonl') == alone[1]


def test_sigterm_stops_every_run_of_a_pack_after_saving(tmp_path):
    def interrupted(run):
        done = None
        for count in range(100):
            if count == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            try:
                done = yield run.send(done)
            except StopIteration as end:
                return end.value

    before = signal.getsignal(signal.SIGTERM)
    runs = [start(experiment(seed), tmp_path / str(seed)) for seed in range(3)]
    results = pack.train([interrupted(runs[0]), *runs[1:]], 'unrolled')
    assert all(isinstance(result, RunStopped) for result in results)
    assert signal.getsignal(signal.SIGTERM) == before
    for seed in range(3):
        assert (tmp_path / str(seed) / 'checkpoints').exists()
        assert not (tmp_path / str(seed) / 'DONE.json').exists()


def test_arms_that_differ_in_structure_can_not_be_done_together_and_are_done_one_by_one(tmp_path):
    other = dataclasses.replace(experiment(0), model=configuration.Model('mlp', {'widths': (8,)}))
    results = pack.train([start(experiment(0), tmp_path / '0'), start(other, tmp_path / '1')], 'unrolled')
    assert [result['step'] for result in results] == [6, 6]

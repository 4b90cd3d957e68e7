import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from cnn import config as configuration
from cnn import tasks, validation
from cnn.config import Data, Experiment
from cnn.data import sources
from cnn.errors import InputError, RunFailed, RunStopped
from cnn.training import evaluation, loop, program, sharding
from cnn.training.checkpoints import Checkpoints
from cnn.training.records import RunFolder, read_rows

ROOT = pathlib.Path(__file__).parents[2]
# Everything that has a state: batch norm, dropout, moments, an average, augmentation, accumulation.
SETTINGS = {
    'model.options.widths': '(4,4,8)', 'model.options.hidden': '8', 'model.options.norm': 'batch',
    'optimizer.name': 'adamw', 'optimizer.accumulate': '2', 'ema.decay': '0.9', 'ema.every': '3', 'augment.shift': '1',
    'data.batch_size': '32', 'train.duration': '240', 'eval.every': '20', 'checkpoint.every': '30', 'log.every': '1',
}  # fmt: skip


def command(workdir, **settings):
    flags = [f'--config.{path}={value}' for path, value in (SETTINGS | settings).items()]
    return [sys.executable, 'launch.py', *flags, f'--workdir={workdir}']


def environment(devices):
    return {**os.environ, 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}


def last_state(folder):
    config = evaluation.read_config(folder)
    mesh = sharding.make_mesh(experiment())
    built, _ = program.build(config, sources.spec(config.data), 1, mesh)
    state, _ = Checkpoints(folder).last(built.state)
    return jax.device_get(state)


def wait_for(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize('devices', [1, 8])
def test_a_killed_run_ends_with_the_bits_of_one_that_was_left_alone(tmp_path, devices):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    subprocess.run(command(whole), cwd=ROOT, env=environment(devices), check=True)
    process = subprocess.Popen(command(killed), cwd=ROOT, env=environment(devices))

    def midway():
        rows = read_rows(killed / 'metrics.jsonl')
        finished = [int(path.name) for path in (killed / 'checkpoints').glob('*') if path.name.isdigit()]
        return rows and finished and max(finished) >= 60 and rows[-1]['step'] > max(finished)

    wait_for(midway, process)
    process.kill()
    process.wait()
    assert not (killed / 'DONE.json').exists()
    interrupted_at = read_rows(killed / 'metrics.jsonl')[-1]['step']
    assert 60 < interrupted_at < 240
    subprocess.run(command(killed), cwd=ROOT, env=environment(devices), check=True)
    assert len(json.loads((killed / 'run.json').read_text())['history']) == 2
    assert (killed / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()
    results = [json.loads((folder / 'DONE.json').read_text()) for folder in (whole, killed)]
    assert results[0]['metrics'] == results[1]['metrics']
    assert results[0]['best_step'] == results[1]['best_step']
    first, second = last_state(whole), last_state(killed)
    assert first.step == 240
    assert first.ema['batch_stats']
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path):
    process = subprocess.Popen(command(tmp_path), cwd=ROOT, env=environment(1), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(read_rows(tmp_path / 'metrics.jsonl')) > 40, process)
    process.terminate()
    _, message = process.communicate()
    assert process.returncode == 75
    assert message.count('\n') == 1
    assert 'stopped by SIGTERM at step' in message
    step = int(last_state(tmp_path).step)
    assert 0 < step < 240
    assert read_rows(tmp_path / 'metrics.jsonl')[-1]['step'] == step
    subprocess.run(command(tmp_path), cwd=ROOT, env=environment(1), check=True)
    assert json.loads((tmp_path / 'DONE.json').read_text())['step'] == 240


def experiment(**settings):
    config = Experiment()
    config.model.options = {'widths': (4, 4, 8), 'hidden': 8, 'norm': 'batch'}
    config.data.batch_size = 64
    config.optimizer = configuration.Optimizer(name='sgd', learning_rate=0.05, nesterov=True, weight_decay=1e-3)
    config.augment.shift = 1
    config.ema.decay = 0.9
    config.train.duration, config.eval.every, config.log.every = '10', '5', '1'
    config.mesh.data = 1
    for path, value in settings.items():
        configuration.set_value(config, path.replace('__', '.'), value)
    return config


def run(config, folder, profile=None):
    spec = sources.spec(config.data)
    validation.validate(config)
    resolved = program.resolve(config, spec)
    return loop.train_and_evaluate(resolved, spec, sharding.make_mesh(config), RunFolder(folder), [], profile)


def losses(folder):
    return np.array([row['loss'] for row in read_rows(folder / 'metrics.jsonl') if row['split'] == 'train'])


def test_1_2_and_8_devices_agree_in_float64(tmp_path):
    with jax.enable_x64(True):
        for devices in (1, 2, 8):
            types = {'model__dtype': 'float64', 'model__param_dtype': 'float64'}
            run(
                experiment(train__duration='100', eval__every='50', mesh__data=devices, **types),
                tmp_path / str(devices),
            )
    alone = losses(tmp_path / '1')
    assert len(alone) == 100
    assert alone[-10:].mean() < alone[:10].mean()
    for devices in ('2', '8'):
        assert (losses(tmp_path / devices) != alone).any(), 'sums in another order must show in some last bit'
        np.testing.assert_allclose(losses(tmp_path / devices), alone, rtol=1e-9)


def test_1_2_and_8_devices_and_fsdp_agree_in_float32_over_the_first_steps(tmp_path):
    meshes = {'1': (1, 1), '2': (2, 1), '8': (8, 1), 'fsdp': (2, 4)}
    for name, (data, fsdp) in meshes.items():
        run(experiment(mesh__data=data, mesh__fsdp=fsdp), tmp_path / name)
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / '1'), rtol=1e-5)


def test_a_finished_run_is_not_repeated_and_a_longer_one_goes_on(tmp_path):
    first = run(experiment(), tmp_path)
    rows = (tmp_path / 'metrics.jsonl').read_text()
    assert run(experiment(), tmp_path) == first
    assert (tmp_path / 'metrics.jsonl').read_text() == rows
    longer = run(experiment(train__duration='15'), tmp_path)
    assert longer['step'] == 15
    steps = [row['step'] for row in read_rows(tmp_path / 'metrics.jsonl') if row['split'] == 'train']
    assert steps == list(range(1, 16))
    record = json.loads((tmp_path / 'run.json').read_text())
    assert record['history'][-1]['changed'] == {'config.train.duration': ['10', '15']}
    with pytest.raises(InputError, match='is 12 steps; the run is at 15 already'):
        run(experiment(train__duration='12'), tmp_path)


def test_the_test_split_is_read_once_at_the_step_that_validation_chose(tmp_path):
    result = run(experiment(train__duration='40'), tmp_path)
    rows = read_rows(tmp_path / 'metrics.jsonl')
    (test_row,) = (row for row in rows if row['split'] == 'test')
    validation = {row['step']: row['accuracy'] for row in rows if row['split'] == 'validation'}
    assert list(validation) == [5, 10, 15, 20, 25, 30, 35, 40]
    best = min(step for step, accuracy in validation.items() if accuracy == max(validation.values()))
    assert result['best_step'] == test_row['step'] == best
    assert result['metrics']['accuracy'] == test_row['accuracy']


def test_rows_of_validation_and_test_are_those_of_the_averaged_weights(tmp_path):
    run(experiment(train__duration='40'), tmp_path)
    mesh = sharding.make_mesh(experiment())
    config, built, numbers, state, step = evaluation.load_run(tmp_path, mesh)
    rows = {row['split']: row for row in read_rows(tmp_path / 'metrics.jsonl') if row['step'] == step}
    for split in ('validation', 'test'):
        batches = evaluation.open_split(config, sources.spec(Data('digits')), split, mesh)
        averaged, _ = evaluation.evaluate(built, numbers, state.ema, batches, 64)
        raw, _ = evaluation.evaluate(built, numbers, state.variables, batches, 64)
        assert rows[split] == {'step': step, 'split': split, **averaged}
        assert raw['loss'] != averaged['loss']


def test_without_splits_to_evaluate_the_last_state_is_the_result(tmp_path):
    result = run(experiment(data__validation_split=None, data__test_split=None), tmp_path)
    assert result['best_step'] == 10
    assert {row['split'] for row in read_rows(tmp_path / 'metrics.jsonl')} == {'train'}


def test_divergence_is_named_and_leaves_no_broken_checkpoint(tmp_path):
    with pytest.raises(RunFailed, match=r'training diverged: (loss|gradient_norm) of step \d+ is (nan|inf)'):
        run(experiment(optimizer__learning_rate=1e30, log__every='7', checkpoint__every='1'), tmp_path)
    state = last_state(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_sigterm_is_left_to_its_former_handler(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run(experiment(), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    assert RunStopped.exit_code == 75


def test_resident_and_streamed_runs_write_the_same_rows(tmp_path):
    run(experiment(), tmp_path / 'resident')
    run(experiment(data__resident=False, data__workers=1), tmp_path / 'streamed')
    assert (tmp_path / 'streamed/metrics.jsonl').read_bytes() == (tmp_path / 'resident/metrics.jsonl').read_bytes()


def test_no_task_is_named_in_what_all_tasks_share():
    shared = ''.join(file.read_text() for file in (ROOT / 'cnn/training').glob('*.py'))
    assert [name for name in tasks.names() if name in shared] == []


def test_init_from_starts_with_the_evaluated_weights_of_another_run(tmp_path):
    run(experiment(), tmp_path / 'first')
    # One step at rate zero: what is evaluated is what was loaded.
    config = experiment(init_from=str(tmp_path / 'first'), seed=5, optimizer__learning_rate=0.0, train__duration='1')
    config.augment.shift = 0
    config.ema.decay = None
    run(config, tmp_path / 'second')
    mesh = sharding.make_mesh(experiment())
    first = evaluation.load_run(tmp_path / 'first', mesh)[3].ema['params']
    second = evaluation.load_run(tmp_path / 'second', mesh)[3].params
    jax.tree.map(np.testing.assert_array_equal, first, second)
    other = experiment(init_from=str(tmp_path / 'first'))
    other.model.options['hidden'] = 9
    with pytest.raises(InputError, match=r'init_from.*shape'):
        run(other, tmp_path / 'third')


def test_the_profiler_traces_the_chosen_steps(tmp_path):
    run(experiment(), tmp_path, profile=range(3, 5))
    assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


def test_the_loop_fits_its_page():
    assert len(pathlib.Path(loop.__file__).read_text().splitlines()) <= 150

import fcntl
import io
import queue
import threading

import pytest

from cnn import config as configuration
from cnn.config import Experiment
from cnn.studies import worker
from cnn.training import environment, pack, process
from cnn.training.records import read_json, read_rows


def entry(folder, seed, rate=0.01, **fields):
    config = Experiment()
    config.model.name, config.model.options = 'mlp', {'widths': (8,), 'dropout': 0.0, 'activation': 'relu'}
    config.data.train_split, config.data.test_split = 'validation', None
    config.data.batch_size = 32
    config.optimizer = configuration.Optimizer(name='adamw', learning_rate=rate)
    config.train.duration, config.log.every, config.eval.every = '6', '2', '3'
    config.mesh.data, config.seed = 1, seed
    for path, value in fields.items():
        configuration.set_value(config, path, value)
    from cnn.training.program import resolve_with_data

    return {'folder': str(folder), 'config': configuration.to_dict(resolve_with_data(config)[1])}


@pytest.fixture
def work(monkeypatch):
    """Has jobs done in this process; returns what was said and what became of the runs."""
    monkeypatch.setattr(environment, 'prepare_jax', lambda config: None)

    def done(*jobs, stopped=lambda: False):
        said = []
        given = queue.SimpleQueue()
        for job in (*jobs, None):
            given.put(job)
        outcomes = worker._work(given, stopped, lambda event, **details: said.append({'event': event, **details}))
        return said, outcomes

    return done


def events(said, *names):
    return [event for event in said if event['event'] in names]


def test_jobs_are_done_packed_or_alone_with_the_same_rows_and_no_pictures(work, tmp_path):
    alone = [entry(tmp_path / f'alone-{seed}', seed) for seed in (0, 1)]
    packed = [entry(tmp_path / f'packed-{seed}', seed) for seed in (0, 1)]
    said, outcomes = work({'strategy': 'none', 'runs': alone}, {'strategy': 'unrolled', 'runs': packed, 'devices': 0.5})
    assert outcomes == {'done'}
    assert [event['event'] for event in events(said, 'ready', 'done', 'idle')] == [
        'ready', 'done', 'done', 'idle', 'done', 'done', 'idle',
    ]  # fmt: skip
    for seed in (0, 1):
        first, second = tmp_path / f'alone-{seed}', tmp_path / f'packed-{seed}'
        assert read_rows(first / 'metrics.jsonl') == read_rows(second / 'metrics.jsonl')
        assert read_json(first / 'DONE.json')['devices'] == 1
        assert read_json(second / 'DONE.json')['devices'] == 0.25
        assert not list(first.glob('*.png'))
    steps = events(said, 'step')
    assert {(event['step'], event['total']) for event in steps if 'alone-0' in event['folder']} >= {(0, 6)}


def test_runs_that_share_devices_count_their_share_and_those_that_have_some_to_themselves_count_these(work, tmp_path):
    def devices(name, strategy, count, data, **job):
        folders = [tmp_path / f'{name}-{seed}' for seed in range(count)]
        runs = [entry(folder, seed, **{'mesh.data': data}) for seed, folder in enumerate(folders)]
        work({'strategy': strategy, 'runs': runs, **job})
        return [read_json(folder / 'DONE.json')['devices'] for folder in folders]

    assert devices('each', 'dispatched', 2, None) == [1, 1]  # of eight
    assert devices('one', 'dispatched', 2, 1) == [0.5, 0.5]
    assert devices('all', 'unrolled', 2, None) == [4, 4]
    assert devices('half', 'none', 1, 2, devices=0.5) == [1]


def test_what_is_fastest_is_measured_and_told(work, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, '_seconds', lambda steps, strategy: {'unrolled': 1e-4}.get(strategy, 1e-3))
    said, _ = work({'strategy': 'auto', 'runs': [entry(tmp_path / str(seed), seed) for seed in (0, 1)]})
    [measured] = events(said, 'measured')
    assert measured['strategy'] == 'unrolled'
    assert measured['seconds'] == {'none': 2e-3, 'unrolled': 1e-4, 'vmapped': 1e-3}


def test_a_run_that_fails_says_so_in_its_folder_until_the_next_try(work, tmp_path):
    runs = [entry(tmp_path / '0', 0, 1e30), entry(tmp_path / '1', 1)]
    said, outcomes = work({'strategy': 'unrolled', 'runs': runs})
    assert outcomes == {'failed', 'done'}
    [failed] = events(said, 'failed')
    assert failed['folder'] == str(tmp_path / '0')
    assert not failed['again']
    assert read_json(tmp_path / '0' / 'FAILED.json') == {'error': failed['error'], 'exit_code': 1}
    assert failed['error'].startswith('training diverged')
    calm = entry(tmp_path / '0', 0)
    (tmp_path / '0' / 'run.json').unlink()
    said, outcomes = work({'strategy': 'none', 'runs': [calm]})
    assert outcomes == {'done'}
    assert not (tmp_path / '0' / 'FAILED.json').exists()


def test_an_error_in_a_common_step_ends_all_and_lets_the_folders_go(work, tmp_path, monkeypatch):
    def broken(steps, strategy):
        raise MemoryError('too\nlarge')

    monkeypatch.setattr(pack, 'together', broken)
    said, _ = work({'strategy': 'unrolled', 'runs': [entry(tmp_path / str(seed), seed) for seed in (0, 1)]})
    failed = events(said, 'failed')
    assert [event['error'] for event in failed] == ['MemoryError: too large'] * 2
    assert all(event['again'] for event in failed)
    with open(tmp_path / '0' / 'lock') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_folder_that_another_process_has_is_left_alone(work, tmp_path):
    (tmp_path / '0').mkdir()
    with open(tmp_path / '0' / 'lock', 'a') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said, outcomes = work({'strategy': 'none', 'runs': [entry(tmp_path / '0', 0)]})
    assert (outcomes, events(said, 'held', 'failed')) == (set(), [{'event': 'held', 'folder': str(tmp_path / '0')}])
    assert [path.name for path in (tmp_path / '0').iterdir()] == ['lock']


def test_a_finished_run_is_not_repeated(work, tmp_path):
    (tmp_path / '0').mkdir()
    (tmp_path / '0' / 'DONE.json').write_text('{"metrics": {"accuracy": 0.5}}')
    said, _ = work({'strategy': 'none', 'runs': [entry(tmp_path / '0', 0)]})
    assert events(said, 'done') == [{'event': 'done', 'folder': str(tmp_path / '0'), 'metrics': {'accuracy': 0.5}}]
    assert not (tmp_path / '0' / 'run.json').exists()


def test_the_end_of_the_jobs_stops_what_runs_and_what_is_about_to(work, tmp_path):
    with process.sigterm() as stopped:
        process.stop()
        said, outcomes = work({'strategy': 'none', 'runs': [entry(tmp_path / '0', 0)]}, stopped=lambda: False)
        assert stopped()
    assert outcomes == {'stopped'}
    assert len(events(said, 'stopped')) == 1
    assert read_rows(tmp_path / '0' / 'metrics.jsonl') == []
    assert [path.name for path in (tmp_path / '0' / 'checkpoints').iterdir()] == ['1']
    said, outcomes = work({'strategy': 'none', 'runs': [entry(tmp_path / '0', 0)]}, stopped=lambda: True)
    assert (outcomes, events(said, 'started')) == ({'stopped'}, [])


def test_jobs_of_a_file_end_without_stopping_anything():
    jobs: queue.SimpleQueue = queue.SimpleQueue()
    with process.sigterm() as stopped:
        thread = threading.Thread(target=worker._read, args=(io.StringIO('{"a": 1}\n'), jobs, False))
        thread.start()
        thread.join()
        assert not stopped()
    assert [jobs.get(), jobs.get()] == [{'a': 1}, None]


def test_of_the_choices_one_that_changes_bits_must_be_much_faster():
    assert pack.choose({'none': 3.0, 'unrolled': 2.0, 'vmapped': 1.5}) == 'unrolled'
    assert pack.choose({'none': 3.0, 'unrolled': 2.0, 'vmapped': 1.3}) == 'vmapped'
    assert pack.choose({'none': 3.0}) == 'none'

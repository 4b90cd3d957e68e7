import fcntl
import json
import os
import pathlib
import pty
import re
import shutil
import stat
import struct
import subprocess
import sys
import termios
import time

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from cnn import config as configuration
from cnn import validation
from cnn.config import Experiment
from cnn.errors import InputError, RunFailed
from cnn.training import records, sharding
from cnn.training.records import Recorder, RunFolder, code_revision, finite, read_rows

DATA = {'train': 'abc', 'test': 'def'}


def changed(path, value):
    config = Experiment()
    configuration.set_value(config, path, value)
    return config


def test_run_json_tells_what_the_run_was(tmp_path):
    RunFolder(tmp_path).begin(changed('seed', 3), ['launch.py', '--config.seed=3'], DATA)
    record = json.loads((tmp_path / 'run.json').read_text())
    assert validation.from_dict(record['config']) == changed('seed', 3)
    assert record['data'] == DATA
    assert record['packages']['jax']
    assert record['packages']['python'].startswith('3.')
    assert len(record['devices']) == 8
    assert record['code'] == code_revision()
    assert record['history'][0]['command'] == ['launch.py', '--config.seed=3']


def test_another_configuration_is_refused_by_field_and_a_longer_run_is_not(tmp_path):
    RunFolder(tmp_path).begin(Experiment(), [], DATA)
    with pytest.raises(InputError, match=r'config\.optimizer\.learning_rate=0\.1, not 0\.2'):
        RunFolder(tmp_path).begin(changed('optimizer.learning_rate', 0.2), [], DATA)
    with pytest.raises(InputError, match="data of split 'test' changed"):
        RunFolder(tmp_path).begin(Experiment(), [], {**DATA, 'test': 'other'})
    for path in configuration.RESUMABLE:
        RunFolder(tmp_path).begin(changed(path, '7'), [], DATA)


def test_a_second_process_on_the_folder_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    script = f'from cnn.training.records import RunFolder; RunFolder({str(tmp_path)!r})'
    process = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=False)
    assert 'another process is running there' in process.stderr
    assert folder.done is None


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / 'run.json').write_text('{"config": ')
    with pytest.raises(InputError, match=r'run\.json: is damaged'):
        RunFolder(tmp_path).begin(Experiment(), [], DATA)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='cannot be written'):
        RunFolder(tmp_path / 'file' / 'run')


def test_rows_after_a_step_and_rows_cut_off_are_forgotten(tmp_path):
    rows = [{'step': step, 'split': 'train', 'loss': 1 / step} for step in range(1, 6)]
    rows += [{'step': 2, 'split': 'test', 'loss': 0.5}]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows) + '{"step": 6, "spl')
    RunFolder(tmp_path).truncate(3)
    assert read_rows(tmp_path / 'metrics.jsonl') == rows[:3]
    assert '"spl' not in (tmp_path / 'metrics.jsonl').read_text().splitlines()[-1][:12]


def test_values_in_rows_keep_their_bits_and_reach_tensorboard(tmp_path, capsys):
    value = np.float32(1) / np.float32(3)
    recorder = Recorder(tmp_path, start=4, total=8, batch_size=10, seconds=100.0)
    recorder.row(5, 'train', {'loss': value})
    recorder.tick(5)
    with recorder.pause():
        recorder.row(5, 'validation', {'accuracy': 0.5})
    recorder.close()
    assert np.float32(read_rows(tmp_path / 'metrics.jsonl')[0]['loss']) == value
    assert read_rows(tmp_path / 'timings.jsonl')[0]['step'] == 5
    assert recorder.totals()['seconds'] > 100
    (events,) = (tmp_path / 'tensorboard').iterdir()
    found = {entry.tag: entry.simple_value for event in read_events(events) for entry in event.summary.value}
    assert found['train/loss'] == value
    assert found['validation/accuracy'] == 0.5
    assert found['timing/examples_per_second'] > 0
    assert capsys.readouterr().err == ''  # no terminal, no bar


class Slow:
    """Batches of which one is not there when it is asked for."""

    def __init__(self):
        self.left, self.ready, self.closed = 3, True, False

    def __iter__(self):
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        self.left -= 1
        if not self.ready:
            time.sleep(0.2)
        self.ready = self.left != 1
        return self.left

    def close(self):
        self.closed = True


class Running:
    """What a step gives: done after a while."""

    def __init__(self):
        self.waited_for = 0

    def block_until_ready(self):
        self.waited_for += 1
        time.sleep(0.3)
        return self


def test_the_time_counts_as_waiting_in_which_no_batch_is_there_and_nothing_runs(tmp_path):
    recorder, batches = Recorder(tmp_path, start=0, total=3, batch_size=10, seconds=0.0), Slow()
    recorder.running = running = Running()
    assert list(recorder.timed(batches)) == [2, 1, 0]
    assert running.waited_for == 1  # by the last batch alone: steps are dispatched ahead
    assert batches.closed
    recorder.tick(3)
    (row,) = read_rows(tmp_path / 'timings.jsonl')
    assert row['seconds'] > 0.5
    assert 0.2 <= row['waiting'] * row['seconds'] < 0.29  # and not the 0.3 s in which a step ran
    assert recorder.totals()['waiting'] == pytest.approx(row['waiting'])
    recorder.tick(4)
    assert read_rows(tmp_path / 'timings.jsonl')[1]['waiting'] == 0
    recorder.close()


def test_batches_are_closed_where_the_loop_ends_early(tmp_path):
    recorder, batches = Recorder(tmp_path, start=0, total=3, batch_size=10, seconds=0.0), Slow()
    for _ in recorder.timed(batches):
        break
    assert batches.closed
    recorder.close()


def test_unreadable_files_are_listed_once(tmp_path):
    for _ in range(2):  # the same, after a resume
        folder = None
        folder = RunFolder(tmp_path)
        for message in ('a.jpg: is empty', 'b.jpg: is truncated', 'a.jpg: is empty'):
            folder.unreadable(message)
    assert (tmp_path / 'unreadable.txt').read_text() == 'a.jpg: is empty\nb.jpg: is truncated\n'


def read_events(path):
    content, position = path.read_bytes(), 0
    while position < len(content):  # TFRecord: length, its checksum, the record, its checksum
        length = int.from_bytes(content[position : position + 8], 'little')
        event = event_pb2.Event()
        event.ParseFromString(content[position + 12 : position + 12 + length])
        yield event
        position += 16 + length


def test_on_a_terminal_a_bar_shows_the_time_left(tmp_path):
    script = f"""
import pathlib, time
from cnn.training.records import Recorder
recorder = Recorder(pathlib.Path({str(tmp_path)!r}), start=0, total=4, batch_size=10, seconds=0.0)
time.sleep(0.3)
recorder.tick(1)
recorder.row(1, 'train', {{'loss': 0.25}})
recorder.close()
"""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 100, 0, 0))
    process = subprocess.Popen([sys.executable, '-c', script], stdout=its, stderr=its)
    os.close(its)
    shown = b''
    while chunk := read_some(ours):
        shown += chunk
    os.close(ours)
    assert process.wait() == 0
    assert re.search(r'1/4 \[00:00<00:0\d, .*train loss=0\.25', shown.decode()), shown


def read_some(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that the other side is closed
        return b''


def test_a_pause_is_no_training_time(tmp_path, monkeypatch):
    clock = iter(np.arange(0, 100, 1.0))
    monkeypatch.setattr('cnn.training.records.time.monotonic', lambda: next(clock))
    recorder = Recorder(tmp_path, start=0, total=8, batch_size=10, seconds=0.0)
    with recorder.pause():
        pass
    recorder.tick(1)
    recorder.close()
    (row,) = read_rows(tmp_path / 'timings.jsonl')
    assert row['seconds'] == 2.0  # three ticks of the clock, one of them paused


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_value_that_is_not_finite_is_named(value):
    assert finite(3, {'loss': np.float32(1)}) == {'loss': 1.0}
    with pytest.raises(RunFailed, match=r'gradient_norm of step 3 is (nan|inf)'):
        finite(3, {'loss': 1.0, 'gradient_norm': value})


def test_done_is_written_last(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "split": "train", "loss": 1.0}\n')
    assert folder.done is None
    folder.finish({'step': 1}, sharding.make_mesh(Experiment()))
    assert folder.done == {'step': 1, 'devices': len(jax.devices())}
    assert stat.S_ISREG((tmp_path / 'curves.png').stat().st_mode)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('.')]


def test_the_peak_of_memory_is_a_run_s_own_where_the_process_did_nothing_else(tmp_path, monkeypatch):
    def peak(path, *, opened=0, resumed=False):
        monkeypatch.setattr(records, '_OPENED', [tmp_path] * opened)
        if resumed:
            path.mkdir()
            shutil.copy(tmp_path / 'alone' / 'run.json', path)
        folder = RunFolder(path, alone=False)
        folder.begin(Experiment(), [], {})
        folder.finish({}, sharding.make_mesh(Experiment()))
        return folder.done.get('peak_memory')

    now = 1024 * int(re.search(r'VmHWM:\s+(\d+)', pathlib.Path('/proc/self/status').read_text())[1])
    assert peak(tmp_path / 'alone') == pytest.approx(now, rel=0.1)
    assert peak(tmp_path / 'second', opened=1) is None
    assert peak(tmp_path / 'resumed', resumed=True) is None


@pytest.mark.parametrize('alone', [True, False])
def test_notes_are_kept_and_said_by_runs_that_are_alone(tmp_path, capsys, alone):
    folder = RunFolder(tmp_path, alone=alone)
    folder.begin(Experiment(), [], {})
    folder.note('init_from', 'step 7')
    assert json.loads((tmp_path / 'run.json').read_text())['history'][-1]['init_from'] == 'step 7'
    assert ('init_from: step 7' in capsys.readouterr().out) == alone


def test_what_a_data_set_left_out_is_listed(tmp_path):
    folder = RunFolder(tmp_path)
    folder.list_notes('train', {'boxes dropped': ('a.jpg: 3', 'b.jpg: 7'), 'boxes clipped': ('c.jpg: 1',)})
    folder.list_notes('test', {})
    assert (tmp_path / 'notes_train.txt').read_text() == (
        'boxes dropped: 2\n  a.jpg: 3\n  b.jpg: 7\nboxes clipped: 1\n  c.jpg: 1\n'
    )
    assert not (tmp_path / 'notes_test.txt').exists()

"""The run folder: what a run was, what it measured, and the promise that no other process writes there.

run.json         resolved configuration, command, code, versions, devices, data; a list of what was changed on resuming
metrics.jsonl    a row for a step: values that are a function of the configuration alone
timings.jsonl    a row for a step: seconds, examples per second, the share of the time that steps waited for data
tensorboard/     both again, as events
checkpoints/     see checkpoints.py
notes_SPLIT.txt  what the data set left out or changed, such as boxes that reach outside their pictures
unreadable.txt   a line for each example that could not be read: its file and the reason
curves.png, ...  pictures, once the run is done
DONE.json        step, best step, metrics, seconds, examples per second, the share of time that steps waited for data,
                 how many devices the run had to itself, and its peak of memory where that is known
"""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from cnn import config as configuration
from cnn import pictures, validation
from cnn.config import Experiment
from cnn.errors import InputError, RunFailed
from cnn.training import sharding

T = TypeVar('T')
PACKAGES = (
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'grain',
    'tensorflow-datasets',
    'numpy',
    'Pillow',
    'simplejpeg',
    'ml_collections',
)


_OPENED: list[pathlib.Path] = []  # the folders of all runs of this process


class FolderInUse(InputError):
    """Another process writes to the folder."""


class Diverged(RunFailed):
    """A number that is not finite, as it will be again."""


class RunFolder:
    """One run's folder, open for writing by this process alone, until it is closed. Raises FolderInUse.

    One that is not `alone` is one of many, of which pictures are drawn together: it draws none, and says nothing.
    """

    def __init__(self, path: str | os.PathLike[str], alone: bool = True):
        self.path, self._alone = pathlib.Path(path), alone
        self.devices: float | None = None  # how many the run has to itself, where not all of its mesh
        self._whole = False  # this process does the run from its beginning
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / 'lock', 'a')  # noqa: SIM115  (held as long as the process lives)
        except OSError as error:
            raise InputError(f'--workdir={self.path}: cannot be written ({error.strerror}); choose another') from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise FolderInUse(
                f'--workdir={self.path}: another process is running there; wait or choose another'
            ) from None
        _OPENED.append(self.path)

    def close(self) -> None:
        """Lets others write there."""
        self._lock.close()

    @property
    def done(self) -> dict[str, Any] | None:
        """The result of a finished run."""
        return read_json(self.path / 'DONE.json')

    def begin(self, config: Experiment, command: list[str], data: dict[str, str]) -> None:
        """Writes run.json, or checks it against what the folder holds and notes what differs.

        `data` holds the fingerprints of the splits, and of the teacher. Raises InputError for differences that would
        make it another run.
        """
        record = read_json(self.path / 'run.json')
        entry: dict[str, Any] = {
            'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
            'command': command,
        }
        environment = {'code': code_revision(), 'packages': package_versions(), 'devices': device_names()}
        if record is None:
            self._whole = True
            record = {'config': configuration.to_dict(config), 'data': data, **environment, 'history': []}
        else:
            entry['changed'] = self._changes(record, config, data, environment)
            if record['config'] != configuration.to_dict(config):
                (self.path / 'DONE.json').unlink(missing_ok=True)
            record['config'] = configuration.to_dict(config)
        record['history'].append(entry)
        write_json(self.path / 'run.json', record)

    def note(self, name: str, text: str) -> None:
        """Says what happened at this start of the run, and keeps it in run.json."""
        if self._alone:
            print(f'{name}: {text}')
        record = read_json(self.path / 'run.json')
        record['history'][-1][name] = text
        write_json(self.path / 'run.json', record)

    def _changes(self, record: Any, config: Experiment, data: Any, environment: Any) -> dict[str, Any]:
        """What differs from the record, as name: [then, now]."""
        changes = configuration.differences(validation.from_dict(record['config']), config)
        for path, (old, new) in changes.items():
            if path not in configuration.RESUMABLE and not (path == 'init_from' and self._moved_with(old, new)):
                raise InputError(
                    f'--workdir={self.path}: holds a run with config.{path}={old!r}, not {new!r}; choose another folder'
                )
        for split, digest in data.items():
            if record['data'].get(split) != digest:
                what = 'the teacher' if split == 'teacher' else f'the data of split {split!r}'
                raise InputError(f'--workdir={self.path}: {what} changed since the run began')
        now = {name: [record[name], value] for name, value in environment.items() if record[name] != value}
        return {**{f'config.{path}': list(pair) for path, pair in changes.items()}, **now}

    def _moved_with(self, old: str | None, new: str | None) -> bool:
        """Whether a run that lies beside this one is meant, where the folder of both has another name now."""
        then, now = pathlib.Path(old or ''), pathlib.Path(new or '')
        return then.name == now.name and now.resolve().parent == self.path.resolve().parent

    def truncate(self, step: int) -> None:
        """Forgets the rows after a step, and a row cut off in the middle."""
        for name in ('metrics.jsonl', 'timings.jsonl'):
            rows = [row for row in read_rows(self.path / name) if row['step'] <= step and row.get('split') != 'test']
            if (self.path / name).exists():
                _write(self.path / name, ''.join(json.dumps(row) + '\n' for row in rows))

    def picture(self, name: str, draw: Callable[[], np.ndarray]) -> None:
        """Writes name.png."""
        if not self._alone:
            return
        from PIL import Image

        temporary = self.path / f'.{name}.png'
        Image.fromarray(draw()).save(temporary, format='png')
        temporary.rename(self.path / f'{name}.png')

    def unreadable(self, message: str) -> None:
        """Adds a line to unreadable.txt, once."""
        path = self.path / 'unreadable.txt'
        if not path.exists() or message not in path.read_text().splitlines():
            with open(path, 'a') as file:
                file.write(message + '\n')

    def list_notes(self, split: str, notes: Mapping[str, Sequence[str]]) -> None:
        """Writes what a data set left out or changed, such as boxes outside their pictures, to notes_SPLIT.txt."""
        lines = [
            f'{kind}: {len(entries)}\n' + ''.join(f'  {entry}\n' for entry in entries)
            for kind, entries in notes.items()
        ]
        if lines:
            _write(self.path / f'notes_{split}.txt', ''.join(lines))

    def finish(self, result: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
        """Draws the curves and writes DONE.json, the last thing that a run does; returns what it holds.

        Devices and processes know the peak of all that they did: it is a run's own where that did nothing else.
        """
        self.picture('curves', lambda: pictures.curves(read_rows(self.path / 'metrics.jsonl')))
        devices = mesh.size if self.devices is None else self.devices
        peak = {'peak_memory': sharding.peak_memory(mesh)[0]} if self._whole and len(_OPENED) == 1 else {}
        done = {**result, 'devices': devices, **peak}
        write_json(self.path / 'DONE.json', done)
        return done


class Recorder:
    """Rows of metrics and timings, to files, TensorBoard and a progress bar (only on a terminal)."""

    def __init__(self, path: pathlib.Path, start: int, total: int, batch_size: int, seconds: float):
        from tensorboardX import SummaryWriter

        self._files = {name: open(path / f'{name}.jsonl', 'a') for name in ('metrics', 'timings')}  # noqa: SIM115
        self._events = SummaryWriter(str(path / 'tensorboard'), purge_step=start + 1)
        self._bar = tqdm(total=total, initial=start, unit='step', disable=None, dynamic_ncols=True)
        self._batch_size = batch_size
        self._began = self._since = time.monotonic()
        self._waited = 0.0
        self.running: Any = None  # what the last step gives, on the devices
        self._path, self._earlier, self._step = path, seconds, start

    @property
    def seconds(self) -> float:
        """Spent on the run so far, in earlier processes too."""
        return self._earlier + time.monotonic() - self._began

    def row(self, step: int, split: str, values: dict[str, Any]) -> dict[str, float]:
        """Records the scalar values of a step."""
        scalars = {name: float(value) for name, value in values.items()}
        self._write('metrics', {'step': step, 'split': split, **scalars})
        for name, value in scalars.items():
            self._events.add_scalar(f'{split}/{name}', value, step)
        self._bar.set_postfix({f'{split} {name}': f'{value:.4g}' for name, value in list(scalars.items())[:2]})
        return scalars

    def tick(self, step: int) -> None:
        """Records how long the steps since the last call took, pauses apart."""
        seconds = time.monotonic() - self._since
        rate, waiting = self._batch_size * (step - self._step) / max(seconds, 1e-9), self._waited / max(seconds, 1e-9)
        self._write('timings', {'step': step, 'seconds': seconds, 'examples_per_second': rate, 'waiting': waiting})
        self._events.add_scalar('timing/examples_per_second', rate, step)
        self._events.add_scalar('timing/waiting', waiting, step)
        self._waited = 0.0
        self._bar.update(step - self._step)
        self._since, self._step = time.monotonic(), step

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches. Waiting is the time in which the next one is not there and the devices are done with `running`.

        Where it is there, nothing waits for the devices: steps are dispatched ahead of them.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(getattr(batches, 'close', lambda: None))
            while True:
                if not getattr(batches, 'ready', True):
                    jax.block_until_ready(self.running)
                began = time.monotonic()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                self._waited += time.monotonic() - began
                yield batch

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside is not training time."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def totals(self) -> dict[str, float]:
        """The run's seconds, the median of its training speeds and the share of its steps' time spent waiting."""
        rows = read_rows(self._path / 'timings.jsonl')
        waited = sum(row.get('waiting', 0) * row['seconds'] for row in rows)
        return {
            'seconds': self.seconds,
            'examples_per_second': statistics.median(row['examples_per_second'] for row in rows),
            'waiting': waited / sum(row['seconds'] for row in rows),
        }

    def _write(self, name: str, row: dict[str, Any]) -> None:
        self._files[name].write(json.dumps(row) + '\n')
        self._files[name].flush()

    def close(self) -> None:
        """Flushes and closes everything."""
        self._bar.close()
        self._events.close()
        for file in self._files.values():
            file.close()


def finite(step: int, row: dict[str, Any]) -> dict[str, float]:
    """A training row as numbers. Raises Diverged naming the first one that is not finite."""
    scalars = {name: float(value) for name, value in jax.device_get(row).items()}
    for name, value in scalars.items():
        if not math.isfinite(value):
            raise Diverged(
                f'training diverged: {name} of step {step} is {value}; '
                'lower config.optimizer.learning_rate or set config.optimizer.clip_norm'
            )
    return scalars


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file; None where there is none. Raises InputError where it is damaged."""
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except json.JSONDecodeError as error:
        raise InputError(f'{path}: is damaged ({error}); remove the folder or choose another --workdir') from error


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The whole rows of a JSON-lines file; a last line that was cut off is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith('\n')]


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    _write(path, json.dumps(value, indent=2) + '\n')


def _write(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(f'.{path.name}')
    temporary.write_text(text)
    temporary.rename(path)


def code_revision() -> str | None:
    """The commit of the code, with '+' where files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(pathlib.Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '--untracked-files=no') else '')
    except (OSError, subprocess.CalledProcessError):
        return None


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    versions = {'python': platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def device_names() -> list[str]:
    """The kind of each device."""
    return [f'{device.platform}: {device.device_kind}' for device in jax.devices()]

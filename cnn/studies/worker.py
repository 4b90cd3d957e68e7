"""The process that does runs: job after job, so that what was imported, compiled and read serves them all.

    python -m cnn.studies.worker [FILE]

A job is a line of JSON, from the file or from who started this process:

    {"strategy": "none", "runs": [{"folder": "...", "config": {...}}, ...], "devices": 1.0, "command": [...]}

Strategies are those of cnn/training/pack.py, auto, and none: one run after the other. The runs of a process agree in
what must stand before JAX starts (`deterministic`, float64), and those of a packed job in their program.

What happens is told line by line on standard output: `event` is ready, started, step, measured, done, failed, held,
stopped or idle. A run that fails has a FAILED.json in its folder until it is tried again. SIGTERM, and the end of what
the jobs come from, stop the runs after saving; the process ends with 75, as launch.py does, or 1 where a run failed.
"""

import contextlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cnn import config as configuration
from cnn import validation
from cnn.data import sources
from cnn.errors import InputError, RunStopped, of_disk
from cnn.training import environment, pack, process, sharding
from cnn.training.loop import Step, training
from cnn.training.pack import NONE, Run
from cnn.training.records import Diverged, FolderInUse, RunFolder, write_json

EVERY = 0.5  # seconds between two words about the steps of a run
Say = Callable[..., None]


def main(argv: list[str]) -> int:
    """Does all jobs; returns the exit code."""
    say = _teller()
    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with process.sigterm() as stopped:
        file = open(argv[1]) if len(argv) > 1 else sys.stdin  # noqa: SIM115  (as long as the process)
        threading.Thread(target=_read, args=(file, jobs, file is sys.stdin), daemon=True).start()
        outcomes = _work(jobs, stopped, say)
    return 75 if 'stopped' in outcomes else 1 if 'failed' in outcomes else 0


def _work(jobs: 'queue.SimpleQueue[Any]', stopped: Callable[[], bool], say: Say) -> set[str]:
    """Returns what became of the runs."""
    outcomes: set[str] = set()
    prepared = False
    while job := jobs.get():
        if not prepared:
            environment.prepare_jax(validation.from_dict(job['runs'][0]['config']))
            say('ready', platform=jax.default_backend(), devices=jax.device_count())
            prepared = True
        for part in [[run] for run in job['runs']] if job['strategy'] == NONE else [job['runs']]:
            if stopped():
                outcomes.add('stopped')
                break
            outcomes |= _together(part, job, say)
        say('idle')
    return outcomes


def _together(runs: list[Mapping[str, Any]], job: Mapping[str, Any], say: Say) -> set[str]:
    """Some runs, packed where there are several."""
    outcomes = set()
    folders: dict[str, RunFolder] = {}

    def end(event: str, name: str, **details: Any) -> None:
        folders.pop(name).close()
        outcomes.add(event)
        say(event, folder=name, **details)

    def finish(name: str, result: dict[str, Any] | Exception) -> None:
        if isinstance(result, RunStopped):
            end('stopped', name)
        elif isinstance(result, Exception):
            _fail(name, result, folders, outcomes, say)
        else:
            end('done', name, metrics=result['metrics'], seconds=result['seconds'])

    packed: dict[str, Run] = {}
    meshes: dict[str, Mesh] = {}
    share = job.get('devices', 1.0)  # of each device of this process
    for place, run in enumerate(runs):
        name = run['folder']
        try:
            folder = folders[name] = RunFolder(name, alone=False)
            if folder.done:
                end('done', name, metrics=folder.done['metrics'])
                continue
            (folder.path / 'FAILED.json').unlink(missing_ok=True)
            config = validation.from_dict(run['config'])
            mesh = _mesh(config, place, job['strategy'])
            begun = training(config, sources.spec(config.data), mesh, folder, job.get('command', sys.argv))
            packed[name], meshes[name] = _followed(begun, name, say, finish), mesh
        except FolderInUse:
            say('held', folder=name)
        except Exception as error:
            _fail(name, error, folders, outcomes, say)

    def measured(seconds: Mapping[str, float], strategy: str) -> None:
        say('measured', seconds=seconds, runs=len(packed), strategy=strategy)
        for name, folder in folders.items() if strategy == NONE else ():
            folder.devices = share * meshes[name].size

    for name, mesh in meshes.items():
        beside = sum(mesh.devices.flat[0] in other.devices for other in meshes.values())
        folders[name].devices = share * mesh.size / beside
    try:
        pack.train(list(packed.values()), job['strategy'], measured)
    except Exception as error:  # in a step that was done for all
        for name, begun in packed.items():
            begun.close()
            if name in folders:
                _fail(name, error, folders, outcomes, say)
    return outcomes


def _fail(name: str, error: Exception, folders: dict[str, RunFolder], outcomes: set[str], say: Say) -> None:
    """Writes FAILED.json, says so and lets the folder go."""
    error = of_disk(error) or error
    known = hasattr(error, 'exit_code')
    if not known and not isinstance(error, OSError):
        traceback.print_exception(error)
    text = ' '.join((str(error) if known else f'{type(error).__name__}: {error}').split())
    outcome = {'error': text, 'exit_code': getattr(error, 'exit_code', 1)}
    folder = folders.pop(name, None)
    if folder:
        try:
            write_json(folder.path / 'FAILED.json', outcome)
        except OSError:  # the disk may be what failed
            (folder.path / '.FAILED.json').unlink(missing_ok=True)
        folder.close()
    outcomes.add('failed')
    say('failed', folder=name, **outcome, again=not isinstance(error, InputError | Diverged))


def _followed(run: Run, name: str, say: Say, finish: Callable[..., None]) -> Generator[Step, Any, dict[str, Any]]:
    """The run, with a word about its steps now and then, and at once about its end."""
    done, said, step, total = None, 0.0, 0, 0
    while True:
        try:
            wanted = run.send(done)
        except StopIteration as end:
            finish(name, end.value)
            return end.value
        except Exception as error:
            finish(name, error)
            raise
        if not total:
            say('started', folder=name)
            state, *_, numbers = wanted.arguments
            step, total = int(state.step), int(numbers['steps']['total'])
        if time.monotonic() - said > EVERY:
            said = time.monotonic()
            say('step', folder=name, step=step, total=total)
        done = yield wanted
        step += 1


def _mesh(config: configuration.Experiment, place: int, strategy: str) -> Mesh:
    """The mesh that the configuration wants; in a pack on several devices, one of them where it does not say."""
    devices = jax.devices()
    if strategy in (NONE, 'vmapped', 'unrolled') or len(devices) == 1 or config.mesh.data or config.mesh.fsdp > 1:
        return sharding.make_mesh(config)
    whole = sharding.make_mesh(config)
    own = np.asarray(devices[place % len(devices)]).reshape((1,) * len(whole.axis_names))
    return Mesh(own, whole.axis_names, axis_types=whole.axis_types)


def _read(file: Iterator[str], jobs: 'queue.SimpleQueue[Any]', is_pipe: bool) -> None:
    """Reads jobs until there are no more; with who sent them gone, what runs is stopped."""
    for line in file:
        jobs.put(json.loads(line))
    if is_pipe:
        process.stop()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)  # the other ends may be gone
        os.dup2(nowhere, 2)
    jobs.put(None)


def _teller() -> Say:
    """Takes standard output for events alone: whatever else is printed goes to standard error."""
    out = os.dup(1)
    os.dup2(2, 1)

    def say(event: str, **details: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more; the end of the jobs will be read
            os.write(out, json.dumps({'event': event, **details}).encode() + b'\n')

    return say


if __name__ == '__main__':
    environment.use_huge_pages()
    sys.exit(main(sys.argv))

"""Worker processes as the queue has them; what they do is in worker.py."""

import collections
import contextlib
import importlib.util
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from cnn import config as configuration
from cnn.config import Experiment
from cnn.scripts import ROOT
from cnn.studies.plan import Plan, Run

Events: TypeAlias = 'queue.SimpleQueue[tuple[Worker | None, dict[str, Any]]]'
MOST_ON_CPU = 8  # workers; each has the libraries in memory, 0.5 GB
LAST_WORDS = 20  # lines


def settings(config: Experiment) -> tuple[bool, bool]:
    """What stands when JAX starts, so that runs which differ in it can't share a process."""
    return config.deterministic, 'float64' in (config.model.dtype, config.model.param_dtype)


class Worker:
    """A process that runs are given to; it puts what happens into `events`, and at its end `ended` with its code."""

    def __init__(self, place: int, devices: str | None, events: Events, say: Callable[[str], None]):
        self.place = place
        self.runs: dict[str, Run] = {}  # by folder: what it has and has not told the end of
        self.busy = False  # until it says idle
        self.settings: tuple[bool, bool] | None = None
        self.compilation = self.strategy = ''
        self.computes_on_cores = False  # and JAX has started its threads, of which bits depend on the number
        self._cores: set[int] | None = None  # None: all
        self.tail: collections.deque[str] = collections.deque(maxlen=LAST_WORDS)
        environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
        if devices is not None:
            environment['CUDA_VISIBLE_DEVICES'] = devices
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'cnn.studies.worker'],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors='replace', env=environment, start_new_session=True,  # the terminal's ^C is for us alone
        )  # fmt: skip
        self._threads = [
            threading.Thread(target=self._listen, args=(events,), daemon=True),
            threading.Thread(target=self._overhear, args=(say,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def give(self, runs: Sequence[Run], strategy: str, **job: Any) -> None:
        """Has it do these runs, which have one program where the strategy is a pack's."""
        self.runs, self.busy = {str(run.folder): run for run in runs}, True
        self.settings, self.compilation, self.strategy = settings(runs[0].config), runs[0].compilation, strategy
        entries = [{'folder': str(run.folder), 'config': configuration.to_dict(run.config)} for run in runs]
        self._send(json.dumps({'strategy': strategy, 'runs': entries, **job}) + '\n')

    def keep_to(self, cores: set[int]) -> None:
        """Has its threads, and those that they start, run on these cores."""
        if cores == self._cores:
            return
        self._cores = cores
        for thread in pathlib.Path(f'/proc/{self._process.pid}/task').glob('*'):
            with contextlib.suppress(ProcessLookupError):  # it may have ended
                os.sched_setaffinity(int(thread.name), cores)

    def stop(self) -> None:
        """Has it save what it runs, and end."""
        self._send(None)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()

    def close(self) -> None:
        """Stops it and waits for it."""
        self.stop()
        for thread in self._threads:
            thread.join()

    def _send(self, line: str | None) -> None:
        """Writes a line, or ends them. That it ended is heard elsewhere."""
        stdin: Any = self._process.stdin
        try:
            if line is None:
                stdin.close()
            else:
                stdin.write(line)
                stdin.flush()
        except (BrokenPipeError, ValueError):
            pass

    def _listen(self, events: Any) -> None:
        stdout: Any = self._process.stdout
        for line in stdout:
            events.put((self, json.loads(line)))
        events.put((self, {'event': 'ended', 'code': self._process.wait()}))

    def _overhear(self, say: Callable[[str], None]) -> None:
        stderr: Any = self._process.stderr
        for line in stderr:
            self.tail.append(line.rstrip())
            say(line.rstrip())


def share_cores(busy: Sequence[Worker]) -> None:
    """Gives each of these workers cores of its own, as many as the others, where Linux can and there are enough.

    Threads of two processes on the same cores wait for each other: on 2 cores two runs of a small network side by side
    take a sixth longer so.
    """
    able = [worker for worker in busy if worker.computes_on_cores]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_setaffinity') else []
    each = len(cores) // max(len(able), 1)
    for place, worker in enumerate(able):
        worker.keep_to(set(cores[place * each : (place + 1) * each] if each else cores))


def slots(plan: Plan, workers: int | None) -> list[str | None]:
    """The GPUs of each worker that may be started, as CUDA_VISIBLE_DEVICES has them; None: whatever there is."""
    wanted = max(max(1, run.config.mesh.data or 1) * run.config.mesh.fsdp for run in plan.left)
    devices = gpus()
    if devices:
        own = [','.join(devices[at : at + wanted]) for at in range(0, len(devices), wanted)]
        return list(own[:workers])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return [None] * (workers or min(cores, MOST_ON_CPU))


def gpus() -> list[str]:
    """The GPUs that JAX would see, by number or name; starts none."""
    has_plugin = any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13))
    if not has_plugin or os.environ.get('JAX_PLATFORMS', 'cuda').split(',')[0] not in ('cuda', 'gpu'):
        return []
    if 'CUDA_VISIBLE_DEVICES' in os.environ:
        return [name for name in os.environ['CUDA_VISIBLE_DEVICES'].split(',') if name]
    return [str(index) for index, _ in enumerate(pathlib.Path('/proc/driver/nvidia/gpus').glob('*'))]

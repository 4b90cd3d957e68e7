"""The runs of a plan on this machine: worker processes, each with its devices, that are given one job after another.

Only the run folders know what is done. Whatever is killed, the same command goes on: a worker whose launcher is gone
saves and ends, and a folder is written by one process at a time.

The first run goes alone; where it fails nothing else is begun. Runs with one compilation go to the same worker, as a
pack where packing is faster. A run that starts from another one waits for it.
"""

import contextlib
import dataclasses
import math
import queue
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from cnn.errors import InputError, RunFailed, RunStopped
from cnn.studies.plan import Plan, Run
from cnn.studies.progress import Progress
from cnn.studies.results import DONE
from cnn.studies.workers import Worker, settings, share_cores, slots
from cnn.training.pack import AUTO, NONE, STRATEGIES
from cnn.training.records import write_json

PACKS = (AUTO, NONE, *STRATEGIES)
LARGEST_PACK = 8  # runs
PATIENCE = 30.0  # seconds that a folder may be held by a worker whose launcher is gone


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that can't be done."""

    run: Run
    error: str
    exit_code: int
    first: bool  # it was the one that went alone

    def __str__(self) -> str:
        alone = ' (the first run; nothing else was begun)' if self.first else ''
        return f'{self.run.arm}, seed {self.run.seed}: {self.error}{alone}'


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run a plan."""

    pack: str = AUTO
    workers: int | None = None  # None: one for each GPU, or each core
    keep_going: bool = False  # with what is queued, after a failure
    retries: int = 1  # of a run that a signal, the system or the disk ended; others end the same way again
    command: Sequence[str] = ()  # as run.json records it


def run(plan: Plan, options: Options) -> list[Failure]:
    """Does the runs that are not done; returns those that failed.

    Raises RunStopped after SIGINT or SIGTERM, when all runs are saved.
    """
    if not plan.left:
        return []
    progress = Progress(plan)
    with contextlib.closing(progress):
        whole = Queue(plan, options, progress)
        with whole.listening():
            try:
                whole.work()
            finally:
                whole.close()
    if whole.stopping and whole.unfinished:
        done = len(plan.runs) - len(whole.unfinished)
        raise RunStopped(f'stopped; {done} of {len(plan.runs)} runs are done; the same command resumes')
    return whole.failures


def raise_for(failures: Sequence[Failure]) -> None:
    """Raises what the first failure was, naming it and how many there are."""
    if failures:
        first = failures[0]
        more = f'; and {len(failures) - 1} more' if len(failures) > 1 else ''
        raise (InputError if first.exit_code == InputError.exit_code else RunFailed)(f'{first}{more}')


class Queue:
    """What waits, what runs and where."""

    def __init__(self, plan: Plan, options: Options, progress: Progress):
        self._options, self._progress = options, progress
        self._events: queue.SimpleQueue[tuple[Worker | None, dict[str, Any]]] = queue.SimpleQueue()
        self._waiting = list(plan.left)
        self._tries = dict.fromkeys((run.folder for run in plan.left), 0)
        self._held: list[Run] = []
        self._patient_until = time.monotonic() + PATIENCE
        self._workers: list[Worker] = []
        self._pack = options.pack
        # Of a run by itself: where packs have a device for each run, it has one too.
        self._single = 'dispatched' if options.pack in (AUTO, 'dispatched') else NONE
        self._slots = slots(plan, options.workers)  # devices of each worker
        self.failures: list[Failure] = []
        self.unfinished = {run.folder for run in plan.left}
        self.stopping = False
        # What goes alone, until it is done.
        baseline = [run for run in self._ready if run.arm == plan.study.baseline] or self._ready
        self._canary = None if any(run.status == DONE for run in plan.runs) else baseline[0]

    @property
    def _ready(self) -> list[Run]:
        """Those that wait for nothing but a worker."""
        return [run for run in self._waiting if run.start not in self.unfinished]

    def work(self) -> None:
        """Until all is done, or as far as can be."""
        while True:
            self._assign()
            busy = [worker for worker in self._workers if worker.busy]
            share_cores(busy)
            if not busy and not self._held:
                break
            try:
                worker, event = self._events.get(timeout=0.5 if self._held else None)
            except queue.Empty:
                self._again()
                continue
            if worker is None:
                self._stop()
            else:
                getattr(self, f'_on_{event["event"]}')(worker, event)
        for run in self._waiting:
            self._progress.say(f'not begun: {run.arm}, seed {run.seed}: starts from {run.start}, which is not done')

    def close(self) -> None:
        """Ends the workers; one that runs saves first."""
        for worker in self._workers:
            worker.close()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the queue; a second one the workers too, unsaved."""

        def heard(number: int, _: Any) -> None:
            self._events.put((None, {'event': 'signal'}))

        before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        if self.stopping:
            for worker in self._workers:
                worker.kill()
        elif self._waiting or any(worker.busy for worker in self._workers) or self._held:
            self._progress.say('stopping; runs are being saved (once more: at once, unsaved)')
            self.stopping = True
            self._waiting, self._held = [], []
            for worker in self._workers:
                worker.stop()

    def _assign(self) -> None:
        """Gives jobs to idle workers, and starts those that are wanted."""
        if not self._ready or self.stopping:
            return
        if self._canary is None and self._pack == AUTO and not any(self._size(run) > 1 for run in self._waiting):
            self._pack = NONE
        alone = self._canary is not None or self._pack == AUTO  # nothing disturbs what is measured
        if alone and any(worker.busy for worker in self._workers):
            return
        wanted = 1 if alone else min(len(self._slots), len(self._workers) + len(self._waiting))
        while len(self._workers) < wanted:
            self._start()
        for worker in list(self._workers):
            if worker.busy or not self._ready:
                continue
            if worker.settings not in (None, *(settings(run.config) for run in self._ready)):
                worker.close()
                self._workers.remove(worker)
                worker = self._start()
            runs, strategy = self._job(worker)
            if runs:
                self._waiting = [run for run in self._waiting if run not in runs]
                on_cpu = len(self._slots) > 1 and self._slots[0] is None
                shared = {'devices': 1 / len(self._workers)} if on_cpu and self._canary is None else {}
                worker.give(runs, strategy, command=list(self._options.command), **shared)
            if self._canary is not None or self._pack == AUTO:
                return

    def _start(self) -> Worker:
        place = min(set(range(len(self._slots))) - {worker.place for worker in self._workers})
        worker = Worker(place, self._slots[place], self._events, self._progress.say)
        self._workers.append(worker)
        return worker

    def _job(self, worker: Worker) -> tuple[list[Run], str]:
        """What this worker does next."""
        if self._canary is not None:
            return [self._canary], self._single
        able = [run for run in self._ready if worker.settings in (None, settings(run.config))]
        # What went wrong in a pack is tried alone.
        fresh = [run for run in able if not self._tries[run.folder]]
        if not fresh:
            return able[:1], self._single
        elsewhere = {other.compilation for other in self._workers if other.busy}
        own = [run for run in fresh if run.compilation == worker.compilation]
        new = [run for run in fresh if run.compilation not in elsewhere]
        first = (own or new or fresh)[0]
        group = [run for run in fresh if run.compilation == first.compilation]
        pack = group[: self._size(first)]
        return pack, self._pack if len(pack) > 1 else self._single

    def _size(self, run: Run) -> int:
        """Of the pack that this run would be in."""
        if self._pack == NONE or self._tries[run.folder]:
            return 1
        others = sum(run.compilation == other.compilation and not self._tries[other.folder] for other in self._waiting)
        return min(LARGEST_PACK, others, math.ceil((len(self._tries) - 1) / len(self._slots)))

    def _on_ready(self, worker: Worker, event: dict[str, Any]) -> None:
        worker.computes_on_cores = event['platform'] == 'cpu'
        if event['devices'] > 1 and self._pack == AUTO:
            self._pack = 'dispatched'
        if event['platform'] != 'cpu' and self._slots[0] is None:
            self._slots = self._slots[:1]  # several processes can't share the devices
        while len(self._workers) < min(len(self._slots), len(self.unfinished)):
            self._start()  # so that it has imported what it needs when the first run is done

    def _on_started(self, worker: Worker, event: dict[str, Any]) -> None:
        pass

    def _on_step(self, worker: Worker, event: dict[str, Any]) -> None:
        self._progress.at(worker.runs[event['folder']], event['step'])

    def _on_measured(self, worker: Worker, event: dict[str, Any]) -> None:
        self._pack = event['strategy']
        names = {NONE: 'one after another'}
        times = ', '.join(f'{1e3 * spent:.4g} ms {names.get(name, name)}' for name, spent in event['seconds'].items())
        self._progress.say(f'a step of {event["runs"]} runs takes {times}: --pack={self._pack}')

    def _on_idle(self, worker: Worker, event: dict[str, Any]) -> None:
        worker.busy = False

    def _on_done(self, worker: Worker, event: dict[str, Any]) -> None:
        run = self._taken(worker, event)
        self.unfinished.discard(run.folder)
        self._progress.done(run, event)

    def _on_held(self, worker: Worker, event: dict[str, Any]) -> None:
        self._held.append(self._taken(worker, event))

    def _on_stopped(self, worker: Worker, event: dict[str, Any]) -> None:
        run = self._taken(worker, event)
        if not self.stopping:
            self._fail(run, 'its worker was stopped', 1, True)

    def _on_failed(self, worker: Worker, event: dict[str, Any]) -> None:
        self._fail(self._taken(worker, event), event['error'], event['exit_code'], event['again'])

    def _on_ended(self, worker: Worker, event: dict[str, Any]) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
        runs, code = list(worker.runs.values()), event['code']
        worker.busy = False
        how = signal.strsignal(-code) if code < 0 else f'exit code {code}'
        for run in runs:
            if not self.stopping:
                said = f'; its last words: {worker.tail[-1]}' if worker.tail else ''
                self._fail(run, f'its worker ended ({how}{said})', 1, True)

    def _taken(self, worker: Worker, event: dict[str, Any]) -> Run:
        run = worker.runs.pop(event['folder'])
        if run is self._canary and event['event'] in ('done', 'held'):
            self._canary = None
        return run

    def _fail(self, run: Run, error: str, exit_code: int, again: bool) -> None:
        self._tries[run.folder] += 1
        if again and self._tries[run.folder] <= self._options.retries and not self.stopping:
            self._progress.say(f'again: {run.arm}, seed {run.seed}: {error}')
            self._waiting.append(run)
            return
        failure = Failure(run, error, exit_code, run is self._canary)
        self._progress.say(f'FAILED: {failure}')
        self.failures.append(failure)
        with contextlib.suppress(OSError):  # a worker that was killed could not
            if run.folder.exists() and not (run.folder / 'FAILED.json').exists():
                write_json(run.folder / 'FAILED.json', {'error': error, 'exit_code': exit_code})
        if run is self._canary or not self._options.keep_going:
            self._waiting, self._held = [], []

    def _again(self) -> None:
        """What others held, once nothing else is left to do."""
        if self._ready or any(worker.busy for worker in self._workers):
            return
        if time.monotonic() < self._patient_until:
            self._waiting, self._held = [*self._waiting, *self._held], []
            return
        for run in self._held:
            self._progress.say(f'skipped: {run.arm}, seed {run.seed}: another process has its folder')
        self._held = []

"""What Slurm knows of the jobs of a study, and how its runs stand."""

import collections
import contextlib
import dataclasses
import json
import pathlib
import shutil
import subprocess
from collections.abc import Iterable, Sequence

from cnn.errors import RunFailed
from cnn.studies.plan import Run
from cnn.studies.slurm_task import locked

# Whatever else Slurm says of a job, it is there.
ENDED = {'BOOT_FAIL', 'CANCELLED', 'COMPLETED', 'DEADLINE', 'FAILED', 'NODE_FAIL', 'OUT_OF_MEMORY', 'PREEMPTED'}
ENDED |= {'REVOKED', 'TIMEOUT'}
UNKNOWN = 'UNKNOWN'  # of a job that Slurm never had or has forgotten, which takes minutes where nobody keeps accounts


@dataclasses.dataclass(frozen=True)
class Job:
    """A task of an array as the cluster has it."""

    id: str  # such as 12_3; the submission's name where Slurm does not know it
    state: str  # in Slurm's words
    reason: str  # why it waits
    log: pathlib.Path

    @property
    def ended(self) -> bool:
        """Whether it will not run any more."""
        return self.state in ENDED or self.state == UNKNOWN

    def __str__(self) -> str:
        waits = self.state == 'PENDING' and self.reason not in ('', 'None')
        return self.state.lower().replace('_', ' ') + (f' ({self.reason})' if waits else '')


def find(root: pathlib.Path) -> dict[str, Job]:
    """By name of the run's folder, the job that it was last given to.

    Submissions whose runs are all done are not asked for. Raises RunFailed where Slurm does not answer.
    """
    submissions: list[tuple[str, list[list[str]]]] = []
    for path in sorted((root / 'slurm').glob('*/runs.json'), key=lambda path: path.stat().st_mtime_ns):
        packs = json.loads(path.read_text())
        if not all((root / run / 'DONE.json').exists() for pack in packs for run in pack):
            submissions.append((path.parent.name, packs))
    if not submissions:
        return {}
    states = known([name for name, _ in submissions])
    jobs: dict[str, Job] = {}
    for name, packs in submissions:
        for index, pack in enumerate(packs):
            number, state, reason = states.get((name, index), ('*', UNKNOWN, ''))
            job = Job(
                number if state != UNKNOWN else name, state, reason, root / 'slurm' / name / f'{number}_0_log.err'
            )
            jobs |= dict.fromkeys(pack, job)
    return jobs


def known(names: Sequence[str]) -> dict[tuple[str, int], tuple[str, str, str]]:
    """(job id, state, reason) by name of the submission and index of the task, of the jobs that Slurm remembers."""
    states: dict[tuple[str, int], tuple[str, str, str]] = {}
    chosen = f'--name={",".join(names)}'
    for line in _accounts(chosen):
        number, state, name = line.split('|')
        if state.split()[0] in ENDED:  # CANCELLED by somebody; what is still there, the queue knows
            states[name, _index(number)] = number, state.split()[0], ''
    command = ['squeue', '--noheader', '--array', '--states=all', chosen, '--format=%i|%T|%r|%j']
    queue = subprocess.run(command, capture_output=True, text=True)
    if queue.returncode:
        raise RunFailed(f'Slurm does not answer ({queue.stderr.strip() or "squeue failed"}); the same command goes on')
    for line in queue.stdout.splitlines():
        number, state, reason, name = line.split('|')
        states[name, _index(number)] = number, state, reason
    return states


def summary(runs: Sequence[Run], jobs: dict[str, Job]) -> str:
    """How many runs are what."""
    words = collections.Counter(_word(run, jobs) for run in runs)
    return f'{len(runs)} runs: ' + ', '.join(f'{count} {word}' for word, count in sorted(words.items()))


def failures(runs: Iterable[Run], jobs: dict[str, Job]) -> list[str]:
    """A line for each of these runs, which are not done: why."""
    lines = []
    for run in runs:
        job = jobs.get(run.folder.name)
        why = f'job {job.id} ended as {job}; see {job.log}' if job else 'was not begun'
        with contextlib.suppress(OSError, ValueError, KeyError):
            why = json.loads((run.folder / 'FAILED.json').read_text())['error']
        lines.append(f'{run.arm}, seed {run.seed}: {why}')
    return lines


def done(run: Run) -> bool:
    """Whether its folder says so."""
    return (run.folder / 'DONE.json').exists()


def underway(run: Run, jobs: dict[str, Job]) -> bool:
    """Whether a job has it, or a process."""
    job = jobs.get(run.folder.name)
    return (job is not None and not job.ended) or locked(run.folder)


def _word(run: Run, jobs: dict[str, Job]) -> str:
    job = jobs.get(run.folder.name)
    if done(run):
        return 'done'
    if job and not job.ended:
        return str(job)
    if locked(run.folder):
        return 'running'
    if (run.folder / 'FAILED.json').exists():
        return 'failed'
    return f'ended: {job}' if job else 'left'


def _accounts(chosen: str) -> list[str]:
    """They go further back than the queue, but not every cluster keeps them."""
    if shutil.which('sacct') is None:
        return []
    flags = ('--noheader', '--parsable2', '--allocations', '--array', '--starttime=now-30days')
    command = ['sacct', *flags, chosen, '--format=JobID,State,JobName']
    accounts = subprocess.run(command, capture_output=True, text=True)
    return accounts.stdout.splitlines() if accounts.returncode == 0 else []


def _index(number: str) -> int:
    """The place of a task in its array, of an id such as 12_3; a job alone is the first."""
    return int(number.partition('_')[2] or 0)

"""Runs of a study on a cluster: job arrays of Slurm, submitted through submitit.

A submission is a folder, STUDY/slurm/NAME. Its runs.json says which runs each task of the array does, and is written
before the array is handed in under that name, so that whoever comes after a launcher that was killed in between finds
the tasks by the name, or sees that there are none. Logs lie beside it. What became of a run stands in its own folder.

A task hears SIGTERM where it is preempted, and before its time is up. Its runs save, the task is queued again, and they
go on at their step.
"""

import contextlib
import dataclasses
import fcntl
import importlib.util
import io
import json
import pathlib
import re
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cnn import config as configuration
from cnn.errors import InputError, RunStopped, nearest
from cnn.scripts import ROOT
from cnn.studies import slurm_jobs
from cnn.studies.plan import Plan, Run
from cnn.studies.slurm_jobs import done, failures, summary, underway
from cnn.studies.slurm_task import Task
from cnn.studies.workers import settings as process_settings
from cnn.training.pack import AUTO
from cnn.training.records import write_json

LARGEST_ARRAY = 1000  # as Slurm comes; its MaxArraySize
LONGEST_WARNING = 90  # seconds between SIGTERM and the end of a task's time
POLL_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a task asks of the cluster; sbatch's own variables, such as SBATCH_ACCOUNT, hold besides."""

    partition: str | None = None  # None: the cluster's default
    time: int = 60  # minutes; a run that takes longer saves and is queued again
    gpus: int = 0
    cpus: int | None = None
    memory: int | None = None  # GB
    runs: int = 1  # at most, of those that have one program, in one task


def parse(text: str | None) -> Settings:
    """The settings of NAME=VALUE,NAME=VALUE. Raises InputError."""
    given: dict[str, Any] = {}
    known = [field.name for field in dataclasses.fields(Settings)]
    for item in filter(None, (text or '').split(',')):
        name, _, value = item.partition('=')
        if name not in known:
            raise nearest('setting of --slurm', name, known)
        least = 0 if name == 'gpus' else 1
        if name == 'partition' and not value:
            raise InputError(f'--slurm={text}: partition is a name')
        if name != 'partition' and not (value.isdecimal() and int(value) >= least):
            raise InputError(f'--slurm={text}: {name} is a number from {least}, not {value!r}')
        given[name] = value if name == 'partition' else int(value)
    return Settings(**given)


def check() -> None:
    """Raises InputError where nothing can be submitted from here."""
    if importlib.util.find_spec('submitit') is None:
        raise InputError('--executor=slurm needs submitit: pip install submitit')
    for program in ('sbatch', 'squeue', 'srun'):
        if shutil.which(program) is None:
            raise InputError(
                f'--executor=slurm needs a machine of the cluster, where {program} is found; '
                '--executor=local runs the study here, --emit=commands prints commands for other schedulers'
            )


def execute(
    plan: Plan, settings: Settings, wait: bool = False, strategy: str = AUTO, command: Sequence[str] = ()
) -> list[str] | None:
    """Submits the runs that are neither done nor on their way, and prints how all of them stand.

    The study's folder and the checkout must have the same names on every node.

    Args:
      wait: stay until the jobs have ended.
      strategy: of runs that share a task; see worker.py.
      command: as run.json records it.

    Returns a line for each run that is not done; None where jobs are at it yet. Raises InputError where Slurm refuses
    the jobs, RunFailed where it does not answer.
    """
    with _only_launcher(plan.root):
        jobs = slurm_jobs.find(plan.root)
        if later := sum(map(_waits, plan.runs)):
            print(f'{later} runs start from others, which are not done; then the same command submits them')
        idle = [run for run in plan.runs if not done(run) and not underway(run, jobs) and not _waits(run)]
        for line in failures((run for run in idle if run.folder.name in jobs or _failed(run).exists()), jobs):
            print(f'once more: {line}')
        packs = list(_packs(idle, settings.runs))
        for begin in range(0, len(packs), LARGEST_ARRAY):
            array = packs[begin : begin + LARGEST_ARRAY]
            print(_submit(array, plan.root, settings, {'strategy': strategy, 'command': list(command)}))
            for run in (run for pack in array for run in pack):
                _failed(run).unlink(missing_ok=True)
    said = ''
    try:
        while True:
            jobs = slurm_jobs.find(plan.root)
            left = [run for run in plan.runs if not done(run)]
            ended = not any(underway(run, jobs) for run in left)
            if summary(plan.runs, jobs) != said:
                said = summary(plan.runs, jobs)
                print(said, flush=True)
            if ended and wait and any(run.start and not _waits(run) and run.folder.name not in jobs for run in left):
                return execute(plan, settings, wait, strategy, command)
            if ended:
                return failures(left, jobs)
            if not wait:
                print('the same command shows how they stand, and reports once all are done; --wait stays for that')
                return None
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        raise RunStopped('the jobs go on; the same command shows how they stand, scancel ends them') from None


def _packs(runs: Iterable[Run], largest: int) -> Iterator[list[Run]]:
    """Runs that can share a process and their program, and that no other pack has."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.compilation, process_settings(run.config)), []).append(run)
    for group in groups.values():
        for begin in range(0, len(group), largest):
            yield group[begin : begin + largest]


def _waits(run: Run) -> bool:
    """Whether it starts from a run that is not done."""
    return run.start is not None and not (run.start / 'DONE.json').exists()


def _failed(run: Run) -> pathlib.Path:
    return run.folder / 'FAILED.json'


@contextlib.contextmanager
def _only_launcher(root: pathlib.Path) -> Iterator[None]:
    try:
        (root / 'slurm').mkdir(parents=True, exist_ok=True)
        lock = open(root / 'slurm' / 'lock', 'a')  # noqa: SIM115  (closed below)
    except OSError as error:
        raise InputError(f'--workdir={root}: cannot be written ({error.strerror}); choose another') from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f'--workdir={root}: another launcher is submitting its runs; wait') from None
        yield


def _submit(packs: Sequence[Sequence[Run]], root: pathlib.Path, settings: Settings, job: Mapping[str, Any]) -> str:
    """Hands in an array of a task for each pack; returns a line that says so."""
    import submitit

    name = f'{re.sub(r"[^A-Za-z0-9_.-]", "_", root.resolve().name)}-{uuid.uuid4().hex[:8]}'
    folder = root.resolve() / 'slurm' / name
    folder.mkdir()
    tasks = [_task(pack, folder / f'{index}.json', job) for index, pack in enumerate(packs)]
    write_json(folder / 'runs.json', [[run.folder.name for run in pack] for pack in packs])
    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(**_parameters(name, settings))
    try:
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # the error says the same
            jobs = [executor.submit(task) for task in tasks]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
        if not slurm_jobs.known([name]):  # Slurm may have taken what it was too slow to answer
            shutil.rmtree(folder)
        said = re.findall(r'(?m)^sbatch: (?:error: )?(.*)', str(error))
        raise InputError(f'sbatch: {"; ".join(said) or error}') from error
    number, count = jobs[0].job_id.partition('_')[0], sum(map(len, packs))
    return f'submitted {count} runs as job {number}, {len(tasks)} tasks; logs in {root}/slurm/{name}'


def _task(pack: Sequence[Run], file: pathlib.Path, job: Mapping[str, Any]) -> Task:
    """Writes the job that a worker reads."""
    folders = tuple(str(run.folder.resolve()) for run in pack)
    configs = (configuration.to_dict(run.config) for run in pack)
    runs = [{'folder': folder, 'config': config} for folder, config in zip(folders, configs, strict=True)]
    strategy = {'strategy': 'none'} if len(pack) == 1 else {}
    file.write_text(json.dumps({**job, **strategy, 'runs': runs}) + '\n')
    return Task((sys.executable, '-m', 'cnn.studies.worker', str(file)), folders)


def _parameters(name: str, settings: Settings) -> dict[str, Any]:
    """Of submitit's executor."""
    warning = min(LONGEST_WARNING, 15 * settings.time)
    parameters = {
        'job_name': name,
        'partition': settings.partition,
        'time': settings.time,
        'nodes': 1,
        'ntasks_per_node': 1,
        'gpus_per_node': settings.gpus or None,
        'cpus_per_task': settings.cpus,
        # Since Slurm 22.05 srun does not take this over from the job.
        'srun_args': [f'--cpus-per-task={settings.cpus}'] if settings.cpus else None,
        'mem': f'{settings.memory}GB' if settings.memory else None,
        'array_parallelism': LARGEST_ARRAY,
        'setup': [f'export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}'],
        # In place of submitit's SIGUSR2, which would end the processes of the runs before they have saved.
        'additional_parameters': {'signal': f'TERM@{warning}', 'requeue': True},
    }
    return {key: value for key, value in parameters.items() if value is not None}

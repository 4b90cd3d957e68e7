"""What a task of a job array does on its node: runs in a process of their own, that save and are queued again.

SIGTERM comes where the task is preempted, and before its time is up.
"""

import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any, NoReturn

STOPPED = 75  # the exit code of a process that saved after SIGTERM
START_ATTEMPTS = 10  # of a task that is stopped each time before its runs can save
LOCK_SECONDS = 120  # after which a folder whose process died with its machine is free


@dataclasses.dataclass(frozen=True)
class Task:
    """A process that does some runs: what submitit calls on the node."""

    command: tuple[str, ...]
    folders: tuple[str, ...]  # of the runs

    def __call__(self) -> None:
        """Ends with the exit code of the process. Runs that it leaves unfinished, and not saved, get a FAILED.json."""
        processes: list[subprocess.Popen[str]] = []

        def hear(number: int, _: Any) -> None:
            if not processes:
                _stop()
            processes[0].terminate()

        signal.signal(signal.SIGTERM, hear)
        folders = [pathlib.Path(folder) for folder in self.folders]
        for folder in folders:
            _await_lock(folder)
            (folder / 'FAILED.json').unlink(missing_ok=True)
        processes.append(subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True, errors='replace'))
        last = _passed_on(processes[0])
        code = processes[0].wait()
        attempts = int(os.environ.get('SLURM_RESTART_COUNT', 0)) + 1
        if code == STOPPED or (code == -signal.SIGTERM and attempts < START_ATTEMPTS):
            _stop()
        if code:
            error = f'killed by signal {-code}, {signal.strsignal(-code)}' if code < 0 else last
            for folder in folders:
                _fail(folder, error or f'exit code {code}', code)
            sys.exit(code if code > 0 else 1)


def locked(folder: pathlib.Path) -> bool:
    """Whether a process trains there; see records.RunFolder."""
    try:
        with open(folder / 'lock') as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _await_lock(folder: pathlib.Path) -> None:
    """A process that died with its machine holds the folder for a while yet."""
    end = time.monotonic() + LOCK_SECONDS
    while locked(folder) and time.monotonic() < end:
        time.sleep(1)


def _passed_on(process: subprocess.Popen[str]) -> str:
    """Passes its standard error on; returns the last line."""
    last = ''
    for line in process.stderr or ():
        sys.stderr.write(line)
        sys.stderr.flush()
        last = line.strip().removeprefix('launch.py: ') or last
    return last


def _fail(folder: pathlib.Path, error: str, code: int) -> None:
    """Says why a run is not done, unless somebody has said it, or another process is at it."""
    if locked(folder) or (folder / 'DONE.json').exists() or (folder / 'FAILED.json').exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / '.FAILED.json').write_text(json.dumps({'error': error, 'exit_code': code}) + '\n')
    (folder / '.FAILED.json').rename(folder / 'FAILED.json')


def _stop() -> NoReturn:
    """Queues this job again, unless Slurm does so itself, or somebody has cancelled it: then it is not running."""
    # One task of an array has the array's own number as its SLURM_JOB_ID, which names all of them to Slurm's programs.
    array = os.environ.get('SLURM_ARRAY_JOB_ID')
    job = f'{array}_{os.environ["SLURM_ARRAY_TASK_ID"]}' if array else os.environ['SLURM_JOB_ID']
    state = subprocess.run(['squeue', '--noheader', f'--jobs={job}', '--format=%T'], capture_output=True, text=True)
    if state.stdout.strip() == 'RUNNING':
        subprocess.run(['scontrol', 'requeue', job], check=True)
    sys.exit(STOPPED)

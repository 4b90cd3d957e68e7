"""A real Slurm of one node, from Debian's packages, as three processes that end with a block.

    python tests/studies/start_slurm.py COMMAND ...

runs a command on such a cluster. Installs slurm-wlm and munge where they are missing, as root; keeps everything else in
a folder of its own.
"""

import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'squeue', 'scontrol', 'scancel')
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
# A job that is queued again waits until what it was trusted with can be trusted no more: two minutes by default.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
ReturnToService=2
KillWait=20
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Unavailable(Exception):
    """Why there can be no cluster here."""


def install() -> None:
    """Sees to the programs. Raises Unavailable."""
    os.environ['PATH'] += ':/usr/sbin:/sbin'
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if os.getuid():
        raise Unavailable('the daemons of Slurm and munge want root')
    if not missing:
        return
    if shutil.which('apt-get') is None:
        raise Unavailable(f'{missing[0]} is not installed, and there is no apt-get to install slurm-wlm and munge')
    apt = ['apt-get', '-o', 'Acquire::Retries=1', '-o', 'Acquire::http::Timeout=20', '-y']
    environment = os.environ | {'DEBIAN_FRONTEND': 'noninteractive'}
    for arguments in (['update'], ['install', '--no-install-recommends', 'slurm-wlm', 'munge']):
        done = subprocess.run([*apt, *arguments], env=environment, capture_output=True, text=True, timeout=300)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ['']
            raise Unavailable(f'apt-get {arguments[0]} failed: {said[-1]}')


@contextlib.contextmanager
def cluster(cpus: int | None = None) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's programs find a cluster of this machine. Raises Unavailable.

    Args:
      cpus: that the cluster thinks it has; None: this machine's.
    """
    install()
    folder = pathlib.Path(tempfile.mkdtemp(prefix='slurm-'))
    folder.chmod(0o755)  # munge trusts no folder that others can write to
    processes: list[subprocess.Popen[bytes]] = []
    try:
        environment = os.environ | {'SLURM_CONF': str(_configure(folder, cpus or os.cpu_count() or 1))}
        munge = folder / 'munge'
        files = {'key-file': 'key', 'socket': 'socket', 'pid-file': 'pid', 'log-file': 'log', 'seed-file': 'seed'}
        flags = [f'--{flag}={munge / name}' for flag, name in files.items()]
        for command in (['munged', '--foreground', *flags], ['slurmctld', '-D'], ['slurmd', '-D']):
            log = (folder / f'{command[0]}.out').open('w')
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
            if command[0] == 'munged':
                _wait(lambda: (munge / 'socket').exists(), processes, folder)
        _wait(lambda: 'idle' in _asked(['sinfo', '--noheader', '--format=%T'], environment), processes, folder)
        yield environment
    finally:
        if processes[1:]:
            _asked(['scancel', '--user=root'], environment)
            with contextlib.suppress(Unavailable):
                _wait(lambda: not _asked(['squeue', '--noheader'], environment), processes, folder)
        for process in reversed(processes):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
        _end_steps(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: pathlib.Path, cpus: int) -> pathlib.Path:
    """Writes slurm.conf and munge's key."""
    host = socket.gethostname().partition('.')[0]
    try:
        socket.gethostbyname(host)
    except OSError:
        raise Unavailable(f'the name of this machine, {host}, does not resolve') from None
    for name in ('munge', 'state', 'spool'):
        (folder / name).mkdir(mode=0o755)
    key = folder / 'munge' / 'key'
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    with socket.socket() as first, socket.socket() as second:
        ports = []
        for free in (first, second):
            free.bind(('127.0.0.1', 0))
            ports.append(free.getsockname()[1])
    path = folder / 'slurm.conf'
    path.write_text(CONFIGURATION.format(host=host, ports=ports, folder=folder, cpus=cpus))
    return path


def _wait(ready, processes, folder, seconds: float = 30) -> None:
    """Raises Unavailable with what a daemon said that did not come up."""
    end = time.monotonic() + seconds
    while not ready():
        dead = [process.args[0] for process in processes if process.poll() is not None]
        if dead or time.monotonic() > end:
            name = (dead or [processes[-1].args[0]])[0]
            said = [*(folder / f'{name}.out').read_text().splitlines(), ''][-2:]
            raise Unavailable(f'{name} does not start: {said[0]}')
        time.sleep(0.1)


def _end_steps(folder: pathlib.Path) -> None:
    """Ends what jobs left; it has this cluster's configuration in its environment."""
    mine = f'SLURM_CONF={folder}/slurm.conf'.encode()
    for process in pathlib.Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            if int(process.name) != os.getpid() and mine in (process / 'environ').read_bytes().split(b'\0'):
                os.kill(int(process.name), signal.SIGKILL)


def _asked(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout


if __name__ == '__main__':
    try:
        with cluster() as found:
            sys.exit(subprocess.run(sys.argv[1:], env=found).returncode)
    except Unavailable as error:
        sys.exit(f'start_slurm.py: {error}')

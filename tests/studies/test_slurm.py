"""Studies on Slurm: against programs that stand for it, and, where that can be started, against a real one:

    pytest tests/studies/test_slurm.py -m slow

It takes about two minutes, installs Debian's slurm-wlm and munge where they are missing, and needs root and submitit.
"""

import fcntl
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import types

import absl.flags
import pytest
import start_slurm

import launch
from cnn.config import Experiment, to_dict
from cnn.errors import InputError, RunFailed, RunStopped
from cnn.studies import slurm, slurm_jobs
from cnn.studies.slurm import Settings
from cnn.studies.slurm_task import Task

# Where submitit is imported, it closes all handlers of log messages, and absl's closes what pytest writes to.
os.environ['SUBMITIT_LOG_LEVEL'] = 'NOCONFIG'
ROOT = pathlib.Path(__file__).parents[2]
# They answer with what stands in files beside them, and keep what they were told.
PROGRAMS = {
    'sbatch': """[ -e $here/refusal ] && { cat $here/refusal >&2; exit 1; }
        name=$(sed -n 's/#SBATCH --job-name=//p' $1); last=$(sed -n 's/#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' $1)
        cp $1 $here/script; echo $name >> $here/submissions
        if [ -z "$last" ]; then echo "7|RUNNING|None|$name" >> $here/queue
        else for i in $(seq 0 $last); do echo "7_$i|PENDING|Resources|$name" >> $here/queue; done; fi
        echo "Submitted batch job 7" """,
    'squeue': """case "$*" in *--jobs=*) cat $here/state; exit;; esac
        [ -e $here/dead ] && { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
        cat $here/queue""",
    'sacct': '[ -e $here/accounts ] && cat $here/accounts',
    'scontrol': 'echo $* >> $here/scontrol.log',
    'srun': '',
}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The folder of programs that stand for Slurm's."""
    folder = tmp_path / 'programs'
    folder.mkdir()
    for name, body in PROGRAMS.items():
        (folder / name).write_text(f'#!/bin/sh\nhere={folder}\n{body}\n')
        (folder / name).chmod(0o755)
    (folder / 'queue').touch()
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    monkeypatch.setattr(slurm, 'POLL_SECONDS', 0)
    return folder


@pytest.fixture
def plan(tmp_path):
    """Three runs of an arm."""
    root = tmp_path / 'study'
    fields = {'arm': 'plain 8', 'config': Experiment(), 'compilation': 'plain', 'start': None}
    runs = [types.SimpleNamespace(seed=seed, folder=root / f'plain_8-{seed}-abc', **fields) for seed in range(3)]
    return types.SimpleNamespace(runs=runs, root=root)


def leave(run, name, content=None):
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / name).write_text(json.dumps(content or {}))


def submissions(programs):
    """Their names."""
    return (programs / 'submissions').read_text().split() if (programs / 'submissions').exists() else []


def submitted(programs):
    """By submission, the names of its runs' folders."""
    pytest.importorskip('submitit')
    files = [programs.parent / 'study' / 'slurm' / name / 'runs.json' for name in submissions(programs)]
    return [[run for pack in json.loads(file.read_text()) for run in pack] for file in files]


def test_settings_are_read_from_one_flag():
    assert slurm.parse(None) == Settings(None, 60, 0, None, None, 1)
    assert slurm.parse('partition=big,time=90,gpus=0,cpus=4,memory=8,runs=2') == Settings('big', 90, 0, 4, 8, 2)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('partitoin=big', "unknown setting of --slurm 'partitoin'; did you mean 'partition'"),
        ('time=1:00', "time is a number from 1, not '1:00'"),
        ('gpus=-1', "gpus is a number from 0, not '-1'"),
        ('cpus=0', "cpus is a number from 1, not '0'"),
        ('partition', 'partition is a name'),
    ],
)
def test_a_wrong_setting_is_named(text, message):
    with pytest.raises(InputError, match=message):
        slurm.parse(text)


def test_what_is_missing_is_named(programs, monkeypatch):
    monkeypatch.setattr(slurm.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match='pip install submitit'):
        slurm.check()
    monkeypatch.setattr(slurm.importlib.util, 'find_spec', lambda name: name)
    slurm.check()
    monkeypatch.setenv('PATH', '/nowhere')
    with pytest.raises(InputError, match='where sbatch is found; --executor=local runs the study here'):
        slurm.check()


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--executor=slurm'], '--executor=slurm needs a machine of the cluster, where sbatch is found'),
        (['--wait'], '--slurm and --wait are for --executor=slurm'),
        (['--slurm=time=5'], '--slurm and --wait are for --executor=slurm'),
    ],
)
def test_a_study_that_can_not_go_to_a_cluster_is_refused_in_one_line(flags, message, monkeypatch, capsys):
    monkeypatch.setattr(slurm.importlib.util, 'find_spec', lambda name: name)
    monkeypatch.setattr(slurm.shutil, 'which', lambda name: None)
    argv = ['launch.py', 'ablate', '--study=experiments/ablations/skip_connections.py', *flags]
    monkeypatch.chdir(ROOT)
    assert launch.main(launch.parse(argv, absl.flags.FlagValues())) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'launch.py: {message}')
    assert error.count('\n') == 1


def test_what_is_left_is_one_array(programs, plan, capsys):
    leave(plan.runs[1], 'DONE.json')
    assert submitted(programs) == []
    assert slurm.execute(plan, Settings('big', 30, 2, 4, 8), command=['launch.py', 'ablate']) is None
    assert submitted(programs) == [['plain_8-0-abc', 'plain_8-2-abc']]
    script = (programs / 'script').read_text()
    wanted = ['array=0-1%2', 'partition=big', 'time=30', 'gpus-per-node=2', 'cpus-per-task=4', 'mem=8GB', 'requeue']
    assert {*script.split('\n')} >= {f'#SBATCH --{flag}' for flag in [*wanted, 'signal=TERM@90']}
    assert '--cpus-per-task=4 ' in script.split('srun')[1]
    (job,) = [json.loads(line) for line in next(plan.root.glob('slurm/*/1.json')).read_text().splitlines()]
    assert job['runs'] == [{'folder': str(plan.runs[2].folder), 'config': to_dict(Experiment())}]
    assert (job['strategy'], job['command']) == ('none', ['launch.py', 'ablate'])
    said = capsys.readouterr().out
    assert said.startswith('submitted 2 runs as job 7, 2 tasks')
    assert '3 runs: 1 done, 2 pending (Resources)\nthe same command' in said


def test_runs_of_one_program_share_a_task(programs, plan):
    pytest.importorskip('submitit')
    plan.runs[1].compilation = 'residual'
    slurm.execute(plan, Settings(runs=2), strategy='unrolled')
    (path,) = plan.root.glob('slurm/*/runs.json')
    assert json.loads(path.read_text()) == [['plain_8-0-abc', 'plain_8-2-abc'], ['plain_8-1-abc']]
    jobs = [json.loads((path.parent / f'{index}.json').read_text()) for index in range(2)]
    assert [job['strategy'] for job in jobs] == ['unrolled', 'none']
    assert [len(job['runs']) for job in jobs] == [2, 1]
    found = slurm_jobs.find(plan.root)
    assert [found[run.folder.name].id for run in plan.runs] == ['7_0', '7_1', '7_0']


def test_the_same_command_submits_nothing_twice(programs, plan, capsys):
    pytest.importorskip('submitit')
    plan.root.mkdir()
    plan.runs[0].folder.mkdir()
    with open(plan.runs[0].folder / 'lock', 'a') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a process on this machine that trains there
        slurm.execute(plan, Settings())
        assert capsys.readouterr().out.count('3 runs: 2 pending (Resources), 1 running\n') == 1
        slurm.execute(plan, Settings())
        assert capsys.readouterr().out.startswith('3 runs: 2 pending (Resources), 1 running\n')
        assert submitted(programs) == [['plain_8-1-abc', 'plain_8-2-abc']]
    slurm.execute(plan, Settings())
    slurm.execute(plan, Settings())
    assert submitted(programs) == [['plain_8-1-abc', 'plain_8-2-abc'], ['plain_8-0-abc']]
    capsys.readouterr()
    for run in plan.runs:
        leave(run, 'DONE.json')
    assert slurm.execute(plan, Settings()) == []
    assert len(submitted(programs)) == 2
    assert capsys.readouterr().out == '3 runs: 3 done\n'


def test_a_launcher_killed_before_or_after_the_submission_loses_and_repeats_nothing(programs, plan, monkeypatch):
    pytest.importorskip('submitit')
    submit = slurm._submit

    def killed(*arguments):
        submit(*arguments)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(slurm, '_submit', killed)
        with pytest.raises(MemoryError):
            slurm.execute(plan, Settings())
    slurm.execute(plan, Settings())
    assert len(submitted(programs)) == 1
    (programs / 'queue').write_text('')  # as if it had been killed before sbatch
    slurm.execute(plan, Settings())
    assert len(submitted(programs)) == 2


def test_why_a_job_waits_is_said_where_slurm_says_it():
    jobs = [slurm_jobs.Job('7', 'PENDING', reason, ROOT) for reason in ('None', 'Priority')]
    assert [str(job) for job in jobs] == ['pending', 'pending (Priority)']


def test_two_launchers_do_not_submit_at_a_time(programs, plan):
    with slurm._only_launcher(plan.root), pytest.raises(InputError, match='another launcher'):
        slurm.execute(plan, Settings())


def test_failures_are_shown_and_tried_again(programs, plan, capsys):
    pytest.importorskip('submitit')
    slurm.execute(plan, Settings())
    (name,) = submissions(programs)
    leave(plan.runs[0], 'FAILED.json', {'error': 'training diverged', 'exit_code': 1})
    (programs / 'queue').write_text(f'7_1|OUT_OF_MEMORY|OutOfMemory|{name}\n')
    # Accounts may have a job running for ever that the queue has lost.
    (programs / 'accounts').write_text(f'7_0|RUNNING|{name}\n7_1|RUNNING|{name}\n7_2|CANCELLED by 0|{name}\n')
    capsys.readouterr()
    slurm.execute(plan, Settings())
    log = plan.root / 'slurm' / name
    assert capsys.readouterr().out.splitlines()[:4] == [
        'once more: plain 8, seed 0: training diverged',
        f'once more: plain 8, seed 1: job 7_1 ended as out of memory; see {log}/7_1_0_log.err',
        f'once more: plain 8, seed 2: job 7_2 ended as cancelled; see {log}/7_2_0_log.err',
        f'submitted 3 runs as job 7, 3 tasks; logs in {plan.root}/slurm/' + submissions(programs)[1],
    ]
    assert not (plan.runs[0].folder / 'FAILED.json').exists()
    assert {job.state for job in slurm_jobs.find(plan.root).values()} == {'PENDING'}  # of the last submission


def test_waiting_ends_with_the_jobs(programs, plan, capsys, monkeypatch):
    pytest.importorskip('submitit')

    def pass_on(seconds):
        """The first poll sees them run, the next one two at their end, and one that Slurm has forgotten."""
        states = {'PENDING': 'RUNNING', 'RUNNING': 'COMPLETED'}
        lines = [line.split('|') for line in (programs / 'queue').read_text().splitlines()]
        lines = [[number, states[state], *rest] for number, state, *rest in lines]
        if lines[0][1] == 'COMPLETED':
            lines.pop()
            for run in plan.runs[:2]:
                leave(run, 'DONE.json')
        (programs / 'queue').write_text(''.join('|'.join(line) + '\n' for line in lines))

    monkeypatch.setattr(slurm.time, 'sleep', pass_on)
    (failure,) = slurm.execute(plan, Settings(), wait=True)
    name = submissions(programs)[0]
    assert failure == f'plain 8, seed 2: job {name} ended as unknown; see {plan.root}/slurm/{name}/*_0_log.err'
    said = capsys.readouterr().out.splitlines()[1:]
    assert said == ['3 runs: 3 pending (Resources)', '3 runs: 3 running', '3 runs: 2 done, 1 ended: unknown']


def test_runs_that_start_from_others_are_submitted_once_those_are_done(programs, plan, capsys, monkeypatch):
    pytest.importorskip('submitit')
    plan.runs[1].start = plan.runs[2].start = plan.runs[0].folder
    for _ in range(2):
        assert slurm.execute(plan, Settings()) is None
        assert capsys.readouterr().out.startswith('2 runs start from others, which are not done; then the same command')
    assert submitted(programs) == [['plain_8-0-abc']]

    def do(seconds):
        """Everything that is queued is done at once."""
        for folder in (run for runs in submitted(programs) for run in runs):
            leave(types.SimpleNamespace(folder=plan.root / folder), 'DONE.json')
        (programs / 'queue').write_text('')

    monkeypatch.setattr(slurm.time, 'sleep', do)
    assert slurm.execute(plan, Settings(), wait=True) == []
    assert submitted(programs) == [['plain_8-0-abc'], ['plain_8-1-abc', 'plain_8-2-abc']]


def test_who_waits_may_leave(programs, plan, monkeypatch):
    pytest.importorskip('submitit')
    monkeypatch.setattr(slurm.time, 'sleep', lambda seconds: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background processes ignore it
    try:
        with pytest.raises(RunStopped, match='the jobs go on'):
            slurm.execute(plan, Settings(), wait=True)
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_slurm_refuses_is_one_line_and_leaves_nothing(programs, plan, capfd):
    pytest.importorskip('submitit')
    (programs / 'refusal').write_text('sbatch: error: invalid partition specified: x\nsbatch: error: it failed\n')
    with pytest.raises(InputError, match=r'^sbatch: invalid partition specified: x; it failed$'):
        slurm.execute(plan, Settings('x'))
    assert list((plan.root / 'slurm').glob('*/')) == []
    assert capfd.readouterr() == ('', '')


def test_a_cluster_that_does_not_answer_submits_nothing(programs, plan):
    pytest.importorskip('submitit')
    slurm.execute(plan, Settings())
    (programs / 'dead').touch()
    with pytest.raises(RunFailed, match=r'Slurm does not answer .*Unable to contact'):
        slurm.execute(plan, Settings())
    assert len(submitted(programs)) == 1


@pytest.fixture
def do(programs, tmp_path, monkeypatch):
    """Does a task that is a line of Python; returns its exit code, what became of its run, and what Slurm was told."""
    before = signal.getsignal(signal.SIGTERM)
    folder = tmp_path / 'run'
    monkeypatch.setenv('SLURM_JOB_ID', '7')
    monkeypatch.setenv('SLURM_ARRAY_JOB_ID', '7')
    monkeypatch.setenv('SLURM_ARRAY_TASK_ID', '1')

    def doing(code, state='RUNNING'):
        (programs / 'state').write_text(f'{state}\n')
        folder.mkdir(exist_ok=True)
        (folder / 'FAILED.json').write_text('{}')
        result = 0
        try:
            Task((sys.executable, '-c', f'import os, signal, sys; {code}'), (str(folder),))()
        except SystemExit as end:
            result = end.code
        failed, told = folder / 'FAILED.json', programs / 'scontrol.log'
        return (
            result,
            json.loads(failed.read_text()) if failed.exists() else None,
            told.read_text().strip() if told.exists() else None,
        )

    yield doing
    signal.signal(signal.SIGTERM, before)


def test_a_task_says_why_its_run_failed(do):
    assert do('pass') == (0, None, None)
    code = 'sys.exit("launch.py: training diverged\\n")'
    assert do(code) == (1, {'error': 'training diverged', 'exit_code': 1}, None)
    code, failed, told = do('os.kill(os.getpid(), signal.SIGKILL)')
    assert (code, failed['error'], told) == (1, 'killed by signal 9, Killed', None)


def test_a_task_that_was_stopped_is_queued_again(do):
    # By its place in the array: the first task that starts has the number of the whole array as its own.
    assert do('sys.exit(75)') == (75, None, 'requeue 7_1')


@pytest.mark.parametrize('state', ['COMPLETING', 'CANCELLED', 'PENDING', ''])
def test_a_task_that_slurm_queues_again_or_that_was_cancelled_is_left_alone(do, state):
    assert do('sys.exit(75)', state) == (75, None, None)


def test_a_task_passes_sigterm_on_to_its_run(do):
    heard = (
        'signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); os.kill(os.getppid(), signal.SIGTERM); signal.pause()'
    )
    assert do(heard) == (75, None, 'requeue 7_1')


def test_a_task_that_is_stopped_before_its_run_starts_is_queued_again(do, tmp_path):
    (tmp_path / 'run').mkdir()
    with open(tmp_path / 'run' / 'lock', 'a') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as of a process that died with its machine: the task waits
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert do('raise SystemExit("it ran")')[::2] == (75, 'requeue 7_1')


def test_a_run_that_never_gets_as_far_as_to_save_fails_in_the_end(do, monkeypatch):
    code = 'os.kill(os.getpid(), signal.SIGTERM)'
    assert do(code) == (75, None, 'requeue 7_1')
    monkeypatch.setenv('SLURM_RESTART_COUNT', '9')
    assert do(code)[:2] == (1, {'error': 'killed by signal 15, Terminated', 'exit_code': -15})


BASE = """
from cnn.config import Experiment

def get_config():
    config = Experiment()
    config.model.name = 'mlp'
    config.model.options = {'widths': (16,)}
    config.data.name = 'digits'
    config.data.batch_size = 16
    config.optimizer.learning_rate = 0.01
    config.train.duration = '8000'
    config.eval.every = '2000'
    config.checkpoint.every = '4000'
    return config
"""
STUDY = """
from cnn.studies import Arm, Study

def get_study():
    arms = Arm('wide'), Arm('other', {other})
    return Study('Does it help?', '{base}', arms, 'wide', seeds=2)
"""


@pytest.fixture(scope='module')
def cluster():
    """The environment of a real Slurm of two processors."""
    pytest.importorskip('submitit')
    try:
        with start_slurm.cluster(cpus=2) as environment:
            yield environment | {'XLA_FLAGS': ''}
    except start_slurm.Unavailable as reason:
        pytest.skip(f'no Slurm here: {reason}')


@pytest.fixture
def ablate(cluster, tmp_path):
    """Runs the verb on the cluster; the first argument is what the second arm changes."""

    def ablating(other, *flags, code=0):
        (tmp_path / 'base.py').write_text(BASE)
        (tmp_path / 'study.py').write_text(STUDY.format(other=other, base=tmp_path / 'base.py'))
        command = [sys.executable, 'launch.py', 'ablate', f'--study={tmp_path}/study.py', '--allow_code_change', *flags]
        done = subprocess.run(command, cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout, done.stderr

    return ablating


def trained(root):
    """What every run measured, by the name of its folder."""
    return {path.parent.name: path.read_text() for path in root.glob('*/metrics.jsonl')}


@pytest.mark.slow
def test_preempted_runs_of_an_array_have_the_bits_of_runs_alone(ablate, cluster, tmp_path):
    there, alone = tmp_path / 'slurm', tmp_path / 'alone'
    flags = "{'model.options.widths': (8,)}", '--executor=slurm', '--slurm=time=10,cpus=1', f'--workdir={there}'
    assert 'submitted 4 runs as job' in ablate(*flags)[0]

    def running():
        queue = ['squeue', '--noheader', '--states=RUNNING', '--format=%i']
        jobs = subprocess.run(queue, env=cluster, capture_output=True, text=True, check=True).stdout.split()
        return jobs if len(trained(there)) == len(jobs) == 2 and all(trained(there).values()) else None

    end = time.monotonic() + 120
    while not (jobs := running()):
        assert time.monotonic() < end, 'the runs do not start'
        time.sleep(0.2)
    # As Slurm does where it preempts, and before time is up. The signal goes to the step: for a task of an array that
    # has others waiting, scancel is told to try again, and does so until it hits the task that was queued again.
    subprocess.run(['scontrol', 'requeue', jobs[0]], env=cluster, check=True)
    subprocess.run(['scancel', '--signal=TERM', f'{jobs[1]}.0'], env=cluster, check=True)
    assert 'submitted' not in ablate(*flags)[0]
    assert ablate(*flags, '--wait')[0].count('4 runs: 4 done') == 1
    assert 'submitted' not in ablate(*flags)[0]
    assert len(list((there / 'slurm').glob('*/runs.json'))) == 1
    assert (there / 'report.html').exists()
    starts = [len(json.loads(path.read_text())['history']) for path in there.glob('*/run.json')]
    assert sorted(starts) == [1, 1, 2, 2]

    for command in ablate(flags[0], '--emit=commands', f'--workdir={alone}')[0].splitlines():
        _, *arguments = shlex.split(command)  # python
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=cluster, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert len(trained(alone)) == 4
    assert trained(there) == trained(alone)


@pytest.mark.slow
def test_a_failing_arm_and_a_cancelled_job_are_named(ablate, cluster, tmp_path):
    there = tmp_path / 'slurm'
    flags = '--executor=slurm', '--slurm=time=10,runs=2', '--pack=unrolled', f'--workdir={there}'
    said, error = ablate("{'optimizer.learning_rate': 1e30}", *flags, '--wait', code=1)
    assert error.startswith('launch.py: 2 runs are not done: other, seed 0: training diverged')
    assert error.count('\n') == 1
    assert '\n4 runs: 2 done, 2 failed\n' in said
    assert (there / 'report.html').exists()
    assert len(list(there.glob('wide-*/DONE.json'))) == 2
    said, _ = ablate("{'optimizer.learning_rate': 1e30}", *flags)
    assert said.count('once more: other, seed') == 2
    assert 'submitted 2 runs' in said
    subprocess.run(['scancel', '--user=root'], env=cluster, check=True)
    end = time.monotonic() + 60
    while subprocess.run(['squeue', '--noheader'], env=cluster, capture_output=True, check=True).stdout:
        assert time.monotonic() < end, 'cancelled jobs were queued again'
        time.sleep(0.2)
    # Slurm takes a job for completed that saves and ends when it is told to.
    said, _ = ablate("{'optimizer.learning_rate': 1e30}", *flags)
    assert len(re.findall('once more: other, seed .: job .* ended as (cancelled|completed); see', said)) == 2


@pytest.mark.slow
def test_a_partition_that_does_not_exist_is_one_line(ablate, tmp_path):
    flags = '--executor=slurm', '--slurm=partition=gpu', f'--workdir={tmp_path}/slurm'
    _, error = ablate('{"seed": 1}'.replace('seed', 'train.duration').replace('1', '"9"'), *flags, code=2)
    assert error.startswith('launch.py: sbatch: invalid partition specified: gpu')
    assert error.count('\n') == 1

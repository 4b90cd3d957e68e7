import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest

from cnn.config import Experiment, set_value
from cnn.errors import InputError, RunFailed, RunStopped
from cnn.scripts import ROOT
from cnn.studies import Arm, Study, queue, workers
from cnn.studies.queue import Options

EXPERIMENT = """\
from cnn.config import Experiment


def get_config():
    config = Experiment()
    config.model.name, config.model.options = 'mlp', {'widths': (8,)}
    config.data.batch_size = 64
    config.augment.shift = 1
    config.optimizer.name, config.optimizer.learning_rate = 'adamw', 1e-2
    config.train.duration, config.eval.every, config.checkpoint.every, config.log.every = '60', '20', '15', '10'
    return config
"""
STUDY = """\
from cnn.studies import Arm, Study


def get_study():
    arms = [
        Arm('slow'),
        Arm('fast', {'optimizer.learning_rate': 0.03}),
        Arm('wide', {'model.options.widths': (16,)}),
        Arm('OTHER', {'optimizer.learning_rate': RATE}),
    ]
    return Study('Does it help?', BASE, arms, 'BASELINE', seeds=2)
"""


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Study files by name: a sound one, one with an arm that diverges, one whose baseline does."""
    folder = tmp_path_factory.mktemp('study')
    (folder / 'base.py').write_text(EXPERIMENT)
    text = STUDY.replace('BASE,', f'{str(folder / "base.py")!r},')
    made = {'sound': ('faster', '0.05', 'slow'), 'failing': ('hot', '1e30', 'slow'), 'hopeless': ('hot', '1e30', 'hot')}
    for name, (other, rate, baseline) in made.items():
        values = text.replace('OTHER', other).replace('RATE', rate).replace('BASELINE', baseline)
        (folder / f'{name}.py').write_text(values)
    return {name: folder / f'{name}.py' for name in made}


def start(study, folder, *arguments, **options):
    """The launcher as a process of its own."""
    environment = {**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, 'launch.py', 'ablate', f'--study={study}', f'--workdir={folder}', *arguments]
    command.append('--allow_code_change')  # somebody may commit meanwhile
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes, **options)


def finished(*arguments, **options):
    process = start(*arguments, **options)
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def measured(folder):
    """What each finished run measured, as bytes, and which file says so."""
    runs = [path.parent for path in folder.glob('*/DONE.json')]
    return {run.name: ((run / 'metrics.jsonl').read_bytes(), (run / 'DONE.json').stat().st_ino) for run in runs}


def rows(found):
    return {name: content for name, (content, _) in found.items()}


def descendants(process):
    found = subprocess.run(['ps', '-eo', 'pid=,ppid='], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid, parent in (line.split() for line in found.splitlines()) if int(parent) == process.pid]


@pytest.fixture(scope='module')
def undisturbed(files, tmp_path_factory):
    """The folder of the sound study, its output and what its runs measured."""
    folder = tmp_path_factory.mktemp('undisturbed') / 'runs'
    code, out, error = finished(files['sound'], folder, '--pack=none')
    assert code == 0, error
    return folder, out, measured(folder)


def test_a_study_is_run_and_its_answer_given(undisturbed):
    folder, out, found = undisturbed
    assert len(found) == 8
    lines = [line for line in out.splitlines() if '/8 ' in line]
    assert [line.split()[0] for line in lines] == [f'{count}/8' for count in range(1, 9)]
    assert lines[0].startswith('1/8 slow, seed 0: accuracy ')
    assert out.splitlines()[-1] == str(folder / 'report.html')
    assert (folder / 'report.html').exists()
    assert not list(folder.glob('*/*.png'))


def test_a_finished_study_is_not_run_again(undisturbed, files):
    folder, _, found = undisturbed
    code, out, error = finished(files['sound'], folder)
    assert (code, error) == (0, '')
    assert '8 done' in out
    assert measured(folder) == found


@pytest.mark.parametrize('kills', [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_any_moment_lose_and_repeat_nothing(kills, undisturbed, files, tmp_path):
    generator, done = random.Random(kills), {}
    for _ in range(kills):
        process = start(files['sound'], tmp_path, '--pack=none')
        time.sleep(generator.uniform(1, 12))
        victim = generator.choice(['launcher', 'worker', 'all'])
        children = descendants(process)
        for pid in children if victim == 'all' else children[:1] if victim == 'worker' else []:
            os.kill(pid, signal.SIGKILL)
        if victim != 'worker':
            process.kill()
        else:
            time.sleep(2)
            process.kill()
        process.communicate()
        now = measured(tmp_path)
        assert done.items() <= now.items()
        done = now
    code, _, error = finished(files['sound'], tmp_path, '--pack=none')
    assert code == 0, error
    assert done.items() <= measured(tmp_path).items()
    assert rows(measured(tmp_path)) == rows(undisturbed[2])


def test_an_arm_that_fails_is_named_and_the_others_go_on_if_they_shall(files, tmp_path):
    code, out, error = finished(files['failing'], tmp_path, '--pack=none', '--keep_going', '--seeds=1')
    assert code == 1
    assert error.startswith('launch.py: hot, seed ')
    assert 'training diverged' in error
    assert error.count('\n') == 1
    assert out.count('FAILED: hot, seed ') == 1
    assert 'again: ' not in out  # it would end the same way
    assert len(measured(tmp_path)) == 3
    failed = json.loads(next(tmp_path.glob('hot-0-*/FAILED.json')).read_text())
    assert failed['exit_code'] == 1
    assert 'training diverged' in failed['error']
    assert (tmp_path / 'report.html').exists()


def test_a_first_run_that_fails_is_the_only_one(files, tmp_path):
    code, _, error = finished(files['hopeless'], tmp_path, '--keep_going')
    assert code == 1
    assert error.startswith('launch.py: hot, seed 0: training diverged')
    assert error.endswith('(the first run; nothing else was begun)\n')
    assert [path.name.split('-')[0] for path in tmp_path.iterdir()] == ['hot']


def test_a_full_disk_is_named_and_no_finished_run_is_lost(undisturbed, files, tmp_path):
    import resource

    folder = shutil.copytree(undisturbed[0], tmp_path / 'runs')
    shutil.rmtree(next(folder.glob('wide-1-*')))

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))  # what a full disk does to a file

    before = measured(folder)
    code, out, error = finished(files['sound'], folder, '--retries=0', preexec_fn=limit)
    assert code == 1, out
    assert re.search('File too large.*; make room, and the same command resumes', error), error
    assert error.count('\n') == 1
    assert measured(folder) == before
    assert finished(files['sound'], folder)[0] == 0
    assert rows(measured(folder)) == rows(undisturbed[2])


def test_sigterm_saves_and_the_same_command_resumes(undisturbed, files, tmp_path):
    process = start(files['sound'], tmp_path, '--pack=none', '--seeds=1')
    while not list(tmp_path.glob('*/DONE.json')):
        time.sleep(0.1)
    process.terminate()
    out, error = process.communicate(timeout=60)
    assert process.returncode == 75
    assert error.startswith('launch.py: stopped; ')
    assert error.endswith(' of 4 runs are done; the same command resumes\n')
    assert 'FAILED' not in out
    assert finished(files['sound'], tmp_path, '--seeds=1')[0] == 0
    assert rows(measured(tmp_path)).items() <= rows(undisturbed[2]).items()
    assert len(measured(tmp_path)) == 4


# What is decided without processes: workers of cardboard, that answer as they are told to.


def made_plan(tmp_path, compilations, done=()):
    """A plan of one run for each compilation."""
    runs = []
    for seed, compilation in enumerate(compilations):
        config = Experiment()
        set_value(config, 'seed', seed)
        status = 'done' if seed in done else 'to do'
        runs.append(
            types.SimpleNamespace(
                arm='a',
                seed=seed,
                config=config,
                folder=tmp_path / str(seed),
                compilation=compilation,
                status=status,
                start=None,
                outcome=types.SimpleNamespace(metrics={'accuracy': 0.5}),
            )
        )
    study = Study('Why?', 'base.py', [Arm('a')], 'a')
    left = [run for run in runs if run.status != 'done']
    form = types.SimpleNamespace(arm=study.arm('a'), steps=10)
    seconds = {'a': 10.0}, 'guessed'
    return types.SimpleNamespace(study=study, runs=runs, left=left, forms=[form], seconds=lambda: seconds)


@pytest.fixture
def play(monkeypatch, tmp_path):
    """Runs a plan with workers that do at once what `answer(job)` says of each run, and returns the jobs."""

    def played(plan, answer, **options):
        jobs = []

        class Cardboard:
            def __init__(self, place, devices, events, say):
                self.place, self.devices, self.events = place, devices, events
                self.settings, self.compilation, self.busy, self.runs, self.tail = None, '', False, {}, []
                self.begun = self.computes_on_cores = False

            def keep_to(self, cores):
                self.cores = cores

            def put(self, event, **details):
                self.events.put((self, {'event': event, **details}))

            def give(self, runs, strategy, **job):
                self.runs, self.busy = {str(run.folder): run for run in runs}, True
                self.settings, self.compilation = queue.settings(runs[0].config), runs[0].compilation
                jobs.append(([run.seed for run in runs], strategy, self.place))
                if not self.begun:
                    self.put('ready', platform='cpu', devices=1)
                    self.begun = True
                if strategy == 'auto':
                    self.put('measured', seconds={'unrolled': 1.0}, strategy='unrolled', runs=len(runs))
                for run in runs:
                    said = answer(run.seed, len(jobs))
                    if said == 'killed':
                        self.put('ended', code=-9)
                        return
                    details = {'metrics': {'accuracy': 0.5}} if said == 'done' else {}
                    if said not in ('done', 'held', 'stopped'):
                        details, said = {'error': said, 'exit_code': 1, 'again': said == 'disk'}, 'failed'
                    self.put(said, folder=str(run.folder), **details)
                self.put('idle')

            def stop(self):
                self.put('ended', code=75)

            close = kill = stop

        monkeypatch.setattr(queue, 'Worker', Cardboard)
        options = {'pack': 'none', 'workers': 2, **options}
        return jobs, lambda: queue.run(plan, Options(**options))

    return played


def test_the_first_run_goes_alone_and_runs_of_one_compilation_to_one_worker(play, tmp_path):
    jobs, run = play(made_plan(tmp_path, 'xxyyxy'), lambda seed, job: 'done')
    assert run() == []
    assert jobs[0] == ([0], 'none', 0)
    assert sorted(seed for seeds, _, _ in jobs for seed in seeds) == [0, 1, 2, 3, 4, 5]
    assert {place for _, _, place in jobs} == {0, 1}
    assert all(place == (0 if seeds[0] in (0, 1, 4) else 1) for seeds, _, place in jobs[:3])


def test_packs_are_of_one_compilation_and_leave_no_worker_without(play, tmp_path):
    jobs, run = play(made_plan(tmp_path, 'x' * 9 + 'yy'), lambda seed, job: 'done', pack='unrolled')
    run()
    assert jobs[0] == ([0], 'none', 0)
    packs = [seeds for seeds, strategy, _ in jobs if strategy == 'unrolled']
    assert sorted(packs) == [[1, 2, 3, 4, 5], [6, 7, 8], [9, 10]]


def test_the_strategy_is_measured_with_the_first_pack_while_nothing_else_runs(play, tmp_path, capsys):
    jobs, run = play(made_plan(tmp_path, 'x' * 9), lambda seed, job: 'done', pack='auto')
    run()
    assert [strategy for _, strategy, _ in jobs] == ['dispatched', 'auto', 'unrolled']
    assert 'a step of 4 runs takes 1000 ms unrolled: --pack=unrolled' in capsys.readouterr().out


def test_nothing_is_measured_where_there_is_nothing_to_pack(play, tmp_path):
    jobs, run = play(made_plan(tmp_path, 'xyz'), lambda seed, job: 'done', pack='auto')
    run()
    assert [strategy for _, strategy, _ in jobs] == ['dispatched'] * 3
    assert {place for _, _, place in jobs} == {0, 1}


def test_a_first_failure_stops_what_is_queued_and_keep_going_does_not(play, tmp_path):
    def answer(seed, job):
        return 'diverged' if seed == 1 else 'done'

    jobs, run = play(made_plan(tmp_path, 'xxxxx'), answer, workers=1)
    failures = run()
    assert [failure.run.seed for failure in failures] == [1]
    assert [seeds for seeds, _, _ in jobs] == [[0], [1]]
    with pytest.raises(RunFailed, match=r'a, seed 1: diverged$'):
        queue.raise_for(failures)
    jobs, run = play(made_plan(tmp_path, 'xxxxx'), answer, workers=1, keep_going=True)
    run()
    assert len(jobs) == 5


def test_a_mistake_of_the_user_stays_one(tmp_path):
    run = made_plan(tmp_path, 'x').runs[0]
    with pytest.raises(InputError, match='first run; nothing else'):
        queue.raise_for([queue.Failure(run, 'no', 2, True)])


def test_what_the_system_ends_is_tried_again_alone_and_not_for_ever(play, tmp_path, capsys):
    plan = made_plan(tmp_path, 'xxxxx')
    jobs, run = play(plan, lambda seed, job: 'killed' if job == 2 else 'done', pack='unrolled')
    assert run() == []
    assert jobs[1][0] == [1, 2]
    assert sorted(seeds for seeds, _, _ in jobs[2:]) == [[1], [2], [3, 4]]
    assert 'again: a, seed 1: its worker ended (Killed)' in capsys.readouterr().out
    jobs, run = play(plan, lambda seed, job: 'disk' if seed == 3 else 'done', retries=2, workers=1)
    assert [failure.run.seed for failure in run()] == [3]
    assert [seeds for seeds, _, _ in jobs].count([3]) == 3


def test_a_first_run_that_was_killed_is_tried_again_before_the_others(play, tmp_path):
    jobs, run = play(made_plan(tmp_path, 'xx'), lambda seed, job: 'killed' if job == 1 else 'done')
    assert run() == []
    assert [seeds for seeds, _, _ in jobs] == [[0], [0], [1]]


def test_a_folder_that_another_process_has_is_left_until_the_end_and_skipped(play, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(queue, 'PATIENCE', 0.2)
    jobs, run = play(made_plan(tmp_path, 'xxx'), lambda seed, job: 'held' if seed == 1 else 'done', workers=1)
    assert run() == []
    assert [seeds for seeds, _, _ in jobs[:3]] == [[0], [1], [2]]
    assert 'skipped: a, seed 1: another process has its folder' in capsys.readouterr().out
    jobs, run = play(made_plan(tmp_path, 'xxx'), lambda seed, job: 'held' if job == 2 else 'done', workers=1)
    monkeypatch.setattr(queue, 'PATIENCE', 30)
    run()
    assert [seeds for seeds, _, _ in jobs] == [[0], [1], [2], [1]]


def starting(tmp_path, starts, **fields):
    """A plan of one run for each entry, that starts from the run of that number."""
    plan = made_plan(tmp_path, fields.pop('compilations', 'x' * len(starts)), **fields)
    for run, start in zip(plan.runs, starts, strict=True):
        run.start = None if start is None else tmp_path / str(start)
    return plan


def test_a_run_waits_for_the_one_that_it_starts_from(play, tmp_path):
    jobs, run = play(starting(tmp_path, [2, 0, None, None]), lambda seed, job: 'done')
    assert run() == []
    order = [seed for seeds, _, _ in jobs for seed in seeds]
    assert order[0] == 2  # the first that can go alone
    assert sorted(order) == [0, 1, 2, 3]
    assert order.index(0) < order.index(1)
    jobs, run = play(
        starting(tmp_path, [None, None, None, 1, 1, 1], done=[0]), lambda seed, job: 'done', pack='vmapped'
    )
    run()
    assert [(seeds, strategy) for seeds, strategy, _ in jobs] == [
        ([1, 2], 'vmapped'),
        ([3, 4], 'vmapped'),
        ([5], 'none'),
    ]
    jobs, run = play(starting(tmp_path, [None, None, 1], done=[1]), lambda seed, job: 'done')
    run()
    assert sorted(seeds for seeds, _, _ in jobs) == [[0], [2]]


def test_what_starts_from_a_run_that_failed_is_not_begun(play, tmp_path, capsys):
    plan = starting(tmp_path, [None, None, 1, 2, None])
    jobs, run = play(plan, lambda seed, job: 'diverged' if seed == 1 else 'done', keep_going=True)
    assert [failure.run.seed for failure in run()] == [1]
    assert sorted(seeds for seeds, _, _ in jobs) == [[0], [1], [4]]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith('not begun')]
    assert said == [
        f'not begun: a, seed {seed + 1}: starts from {tmp_path / str(seed)}, which is not done' for seed in (1, 2)
    ]


def test_what_starts_from_a_run_that_another_process_has_waits_for_that_too(play, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(queue, 'PATIENCE', 30)
    jobs, run = play(starting(tmp_path, [None, None, 1]), lambda seed, job: 'held' if job == 2 else 'done', workers=1)
    assert run() == []
    assert [seeds for seeds, _, _ in jobs] == [[0], [1], [1], [2]]
    monkeypatch.setattr(queue, 'PATIENCE', 0)
    jobs, run = play(starting(tmp_path, [None, None, 1]), lambda seed, job: 'held' if seed == 1 else 'done', workers=1)
    assert run() == []
    assert 'not begun: a, seed 2' in capsys.readouterr().out


def test_a_process_is_given_up_for_what_can_begin_not_for_what_waits(play, tmp_path):
    plan = starting(tmp_path, [None, None, 1, 2], compilations='xyxy')
    plan.runs[1].config.deterministic = plan.runs[3].config.deterministic = True
    jobs, run = play(plan, lambda seed, job: 'done', workers=1)
    assert run() == []
    assert [seeds for seeds, _, _ in jobs] == [[0], [1], [2], [3]]


def test_runs_that_are_done_make_a_first_one_needless(play, tmp_path):
    jobs, run = play(made_plan(tmp_path, 'xxx', done=[0]), lambda seed, job: 'done')
    run()
    assert sorted(place for _, _, place in jobs) == [0, 1]


def test_runs_that_need_another_start_of_jax_get_another_process(play, tmp_path):
    plan = made_plan(tmp_path, 'xyz')
    plan.runs[1].config.deterministic = True
    jobs, run = play(plan, lambda seed, job: 'done', workers=1)
    assert run() == []
    assert [seeds for seeds, _, _ in jobs] == [[0], [2], [1]]


def test_interrupted_while_others_wait(play, tmp_path):
    def answer(seed, job):
        if seed == 1:
            os.kill(os.getpid(), signal.SIGINT)
            return 'stopped'
        return 'done'

    before = signal.getsignal(signal.SIGINT)
    jobs, run = play(made_plan(tmp_path, 'xxxx'), answer, workers=1)
    with pytest.raises(RunStopped, match=r'stopped; 1 of 4 runs are done'):
        run()
    assert len(jobs) == 2
    assert signal.getsignal(signal.SIGINT) == before


def test_gpus_are_shared_out_as_runs_want_them(monkeypatch, tmp_path):
    plan = made_plan(tmp_path, 'x')
    monkeypatch.setattr(workers, 'gpus', lambda: ['0', '1', '2', '3'])
    assert workers.slots(plan, None) == ['0', '1', '2', '3']
    assert workers.slots(plan, 2) == ['0', '1']
    plan.runs[0].config.mesh.data = 2
    assert workers.slots(plan, None) == ['0,1', '2,3']
    monkeypatch.setattr(workers, 'gpus', list)
    assert workers.slots(plan, 3) == [None] * 3


def test_cores_are_shared_anew_whenever_a_worker_begins_or_ends(monkeypatch, play, tmp_path):
    shared = []
    monkeypatch.setattr(queue, 'share_cores', lambda busy: shared.append(len(busy)))
    _, run = play(made_plan(tmp_path, 'xxxxxx'), lambda seed, count: 'done', workers=2, pack='none')
    assert not run()
    assert shared[0] == 1
    assert max(shared) == 2
    assert shared[-1] == 0


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='this system does not say where threads run')
def test_busy_workers_on_a_cpu_have_cores_of_their_own(monkeypatch):
    cores = os.sched_getaffinity(0)
    code = 'import threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); print(flush=True)'
    sleepers = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE) for _ in range(2)]
    made = []
    for sleeper in sleepers:
        sleeper.stdout.readline()
        worker = workers.Worker.__new__(workers.Worker)
        worker.__dict__ |= {'_process': sleeper, '_cores': None, 'computes_on_cores': True}
        made.append(worker)

    def kept():
        """The cores of each worker, of all of its threads."""
        found = [{frozenset(os.sched_getaffinity(int(task))) for task in tasks(sleeper)} for sleeper in sleepers]
        assert [len(sets) for sets in found] == [1, 1]
        return [set(next(iter(sets))) for sets in found]

    def tasks(sleeper):
        names = os.listdir(f'/proc/{sleeper.pid}/task')
        assert len(names) == 2
        return names

    try:
        workers.share_cores(made)
        first, second = kept()
        assert len(first) == len(second) == max(1, len(cores) // 2) or len(cores) == 1
        assert not first & second or len(cores) == 1
        workers.share_cores(made[1:])
        assert kept()[1] == cores
        made[0].computes_on_cores = False  # of a GPU, or not yet started
        workers.share_cores(made)
        assert kept()[1] == cores
        monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {min(cores)}, raising=True)
        made[0].computes_on_cores = True
        workers.share_cores(made)
        monkeypatch.undo()
        assert kept() == [{min(cores)}] * 2  # fewer cores than workers: all have them all
    finally:
        for sleeper in sleepers:
            sleeper.kill()

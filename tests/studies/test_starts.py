import json
import queue
import shlex

import made_study
import pytest
from absl import flags

import launch
from cnn import config as configuration
from cnn import verbs
from cnn.config import Experiment
from cnn.errors import InputError
from cnn.studies import Arm, Study, overview, plan, tables, worker
from cnn.studies.commands import commands
from cnn.studies.results import collect, from_folders
from cnn.training import environment

BASE = """\
from cnn.config import Experiment


def get_config():
    config = Experiment()
    config.model.name, config.model.options = 'mlp', {'widths': (8,)}
    config.data.train_split, config.data.validation_split, config.data.batch_size = 'validation', None, 32
    config.optimizer.name, config.optimizer.learning_rate = 'adam', 0.01
    config.train.duration, config.log.every, config.mesh.data = '6', '2', 1
    return config
"""
# It learns nothing, so that it measures what the run does that it starts from.
STILL = Arm('still', {'optimizer.learning_rate': 0, 'train.duration': '1'}, against='still', start='first')
FIRST = Arm('first', {'model.options.dropout': 0.1})


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    file = tmp_path_factory.mktemp('experiments') / 'small.py'
    file.write_text(BASE)
    return str(file)


@pytest.fixture
def make(base, tmp_path):
    """A function of arms that gives the plan of their study."""

    def planned(*arms, seeds=(0, 1), root=tmp_path / 'runs'):
        return plan.plan(Study('Why?', base, arms, arms[0].name), seeds, root)

    return planned


@pytest.fixture
def work(monkeypatch):
    """Has runs done in this process; returns what was said of their ends."""
    monkeypatch.setattr(environment, 'prepare_jax', lambda config: None)

    def done(runs):
        jobs, said = queue.SimpleQueue(), []
        entries = [{'folder': str(run.folder), 'config': configuration.to_dict(run.config)} for run in runs]
        for job in ({'strategy': 'none', 'runs': entries}, None):
            jobs.put(job)
        worker._work(jobs, lambda: False, lambda event, **details: said.append((event, details.get('error'))))
        return [word for word in said if word[0] in ('done', 'failed')]

    return done


def read(run, name):
    return json.loads((run.folder / name).read_text())


def test_an_arm_starts_from_the_run_of_its_seed_which_comes_first(make):
    made = make(STILL, Arm('later', start='still'), FIRST)
    assert [(run.arm, run.seed) for run in made.runs] == [
        ('first', 0), ('first', 1), ('still', 0), ('still', 1), ('later', 0), ('later', 1),
    ]  # fmt: skip
    runs = {(run.arm, run.seed): run for run in made.runs}
    for arm, start in {'still': 'first', 'later': 'still'}.items():
        for seed in (0, 1):
            assert runs[arm, seed].start == runs[start, seed].folder
            assert runs[arm, seed].config.init_from == str(runs[start, seed].folder)
    assert runs['first', 0].start is None
    assert [form.arm.name for form in made.forms] == ['still', 'later', 'first']
    assert "    init_from: None -> 'first'" in overview.text(made).splitlines()
    table = tables.overrides(collect(made.study, made.runs))
    assert table.rows[1][-1].text == "init_from=the run of 'still'"


def test_a_run_is_another_one_where_the_run_that_it_starts_from_is_but_not_in_another_folder(make, tmp_path):
    def first(rate):
        return Arm('start', {'optimizer.learning_rate': rate})

    def still(rate, **fields):
        arms = FIRST, first(rate), Arm('still', STILL.overrides, start='start')
        return [run.identity for run in make(*arms, **fields).runs if run.arm == 'still']

    assert still(0.1) == still(0.1, root=tmp_path / 'elsewhere')
    assert len({*still(0.1), *still(0.2)}) == 4


def test_commands_come_in_an_order_that_works_and_say_from_where(make):
    made = make(STILL, FIRST, seeds=(3,))
    for line, run in zip(commands(made), made.runs, strict=True):
        parsed = launch.parse(shlex.split(line)[1:], flags.FlagValues())
        assert (parsed.workdir, parsed.config.init_from) == (run.folder, run.config.init_from)
        assert verbs.resolve(parsed.config)[1] == run.config
    assert [run.arm for run in made.runs] == ['first', 'still']


@pytest.mark.parametrize(
    ('arm', 'message'),
    [
        (Arm('b', start='frist'), "unknown arm 'frist'; did you mean 'first'?"),
        (Arm('b', start='b'), "arm 'b' starts from itself, or from what starts from it"),
        (Arm('b', start='c'), "arm 'c' starts from itself, or from what starts from it"),
        (Arm('b', {'init_from': 'x'}, start='first'), "arm 'b': overrides init_from, and starts from arm 'first'; "),
    ],
)
def test_a_start_that_can_not_be_is_refused(arm, message, make):
    with pytest.raises(InputError) as caught:
        make(FIRST, arm, Arm('c', start='b'))
    assert str(caught.value).startswith(message)


def test_it_has_the_weights_of_that_run_and_goes_on_in_a_folder_that_was_moved(make, work, tmp_path):
    first, still = make(FIRST, STILL, seeds=(0,)).runs
    assert work([first, still]) == [('done', None)] * 2
    assert read(still, 'DONE.json')['metrics'] == read(first, 'DONE.json')['metrics']
    assert 'step 6 of' in read(still, 'run.json')['history'][0]['init_from']
    (still.folder / 'DONE.json').unlink()
    (tmp_path / 'runs').rename(tmp_path / 'moved')
    moved = make(FIRST, STILL, seeds=(0,), root=tmp_path / 'moved')
    assert [run.status for run in moved.runs] == ['done', 'partial']
    assert work(moved.left) == [('done', None)]
    record = read(moved.runs[1], 'run.json')
    assert record['config']['init_from'] == str(moved.runs[0].folder)
    assert record['history'][1]['changed']['config.init_from'] == [str(first.folder), str(moved.runs[0].folder)]
    (moved.runs[1].folder / 'DONE.json').unlink()
    moved.runs[0].folder.rename(tmp_path / 'moved' / 'other')
    moved.runs[1].config.init_from = str(tmp_path / 'moved' / 'other')
    ((event, error),) = work(moved.left)
    assert event == 'failed'
    assert 'holds a run with config.init_from=' in error


def test_folders_that_start_from_runs_of_their_own_seeds_are_one_arm(tmp_path):
    for seed in (0, 1):
        made_study.write_run(tmp_path / f'first-{seed}-0123456789a{seed}', seed, {'accuracy': 0.5})
        config = Experiment(init_from=str(tmp_path / f'first-{seed}-0123456789a{seed}'))
        made_study.write_run(tmp_path / f'tuned-{seed}', seed, {'accuracy': 0.6}, config=config)
    assert [arm.name for arm in from_folders([tmp_path]).study.arms] == ['init_from=null', 'init_from=first']
    config = Experiment(init_from=str(tmp_path / 'first-0-0123456789a0'))
    made_study.write_run(tmp_path / 'tuned-2', 2, {'accuracy': 0.6}, config=config)  # not its own
    assert len(from_folders([tmp_path]).study.arms) == 3

import dataclasses
import pathlib
import shlex

import made_study
import pytest
from absl import flags

import launch
from cnn import verbs
from cnn.config import Experiment, set_value
from cnn.data import sources
from cnn.errors import InputError
from cnn.studies import Arm, Study, plan
from cnn.studies.commands import commands
from cnn.studies.results import collect, environment, from_folders

BASE = """\
from cnn.config import Experiment


def get_config():
    config = Experiment()
    config.model.name, config.model.options = 'mlp', {'widths': (8,)}
    config.data.examples_per_class, config.train.duration = 2, '3'
    return config
"""
DRAWN = ('seed', 'data.split_seed')


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    file = tmp_path_factory.mktemp('experiments') / 'few.py'
    file.write_text(BASE)
    return str(file)


def make(base, *arms, seeds=(0, 1), seeded=DRAWN):
    study = Study('Why?', base, arms, arms[0].name, seeded=seeded)
    return plan.plan(study, seeds, pathlib.Path('runs/few'))


def test_each_seed_draws_its_own_examples_and_names_its_run_by_them(base):
    made = make(base, Arm('a'), Arm('b', {'optimizer.learning_rate': 0.2}), seeds=(3, 5))
    assert [(run.config.seed, run.config.data.split_seed) for run in made.runs] == [(3, 3), (5, 5)] * 2
    splits = {'train': 'train', 'validation': 'validation', 'test': 'test'}
    for run in made.runs:
        prints = {role: sources.load(run.config.data, split, ('label',)).fingerprint for role, split in splits.items()}
        assert run.identity == plan.identify(run.config, prints)
        assert prints['train'] != sources.load(Experiment().data, 'train', ('label',)).fingerprint
    assert len({run.identity for run in made.runs}) == 4
    assert len({run.compilation for run in made.runs}) == 1
    alike = make(base, Arm('a'), seeds=(3, 5), seeded=('seed',))
    assert [run.config.data.split_seed for run in alike.runs] == [0, 0]


def test_printed_commands_set_what_a_seed_sets(base):
    made = make(base, Arm('a'), seeds=(7,))
    (line,) = commands(made)
    parsed = launch.parse(shlex.split(line)[1:], flags.FlagValues())
    assert verbs.resolve(parsed.config) == (made.runs[0].spec, made.runs[0].config)


@pytest.mark.parametrize(
    ('overrides', 'seeded', 'message'),
    [
        ({'data.split_seed': 3}, DRAWN, "arm 'a': overrides data.split_seed, of which the study has several; leave"),
        ({'seed': 3}, DRAWN, "arm 'a': overrides seed, of which the study has several; leave"),
        ({}, ('seed', 'data.splitseed'), "unknown field 'data.splitseed'; did you mean 'data.split_seed'?"),
        ({}, ('seed', 'data.name'), 'config.data.name=0: 0 is not str'),
        ({}, ('data.split_seed',), r"seeded=('data.split_seed',): lacks seed"),
    ],
)
def test_what_a_seed_can_not_set_is_refused(overrides, seeded, message, base):
    with pytest.raises(InputError) as caught:
        make(base, Arm('a', overrides), seeded=seeded)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_folders_whose_fields_follow_the_seed_are_one_arm(tmp_path):
    for seed in (0, 1):
        for rate in (0.1, 0.2):
            config = Experiment()
            set_value(config, 'data.split_seed', seed)
            set_value(config, 'optimizer.learning_rate', rate)
            made_study.write_run(tmp_path / f'{rate}-{seed}', seed, {'accuracy': rate}, config=config)
    study = from_folders([tmp_path]).study
    assert [arm.name for arm in study.arms] == ['learning_rate=0.1', 'learning_rate=0.2']
    assert study.seeded == ('data.split_seed', 'seed')
    config = Experiment()
    set_value(config, 'data.split_seed', 1)
    made_study.write_run(tmp_path / 'other', 2, {'accuracy': 0.5}, config=config)
    assert len(from_folders([tmp_path]).study.arms) == 4  # it follows the seed no more


def test_data_that_a_seed_draws_are_no_difference_of_the_environment(tmp_path):
    for seed in (0, 1):
        made_study.write_run(tmp_path / str(seed), seed, {'accuracy': 0.5}, data={'train': str(seed) * 64})
    runs = [made_study.Run('a', seed, tmp_path / str(seed)) for seed in (0, 1)]
    study = Study('Why?', 'experiments/digits.py', [Arm('a')], 'a')
    assert 'data of a, train' in environment(collect(study, runs))
    assert 'data of a, train' not in environment(collect(dataclasses.replace(study, seeded=DRAWN), runs))

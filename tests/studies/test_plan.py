import dataclasses
import hashlib
import json
import os
import pathlib
import shlex
import subprocess
import sys

import jax
import pytest
from absl import flags

import launch
from cnn import config as configuration
from cnn import scripts, studies, verbs
from cnn.config import Experiment
from cnn.data import augment, sources
from cnn.errors import InputError
from cnn.inspection import describe
from cnn.studies import Arm, Study, arms, overview
from cnn.studies import plan as plans
from cnn.studies.commands import command, commands, flag_text
from cnn.training import program as programs
from cnn.training import sharding

EXPERIMENT = """\
from cnn.config import Experiment


def get_config():
    config = Experiment()
    config.model.name = 'mlp'
    config.model.options = {'widths': (8,)}
    config.data.batch_size = 64
    config.train.duration = '3'
    config.log.every = '1'
    return config
"""
STUDY = """\
from cnn.studies import Arm, Study


def arms():
    yield Arm('narrow')
    yield Arm('wide', {{'model.options.widths': (16,)}})


def get_study():
    return Study('Does width help?', {base!r}, arms(), 'narrow', seeds=2)
"""


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """A small experiment: a network of 64 x 8 + 8 x 10 multiply-adds, three steps on 64 examples each."""
    file = tmp_path_factory.mktemp('experiments') / 'small.py'
    file.write_text(EXPERIMENT)
    return str(file)


@pytest.fixture
def make(base, tmp_path):
    """A function of arms that gives the plan of their study, compared with the first of them."""

    def plan(*arms, seeds=(0, 1), root=tmp_path / 'runs', **fields):
        return plans.plan(Study('Why?', base, arms, arms[0].name, **fields), seeds, root)

    return plan


def refusal(function, *arguments, **fields):
    with pytest.raises(InputError) as caught:
        function(*arguments, **fields)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def write(folder, name, **values):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(values))


def finish(run, seconds=2.0, code=None, **record):
    """Has a run's folder say that it is done."""
    config = configuration.to_dict(run.config)
    write(run.folder, 'run.json', config=config, code=code, history=[], devices=['cpu: cpu'], **record)
    write(run.folder, 'DONE.json', metrics={'accuracy': 0.5}, seconds=seconds, examples_per_second=1.0)


def test_a_run_for_each_arm_and_seed(make, tmp_path):
    plan = make(Arm('a'), Arm('b', {'optimizer.learning_rate': 1}), seeds=(3, 1))
    assert [(run.arm, run.seed, run.config.seed) for run in plan.runs] == [
        ('a', 3, 3), ('a', 1, 1), ('b', 3, 3), ('b', 1, 1),
    ]  # fmt: skip
    assert [run.config.optimizer.learning_rate for run in plan.runs] == [0.1, 0.1, 1.0, 1.0]
    assert plan.statuses() == {'to do': 4}
    assert len({run.folder for run in plan.runs}) == 4
    assert not (tmp_path / 'runs').exists()
    assert plan.direction == 'max'
    assert make(Arm('a'), metric='loss').direction == 'min'


def test_the_identity_of_a_run_is_of_its_configuration_and_its_data(make):
    plan = make(Arm('a b/c'), seeds=(5,))
    (run,) = plan.runs
    splits = {'train': 'train', 'validation': 'validation', 'test': 'test'}
    prints = {role: sources.load(run.config.data, split, ('label',)).fingerprint for role, split in splits.items()}
    content = json.dumps([configuration.to_dict(run.config), prints], sort_keys=True)
    assert run.identity == hashlib.sha256(content.encode()).hexdigest()[:12]
    assert run.folder == plan.root / f'a_b_c-5-{run.identity}'
    assert {role: split.num_examples for role, split in plan.forms[0].splits.items()} == dict(run.spec.num_examples)
    others = [
        plans.identify(run.config, prints | {'test': 'other'}),
        *(other.identity for other in make(Arm('a'), Arm('b', {'log.every': '2'}), seeds=(5, 6)).runs[1:]),
    ]
    assert len({run.identity, *others}) == 5
    assert make(Arm('other'), seeds=(5,)).runs[0].identity == run.identity  # a name is no part of it


def test_splits_that_are_not_there_take_no_part(make):
    form = make(Arm('a', {'data.validation_split': None, 'data.examples_per_class': 3})).forms[0]
    assert {role: split.num_examples for role, split in form.splits.items()} == {'train': 30, 'test': 360}


@pytest.mark.parametrize('name', ['../..', '...', 'größe = 3', '-x', 'a' * 300])
def test_the_name_of_an_arm_makes_a_plain_folder(make, name):
    (run,) = make(Arm(name), seeds=(0,)).runs
    assert run.folder.parent == make(Arm('a')).root
    assert run.folder.name[0] not in '.-'
    assert len(run.folder.name) < 100


def test_overrides_are_as_on_the_command_line(make):
    given = {'model.options.widths': [4, 4], 'data.mean': [0.5], 'data.std': (1,), 'eval.metric': 'none'}
    config = make(Arm('a', given | {'task.options.label_smoothing': 0.1})).forms[0].config
    assert config.model.options['widths'] == (4, 4)
    assert (config.data.mean, config.data.std, config.eval.metric) == ((0.5,), (1.0,), None)
    assert config.task.options['label_smoothing'] == 0.1
    plan = make(Arm('a'), Arm('b', {'model.options.dropout': 0.5}), Arm('c', {'model.name': 'simple_cnn'}))
    options = [form.config.model.options for form in plan.forms]
    assert (options[1]['widths'], options[1]['dropout']) == ((8,), 0.5)  # those of the file stay
    assert options[2]['widths'] == (32, 64, 128)  # or go with its network


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        (
            {'optimizer.learning_rat': 1},
            "unknown field 'optimizer.learning_rat'; did you mean 'optimizer.learning_rate'?",
        ),
        ({'optimiser': 1}, "unknown field 'optimiser'; did you mean 'optimizer.sam'?"),
        ({'modle.options.widths': 1}, "unknown field 'modle.options.widths'; did you mean 'model.options'?"),
        ({'model.options': {}}, 'model.options: set one option at a time, model.options.NAME'),
        ({'model.options.widht': 1}, "unknown option of model mlp 'widht'; did you mean 'widths'?"),
        ({'model.options.widths': 8}, 'option widths of model mlp: 8 is not tuple[int, ...]'),
        ({'optimizer.learning_rate': 'fast'}, "config.optimizer.learning_rate='fast': 'fast' is not float"),
        ({'ema.decay': 2}, 'config.ema.decay=2.0: must be in [0, 1)'),
        ({'model.name': 'mpl'}, "unknown model 'mpl'; did you mean 'mlp'?"),
        ({'data.name': 'digit'}, "unknown data set 'digit'; did you mean 'digits'?"),
        ({'data.train_split': 'trian'}, "unknown split of data set digits 'trian'; did you mean 'train'?"),
        ({'task.name': 'segmentation'}, 'task segmentation needs semantic'),
        ({'seed': 3}, 'overrides seed, of which the study has several; leave it out'),
        ({'optimizer.frozen': ('head.*nothing',)}, "config.optimizer.frozen: 'head.*nothing' matches no parameter"),
        ({'model.name': 'alexnet'}, 'alexnet needs images of at least 63 x 63, not 8 x 8'),
        ({'model.name': 'wavenet'}, 'wavenet can not be built or take the data: a kernel (1, 1, 64) in 1 groups'),
        ({'init_from': 'no_such_file.safetensors'}, 'no_such_file.safetensors: there is no such file or folder'),
        ({'distill.teacher': 'no_such_run'}, 'no_such_run: is no run folder'),
        ({'augment.gain': 1.0}, 'config.augment.gain: is for signals'),
    ],
    ids=str,
)
def test_an_arm_that_can_not_be_run_is_refused_by_its_name(make, overrides, message):
    said = refusal(make, Arm('fine'), Arm('b', overrides))
    assert said.startswith(f"arm 'b': {message}")


def test_a_teacher_that_has_learnt_nothing_is_refused(make):
    (run,) = make(Arm('a'), seeds=(0,)).runs
    finish(run)
    said = refusal(make, Arm('b', {'distill.teacher': str(run.folder)}))
    assert said == f"arm 'b': config.distill.teacher={run.folder}: holds no checkpoint yet; finish that run first"


def test_two_arms_that_are_one_are_refused_by_both_names(make):
    same = Arm('b', {'model.options.widths': (8,)})  # as the file has it
    assert refusal(make, Arm('a'), same) == "arms 'a' and 'b' have the same configuration; drop one"


def test_a_seed_that_is_there_twice_and_a_metric_that_is_none_are_refused(make):
    assert refusal(make, Arm('a'), seeds=(0, 1, 1)) == '--seeds: seed 1 is there 2 times; a run counts once'
    said = refusal(make, Arm('a'), metric='acuracy')
    assert said == "arm 'a': unknown metric of task classification 'acuracy'; did you mean 'accuracy'?"


def test_a_base_is_found_from_the_checkout_and_its_mistakes_bear_its_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    study = Study('Why?', 'experiments/digits.py', [Arm('a')], 'a')
    assert arms.load_base(study).data.name == 'digits'
    assert arms.base_file(study) == str(scripts.ROOT / 'experiments/digits.py')
    assert 'unknown experiment file' in refusal(arms.load_base, dataclasses.replace(study, base='experiments/x.py'))
    (tmp_path / 'wrong.py').write_text(EXPERIMENT.replace("'3'", "'x'"))
    said = refusal(arms.load_base, dataclasses.replace(study, base='wrong.py'))
    assert said.startswith("wrong.py: config.train.duration='x': not a duration")


def test_the_figures_of_an_arm_are_those_of_its_network(make):
    form = make(Arm('a')).forms[0]
    assert (form.cost.parameters, form.cost.multiply_adds) == (64 * 8 + 8 + 8 * 10 + 10, 64 * 8 + 8 * 10)
    assert form.steps == 3
    assert form.work == 3 * 592 * 64 * 3
    form = make(Arm('a', {'train.duration': '2ep'})).forms[0]
    assert form.steps == round(2 * form.spec.num_examples['train'] / 64)


@pytest.mark.parametrize(
    'overrides',
    [
        {'model.name': 'simple_cnn', 'model.options.norm': 'batch', 'augment.shift': 1},
        {'model.name': 'resnet/cifar20', 'model.options.depths': (1, 1), 'augment.mixup': 0.2, 'data.channels': 3},
        {'model.name': 'mlp', 'data.image_size': (5, 7), 'model.dtype': 'bfloat16', 'augment.rotate': 5.0},
    ],
    ids=lambda overrides: overrides['model.name'],
)
def test_figures_agree_with_the_description_of_the_network(make, overrides):
    form = make(Arm('a', overrides)).forms[0]
    spec = augment.prepared_spec(form.spec, form.config.data, form.config.spectrogram)
    figures = describe.experiment(form.config, spec)
    assert form.cost.parameters == figures['parameters']
    assert form.cost.multiply_adds == figures['multiply_adds']


@pytest.mark.filterwarnings('error')
def test_an_arm_in_64_bits_is_traced_in_them(make):
    in_64_bits = {'model.dtype': 'float64', 'model.param_dtype': 'float64'}
    assert make(Arm('a'), Arm('b', in_64_bits)).forms[1].cost == make(Arm('a')).forms[0].cost
    assert not jax.config.jax_enable_x64


def test_arms_that_differ_in_numbers_share_a_compilation(make):
    plan = make(
        Arm('a'),
        Arm('b', {'optimizer.learning_rate': 0.2, 'train.duration': '5', 'task.options.label_smoothing': 0.1}),
        Arm('c', {'data.batch_size': 32}),
        Arm('d', {'model.options.widths': (4,)}),
    )
    assert plan.compilations == 3
    by_arm = {form.arm.name: form.compilation for form in plan.forms}
    assert by_arm['a'] == by_arm['b']
    for run in plan.runs[:4]:
        finish(run)
    assert make(*(form.arm for form in plan.forms)).compilations == 2  # of what is left


@pytest.mark.parametrize(
    ('overrides', 'shared'),
    [
        ({'optimizer.learning_rate': 0.5, 'seed': 7, 'train.duration': '9', 'schedule.warmup': '1'}, True),
        ({'schedule.name': 'cosine'}, False),
        ({'ema.decay': 0.9}, False),
        ({'data.mean': (0.5,), 'data.std': (1.0,)}, False),
        ({'eval.views': 'flip'}, False),
        ({'augment.shift': 1}, False),
        ({'model.batch_norm': 'frozen'}, False),
    ],
    ids=str,
)
def test_the_key_of_a_program_says_which_configurations_share_it(base, overrides, shared):
    config = scripts.load(base, 'get_config', Experiment)
    other = scripts.load(base, 'get_config', Experiment)
    configuration.override(other, overrides, config)
    (spec, config), (_, other) = map(programs.resolve_with_data, (config, other))
    mesh = sharding.make_mesh(config)
    program, same = (programs.build(one, spec, 100, mesh)[0] for one in (config, other))
    assert (program is same) is shared
    assert (programs.program_key(config, spec) == programs.program_key(other, spec)) is shared


def test_what_became_of_each_run_is_read_from_its_folder(make):
    arms = Arm('a'), Arm('b', {'optimizer.learning_rate': 1.0})
    runs = make(*arms, seeds=range(3)).runs
    finish(runs[0])
    write(runs[1].folder, 'run.json', config={}, code=None, history=[])
    write(runs[2].folder, 'run.json', config={}, code=None, history=[])
    write(runs[2].folder, 'FAILED.json', error='training diverged', exit_code=1)
    plan = make(*arms, seeds=range(3))
    assert [run.status for run in plan.runs] == ['done', 'partial', 'failed', *['to do'] * 3]
    assert plan.statuses('a') == {'done': 1, 'partial': 1, 'failed': 1}
    assert plan.left == plan.runs[1:]
    text = overview.text(plan)
    assert '1 done, 1 partial, 1 failed\n' in text
    assert '2 arms x 3 seeds = 6 runs: 1 done, 1 partial, 1 failed, 3 to do' in text
    assert 'failed: a, seed 2: training diverged' in text


def test_times_are_guessed_then_scaled_then_measured(make):
    arms = Arm('a'), Arm('b', {'train.duration': '6'}), Arm('c', {'model.options.widths': (16,)})
    runs = make(*arms, seeds=range(3)).runs
    work = {'a': 3 * 592 * 64 * 3, 'b': 3 * 592 * 64 * 6, 'c': 3 * 2 * 592 * 64 * 3}
    guess = {arm: plans.START_SECONDS + of / plans.MULTIPLY_ADDS_PER_SECOND for arm, of in work.items()}
    assert make(*arms).seconds() == (guess, 'guessed')
    for run, seconds in zip(runs, (2.0, 9.0, 4.0), strict=False):
        finish(run, seconds)
    assert make(*arms, seeds=range(3)).seconds() == ({'a': 4.0, 'b': 8.0, 'c': 8.0}, 'scaled')
    assert 'left: 2 compilations, 48 s one after another (by the finished runs and multiply-adds)' in overview.text(
        make(*arms, seeds=range(3))
    )
    finish(runs[3], 10.0)
    finish(runs[6], 1.0)
    assert make(*arms, seeds=range(3)).seconds() == ({'a': 4.0, 'b': 10.0, 'c': 1.0}, 'measured')


def test_other_code_is_shown_and_refused_while_runs_are_left(make, monkeypatch):
    monkeypatch.setattr(plans, 'code_revision', lambda: 'new')
    finish(make(Arm('a')).runs[0], code='new')
    plan = make(Arm('a'))
    assert plan.other_code == {}
    plans.check_code(plan)
    assert 'differing' not in overview.text(plan)

    old = 'cafe' * 10
    finish(plan.runs[0], code=f'{old}+')
    plan = make(Arm('a'))
    assert plan.other_code == {f'{old}+': 1}
    assert 'WARNING: differing code: 1 begun runs had cafecafecafe+;' in overview.text(plan)
    said = f'runs in {plan.root} had other code than new: 1 with {old}+; --allow_code_change goes on'
    assert refusal(plans.check_code, plan).startswith(said)

    finish(plan.runs[1], code='new')
    write(plan.runs[1].folder, 'run.json', code='new', history=[{'changed': {'code': [None, 'new']}}])
    plan = make(Arm('a'))
    assert plan.other_code == {f'{old}+': 1, 'no checkout': 1}
    assert not plan.left
    plans.check_code(plan)


@pytest.mark.parametrize(
    ('number', 'seeds', 'word'), [(2, 6, '6 seeds can show a'), (2, 5, 'WARNING'), (4, 7, '7 seeds can show a')]
)
def test_the_plan_says_how_many_seeds_it_needs(make, number, seeds, word):
    plan = make(*(Arm(f'{i}', {'optimizer.learning_rate': 0.1 + i}) for i in range(number)), seeds=range(seeds))
    assert plan.seeds_needed == {2: 6, 4: 7}[number]
    (line,) = (line for line in overview.text(plan).splitlines() if 'comparison' in line)
    assert word in line
    assert str(plan.seeds_needed) in line


def test_the_text_fits_a_terminal_and_shows_the_differences(make):
    arms = (
        Arm('a'),
        Arm('b', {'optimizer.learning_rate': 1, 'model.options.widths': (16,) * 40}),
        Arm('c', {'model.name': 'simple_cnn', 'model.options.norm': 'batch'}, against='b'),
        Arm('d' * 200, {'optimizer.nesterov': True}, against='d' * 200),
    )
    lines = overview.text(make(*arms)).splitlines()
    assert max(map(len, lines)) <= overview.WIDTH
    assert lines[0] == 'Why?'
    after_b = lines[next(i for i, line in enumerate(lines) if line.startswith('b ')) :]
    assert after_b[1] == '  against a:'
    assert '    optimizer.learning_rate: 0.1 -> 1.0' in after_b
    assert any(line.startswith('    model.options.widths: (8,) -> (16, 16') for line in after_b)
    assert '  against b:' in after_b
    assert "    model.name: 'mlp' -> 'simple_cnn'" in after_b
    assert '    optimizer.learning_rate: 1.0 -> 0.1' in after_b
    assert "    model.options.norm: - -> 'batch'" in after_b
    assert '  compared with nothing, from a:' in after_b
    assert '    optimizer.nesterov: False -> True' in after_b


def test_a_duration_is_said_as_people_do():
    said = [overview.duration(seconds) for seconds in (3, 119, 120, 7199, 7200, 3 * 86400)]
    assert said == ['3 s', '119 s', '2.0 min', '120.0 min', '2.0 h', '3.0 days']


NASTY = {
    'model.options.widths': (3,),
    'model.options.dropout': 1e-07,
    'task.options.cross_entropy': 'binary',
    'task.options.target_threshold': None,
    'data.classes': ('zero', '1'),
    'data.validation_split': None,
    'data.image_size': [5, 7],
    'data.mean': (0.5,),
    'data.std': [1],
    'data.resident': False,
    'optimizer.decay_exclude': (),
    'optimizer.momentum': -0.25,
    'optimizer.rates': ("den'*se.{1,3}kernel=1e-3", r'(head|\d+)/(kernel|bias)=2'),
    'optimizer.nesterov': True,
    'schedule.boundaries': ('50%', '2'),
    'data.archives': 'a b; rm -rf "$HOME", it\'s',
    'distill.weight': 1,
    'eval.metric': 'none',
}


def test_a_printed_command_makes_the_same_run_in_the_same_folder(make, base):
    classes = sources.spec(scripts.load(base, 'get_config', Experiment).data).class_names['label'][:2]
    plan = make(
        Arm('a'),
        Arm('nasty', NASTY | {'data.classes': classes}),
        Arm('other', {'model.options.norm': 'batch', 'model.name': 'simple_cnn'}),
        root=pathlib.Path('runs/a study'),
        seeds=(0, 4294967295),
    )
    lines = commands(plan)
    assert len(lines) == len(plan.runs)
    for line, run in zip(lines, plan.runs, strict=True):
        python, *argv = shlex.split(line)
        assert (python, argv[0], '\n' in line) == ('python', 'launch.py', False)
        parsed = launch.parse(argv, flags.FlagValues())
        assert parsed.verb == 'train'
        assert parsed.workdir == run.folder
        assert verbs.resolve(parsed.config) == (run.spec, run.config)


@pytest.mark.parametrize('value', ['3', 'true', 'None', "it's", 'a b', '', (1,), [1, 'a'], None, True, -1.5, 1e-07])
def test_an_option_comes_back_from_its_flag(value):
    flag = f'--config.model.options.key={flag_text(Experiment(), "model.options.key", value)}'
    back = launch.parse(['launch.py', flag], flags.FlagValues()).config.model.options['key']
    assert (back, type(back)) == (value, type(value))


def test_words_among_the_options_are_printed_as_they_are_and_others_in_quotes(make):
    run = make(Arm('a', {'task.options.cross_entropy': 'binary'}))
    assert '--config.task.options.cross_entropy=binary ' in command(run, run.runs[0])


def test_a_command_runs_and_its_run_is_done(make):
    """From the shell, and then no command is left for it."""
    plan = make(Arm('a'), Arm('b', {'optimizer.learning_rate': 0.2}), seeds=(1,))
    line = commands(plan, str(launch.ROOT / 'launch.py'))[0].replace('python', shlex.quote(sys.executable), 1)
    environment = {**os.environ, 'XLA_FLAGS': ''}
    result = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    plan = make(Arm('a'), Arm('b', {'optimizer.learning_rate': 0.2}), seeds=(1,))
    assert [run.status for run in plan.runs] == ['done', 'to do']
    assert plan.other_code == {}
    assert [shlex.split(line)[-1] for line in commands(plan)] == [f'--workdir={plan.runs[1].folder}']


def process(*arguments, cwd, **environment):
    command = [sys.executable, str(launch.ROOT / 'launch.py'), 'ablate', *map(str, arguments)]
    environment = {**os.environ, 'XLA_FLAGS': '', **environment}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_a_dry_run_shows_the_plan_and_touches_nothing(base, tmp_path):
    file = tmp_path / 'width.py'
    file.write_text(STUDY.format(base=base))
    result = process(f'--study={file}', '--dry_run', cwd=tmp_path, JAX_PLATFORMS='no_such_platform')
    assert (result.returncode, result.stderr) == (0, '')
    assert result.stdout.startswith('Does width help?\n')
    assert 'runs in runs/width/' in result.stdout
    assert '2 arms x 2 seeds = 4 runs: 4 to do' in result.stdout
    assert list(tmp_path.iterdir()) == [file]
    result = process(f'--study={file}', '--emit=commands', '--workdir=else where', '--seeds=9,', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    assert [line[-1].startswith('--workdir=else where/') for line in lines] == [True, True]
    assert all('--config.seed=9' in line for line in lines)


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('def getstudy():\n    pass\n', '{file}:1: has no function get_study'),
        ('def get_study():\n    return {{}}\n', '{file}: get_study returns dict, not a Study'),
        (STUDY.replace("Arm('wide'", 'Arm(1 / 0'), '{file}:6: ZeroDivisionError: division by zero'),
        (STUDY.replace("'wide'", "'narrow'"), "arm 'narrow' is there 2 times; give each its own name"),
        (STUDY.replace("arms(), 'narrow'", "arms(), 'narow'"), "unknown arm 'narow'; did you mean 'narrow'?"),
    ],
)
def test_a_study_file_that_goes_wrong_is_named_with_its_line(source, message, base, tmp_path):
    file = tmp_path / 'study.py'
    file.write_text(source.format(base=base))
    assert refusal(studies.load, str(file)) == message.format(file=file)


@pytest.mark.parametrize(
    'file', sorted((launch.ROOT / 'experiments/ablations').glob('*.py')), ids=lambda file: file.stem
)
def test_every_study_can_be_planned_and_shows_something(file, tmp_path):
    study = studies.load(str(file))
    plan = plans.plan(study, range(study.seeds), tmp_path)
    assert plan.seeds_needed <= study.seeds
    assert f'python launch.py ablate --study=experiments/ablations/{file.name}' in file.read_text()

import fcntl
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Optional

import pytest
from absl import flags

import launch
from cnn import config as configuration
from cnn import verbs
from cnn.config import Experiment
from cnn.errors import InputError, RunFailed, RunStopped

PATHS = configuration.field_paths(Experiment())

# A text for every field and what it becomes: nothing that the default experiment has.
SHELL = {
    'model.name': ('lenet/1998', 'lenet/1998'),
    'model.dtype': ('bfloat16', 'bfloat16'),
    'model.param_dtype': ('float64', 'float64'),
    'model.batch_norm': ('frozen', 'frozen'),
    'model.ghost_batch': ('8', 8),
    'model.conv': ('portable', 'portable'),
    'task.name': ('segmentation', 'segmentation'),
    'data.name': ('digit_scenes/128', 'digit_scenes/128'),
    'data.train_split': ('train[:50%]', 'train[:50%]'),
    'data.validation_split': ('none', None),
    'data.test_split': ('None', None),
    'data.batch_size': ('32', 32),
    'data.classes': ('cat,dog', ('cat', 'dog')),
    'data.examples_per_class': ('10', 10),
    'data.split_seed': ('3', 3),
    'data.archives': ('/data/archives', '/data/archives'),
    'data.image_size': ('32,48', (32, 48)),
    'data.test_size': ('24,32', (24, 32)),
    'data.resize': ('crop', 'crop'),
    'data.resize_side': ('36', 36),
    'data.channels': ('1', 1),
    'data.sample_rate': ('16000', 16000),
    'data.length': ('8000', 8000),
    'data.mean': ('(0.5, 0.25, 1)', (0.5, 0.25, 1.0)),
    'data.std': ('0.5,0.25,1', (0.5, 0.25, 1.0)),
    'data.resident': ('true', True),
    'data.workers': ('2', 2),
    'data.max_unreadable': ('5', 5),
    'spectrogram.bands': ('64', 64),
    'spectrogram.window': ('512', 512),
    'spectrogram.hop': ('64', 64),
    'spectrogram.low': ('50', 50.0),
    'spectrogram.high': ('3800', 3800.0),
    'spectrogram.floor': ('1e-9', 1e-9),
    'augment.repeats': ('4', 4),
    'augment.crop_scale': ('.08,1', (0.08, 1.0)),
    'augment.crop_ratio': ('(1, 1)', (1.0, 1.0)),
    'augment.shift': ('3', 3),
    'augment.shift_border': ('reflect', 'reflect'),
    'augment.flip': ('true', True),
    'augment.alternating_flip': ('1', True),
    'augment.translate': ('.25', 0.25),
    'augment.rotate': ('15', 15.0),
    'augment.shear': ('8', 8.0),
    'augment.brightness': ('.2', 0.2),
    'augment.contrast': ('.3', 0.3),
    'augment.saturation': ('.4', 0.4),
    'augment.hue': ('.5', 0.5),
    'augment.policy': ('trivialaugment', 'trivialaugment'),
    'augment.num_operations': ('1', 1),
    'augment.magnitude': ('15', 15.0),
    'augment.magnitude_std': ('1', 1.0),
    'augment.erase': ('1', 1.0),
    'augment.gain': ('3', 3.0),
    'augment.noise': ('1e-3', 1e-3),
    'augment.time_masks': ('1', 1),
    'augment.time_mask_width': ('30', 30),
    'augment.frequency_masks': ('1', 1),
    'augment.frequency_mask_width': ('16', 16),
    'augment.mixup': ('.8', 0.8),
    'augment.cutmix': ('.5', 0.5),
    'optimizer.name': ('adam', 'adam'),
    'optimizer.learning_rate': ('1e-3', 0.001),
    'optimizer.momentum': ('-0.5', -0.5),
    'optimizer.nesterov': ('True', True),
    'optimizer.second_momentum': ('1', 1.0),
    'optimizer.epsilon': ('1e-6', 1e-6),
    'optimizer.weight_decay': ('.1', 0.1),
    'optimizer.decay_exclude': ('bias,pos_embedding', ('bias', 'pos_embedding')),
    'optimizer.clip_norm': ('1', 1.0),
    'optimizer.clip_adaptive': ('.1', 0.1),
    'optimizer.trust_coefficient': ('2e-3', 2e-3),
    'optimizer.other': ('adamw', 'adamw'),
    'optimizer.other_momentum': ('.8', 0.8),
    'optimizer.newton_schulz': ('3', 3),
    'optimizer.unit_filters': ('true', True),
    'optimizer.sam': ('.1', 0.1),
    'optimizer.frozen': ('(?!head).*', ('(?!head).*',)),
    'optimizer.unfreeze': ('stage4.*@10%,.*@100', ('stage4.*@10%', '.*@100')),
    'optimizer.rates': ('head/kernel=2.5,.*/bias=.5', ('head/kernel=2.5', '.*/bias=.5')),
    'optimizer.layer_decay': ('.9', 0.9),
    'optimizer.accumulate': ('2', 2),
    'schedule.name': ('step', 'step'),
    'schedule.warmup': ('5%', '5%'),
    'schedule.start': ('.01', 0.01),
    'schedule.boundaries': ("('50%', '20ep', '1000')", ('50%', '20ep', '1000')),
    'schedule.every': ('2.4ep', '2.4ep'),
    'schedule.factor': ('0.2', 0.2),
    'schedule.power': ('2', 2.0),
    'schedule.final': ('1e-2', 0.01),
    'ema.decay': ('0.99', 0.99),
    'ema.every': ('2', 2),
    'ema.warmup': ('true', True),
    'distill.teacher': ('runs/big one', 'runs/big one'),
    'distill.weight': ('1', 1.0),
    'distill.temperature': ('2', 2.0),
    'train.duration': ('90ep', '90ep'),
    'eval.every': ('2000', '2000'),
    'eval.metric': ('accuracy', 'accuracy'),
    'eval.views': ('shift_flip', 'shift_flip'),
    'eval.recalibrate': ('100', 100),
    'checkpoint.every': ('1e6ex', '1e6ex'),
    'checkpoint.keep': ('3', 3),
    'log.every': ('1.5%', '1.5%'),
    'mesh.data': ('4', 4),
    'mesh.fsdp': ('2', 2),
    'init_from': ('runs/other run', 'runs/other run'),
    'allow_partial': ('fc[.](weight|bias),aux.*', 'fc[.](weight|bias),aux.*'),
    'seed': ('4294967295', 4294967295),
    'deterministic': ('1', True),
}

WRONG = {
    int: ('1.5', 'abc', 'true', 'none', ''),
    float: ('abc', 'true', 'none', 'nan', '1,2', ''),
    bool: ('yes', '2', 'none', ''),
    tuple[float, ...]: ('a', '0.5,b', '1e999'),
    Optional[int]: ('1.5', 'abc', 'true', ''),
    Optional[float]: ('abc', 'true', 'inf', ''),
    Optional[bool]: ('yes', '2', ''),
    Optional[tuple[int, int]]: ('8', '8,8,8', '8,1.5', 'a,b', ''),
}

OPTIONS = [
    ('3', 3),
    ('-1', -1),
    ('0.5', 0.5),
    ('true', True),
    ('False', False),
    ('relu', 'relu'),
    ('none', 'none'),
    ('None', None),
    ('(1, 2)', (1, 2)),
    ('1,2', (1, 2)),
    ('[1, 2]', [1, 2]),
    ("'3'", '3'),
    ('a=b', 'a=b'),
    ('{[]:1}', '{[]:1}'),
    ('', ''),
]

EXPERIMENT = """\
from cnn.config import Experiment


def get_config(arg='1'):
    config = Experiment()
    config.model.name = 'mlp'
    config.model.options = {'widths': (8,)}
    config.data.batch_size = 64
    config.optimizer.weight_decay = float(arg)
    config.ema.decay = 0.5
    config.train.duration = '3'
    config.eval.every = '2'
    config.log.every = '1'
    return config
"""

# Each kind of mistake, and what its line says.
MISTAKES = {
    'verb': ('trian', "unknown verb 'trian'; did you mean 'train'?"),
    'flag': ('--wokdir=x', "unknown flag '--wokdir'; did you mean '--workdir'?"),
    'field': ('--config.optimizer.learning_rat=1', "did you mean 'config.optimizer.learning_rate'?"),
    'type': ('--config.data.batch_size=many', "config.data.batch_size='many': is not int"),
    'rule': ('--config.ema.decay=2', 'config.ema.decay=2.0: must be in [0, 1)'),
    'duration': ('--config.train.duration=5x', "config.train.duration='5x': not a duration"),
    'file': ('--config=experiments/digit.py', "did you mean 'experiments/digits.py'?"),
    'argument': ('train x', "unexpected argument 'x'"),
    'option': ('--config.model.options.widht=3', "unknown option of model simple_cnn 'widht'; did you mean 'widths'?"),
    'option type': ('--config.model.options.hidden=x', "option hidden of model simple_cnn: 'x' is not int"),
    'task option': ('--config.task.options.smoothing=0', "did you mean 'label_smoothing'?"),
    'model': ('--config.model.name=lenett', "unknown model 'lenett'; did you mean 'lenet'?"),
    'variant': ('--config.model.name=lenet/1989', "unknown model 'lenet/1989'; did you mean 'lenet/1998'?"),
    'task': ('--config.task.name=clasification', "did you mean 'classification'?"),
    'dataset': ('--config.data.name=digit', "unknown data set 'digit'; did you mean 'digits'?"),
    'metric': ('--config.eval.metric=acuracy', "did you mean 'accuracy'?"),
    'steps': ('benchmark --steps=0', '--steps=0: 0 is not a positive integer'),
    'run folder': ('evaluate --workdir=no_such_run', 'no_such_run: is no run folder'),
    'no study': ('ablate', 'ablate needs a study: --study=experiments/ablations/NAME.py'),
    'study': (
        'ablate --study=experiments/skip_connection.py',
        "did you mean 'experiments/ablations/skip_connections.py'?",
    ),
    'report': ('report', 'report needs a study, --study=experiments/ablations/NAME.py, or folders: report DIR'),
    'folder': ('report no_such_folder', 'no_such_folder: no run folder there'),
    'folders': ('report a b', 'report of several folders: say where it goes, --workdir=DIR'),
    'study and folder': ('report a --study=b', 'report needs a study, --study='),
    'metric of a study': (
        'report --study=a --metric=loss',
        '--metric is for folders; a study itself says what decides',
    ),
    'seeds of folders': ('report a --seeds=3', '--seeds is for --study; of folders all runs count'),
    'nothing begun': (
        'report --study=experiments/ablations/skip_connections.py --workdir=no_such_folder',
        'no_such_folder: no run of the study was begun there; ablate begins them',
    ),
    'seeds': (
        'ablate --study=experiments/ablations/skip_connections.py --seeds=0,1,1',
        '--seeds: seed 1 is there 2 times; a run counts once',
    ),
}


def parse(*arguments):
    return launch.parse(['launch.py', *arguments], flags.FlagValues())


def refusal(*arguments):
    with pytest.raises(InputError) as caught:
        parse(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def unresolved(*arguments):
    config = parse(*arguments).config
    with pytest.raises(InputError) as caught:
        verbs.resolve(config)
    return str(caught.value)


def misspell(path):
    """The path with two neighbouring letters of its last name exchanged."""
    for end in range(len(path), 1, -1):
        swapped = f'{path[: end - 2]}{path[end - 1]}{path[end - 2]}{path[end:]}'
        if swapped not in (path, *PATHS):
            return swapped
    raise AssertionError(path)


def write(path, text):
    path.write_text(text)
    return path


def process(*arguments, **environment):
    """The command line as a process of its own, by default on one device."""
    environment = {**os.environ, 'XLA_FLAGS': '', **environment}
    command = [sys.executable, 'launch.py', *map(str, arguments)]
    return subprocess.run(command, cwd=launch.ROOT, env=environment, capture_output=True, text=True, timeout=300)


def said(result):
    """The one line of a mistake."""
    assert (result.returncode, result.stdout) == (2, ''), result.stderr
    assert result.stderr.startswith('launch.py: ')
    assert result.stderr.count('\n') == 1
    return result.stderr


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
    return write(tmp_path_factory.mktemp('experiments') / 'small.py', EXPERIMENT)


@pytest.fixture(scope='module')
def finished(experiment):
    """The folder of a run of three steps, started without naming the verb."""
    folder = experiment.parent / 'run'
    result = process(f'--config={experiment}', f'--workdir={folder}')
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(folder)
    return folder


@pytest.fixture
def unfinished(finished, tmp_path):
    """A copy of that folder, to be changed."""
    return shutil.copytree(finished, tmp_path / 'run')


def test_train_is_the_default_verb_and_digits_the_default_experiment():
    command = parse()
    assert (command.verb, command.experiment, command.overridden, command.workdir) == ('train', 'digits', False, None)
    assert command.config.model.name == 'simple_cnn'
    for verb in launch.VERBS:
        assert parse(verb).verb == verb


def test_every_field_is_set_from_the_shell():
    assert SHELL.keys() == {path for path in PATHS if not path.endswith('.options')}
    default = parse().config
    arguments, expected = [], {}
    for index, (path, (text, value)) in enumerate(SHELL.items()):
        assert configuration.get(default, path) != value, path
        arguments += [f'--config.{path}={text}'] if index % 2 else [f'--config.{path}', text]
        expected[path] = value
    for part in ('model', 'task'):
        arguments += [f'--config.{part}.options.a=(1, 2)', f'--config.{part}.options.b', 'word']
        expected[f'{part}.options'] = {'a': (1, 2), 'b': 'word'}  # those of the file went with its model
    command = parse(*arguments)
    assert command.overridden
    values = {path: configuration.get(command.config, path) for path in PATHS}
    assert values == expected
    assert {path: type(value) for path, value in values.items()} == {path: type(v) for path, v in expected.items()}


def test_options_of_the_file_stay_with_the_name_that_it_gives_them_to():
    assert parse('--config.model.options.hidden=8').config.model.options == {'norm': 'batch', 'hidden': 8}
    assert parse('--config.model.name=simple_cnn').config.model.options == {'norm': 'batch'}
    assert parse('--config.model.name=mlp').config.model.options == {}
    assert parse('--config.model.options.widths=8,', '--config.model.name=mlp').config.model.options == {'widths': (8,)}


@pytest.mark.parametrize('path', PATHS)
def test_a_misspelt_field_is_refused_with_the_right_one(path):
    wrong = misspell(path)
    assert refusal(f'--config.{wrong}=1') == f"unknown field 'config.{wrong}'; did you mean 'config.{path}'?"


@pytest.mark.parametrize('path', [path for path, kind in PATHS.items() if 'str' not in str(kind)])
def test_a_text_of_another_type_is_refused_by_its_field(path):
    for text in WRONG[PATHS[path]]:
        assert refusal(f'--config.{path}={text}').startswith(f'config.{path}='), text


@pytest.mark.parametrize(('text', 'value'), OPTIONS)
def test_options_are_read_as_literals(text, value):
    for part in ('model', 'task'):
        options = configuration.get(parse(f'--config.{part}.options.key={text}').config, f'{part}.options')
        assert options['key'] == value
        assert type(options['key']) is type(value)


@pytest.mark.parametrize('path', ['optimizer.nesterov', 'data.resident', 'augment.flip', 'deterministic'])
def test_switches_have_every_form(path):
    def value(*arguments):
        return configuration.get(parse(*arguments).config, path)

    for on in (f'--config.{path}', f'-config.{path}', f'--config.{path}=true', f'--config.{path}=1'):
        assert value(on) is True
        assert value(on, '--workdir=x') is True
    for off in (f'--noconfig.{path}', f'--config.{path}=false', f'--config.{path}=False', f'--config.{path}=0'):
        assert value(f'--config.{path}', off) is False
    assert value(f'--config.{path}', 'false') is False


@pytest.mark.parametrize(
    'argument', ['--noconfig.optimizer.nesterov=true', '--noconfig.ema.decay=none', '--noconfig.model.options.a=1']
)
def test_a_switch_that_is_turned_off_takes_no_value(argument):
    assert refusal(argument).startswith(f'{argument}: write --config.')


def test_what_is_no_switch_is_not_turned_off():
    assert refusal('--noconfig.seed') == "unknown flag '--noconfig.seed'; did you mean '--config.seed'?"
    assert refusal('--noprint_config=true') == '--noprint_config=true does not take an argument'


@pytest.mark.parametrize('path', [path for path, kind in PATHS.items() if type(None) in getattr(kind, '__args__', ())])
def test_none_clears_every_optional_field_and_the_last_value_wins(path, experiment):
    text, value = ('test', 'test') if path.endswith('_split') else SHELL[path]

    def last(*texts):
        return configuration.get(parse(*(f'--config.{path}={text}' for text in texts)).config, path)

    assert last(text) == value
    assert last('none') is None
    assert last(text, 'None') is None
    assert last('none', text) == value
    assert last('none', text, 'none') is None


def test_none_clears_what_the_experiment_file_sets(experiment):
    assert parse(f'--config={experiment}').config.ema.decay == 0.5
    assert parse(f'--config={experiment}', '--config.ema.decay=none').config.ema.decay is None


def test_the_last_of_two_values_wins():
    config = parse('--config.seed=1', '--config.task.options.a=1', '--config.seed', '2', '--config.task.options.a=2')
    assert (config.config.seed, config.config.task.options) == (2, {'a': 2})
    command = parse(
        '--config.schedule.boundaries=1,2',
        '--config.schedule.boundaries=3',
        *['--config.data.std=2'] * 2,
        '--config.data.mean=1',
    )
    assert (command.config.schedule.boundaries, command.config.data.std) == (('3',), (2.0,))


@pytest.mark.parametrize('text', ['bias,scale', 'bias, scale', '(bias,scale)', "('bias', 'scale')", '["bias","scale"]'])
def test_words_have_every_spelling_of_a_tuple(text):
    assert parse(f'--config.optimizer.decay_exclude={text}').config.optimizer.decay_exclude == ('bias', 'scale')


@pytest.mark.parametrize('text', ['0.5,1', '0.5, 1', '(0.5,1)', '[0.5, 1]'])
def test_numbers_have_every_spelling_of_a_tuple(text):
    assert parse(f'--config.data.mean={text}', '--config.data.std=1,1').config.data.mean == (0.5, 1.0)


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ("'a{1,2}','b'", ('a{1,2}', 'b')),
        ('("a{1,2}", "b")', ('a{1,2}', 'b')),
        (r"'(?!head)\d{1,2}'", (r'(?!head)\d{1,2}',)),
        ('"it\'s",b', ("it's", 'b')),
        ("it's", ("it's",)),
    ],
)
def test_a_comma_in_quotes_divides_no_words(text, value):
    assert parse(f'--config.optimizer.decay_exclude={text}').config.optimizer.decay_exclude == value


@pytest.mark.parametrize('path', ['optimizer.decay_exclude', 'schedule.boundaries', 'data.mean'])
def test_a_tuple_may_be_emptied(path):
    for text in ('()', 'none', ''):
        assert configuration.get(parse(f'--config.{path}=1,2', f'--config.{path}={text}').config, path) == ()


def test_negative_numbers_are_values_in_both_forms():
    for arguments in (['--config.optimizer.momentum=-.5'], ['--config.optimizer.momentum', '-.5']):
        assert parse(*arguments).config.optimizer.momentum == -0.5
    assert parse('--config.task.options.a', '-1').config.task.options == {'a': -1}
    assert refusal('--config.seed', '-1') == 'config.seed=-1: must be at least 0'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('evalute', "unknown verb 'evalute'; did you mean 'evaluate'?"),
        ('dat', "unknown verb 'dat'; did you mean 'data'?"),
        ('--wokdir=x', "unknown flag '--wokdir'; did you mean '--workdir'?"),
        ('--prnt_config', "unknown flag '--prnt_config'; did you mean '--print_config'?"),
        ('--confg=file', "unknown flag '--confg'; did you mean '--config'?"),
        ('--config.modl.options.a=1', "unknown field 'config.modl.options.a'; did you mean 'config.model.options'?"),
        ('--config.model=lenet', "unknown field 'config.model'; did you mean 'config.model.name'?"),
        ('--config.model.options={}', '--config.model.options: set one option at a time'),
        ('--config.model.options.a', '--config.model.options.a: give it a value'),
        ('--config.seed', 'Missing value for flag --config.seed'),
        ('train evaluate', "unexpected argument 'evaluate'"),
        ('--config.seed=1 2', "unexpected argument '2'"),
        ('--flagfile=no_such_file', 'ERROR:: Unable to open flagfile'),
        ('--list', '--list belongs to another verb: python launch.py data --list'),
        ('--augmented', '--augmented belongs to another verb: python launch.py data --augmented'),
        ('--split=test', '--split belongs to another verb: python launch.py evaluate --split'),
        ('--save_weights=x', '--save_weights belongs to another verb: python launch.py evaluate --save_weights'),
        ('--save_features=x', '--save_features belongs to another verb: python launch.py evaluate --save_features'),
        ('--steps=3', '--steps belongs to another verb: python launch.py benchmark --steps'),
        ('--study=x', '--study belongs to another verb: python launch.py ablate --study'),
        ('--metric=loss', '--metric belongs to another verb: python launch.py report --metric'),
        ('report x --dry_run', '--dry_run belongs to another verb: python launch.py ablate --dry_run'),
        ('--dry_run', '--dry_run belongs to another verb: python launch.py ablate --dry_run'),
        ('ablate --seeds=0', "--seeds='0': write how many, such as --seeds=8, or which, such as --seeds=0,1,5"),
        ('ablate --seeds=1.5', "--seeds='1.5': write how many"),
        ('ablate --seeds=-1', "--seeds='-1': write how many"),
        ('ablate --seeds=4294967296,', "--seeds='4294967296,': seeds must be below 2**32"),
        ('ablate --executor=slrum', "unknown executor 'slrum'; did you mean 'slurm'?"),
        ('ablate --pack=unroled', "unknown pack 'unroled'; did you mean 'unrolled'?"),
        ('ablate --workers=0', 'flag --workers=0: 0 is not a positive integer'),
        ('ablate --retries=-1', 'flag --retries=-1: -1 is not a non-negative integer'),
        ('ablate --emit=command', "unknown form of --emit 'command'; did you mean 'commands'?"),
        ('benchmark --steps=1.5', "flag --steps=1.5: invalid literal for int() with base 10: '1.5'"),
        ('data --profile=1:2', '--profile belongs to another verb: python launch.py train --profile'),
    ],
)
def test_a_command_that_is_not_understood_is_refused(arguments, message):
    assert refusal(*arguments.split()).startswith(message)


def test_flags_beside_the_configuration():
    assert parse('--workdir=a b').workdir == pathlib.Path('a b')
    assert parse('--workdir', 'x').workdir == pathlib.Path('x')
    assert parse('--print_config').print_config is True
    assert parse('evaluate', '--split=train').split == 'train'
    assert parse('evaluate', '--save_weights=x.safetensors').save_weights == pathlib.Path('x.safetensors')
    assert parse('evaluate', '--save_features=x.npz').save_features == pathlib.Path('x.npz')
    assert parse('data', '--list').list_names is True
    assert parse('data', '--augmented').augmented is True
    assert parse('data').augmented is False
    assert parse('benchmark', '--steps=3').steps == 3
    assert parse('benchmark').steps is None
    assert parse('--profile=3:10').profile == range(3, 10)
    assert parse('ablate', '--study=x.py:1').study == 'x.py:1'
    assert parse('ablate').seeds is None
    assert [parse('ablate', f'--seeds={text}').seeds for text in ('3', '5,1', '7,')] == [(0, 1, 2), (5, 1), (7,)]
    assert (parse('ablate').dry_run, parse('ablate', '--dry_run').dry_run) == (False, True)
    assert parse('ablate', '--emit=commands').emit == 'commands'
    command = parse('ablate', '--pack=vmapped', '--workers=3', '--keep_going', '--retries=0')
    assert (command.pack, command.workers, command.keep_going, command.retries) == ('vmapped', 3, True, 0)
    command = parse('ablate')
    assert (command.pack, command.workers, command.keep_going, command.retries) == ('auto', None, False, 1)
    assert parse('ablate', '--allow_code_change').allow_code_change is True
    command = parse('ablate', '--executor=slurm', '--slurm=time=5,gpus=1', '--wait')
    assert (command.executor, command.slurm, command.wait) == ('slurm', 'time=5,gpus=1', True)
    assert (parse('ablate').executor, parse('ablate').slurm, parse('ablate').wait) == ('local', None, False)
    assert parse().profile is None
    command = parse('report', 'a', '--workdir', 'out', 'b c', '--metric=loss,accuracy')
    assert (command.folders, command.workdir) == ((pathlib.Path('a'), pathlib.Path('b c')), pathlib.Path('out'))
    assert command.metric == ('loss', 'accuracy')
    assert (parse('report').folders, parse('report').metric) == ((), ())


@pytest.mark.parametrize('text', ['3', '3:', ':3', '3:3', '4:3', '-1:3', 'a:b', '1:2:3'])
def test_a_profile_that_is_no_range_of_steps_is_refused(text):
    assert refusal(f'--profile={text}').startswith(f'--profile={text!r}: write START:STOP')


def test_an_experiment_file_takes_an_argument(experiment):
    command = parse(f'--config={experiment}:0.25')
    assert command.experiment == 'small'
    assert command.config.optimizer.weight_decay == 0.25
    assert parse('--config', str(experiment)).config.optimizer.weight_decay == 1.0


def test_flags_go_over_the_experiment_file_wherever_they_stand(experiment):
    for arguments in (['--config.data.batch_size=8', f'--config={experiment}'], [f'--config={experiment}']):
        config = parse(*arguments).config
        assert (config.model.name, config.data.batch_size) == ('mlp', 8 if len(arguments) == 2 else 64)


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('import os\ndef get_config(:\n', '2: SyntaxError: '),
        ('x = 1\n\ny = x / 0\n', '3: ZeroDivisionError: division by zero'),
        ('def get_config():\n    raise ValueError("first\\nsecond")\n', '2: ValueError: first'),
        ('def helper():\n    return {}["a"]\ndef get_config():\n    return helper()\n', "2: KeyError: 'a'"),
        ('import json\ndef get_config():\n    return json.loads("{")\n', '3: JSONDecodeError: '),
        ('import no_such_module\n', "1: ModuleNotFoundError: No module named 'no_such_module'"),
        ('def getconfig():\n    pass\n', '1: has no function get_config'),
        ('def get_config():\n    return {}\n', ' get_config returns dict, not an Experiment'),
        ('def get_config(a, b):\n    return {}\n', '1: TypeError: get_config() missing 2 required'),
    ],
)
def test_an_experiment_file_that_goes_wrong_is_named_with_its_line(source, message, tmp_path):
    file = write(tmp_path / 'broken.py', source)
    assert refusal(f'--config={file}').startswith(f'{file}:{message}')


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('config.optimizer.learning_rat = 1', "unknown field 'config.optimizer.learning_rat'; did you mean"),
        ('config.optimzer.learning_rate = 1', "AttributeError: 'Experiment' object has no attribute 'optimzer'"),
        ('config.optimizer.learning_rate = "1"', "config.optimizer.learning_rate='1': '1' is not float"),
    ],
)
def test_a_mistake_in_an_experiment_file_is_refused(line, message, tmp_path):
    file = write(tmp_path / 'wrong.py', EXPERIMENT.replace('return', f'{line}\n    return'))
    assert message in refusal(f'--config={file}')


def test_a_missing_experiment_file_is_named_with_the_nearest():
    message = "unknown experiment file 'experiments/digit_scene.py'; did you mean 'experiments/digit_scenes.py'?"
    assert refusal('--config=experiments/digit_scene.py') == message
    assert refusal('--config=experiments').startswith("unknown experiment file 'experiments'; did you mean")


@pytest.mark.parametrize('file', sorted((launch.ROOT / 'experiments').glob('*.py')), ids=lambda file: file.stem)
def test_every_experiment_resolves(file):
    config = parse(f'--config={file}').config
    if config.data.name.startswith(('folder:', 'imagenet2012')):  # which the user must have
        with pytest.raises(InputError, match=config.data.name):
            verbs.resolve(config)
        return
    spec, config = verbs.resolve(config)
    assert spec.num_examples
    assert verbs.resolve(config)[1] == config


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('model.name=lenett', "unknown model 'lenett'; did you mean 'lenet'?"),
        ('model.name=lenet/1989', "unknown model 'lenet/1989'; did you mean 'lenet/1998'?"),
        ('model.name=', "unknown model ''; there are: airbench, alexnet, "),
        ('model.options.widht=3', "unknown option of model simple_cnn 'widht'; did you mean 'widths'?"),
        ('model.options.hidden=1.5', 'option hidden of model simple_cnn: 1.5 is not int'),
        ('model.options.widths=(1,a)', "option widths of model simple_cnn: '(1,a)' is not tuple[int, ...]"),
        ('task.name=clasification', "unknown task 'clasification'; did you mean 'classification'?"),
        ('task.name=segmentation', 'task segmentation needs semantic; data set digits has '),
        ('task.options.smoothing=0', "unknown option of task classification 'smoothing'; did you mean"),
        ('task.options.label_smoothing=x', "option label_smoothing of task classification: 'x' is not float"),
        ('data.name=digit', "unknown data set 'digit'; did you mean 'digits'?"),
        ('data.name=digit_scenes/129', "unknown data set 'digit_scenes/129'; did you mean 'digit_scenes/128'?"),
        ('eval.metric=acuracy', "unknown metric of task classification 'acuracy'; did you mean 'accuracy'?"),
    ],
)
def test_names_that_do_not_exist_are_refused(argument, message):
    assert unresolved(f'--config.{argument}').startswith(message)


def test_resolving_writes_every_option_out():
    _, config = verbs.resolve(parse('--config.model.options.norm=none', '--config.model.options.hidden=8').config)
    assert config.model.options['norm'] == 'none'
    assert config.model.options['hidden'] == 8
    assert config.model.options['widths'] == (32, 64, 128)
    defaults = {'label_smoothing': 0.0, 'cross_entropy': 'softmax', 'target_threshold': None, 'shifts': 0}
    assert config.task.options == defaults


def test_an_optional_option_is_cleared_by_none():
    arguments = [f'--config={launch.ROOT / "experiments" / "digit_scenes.py"}', '--config.task.options.background=none']
    assert verbs.resolve(parse(*arguments).config)[1].task.options['background'] is None


@pytest.mark.parametrize('verb', [verb for verb in launch.VERBS if verb not in ('ablate', 'report')])
def test_print_config_shows_every_field_of_the_resolved_configuration(verb, capsys):
    command = parse(verb, '--print_config', '--config.seed=7')
    assert launch.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(' = ')[0] for line in lines] == [f'config.{path}' for path in PATHS]
    assert 'config.seed = 7' in lines
    defaults = {'label_smoothing': 0.0, 'cross_entropy': 'softmax', 'target_threshold': None, 'shifts': 0}
    assert f'config.task.options = {defaults}' in lines


@pytest.mark.parametrize('flag', ['--print_config', '--config.seed=7', '--config=experiments/digits.py'])
@pytest.mark.parametrize('verb', ['ablate', 'report'])
def test_a_study_takes_no_configuration(verb, flag, capsys):
    assert launch.main(parse(verb, '--study=x', flag)) == 2
    assert 'leave --config and --print_config out' in capsys.readouterr().err


def test_the_default_folder_bears_the_fingerprint_of_the_resolved_configuration():
    config = Experiment()
    assert verbs.default_workdir('digits', config) == pathlib.Path('runs/digits') / configuration.fingerprint(config)


@pytest.mark.parametrize(
    ('error', 'code'), [(InputError('a\nb'), 2), (RunFailed('a\n  b'), 1), (RunStopped('a b'), 75)], ids=repr
)
def test_what_ends_a_run_is_said_in_one_line_with_its_exit_code(error, code, monkeypatch, capsys):
    def stop(command):
        raise error

    monkeypatch.setitem(launch.VERBS, 'train', stop)
    assert launch.main(parse()) == code
    assert capsys.readouterr() == ('', 'launch.py: a b\n')


def test_help_fits_one_screen_and_names_every_verb_and_flag():
    result = process('--help')
    lines = result.stdout.splitlines()
    assert (result.returncode, result.stderr) == (0, '')
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 110
    assert all(any(line.startswith(f'  {verb} ') for line in lines) for verb in launch.VERBS)
    for flag in ('config', 'workdir', 'print_config', 'allow_partial', *launch.VERBS_OF_FLAGS):
        assert any(line.startswith(f'  --{flag}') for line in lines)


def test_parsing_imports_no_jax():
    program = (
        'import sys, launch; from absl import flags; launch.parse(["", "--config.seed=1"], flags.FlagValues()); '
        'print([name for name in ("jax", "flax", "numpy", "tensorflow_datasets") if name in sys.modules])'
    )
    result = subprocess.run(
        [sys.executable, '-c', program], cwd=launch.ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == '[]\n'


@pytest.mark.parametrize('kind', MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_and_no_device_is_started(kind):
    arguments, message = MISTAKES[kind]
    assert message in said(process(*arguments.split(), JAX_PLATFORMS='no_such_platform'))


def test_a_broken_experiment_file_is_one_line_and_exit_code_2(tmp_path):
    file = write(tmp_path / 'broken.py', 'def get_config(:\n')
    assert f'{file}:1: SyntaxError' in said(process(f'--config={file}', JAX_PLATFORMS='no_such_platform'))


def test_starting_a_device_of_no_platform_would_show(experiment, tmp_path):
    result = process(f'--config={experiment}', f'--workdir={tmp_path}', JAX_PLATFORMS='no_such_platform')
    assert result.returncode == 1
    assert 'no_such_platform' in result.stderr


def test_print_config_stops_before_a_device_or_a_folder(experiment, tmp_path):
    arguments = f'--config={experiment}', f'--workdir={tmp_path / "run"}', '--print_config'
    result = process(*arguments, JAX_PLATFORMS='no_such_platform')
    assert (result.returncode, result.stderr) == (0, '')
    assert [line.split(' = ')[0] for line in result.stdout.splitlines()] == [f'config.{path}' for path in PATHS]
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('verb', ['train', 'evaluate'])
def test_a_batch_that_the_devices_cannot_share_is_refused(verb, experiment, unfinished):
    arguments = [f'--config={experiment}', '--config.data.batch_size=12', f'--workdir={unfinished / "new"}']
    if verb == 'evaluate':
        record = json.loads((unfinished / 'run.json').read_text())
        record['config']['data']['batch_size'] = 12
        (unfinished / 'run.json').write_text(json.dumps(record))
        arguments = [f'--workdir={unfinished}']
    line = said(process(verb, *arguments, XLA_FLAGS='--xla_force_host_platform_device_count=8'))
    assert line == 'launch.py: config.data.batch_size=12: 8 devices cannot share it; try 8\n'


def test_data_lists_the_data_sets():
    result = process('data', '--list', JAX_PLATFORMS='no_such_platform')
    assert (result.returncode, result.stderr) == (0, '')
    assert {'digits', 'digit_scenes'} <= {line.split()[0] for line in result.stdout.splitlines()}


def test_data_counts_the_classes_and_draws_a_sheet_of_each_split(tmp_path):
    result = process('data', '--config.data.name=digits', f'--workdir={tmp_path}', JAX_PLATFORMS='no_such_platform')
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith('digits: image uint8[8, 8, 1]')
    lines = result.stdout.splitlines()
    total = 0
    for split in ('train', 'validation', 'test'):
        at = next(index for index, line in enumerate(lines) if line.startswith(f'{split}: '))
        counts = [int(part.split()[-1]) for part in lines[at + 1].split(',')]
        assert len(counts) == 10
        assert int(lines[at].split()[1]) == sum(counts)
        assert (tmp_path / f'{split}.png').read_bytes().startswith(b'\x89PNG')
        total += sum(counts)
    assert total == 1797


def test_evaluate_prints_what_training_measured_at_its_end(finished):
    result = process('evaluate', f'--workdir={finished}')
    assert result.returncode == 0, result.stderr
    *metrics, where = result.stdout.splitlines()
    done = json.loads((finished / 'DONE.json').read_text())
    assert metrics == [f'{name} {value:.6f}' for name, value in done['metrics'].items()]
    assert where.startswith('split test, ')
    assert where.endswith(f'step {done["best_step"]} of {finished}')


def test_evaluate_takes_a_split_but_no_configuration(finished):
    result = process('evaluate', f'--workdir={finished}', '--split=validation')
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith('split validation, ')
    assert 'leave --config out' in said(process('evaluate', f'--workdir={finished}', '--config.seed=1'))


def test_a_finished_run_prints_its_result_and_how_to_start_afresh(finished, experiment):
    before = (finished / 'DONE.json').read_bytes()
    result = process('train', f'--config={experiment}', f'--workdir={finished}')
    assert result.returncode == 0, result.stderr
    assert f'accuracy {json.loads(before)["metrics"]["accuracy"]:.4f}' in result.stdout
    assert 'remove it or choose another --workdir to start afresh' in result.stdout
    assert (finished / 'DONE.json').read_bytes() == before


def test_a_folder_of_another_configuration_is_refused(finished, experiment):
    line = said(process(f'--config={experiment}', '--config.optimizer.learning_rate=0.2', f'--workdir={finished}'))
    assert 'holds a run with config.optimizer.learning_rate=0.1, not 0.2; choose another folder' in line


def test_a_folder_that_another_process_writes_to_is_refused(finished, experiment):
    with open(finished / 'lock', 'a') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = said(process(f'--config={experiment}', f'--workdir={finished}'))
    assert 'another process is running there' in line


def test_run_folders_are_reported_elsewhere_than_in_them(finished, unfinished, tmp_path):
    before = (finished / 'curves.png').read_bytes()
    assert 'holds a run, and pictures of its own' in said(process('report', finished))
    assert 'cannot be written' in said(process('report', finished, f'--workdir={finished / "run.json"}'))
    record = json.loads((unfinished / 'run.json').read_text())
    record['config']['seed'] = 1
    (unfinished / 'run.json').write_text(json.dumps(record))
    (unfinished / 'DONE.json').unlink()
    arguments = 'report', finished, unfinished, f'--workdir={tmp_path / "new"}', '--metric=accuracy,loss'
    result = process(*arguments, JAX_PLATFORMS='no_such_platform')
    assert (result.returncode, result.stderr) == (0, '')
    answer, page = result.stdout.splitlines()
    assert answer.startswith("Incomplete, 1 of 2 runs is missing (seed 1 of 'runs'): 'runs' has accuracy ")
    assert page == str(tmp_path / 'new' / 'report.html')
    report = (tmp_path / 'new' / 'report.md').read_text()
    assert re.search(r'\| +loss \|', report)
    assert f'python launch.py --config={finished.parent / "small.py"}' in report
    assert (finished / 'curves.png').read_bytes() == before


STUDY = """\
from cnn.studies import Arm, Study


def get_study():
    arms = [Arm('narrow'), Arm('wide', {'model.options.widths': (16,)})]
    return Study('Why?', 'EXPERIMENT', arms, 'narrow', seeds=2, also=('loss',))
"""


def test_a_study_is_reported_as_far_as_it_is(experiment, tmp_path):
    file = write(tmp_path / 'study.py', STUDY.replace('EXPERIMENT', str(experiment)))
    runs = verbs.plan_study(parse('report', f'--study={file}', f'--workdir={tmp_path / "runs"}')).runs
    for run, accuracy in zip(runs, (0.5, 0.25, 0.75), strict=False):
        run.folder.mkdir(parents=True)
        metrics = {'accuracy': accuracy, 'loss': 2.0}
        done = {'metrics': metrics, 'seconds': 1.0, 'examples_per_second': 10.0}
        write(run.folder / 'run.json', json.dumps({'config': configuration.to_dict(run.config)}))
        write(run.folder / 'DONE.json', json.dumps(done))
    result = process('report', f'--study={file}', f'--workdir={tmp_path / "runs"}')
    assert (result.returncode, result.stderr) == (0, '')
    assert result.stdout.startswith("Incomplete, 1 of 4 runs is missing (seed 1 of 'wide'): 1 seed is too few to show ")
    report = (tmp_path / 'runs' / 'report.md').read_text()
    assert f'python launch.py ablate --study={file} --workdir={tmp_path / "runs"}' in report
    assert '\nnarrow,2,2,,0.375,' in (tmp_path / 'runs' / 'arms.csv').read_text()


def test_a_longer_duration_continues_a_finished_run(unfinished, experiment):
    before = (unfinished / 'metrics.jsonl').read_text().splitlines()
    result = process(f'--config={experiment}', '--config.train.duration=5', f'--workdir={unfinished}')
    assert result.returncode == 0, result.stderr
    assert 'start afresh' not in result.stdout
    assert json.loads((unfinished / 'DONE.json').read_text())['step'] == 5
    after = (unfinished / 'metrics.jsonl').read_text().splitlines()
    kept = [row for row in before if json.loads(row)['split'] != 'test']
    assert after[: len(kept)] == kept
    steps = [json.loads(row)['step'] for row in after if json.loads(row)['split'] == 'train']
    assert steps == [1, 2, 3, 4, 5]
    changed = json.loads((unfinished / 'run.json').read_text())['history'][-1]['changed']
    fields = {name: pair for name, pair in changed.items() if name.startswith('config.')}
    assert fields == {'config.train.duration': ['3', '5']}


def test_the_form_of_the_environment_is_written_into_the_configuration(monkeypatch):
    monkeypatch.setenv('CNN_CONV', 'plain')
    assert verbs.resolve(Experiment())[1].model.conv == 'plain'
    config = Experiment()
    config.model.conv = 'portable'
    assert verbs.resolve(config)[1].model.conv == 'portable'
    monkeypatch.setenv('CNN_CONV', 'plane')
    with pytest.raises(InputError, match=r"form of convolution \(CNN_CONV\) 'plane'; did you mean 'plain'"):
        verbs.resolve(Experiment())

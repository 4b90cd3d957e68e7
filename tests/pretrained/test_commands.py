"""Weights of others from the command line: `train` and `evaluate` with --config.init_from, and --save_weights."""

import json

import jax
import numpy as np
import pytest
from absl import flags

import launch
from cnn import models, pretrained, verbs
from cnn.errors import InputError
from cnn.pretrained import files
from tests.models.references import formula
from tests.test_launch import process, said

OPTIONS = {'depths': (1, 1), 'width': 8}
NETWORK = [
    '--config.model.name=resnet/cifar20',
    *(f'--config.model.options.{name}={value}' for name, value in OPTIONS.items()),
]
NAMING = pretrained.namings('resnet/cifar20')['torchvision']


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A folder with files of weights for the small network: of 10 classes, and of 5."""
    folder = tmp_path_factory.mktemp('weights')
    for classes in (5, 10):
        model = models.build('resnet/cifar20', num_outputs=classes, **OPTIONS)
        x = jax.ShapeDtypeStruct((1, 8, 8, 1), 'float32')
        variables = jax.eval_shape(lambda x, model=model: model.init(jax.random.key(0), x, train=False), x)
        shapes = pretrained.abstract_export(variables, NAMING)
        arrays = {name: formula.weight(name, shape) for name, shape in shapes.items()}
        files.write(folder / f'{classes}.safetensors', arrays, {})
    return folder


def test_training_starts_from_a_file_with_a_new_head_and_says_so(weights, tmp_path):
    source, run = weights / '5.safetensors', tmp_path / 'run'
    settings = ['--config.train.duration=2', '--config.optimizer.learning_rate=0', '--config.optimizer.weight_decay=0']
    result = process(*NETWORK, *settings, f'--config.init_from={source}', f'--workdir={run}')
    assert result.returncode == 0, result.stderr
    note = (
        f'{source} (sha256 {files.fingerprint(source)}), names of torchvision; '
        'the head is new: 10 classes here, 5 there'
    )
    assert result.stdout.splitlines()[0] == f'init_from: {note}'
    assert json.loads((run / 'run.json').read_text())['history'][0]['init_from'] == note
    # At rate zero the parameters are those of the file.
    saved = tmp_path / 'saved.safetensors'
    result = process('evaluate', f'--workdir={run}', f'--save_weights={saved}')
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f'{saved}, names of torchvision'
    before, after = files.read(str(source)), files.read(str(saved))
    assert {name for name in after if 'num_batches' not in name} == before.keys()
    assert after['fc.weight'].shape == (10, 16)
    names = [name for name in before if not name.startswith('fc.') and 'running' not in name]
    assert len(names) > 10
    for name in names:
        np.testing.assert_array_equal(after[name], before[name])


def test_a_file_is_evaluated_without_a_run(weights, tmp_path):
    source, saved = weights / '10.safetensors', tmp_path / 'saved.safetensors'
    command = ['evaluate', *NETWORK, f'--config.init_from={source}', '--split=validation']
    result = process(*command, f'--save_weights={saved}')
    assert result.returncode == 0, result.stderr
    metrics = [line for line in result.stdout.splitlines() if line.startswith(('loss ', 'accuracy '))]
    assert len(metrics) == 2
    assert f'{source} (sha256 {files.fingerprint(source)}), names of torchvision\n' in result.stdout
    before, after = files.read(str(source)), files.read(str(saved))
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])


def test_a_head_of_other_classes_is_not_evaluated(weights):
    source = weights / '5.safetensors'
    line = said(process('evaluate', *NETWORK, f'--config.init_from={source}'))
    assert line.endswith(
        f'config.init_from={source}: its head has 5 classes and data set digits 10; '
        'train a new one and evaluate that run, --workdir=RUN\n'
    )


def test_what_does_not_fit_is_refused_unless_it_is_named(weights, tmp_path):
    source = tmp_path / 'part.safetensors'
    arrays = files.read(str(weights / '10.safetensors'))
    del arrays['bn1.weight']
    files.write(source, {**arrays, 'aux.weight': np.ones(3)}, {})
    command = ['evaluate', *NETWORK, f'--config.init_from={source}']
    line = said(process(*command))
    assert (
        f'config.init_from={source}: weights for resnet/cifar20 as torchvision names them do not fit in 2 places'
        in line
    )
    assert 'bn1.weight is missing; aux.weight is not in the network; --allow_partial=' in line
    result = process(*command, r'--allow_partial=aux\..*,bn1[.](weight|bias)')
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith('names of torchvision; left out: bn1.weight, aux.weight\n')


def test_allow_partial_is_a_field_of_the_configuration():
    for argument in (['--allow_partial=a,(b|c)'], ['--allow_partial', 'a,(b|c)'], ['--config.allow_partial=a,(b|c)']):
        command = launch.parse(['launch.py', *argument], flags.FlagValues())
        assert (command.config.allow_partial, command.overridden) == ('a,(b|c)', True)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('--config.init_from=no_such.safetensors', 'no_such.safetensors: there is no such file or folder'),
        ('evaluate --config.init_from=runs/no_such', 'runs/no_such: there is no such file or folder'),
        ('evaluate --config.init_from=cnn', 'cnn: is no run folder (it has no run.json)'),
        (
            '--config.init_from=launch.py',
            'launch.py: is not a file of weights; give a run folder or a file .safetensors',
        ),
        ('--config.init_from=hf:name', 'hf:name: write hf:OWNER/NAME'),
        ('--allow_partial=fc.*', "config.allow_partial='fc.*': needs config.init_from, whose names it is about"),
        ('--allow_partial=fc(', "config.allow_partial='fc(': is no regular expression (missing ), "),
        ('evaluate --save_weights=x.pth', "--save_weights='x.pth': write FILE.safetensors, in a folder that there is"),
        ('evaluate --save_weights=no/x.safetensors', "--save_weights='no/x.safetensors': write FILE.safetensors"),
        ('evaluate --workdir=x --allow_partial=fc', 'leave --config out'),
    ],
)
def test_a_mistake_is_refused_before_a_device_is_started(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(verbs, 'prepare_jax', lambda config: pytest.fail('a device was started'))
    verb = [] if arguments.split()[0] in launch.VERBS else ['train', f'--workdir={tmp_path}']
    argv = ['launch.py', *verb, *arguments.split()]
    try:
        code = launch.main(launch.parse(argv, flags.FlagValues()))
    except InputError as error:
        code = launch.fail(error)
    output = capsys.readouterr()
    assert (code, output.out) == (2, '')
    assert output.err.count('\n') == 1
    assert message in output.err

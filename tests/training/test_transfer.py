"""Transfer from the command line: a linear probe, features to a file, and what can not teach."""

import json

import jax
import numpy as np
import pytest
from absl import flags

import launch
from cnn import verbs
from cnn.data import sources
from cnn.errors import InputError
from cnn.training import evaluation, sharding

NETWORK = [
    '--config.model.options.widths=(4,)', '--config.model.options.pools=(True,)', '--config.model.options.hidden=8',
    '--config.model.options.norm=batch', '--config.data.batch_size=64', '--config.mesh.data=1',
    '--config.train.duration=3', '--config.log.every=1', '--config.eval.every=0',
]  # fmt: skip


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command in this process: the exit code, standard output and standard error."""
    monkeypatch.setattr(verbs, 'prepare_jax', lambda config: None)

    def run(*arguments):
        try:
            code = launch.main(launch.parse(['launch.py', *arguments], flags.FlagValues()))
        except InputError as error:
            code = launch.fail(error)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """Where the run that others start from is put, once there is one."""
    return tmp_path_factory.mktemp('pretrained') / 'run'


def best(folder):
    config = evaluation.read_config(folder)
    *_, state, _ = evaluation.load_run(folder, sharding.make_mesh(config))
    return jax.device_get(state.params), jax.device_get(state.model_state)


def test_a_linear_probe_moves_the_head_alone_and_features_stay(command, pretrained, tmp_path):
    assert command('train', *NETWORK, f'--workdir={pretrained}')[0] == 0
    probe = [
        f'--config.init_from={pretrained}', '--config.model.batch_norm=frozen',
        "--config.optimizer.frozen='(?!head).*'", '--config.optimizer.weight_decay=.1',
        '--config.model.options.dropout=0.',
    ]  # fmt: skip
    code, _, errors = command('train', *NETWORK, *probe, f'--workdir={tmp_path / "probe"}')
    assert code == 0, errors
    (params, statistics), (probed, probed_statistics) = best(pretrained), best(tmp_path / 'probe')
    for name in params:
        same = jax.tree.map(lambda old, new: bool((old == new).all()), params[name], probed[name])
        assert all(jax.tree.leaves(same)) == (name != 'head'), name
    jax.tree.map(np.testing.assert_array_equal, statistics, probed_statistics)

    files = [tmp_path / f'{name}.npz' for name in ('before', 'after', 'weights')]
    for folder, file in zip((pretrained, tmp_path / 'probe'), files, strict=False):
        code, output, _ = command('evaluate', f'--workdir={folder}', f'--save_features={file}', '--split=validation')
        assert code == 0
        assert output.splitlines()[-1] == f'{file}, features (144, 8)'
        assert output.startswith('accuracy ')
    # Weights with a head of other classes have features, and no accuracy.
    other = [*NETWORK, f'--config.init_from={pretrained}', '--config.data.classes=0,1,2']
    code, output, _ = command('evaluate', *other, '--split=validation', f'--save_features={files[2]}')
    assert code == 0
    assert 'accuracy' not in output
    before, after, weights = (dict(np.load(file)) for file in files)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert before['features'].any()
    config = evaluation.read_config(pretrained)
    source = sources.load(config.data, 'validation', ('image', 'label'))
    assert before['label'].tolist() == [int(source[index]['label']) for index in before['index']]
    few = before['features'][np.isin(before['label'], (0, 1, 2))]
    np.testing.assert_allclose(weights['features'], few, rtol=1e-5, atol=1e-6)
    assert not list(tmp_path.glob('.*'))


def test_distillation_and_recalibration_from_the_command_line(command, pretrained, tmp_path):
    assert command('train', *NETWORK, f'--workdir={pretrained}')[0] == 0
    settings = [f'--config.distill.teacher={pretrained}', '--config.eval.recalibrate=2', '--config.eval.views=flip']
    code, output, _ = command('train', *NETWORK, *settings, f'--workdir={tmp_path / "run"}')
    assert code == 0
    assert output.startswith(f'teacher: step 3 of {pretrained}\n')
    done = json.loads((tmp_path / 'run' / 'DONE.json').read_text())['metrics']
    code, output, _ = command('evaluate', f'--workdir={tmp_path / "run"}')
    assert output.splitlines()[:2] == [f'{name} {value:.6f}' for name, value in done.items()]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('--config.distill.teacher=no_such', 'no_such: is no run folder (it has no run.json)'),
        ('--config.distill.teacher=cnn', 'cnn: is no run folder (it has no run.json)'),
        ('--config.task.options.cross_entropy=sigmoid', "unknown cross_entropy of task classification 'sigmoid'"),
        ('--config.model.options.norm=none --config.eval.recalibrate=3',
         'config.eval.recalibrate=3: this simple_cnn has no batch normalisation; set it to 0'),
        ('--config.model.batch_norm=ghost --config.model.ghost_batch=48', 'ghost_batch=48: does not divide the 64'),
        ('evaluate --save_features=x.npy', "--save_features='x.npy': write FILE.npz, in a folder that there is"),
        ('evaluate --config.task.name=segmentation --config.data.name=digit_scenes/128 --config.model.name=unet '
         '--save_features=x.npz', '--save_features: is for task classification, not segmentation'),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(arguments, message, command, tmp_path):
    verb = [] if arguments.startswith('evaluate') else ['train', f'--workdir={tmp_path / "x"}', '--config.mesh.data=1']
    code, output, errors = command(*verb, *arguments.split())
    assert (code, output) == (2, '')
    assert errors.count('\n') == 1
    assert message in errors
    assert not (tmp_path / 'x' / 'run.json').exists()

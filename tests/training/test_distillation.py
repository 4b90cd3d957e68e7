import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import config as configuration
from cnn import validation
from cnn.config import Experiment
from cnn.data import sources
from cnn.errors import InputError
from cnn.tasks.classification import Classification
from cnn.training import evaluation, loop, program, sharding, teachers
from cnn.training.distillation import Distilled
from cnn.training.records import RunFolder, read_rows

# Without a validation split the last checkpoint is the best.
CONVOLUTIONAL = {
    'data__validation_split': None,
    'model__options': {'widths': (4,), 'pools': (True,), 'hidden': 8, 'norm': 'batch'},
}
REFERENCES = json.loads((pathlib.Path(__file__).parents[1] / 'tasks' / 'references' / 'losses.json').read_text())


@pytest.mark.parametrize('case', REFERENCES['distilled'], ids=lambda case: f'{case["weight"]}-{case["temperature"]}')
def test_loss_and_gradient_are_those_of_pytorch(case):
    label = np.append(REFERENCES['label'], 0)
    batch = {'label': label, 'valid': np.arange(7) < 6, 'image': np.zeros((7, 2, 2, 1))}
    teacher = np.array([*REFERENCES['teacher'], [0, 9.0, 0, 0]])

    def apply(variables, images, *, train, key=None):
        assert images.shape == (7, 2, 2, 1)
        return variables['logits'], {'trained': train}

    @jax.value_and_grad
    def loss(logits):
        task = Distilled(Classification(), apply, {'logits': teacher}, case['weight'], case['temperature'])
        (total, count), (model_state, metrics) = task.loss(apply, {'logits': logits}, batch, None)
        assert model_state == {'trained': True}
        assert metrics.keys() == {'accuracy', 'distillation'}
        return total / count

    with jax.enable_x64(True):
        value, gradient = loss(jnp.array([*REFERENCES['logits'], [9.0, 0, 0, 0]]))
    np.testing.assert_allclose(value, case['loss'], rtol=1e-9)
    np.testing.assert_allclose(gradient[:6], case['gradient'], atol=1e-9)
    np.testing.assert_array_equal(gradient[6], 0)


def experiment(**settings):
    config = Experiment()
    config.data.batch_size, config.mesh.data = 64, 1
    config.optimizer.learning_rate = 0.2
    config.train.duration, config.eval.every, config.log.every = '12', '6', '1'
    for path, value in settings.items():
        configuration.set_value(config, path.replace('__', '.'), value)
    return config


def student(teacher, **settings):
    perceptron = {'model__name': 'mlp', 'model__options': {'widths': (16,)}}
    distill = {'distill__teacher': str(teacher), 'distill__weight': 1.0, 'distill__temperature': 3.0}
    return experiment(**{**perceptron, 'ema__decay': 0.5, 'augment__shift': 1, **distill, **settings})


def run(config, folder):
    spec = sources.spec(config.data)
    validation.validate(config)
    config = program.resolve(config, spec)
    return loop.train_and_evaluate(config, spec, sharding.make_mesh(config), RunFolder(folder), [])


def metrics(folder):
    return [row for row in read_rows(folder / 'metrics.jsonl') if row['split'] == 'train']


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """The folder of a finished run, of a network with batch normalisation and dropout."""
    folder = tmp_path_factory.mktemp('teacher')
    run(experiment(**CONVOLUTIONAL), folder)
    return folder


def test_a_student_learns_from_a_run_folder_and_needs_it_no_more(teacher, tmp_path):
    copy = shutil.copytree(teacher, tmp_path / 'teacher')
    done = run(student(copy), tmp_path / 'student')
    rows = metrics(tmp_path / 'student')
    assert [row['loss'] for row in rows] == [row['distillation'] for row in rows]  # at weight 1
    assert rows[-1]['distillation'] < 0.7 * rows[0]['distillation']
    record = json.loads((tmp_path / 'student' / 'run.json').read_text())
    assert record['history'][0]['teacher'] == f'step 12 of {copy}'

    # Left alone after six steps and resumed, it has the same rows.
    run(student(copy, train__duration='6'), tmp_path / 'resumed')
    run(student(copy), tmp_path / 'resumed')
    assert metrics(tmp_path / 'resumed') == rows

    # Another teacher in the same place is noticed.
    run(experiment(**CONVOLUTIONAL, train__duration='13'), copy)
    with pytest.raises(InputError, match='the teacher changed since the run began'):
        run(student(copy, train__duration='14'), tmp_path / 'resumed')

    shutil.rmtree(copy)
    config = experiment()
    mesh = sharding.make_mesh(config)
    config, built, numbers, state, _ = evaluation.load_run(tmp_path / 'student', mesh)
    assert state.ema.keys() == {'params'}
    batches = evaluation.open_split(config, sources.spec(config.data), 'test', mesh)
    assert evaluation.evaluate(built, numbers, state.eval_variables, batches, 64)[0] == done['metrics']


def test_the_share_of_the_labels_is_what_the_teacher_leaves(teacher, tmp_path):
    run(student(teacher, distill__weight=0.25, train__duration='1'), tmp_path / 'part')
    run(student(teacher, distill__weight=1.0, train__duration='1'), tmp_path / 'teacher')
    run(student(teacher, distill__weight=0.0, train__duration='1'), tmp_path / 'labels')
    run(student(teacher, distill__teacher=None, train__duration='1'), tmp_path / 'alone')
    part, taught, labels, alone = (metrics(tmp_path / name)[0] for name in ('part', 'teacher', 'labels', 'alone'))
    assert abs(taught['loss'] - labels['loss']) > 0.1
    assert part['loss'] == pytest.approx(0.75 * labels['loss'] + 0.25 * taught['loss'], rel=1e-5)
    assert labels['loss'] == pytest.approx(alone['loss'], rel=1e-6)
    assert 'distillation' not in alone


def test_sharded_runs_agree(teacher, tmp_path):
    for name, mesh in {'1': (1, 1), 'fsdp': (2, 4)}.items():
        run(student(teacher, train__duration='3', mesh__data=mesh[0], mesh__fsdp=mesh[1]), tmp_path / name)
    rows = [[row['distillation'] for row in metrics(tmp_path / name)] for name in ('1', 'fsdp')]
    np.testing.assert_allclose(*rows, rtol=1e-4)


def test_what_can_not_teach_is_refused(teacher, tmp_path):
    def refused(**settings):
        config = student(**settings)
        with pytest.raises(InputError) as caught:
            teachers.check(config, sources.spec(config.data))
        return str(caught.value).replace(str(tmp_path), 'DIR').replace(str(teacher), 'TEACHER')

    assert refused(teacher=tmp_path / 'no') == 'DIR/no: is no run folder (it has no run.json)'
    shutil.copytree(teacher, tmp_path / 'begun', ignore=shutil.ignore_patterns('checkpoints'))
    assert refused(teacher=tmp_path / 'begun') == (
        'config.distill.teacher=DIR/begun: holds no checkpoint yet; finish that run first'
    )
    prefix, suffix = 'config.distill.teacher=TEACHER: has ', '; a teacher must have the same'
    assert refused(teacher=teacher, data__image_size=(12, 8)) == (
        f'{prefix}input image (8, 8, 1), and this run image (12, 8, 1){suffix}'
    )
    assert refused(teacher=teacher, data__mean=(0.5,), data__std=(0.5,)) == (
        f'{prefix}config.data.mean (), and this run (0.5,){suffix}'
    )
    assert refused(teacher=teacher, data__classes=('0', '1')) == (
        f'{prefix}number of classes 10, and this run 2{suffix}'
    )


def test_tasks_without_logits_of_classes_are_refused():
    config = student('x', task__name='segmentation', data__name='digit_scenes/128', model__name='unet')
    config.model.options = {}
    with pytest.raises(InputError, match=r'config\.distill\.teacher: is for tasks of one label'):
        program.resolve(config, sources.spec(config.data))

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import sklearn.metrics

from cnn import pictures, tasks
from cnn.config import Experiment, Spec
from cnn.errors import InputError
from cnn.tasks.classification import Classification, moved
from cnn.training import program

REFERENCES = json.loads((pathlib.Path(__file__).parent / 'references' / 'losses.json').read_text())
NAMES = ('ant', 'bee', 'cat', 'dog')
SPEC = Spec(
    {'image': (6, 6, 1), 'label': ()}, {'image': 'float32', 'label': 'int64'}, {'label': NAMES}, {'train': 9}, False
)


def apply(variables, inputs, *, train, key=None):
    """A network whose outputs are its variables."""
    return variables['logits'], {'calls': 1}


def example(count, padding, seed=0):
    """Variables and a batch of `count` random examples and `padding` more, the first of them read rightly."""
    generator = np.random.default_rng(seed)
    total = count + padding
    logits = 2 * generator.normal(size=(total, len(NAMES))).astype(np.float32)
    batch = {
        'image': generator.random((total, 6, 6, 1), np.float32),
        'label': generator.integers(0, len(NAMES), total),
        'valid': np.arange(total) < count,
    }
    batch['label'][count : count + 1] = logits[count : count + 1].argmax(1)
    return {'logits': logits}, batch


@functools.partial(jax.jit, static_argnums=0)
def evaluated(task, variables, batch):
    predictions = task.predict(apply, variables, batch, None)
    return task.metrics(predictions, batch), task.collect(predictions, batch)


def added(parts):
    return jax.tree.map(lambda *leaves: sum(map(np.asarray, leaves)), *parts)


def test_loss_is_the_cross_entropy_with_smoothed_targets_and_smoothing_may_be_traced():
    variables, batch = example(7, 3)

    @jax.jit
    def loss(smoothing):
        return Classification(label_smoothing=smoothing).loss(apply, variables, batch, None)

    logits = variables['logits'][:7].astype(np.float64)
    log_probability = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for smoothing in (0.0, 0.1, 0.6):
        target = np.full((7, 4), smoothing / 4)
        target[np.arange(7), batch['label'][:7]] += 1 - smoothing
        (total, count), (model_state, metrics) = loss(smoothing)
        assert count == 7
        np.testing.assert_allclose(total, -(target * log_probability).sum(), rtol=1e-6)
        assert metrics['accuracy'] == ((logits.argmax(1) == batch['label'][:7]).sum(), 7)
        assert model_state == {'calls': 1}


@pytest.mark.parametrize('case', REFERENCES['cases'], ids=lambda case: '-'.join(map(str, list(case.values())[:-2])))
def test_losses_and_gradients_are_those_of_timm(case):
    label = np.array(REFERENCES['label'])
    padded = {'label': np.append(label, 0), 'valid': np.arange(7) < 6, 'image': np.zeros((7, 2, 2, 1))}
    if 'mix' in case:
        padded |= {'mixed_label': np.append(label[::-1], 0), 'mix': np.full(7, case['mix'])}

    @jax.value_and_grad
    def loss(logits):
        task = Classification(case['smoothing'], case['cross_entropy'], case.get('threshold'))
        total, count = task.loss(apply, {'logits': logits}, padded, None)[0]
        return total / count

    with jax.enable_x64(True):
        value, gradient = loss(jnp.array([*REFERENCES['logits'], [9.0, 0, 0, 0]]))
    np.testing.assert_allclose(value, case['loss'], rtol=1e-9)
    np.testing.assert_allclose(gradient[:6], case['gradient'], atol=1e-9)
    np.testing.assert_array_equal(gradient[6], 0)


def test_evaluation_reports_the_binary_loss_of_plain_targets():
    variables, batch = example(7, 2)
    task = Classification(label_smoothing=0.3, cross_entropy='binary', target_threshold=0.9)
    total, count = evaluated(task, variables, batch)[0]['loss']
    probability = 1 / (1 + np.exp(-variables['logits'][:7].astype(np.float64)))
    hit = np.eye(4)[batch['label'][:7]]
    np.testing.assert_allclose(total / count, -np.log(np.where(hit, probability, 1 - probability)).mean(), rtol=1e-5)


def test_another_cross_entropy_is_refused():
    with pytest.raises(InputError, match="unknown cross_entropy of task classification 'sigmoid'"):
        tasks.build('classification', cross_entropy='sigmoid')


def pairs_of_columns(variables, inputs, *, train, key=None):
    """A network of four classes: the image's greatest pixel is in columns 0 and 1, 2 and 3, 4 and 5, 6 and 7."""
    brightest = inputs.max((1, 3)).argmax(1)
    return jax.nn.one_hot(brightest // 2, 4), {}


def test_accuracy_under_shifts_is_the_mean_over_directions_of_what_the_network_reads_there():
    columns = np.array([2, 3, 5, 7])  # of the one bright pixel; the last example is padding
    image = np.zeros((4, 6, 8, 1), np.float32)
    image[np.arange(4), 3, columns] = 1
    batch = {'image': image, 'label': columns // 2, 'valid': np.arange(4) < 3}
    task = Classification(shifts=2)
    predictions = task.predict(pairs_of_columns, {}, batch, None)
    metrics, _ = task.summarize(jax.device_get(task.metrics(predictions, batch)), [], SPEC)
    assert metrics['accuracy'] == 1
    # Up and down all three are read rightly. By one column to the left 3 and 5 stay in their pair, to the right 2 does.
    assert metrics['accuracy_shift1'] == pytest.approx((3 + 3 + 2 + 1) / 12)
    assert metrics['accuracy_shift2'] == pytest.approx((3 + 3) / 12)
    assert metrics.keys() == task.directions.keys()


def test_accuracy_under_shifts_decides_only_where_it_is_measured():
    config, spec = Experiment(), dataclasses.replace(SPEC, num_examples={})
    config.eval.metric = 'accuracy_shift2'
    with pytest.raises(InputError, match="unknown metric of task classification 'accuracy_shift2'"):
        program.resolve(config, spec)
    config.task.options['shifts'] = 2
    assert program.resolve(config, spec).task.options['shifts'] == 2


def test_shifted_images_are_those_of_scipy():
    image = np.random.default_rng(0).random((2, 5, 4, 3), np.float32)
    views = moved(jnp.asarray(image), 3)
    assert views.shape == (2, 3, 4, 5, 4, 3)
    for pixels in (1, 2, 3):
        for direction, by in enumerate([(-pixels, 0), (pixels, 0), (0, -pixels), (0, pixels)]):
            expected = scipy.ndimage.shift(image, (0, *by, 0), order=0, mode='nearest')
            np.testing.assert_array_equal(views[:, pixels - 1, direction], expected)


def test_shifts_leave_the_other_metrics_as_they_are():
    _, batch = example(9, 4)

    def model(variables, inputs, *, train, key=None):
        return 3 * inputs[:, 0, :4, 0], {}

    found = []
    for task in (Classification(), Classification(shifts=2)):
        predictions = task.predict(model, {}, batch, None)
        found.append(task.metrics(predictions, batch))
    assert found[0].keys() < found[1].keys()
    for name, (total, count) in found[0].items():
        np.testing.assert_array_equal(total, found[1][name][0])
        assert count == found[1][name][1]
    assert found[1]['accuracy_shift1'][1] == 4 * 9  # padding does not count


def test_shifts_that_can_not_be_are_refused():
    with pytest.raises(InputError, match='shifts=-1 must be 0 or more'):
        tasks.build('classification', shifts=-1)
    assert Classification(shifts=5).inputs(SPEC) == Classification().inputs(SPEC)
    with pytest.raises(InputError, match=r'shifts=6 needs images with more pixels a side; .* `image` \[6, 6, 1\]'):
        Classification(shifts=6).inputs(SPEC)
    sound = Spec({'signal': (50, 2), 'label': ()}, {'signal': 'float32'}, {'label': NAMES}, {})
    with pytest.raises(InputError, match=r'shifts=1 needs images .* `signal` \[50, 2\]'):
        Classification(shifts=1).inputs(sound)


def test_padding_has_no_gradient():
    variables, batch = example(5, 3)
    task = Classification(label_smoothing=0.1)
    gradient = jax.jit(jax.grad(lambda variables: task.loss(apply, variables, batch, None)[0][0]))(variables)['logits']
    assert (np.abs(gradient[:5]).max(1) > 1e-3).all()
    np.testing.assert_array_equal(gradient[5:], 0)


def test_metrics_are_those_of_the_examples_without_their_padding():
    variables, batch = example(9, 4)
    alone = {name: array[:9] for name, array in batch.items()}
    padded, _ = evaluated(Classification(), variables, batch)
    plain, _ = evaluated(Classification(), {'logits': variables['logits'][:9]}, alone)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), padded, plain)


def test_metrics_agree_with_scikit_learn_however_the_split_is_divided():
    variables, batch = example(13, 2)
    task, whole = Classification(), slice(0, 13)
    parts = []
    for part in (slice(0, 8), slice(8, 10), slice(10, 15)):
        cut = {name: array[part] for name, array in batch.items()}
        parts.append(jax.device_get(evaluated(task, {'logits': variables['logits'][part]}, cut)))
    totals = added([sums for sums, _ in parts])
    metrics, _ = task.summarize(totals, [kept for _, kept in parts], SPEC)

    label, logits = batch['label'][whole], variables['logits'][whole]
    probability = np.asarray(jax.nn.softmax(logits))
    assert metrics == {
        'accuracy': pytest.approx(sklearn.metrics.accuracy_score(label, logits.argmax(1))),
        'loss': pytest.approx(sklearn.metrics.log_loss(label, probability, labels=range(4)), rel=1e-5),
    }
    assert metrics.keys() == task.directions.keys()
    expected = sklearn.metrics.confusion_matrix(label, logits.argmax(1), labels=range(4))
    np.testing.assert_array_equal(totals['confusion'][0], expected)


def test_pictures_show_the_misread_examples_of_all_batches_most_confident_first(monkeypatch):
    task = Classification()
    batches = [example(20, 5, seed=1), example(3, 2, seed=2)]
    parts = [jax.device_get(evaluated(task, *batch)) for batch in batches]
    _, drawings = task.summarize(added([sums for sums, _ in parts]), [kept for _, kept in parts], SPEC)
    for draw in drawings.values():
        picture = draw()
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
    assert drawings.keys() == {'confusion', 'misread'}

    misread = []
    for variables, batch in batches:
        probability = np.asarray(jax.nn.softmax(variables['logits']))
        wrong = np.flatnonzero((probability.argmax(1) != batch['label']) & batch['valid'])
        best = sorted(((probability[i].max(), i) for i in wrong), reverse=True)[:16]
        captions = [
            (score, f'{NAMES[batch["label"][i]]} read as {NAMES[probability[i].argmax()]}') for score, i in best
        ]
        misread += [(*caption, batch['image'][i]) for caption, (_, i) in zip(captions, best, strict=True)]
    misread.sort(key=lambda entry: -entry[0])
    assert len(misread) > 10
    shown = []
    monkeypatch.setattr(pictures, 'grid', lambda *arguments: shown.append(arguments))
    drawings['misread']()
    ((images, captions),) = shown
    assert list(captions) == [caption for _, caption, _ in misread]
    np.testing.assert_array_equal(images, [image for *_, image in misread])


def test_no_picture_of_misread_examples_where_all_are_read_well():
    task, (_, batch) = Classification(), example(4, 2)
    variables = {'logits': jax.nn.one_hot(batch['label'], 4).at[4:].multiply(-1)}
    sums, kept = jax.device_get(evaluated(task, variables, batch))
    metrics, drawings = task.summarize(sums, [kept], SPEC)
    assert metrics['accuracy'] == 1
    assert drawings.keys() == {'confusion'}


def test_reads_what_the_data_has_and_refuses_data_without_inputs_or_class_names():
    task = tasks.build('classification')
    assert (task.fields(SPEC), task.num_outputs(SPEC)) == (('image', 'label'), 4)
    assert task.inputs(SPEC) == (jax.ShapeDtypeStruct((1, 6, 6, 1), jnp.float32),)
    sound = Spec({'signal': (50, 2), 'label': ()}, {'signal': 'float32'}, {'label': NAMES}, {})
    assert task.fields(sound) == ('signal', 'label')
    assert task.inputs(sound)[0].shape == (1, 50, 2)
    with pytest.raises(InputError, match=r'needs `label` with class names; the data has image, semantic'):
        task.num_outputs(Spec({'image': (6, 6, 1), 'semantic': (6, 6)}, {}, {'semantic': NAMES}, {}))
    with pytest.raises(InputError, match=r'needs one of image, signal, tokens, video; the data has label'):
        task.inputs(dataclasses.replace(SPEC, shapes={'label': ()}))


def test_a_confusion_matrix_of_very_many_classes_is_not_kept():
    def keys(num_classes):
        predictions = {'logits': jnp.zeros((2, num_classes)), 'label': jnp.zeros(2, int)}
        batch = {'label': jnp.zeros(2, int), 'valid': jnp.ones(2, bool)}
        totals = jax.eval_shape(Classification().metrics, predictions, batch)
        return {name: total.shape for name, (total, _) in totals.items()}

    assert keys(1000) == {'accuracy': (), 'loss': (), 'confusion': (1000, 1000)}
    assert keys(21841) == {'accuracy': (), 'loss': ()}

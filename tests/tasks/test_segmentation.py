import functools
import itertools

import jax
import numpy as np
import pytest
import sklearn.metrics

from cnn import pictures, tasks
from cnn.config import Spec
from cnn.errors import InputError
from cnn.tasks.segmentation import Segmentation, intersection_over_union

NAMES = ('ground', 'road', 'tree')
SPEC = Spec({'image': (10, 8, 3), 'semantic': (10, 8)}, {'image': 'float32'}, {'semantic': NAMES}, {})
TOP, LEFT, HEIGHT, WIDTH = 2, 1, 6, 5  # of the map that the network gives of a picture of 10 x 8


def apply(variables, inputs, *, train, key=None):
    """A network whose outputs are its variables."""
    return variables['logits'], {}


def example(count, padding, ignored=0.3):
    """Variables and a batch of `count` random examples and `padding` more that do not count."""
    generator = np.random.default_rng(0)
    total = count + padding
    semantic = generator.integers(0, 3, (total, 10, 8))
    batch = {
        'image': generator.random((total, 10, 8, 3), np.float32),
        'semantic': np.where(generator.random(semantic.shape) < ignored, 255, semantic),
        'valid': np.arange(total) < count,
    }
    return {'logits': 2 * generator.normal(size=(total, HEIGHT, WIDTH, 3)).astype(np.float32)}, batch


@functools.partial(jax.jit, static_argnums=0)
def loss(task, variables, batch):
    return task.loss(apply, variables, batch, None)


@functools.partial(jax.jit, static_argnums=0)
def evaluated(task, variables, batch):
    predictions = task.predict(apply, variables, batch, None)
    return task.metrics(predictions, batch), task.collect(predictions, batch)


def by_pixel(variables, batch):
    """Label, probabilities [3] and predicted class of each pixel that counts, one list for an example that does."""
    examples = []
    for index in np.flatnonzero(batch['valid']):
        pixels = []
        for row in range(HEIGHT):
            for column in range(WIDTH):
                label = batch['semantic'][index, TOP + row, LEFT + column]
                exponential = np.exp(variables['logits'][index, row, column].astype(np.float64))
                if label != 255:
                    pixels.append((label, exponential / exponential.sum(), exponential.argmax()))
        examples.append(pixels)
    return examples


def test_loss_is_the_cross_entropy_of_labelled_pixels_in_the_middle_of_the_picture():
    variables, batch = example(3, 2)
    (total, count), (_, metrics) = loss(Segmentation(), variables, batch)
    pixels = list(itertools.chain(*by_pixel(variables, batch)))
    assert 0 < count == len(pixels) < 3 * HEIGHT * WIDTH
    assert total == pytest.approx(-sum(np.log(probability[label]) for label, probability, _ in pixels), rel=1e-5)
    assert metrics['pixel_accuracy'] == (sum(label == predicted for label, _, predicted in pixels), count)


def test_dice_is_added_for_each_image_with_the_weight_of_its_labelled_pixels():
    variables, batch = example(3, 2)
    batch['semantic'][1, 3:] = 255  # an image of few labels
    (plain, _), _ = loss(Segmentation(), variables, batch)
    (total, count), _ = loss(Segmentation(dice_weight=0.7), variables, batch)
    expected = 0
    for pixels in by_pixel(variables, batch):
        dice = []
        for kind in range(3):
            overlap = sum(probability[kind] for label, probability, _ in pixels if label == kind)
            size = sum(probability[kind] + (label == kind) for label, probability, _ in pixels)
            dice.append((2 * overlap + 1) / (size + 1))
        expected += (1 - np.mean(dice)) * len(pixels)
    assert count == sum(map(len, by_pixel(variables, batch)))
    assert float(total - plain) == pytest.approx(0.7 * expected, rel=1e-4)


def test_dice_is_nothing_where_the_prediction_is_right():
    _, batch = example(3, 0, ignored=0)
    middle = batch['semantic'][:, TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH]
    (total, _), _ = loss(Segmentation(dice_weight=1.0), {'logits': 100 * jax.nn.one_hot(middle, 3)}, batch)
    assert total == pytest.approx(0, abs=1e-4)


def test_ignored_and_padded_pixels_have_no_gradient():
    variables, batch = example(3, 2)
    task = Segmentation(dice_weight=0.5)
    gradient = jax.jit(jax.grad(lambda variables: task.loss(apply, variables, batch, None)[0][0]))(variables)['logits']
    counts = (batch['semantic'] != 255)[:, TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH] & batch['valid'][:, None, None]
    np.testing.assert_array_equal(np.abs(gradient).max(-1) > 0, counts)


def test_metrics_agree_with_scikit_learn_on_the_pixels_that_count():
    variables, batch = example(3, 2)
    task = Segmentation()
    sums, kept = jax.device_get(evaluated(task, variables, batch))
    metrics, _ = task.summarize(sums, [kept], SPEC)
    label, probability, predicted = map(np.array, zip(*itertools.chain(*by_pixel(variables, batch)), strict=True))
    np.testing.assert_array_equal(sums['confusion'][0], sklearn.metrics.confusion_matrix(label, predicted))
    assert metrics == {
        'mean_iou': pytest.approx(sklearn.metrics.jaccard_score(label, predicted, average='macro')),
        'pixel_accuracy': pytest.approx(sklearn.metrics.accuracy_score(label, predicted)),
        'loss': pytest.approx(sklearn.metrics.log_loss(label, probability), rel=1e-5),
    }
    assert metrics.keys() == task.directions.keys()


def test_absent_classes_are_in_no_mean_and_the_background_is_left_out():
    # Class 2 is in neither; class 3 is never predicted; class 4 is predicted where it is not.
    confusion = np.zeros((5, 5), int)
    confusion[0, 0], confusion[0, 1], confusion[1, 1], confusion[3, 0], confusion[1, 4] = 6, 2, 3, 1, 1
    expected = [6 / 9, 3 / 6, np.nan, 0, 0]
    np.testing.assert_allclose(intersection_over_union(confusion), expected)
    totals = {'confusion': (confusion, np.int64(13)), 'loss': (np.float64(26.0), np.int64(13))}
    for task, mean in ((Segmentation(), (6 / 9 + 3 / 6) / 4), (Segmentation(background=0), 3 / 6 / 3)):
        assert task.summarize(totals, [], SPEC) == ({'mean_iou': pytest.approx(mean), 'loss': 2}, {})


def test_picture_shows_images_and_maps_in_the_frame_of_the_network_and_no_padding(monkeypatch):
    variables, batch = example(3, 2)
    task = Segmentation()
    sums, kept = jax.device_get(evaluated(task, variables, batch))
    _, drawings = task.summarize(sums, [kept, kept], SPEC)
    picture = drawings['segmentation']()
    assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)
    shown = []
    monkeypatch.setattr(pictures, 'segmentation', lambda *arguments: shown.append(arguments))
    drawings['segmentation']()
    ((images, truth, predicted, names, ignored),) = shown
    assert (names, ignored) == (NAMES, 255)
    middle = np.s_[:3, TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH]
    np.testing.assert_array_equal(images, batch['image'][middle])
    np.testing.assert_array_equal(truth, batch['semantic'][middle])
    np.testing.assert_array_equal(predicted, variables['logits'][:3].argmax(-1))


def test_reads_images_and_maps_and_refuses_maps_without_class_names():
    task = tasks.build('segmentation')
    assert (task.fields(SPEC), task.num_outputs(SPEC)) == (('image', 'semantic'), 3)
    assert task.inputs(SPEC) == (jax.ShapeDtypeStruct((1, 10, 8, 3), np.float32),)
    with pytest.raises(InputError, match=r'needs `semantic` with class names; the data has image, label'):
        task.num_outputs(Spec({'image': (6, 6, 1), 'label': ()}, {}, {'label': NAMES}, {}))

import numpy as np
import pytest

from cnn import pictures

GENERATOR = np.random.default_rng(0)


def assert_picture(picture, least=100, most=2500):
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert least <= min(picture.shape[:2])
    assert max(picture.shape[:2]) <= most
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 2


def places(picture, colour):
    """Rows and columns of the pixels of a colour."""
    return np.argwhere((picture == colour).all(-1)).T


@pytest.mark.parametrize('shape', [(4, 6), (6, 4), (300, 200)])
def test_grid_places_each_image_whole_and_upright_in_rows(shape):
    height, width = shape
    images = np.zeros((11, height, width, 3), np.float32)
    colours = [(255, 20 * index, 0) for index in range(11)]
    images[:, : height // 2, : width // 2] = (
        np.array(colours)[:, None, None] / 255
    )  # top left quarter; the rest is black
    picture = pictures.grid(images, [str(index) for index in range(11)], columns=4)
    assert_picture(picture)
    rows, columns = zip(*(places(picture, colour) for colour in colours), strict=True)
    tops, lefts = [row.min() for row in rows], [column.min() for column in columns]
    assert len(set(tops)) == 3
    assert len(set(lefts)) == 4
    places_in_order = sorted(range(11), key=lambda index: (tops[index], lefts[index]))
    assert places_in_order == list(range(11))
    for row, column in zip(rows, columns, strict=True):
        tall, wide = np.ptp(row) + 1, np.ptp(column) + 1
        assert tall / wide == pytest.approx(height / width, rel=0.05)
        assert len(row) == tall * wide > 500
        beyond = picture[row.min() : row.min() + 2 * tall - 1, column.min() : column.min() + 2 * wide - 1]
        assert (beyond[tall:] == 0).all()
        assert (beyond[:, wide:] == 0).all()


def test_grid_draws_few_grey_constant_and_normalized_images():
    for images in (
        np.full((1, 8, 8, 1), 0.5),
        GENERATOR.normal(size=(3, 8, 8, 1)),
        GENERATOR.normal(size=(9, 1, 8, 3)),
    ):
        assert_picture(pictures.grid(images, ['caption'] * len(images)))


def test_grid_shows_its_captions():
    image = np.zeros((1, 8, 8, 1))
    assert (pictures.grid(image, ['']) != pictures.grid(image, ['cat'])).any()


@pytest.mark.parametrize('classes', [2, 10, 30, 31, 200])
def test_confusion_is_dark_on_the_diagonal_of_a_perfect_classifier(classes):
    names = [f'class {index}' for index in range(classes)]
    perfect = pictures.confusion(np.diag(np.arange(classes) + 1), names)
    assert_picture(perfect)
    dark = np.array([8, 48, 107])  # the end of matplotlib's Blues
    rows, columns = places(perfect, dark)
    # The true class goes down and the predicted one to the right.
    assert np.corrcoef(rows, columns)[0, 1] > 0.6
    first = np.zeros((classes, classes), int)
    first[:, 0] = 7
    rows, columns = places(pictures.confusion(first, names), dark)
    assert np.ptp(rows) > 0.8 * classes * np.ptp(columns)


def test_confusion_of_classes_without_examples_is_drawn():
    assert_picture(pictures.confusion(np.zeros((3, 3), int), 'abc'))


@pytest.mark.parametrize('classes', [2, 11, 45, 150])
@pytest.mark.parametrize('count', [1, 8])
def test_segmentation_is_drawn_with_many_classes_and_ignored_pixels(classes, count):
    images = GENERATOR.random((count, 16, 16, 3))
    truth = GENERATOR.integers(0, classes, (count, 16, 16))
    truth[:, :4] = 255
    predicted = GENERATOR.integers(0, classes, (count, 16, 16))
    assert_picture(pictures.segmentation(images, truth, predicted, [f'class {i}' for i in range(classes)], 255))


def test_segmentation_gives_a_class_the_same_colour_everywhere_and_ignored_pixels_none():
    images, ones = np.zeros((2, 8, 8, 1)), np.ones((2, 8, 8), int)
    draw = lambda truth, predicted: pictures.segmentation(images, truth, predicted, ('a', 'b'), 255)  # noqa: E731
    one = draw(ones, 0 * ones), draw(0 * ones, ones)
    orange_rows, orange_columns = (
        places(picture, np.rint(255 * np.array((0.6823529, 0.78039215, 0.90980392))).astype(int)) for picture in one
    )
    del orange_rows, orange_columns


def test_curves_draw_every_metric_of_every_split():
    rows = [
        {'step': step, 'split': 'train', 'loss': 1 / (step + 1), 'learning_rate': 0.1} for step in range(0, 100, 10)
    ]
    rows += [{'step': step, 'split': 'validation', 'loss': 0.5, 'accuracy': step / 100} for step in (50, 100)]
    rows += [{'step': 100, 'split': 'test', 'loss': 0.4, 'accuracy': 0.9}]
    whole = pictures.curves(rows)
    assert_picture(whole)
    for split in ('train', 'validation', 'test'):
        part = pictures.curves([row for row in rows if row['split'] != split])
        assert part.shape != whole.shape or (part != whole).any()

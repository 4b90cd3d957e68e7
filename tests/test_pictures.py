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


@pytest.mark.parametrize('classes', [2, 30, 31])
def test_confusion_is_coloured_by_the_share_of_the_true_class_and_labelled_where_there_is_room(classes):
    names = [f'class {index}' for index in range(classes)]
    dark = (8, 48, 107)  # the end of matplotlib's Blues
    perfect = np.diag(np.arange(classes) + 1)
    picture = pictures.confusion(perfect, names)
    assert_picture(picture)
    assert np.corrcoef(places(picture, dark))[0, 1] > 0.6
    assert (pictures.confusion(2 * perfect, names) != picture).any() == (classes <= 30)  # only the numbers can tell
    always_first = np.zeros((classes, classes), int)
    always_first[:, 0] = 1
    rows, columns = places(pictures.confusion(always_first, names), dark)
    assert np.ptp(rows) > 0.8 * classes * np.ptp(columns)  # the true class goes down


def test_confusion_of_classes_without_examples_is_drawn():
    assert_picture(pictures.confusion(np.zeros((3, 3), int), 'abc'))


def segmentation(truth, predicted, names=('no', 'yes', 'maybe')):
    images = GENERATOR.random((len(truth), *truth.shape[1:], 3)) if len(names) > 3 else np.zeros((*truth.shape, 1))
    return pictures.segmentation(images, truth, predicted, names, 255)


def test_segmentation_has_images_above_true_above_predicted_maps_and_ignored_pixels_white():
    def areas(truth, predicted):
        """Colours of the three largest areas that are not white, from top to bottom."""
        picture = segmentation(np.full((2, 8, 8), truth), np.full((2, 8, 8), predicted))
        colours, counts = np.unique(picture[(picture < 255).any(-1)], axis=0, return_counts=True)
        large = [tuple(colour) for colour, count in zip(colours, counts, strict=True) if count > 5000]
        return sorted(large, key=lambda colour: places(picture, colour)[0].mean())

    one_two, two_one = areas(1, 2), areas(2, 1)
    image, one, two = one_two
    assert image == (0, 0, 0)
    assert len({image, one, two}) == 3
    assert two_one == [image, two, one]
    assert areas(255, 1) == [image, one]


@pytest.mark.parametrize(('classes', 'count'), [(2, 8), (45, 1), (150, 8)])
def test_segmentation_is_drawn_with_many_classes_and_ignored_pixels(classes, count):
    truth, predicted = GENERATOR.integers(0, classes, (2, count, 12, 16))
    truth[:, :4] = 255
    assert_picture(segmentation(truth, predicted, [f'class {index}' for index in range(classes)]))


@pytest.mark.parametrize(
    ('classes', 'count'),
    [
        (3, 8),
        (11, 1),
        (45, 8),
    ],
)
def test_legend_of_a_segmentation_lies_within_the_picture(classes, count):
    maps = np.ones((count, 8, 8), int)
    picture = segmentation(maps, maps, [f'class number {index}' for index in range(classes)])
    assert (picture[-60:, [0, -1]] == 255).all()


def curves_by_panel():
    """The colours of matplotlib's cycle in each of three panels: a metric of all splits, of training, of the others."""
    rows = [
        {'step': step, 'split': 'train', 'loss': 1 / (step + 1), 'gradient_norm': 2.0} for step in range(0, 100, 10)
    ]
    rows += [{'step': step, 'split': 'validation', 'loss': 0.5, 'mean_iou': step / 100} for step in (50, 100)]
    rows += [{'step': 100, 'split': 'test', 'loss': 0.4, 'mean_iou': 0.9}]
    picture = pictures.curves(rows)
    assert_picture(picture)
    colours = {'blue': (31, 119, 180), 'orange': (255, 127, 14), 'green': (44, 160, 44)}
    return [
        {name for name, colour in colours.items() if len(places(panel, colour)[0]) > 20}
        for panel in np.array_split(picture, 3, axis=1)
    ]


def test_curves_draw_every_metric_of_every_split():
    assert [len(colours) for colours in curves_by_panel()] == [3, 1, 2]


def test_curves_give_a_split_the_same_colour_everywhere():
    assert curves_by_panel() == [{'blue', 'orange', 'green'}, {'blue'}, {'orange', 'green'}]


def test_curves_show_a_single_training_row():
    picture = pictures.curves([{'step': 1, 'split': 'train', 'loss': 1.0}])
    assert len(places(picture[picture.shape[0] // 3 : -60], (31, 119, 180))[0]) > 3  # below the legend


def test_captions_of_a_grid_stay_above_their_image():
    picture = pictures.grid(np.zeros((2, 8, 8, 1)), ['a caption that is far too long for it', ''])
    lefts = np.flatnonzero(np.diff((picture[-40] == 0).all(-1).astype(int)) == 1) + 1
    assert (picture[:20, lefts[1] :] == 255).all()

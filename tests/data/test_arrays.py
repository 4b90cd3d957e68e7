import numpy as np
import pytest

from cnn.config import Data
from cnn.data import sources
from cnn.errors import InputError

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (40, 6, 5), np.uint8)
LABELS = np.arange(40, dtype=np.uint8) % 4


def save(path, **members):
    np.savez(path, **members)
    return Data(f'arrays:{path}')


def refusal(data):
    with pytest.raises(InputError) as caught:
        sources.spec(data)
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ('x', 'field', 'shape', 'dtype'),
    [
        (np.zeros((40, 6, 5), np.uint8), 'image', (6, 5, 1), 'uint8'),
        (np.zeros((40, 6, 5, 3), np.uint8), 'image', (6, 5, 3), 'uint8'),
        (np.zeros((40, 2, 6, 5, 3), np.uint8), 'video', (2, 6, 5, 3), 'uint8'),
        (np.zeros((40, 9)), 'signal', (9, 1), 'float32'),
        (np.zeros((40, 9, 2), np.float16), 'signal', (9, 2), 'float32'),
        (np.zeros((40, 9), np.int64), 'tokens', (9,), 'int32'),
    ],
)
def test_x_is_what_its_shape_says(x, field, shape, dtype, tmp_path):
    data = save(tmp_path / 'a.npz', x=x, y=LABELS)
    spec = sources.spec(data)
    assert spec.shapes == {field: shape, 'label': ()}
    assert spec.dtypes == {field: dtype, 'label': 'int64'}
    arrays = sources.load(data, 'train', [field, 'label']).arrays()
    assert arrays[field].shape == (32, *shape)
    assert arrays[field].dtype == dtype


def test_splits_of_the_file(tmp_path):
    parts = {'x_train': IMAGES, 'y_train': LABELS, 'x_val': IMAGES[:3], 'y_val': LABELS[:3]}
    data = save(tmp_path / 'a.npz', **parts, x_test=IMAGES[5:9], y_test=LABELS[5:9, None])
    assert sources.spec(data).num_examples == {'train': 40, 'validation': 3, 'test': 4}
    test = sources.load(data, 'test', ['image', 'label'])
    np.testing.assert_array_equal(test.arrays()['image'][..., 0], IMAGES[5:9])
    np.testing.assert_array_equal(test.arrays()['label'], LABELS[5:9])
    np.testing.assert_array_equal(test[2]['image'][..., 0], IMAGES[7])
    assert test.where(2) == f'example 2 of test in {tmp_path / "a.npz"}'


def test_validation_is_a_tenth_of_train(tmp_path):
    data = save(tmp_path / 'a.npz', x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=LABELS)
    assert sources.spec(data).num_examples == {'train': 36, 'validation': 4, 'test': 40}
    labels = sources.load(data, 'validation', ['label']).arrays()['label']
    assert sorted(labels) == [0, 1, 2, 3]


def test_one_array_is_divided(tmp_path):
    data = save(tmp_path / 'a.npz', x=np.arange(40.0)[:, None], y=LABELS)
    assert sources.spec(data).num_examples == {'train': 32, 'validation': 4, 'test': 4}
    arrays = sources.load(data, 'all', ['signal', 'label']).arrays()
    assert sorted(arrays['signal'][:, 0, 0]) == list(range(40))
    np.testing.assert_array_equal(arrays['label'], arrays['signal'][:, 0, 0] % 4)


def test_classes(tmp_path):
    assert sources.spec(save(tmp_path / 'a.npz', x=IMAGES, y=LABELS)).class_names == {'label': ('0', '1', '2', '3')}
    named = save(tmp_path / 'b.npz', x=IMAGES, y=LABELS, classes=np.array(['a', 'b', 'c', 'd', 'e']))
    assert sources.spec(named).class_names == {'label': ('a', 'b', 'c', 'd', 'e')}


def test_masks(tmp_path):
    masks = (IMAGES % 3).astype(np.int64)
    masks[0, 0] = 255
    data = save(tmp_path / 'a.npz', x=IMAGES, y=masks)
    spec = sources.spec(data)
    assert (spec.shapes['semantic'], spec.class_names) == ((6, 5), {'semantic': ('0', '1', '2')})
    assert sources.load(data, 'train', ['semantic'])[0]['semantic'].dtype == np.uint8


def test_a_signal_has_the_rate_that_is_given(tmp_path):
    data = save(tmp_path / 'a.npz', x=np.zeros((40, 9)), y=LABELS)
    assert sources.spec(data).sample_rate is None
    assert sources.spec(Data(data.name, sample_rate=50)).sample_rate == 50


def test_x_may_stand_alone(tmp_path):
    data = save(tmp_path / 'a.npz', x=IMAGES)
    assert sources.spec(data).shapes == {'image': (6, 5, 1)}
    assert len(sources.load(data, 'train', ['image'])) == 32


@pytest.mark.parametrize(
    ('members', 'told'),
    [
        ({'z': IMAGES}, 'has neither x nor x_train; it has z'),
        ({'x_test': IMAGES}, 'has neither x nor x_train; it has x_test'),
        ({'x': IMAGES, 'x_test': IMAGES}, 'has x and x_test'),
        ({'x': IMAGES[:0], 'y': LABELS[:0]}, 'x holds no examples'),
        ({'x': np.zeros(())}, 'x holds no examples'),
        ({'x': np.zeros((4, 6, 5, 3)), 'y': LABELS[:4]}, 'an example of x, float64 [6, 5, 3] is no image (uint8'),
        ({'x': np.full((4, 6), np.nan), 'y': LABELS[:4]}, 'x holds numbers that are not finite'),
        ({'x': IMAGES, 'y': LABELS[:4]}, 'y is uint8 [4]; give one whole number for each x'),
        ({'x': IMAGES, 'y': LABELS / 2}, 'y is float64 [40]'),
        ({'x': IMAGES, 'y': np.eye(40, dtype=int)}, 'y is [40, 40]; give a class for each example, or for each pixel'),
        ({'x': IMAGES, 'y': LABELS.astype(int) - 1}, 'class -1 is below 0'),
        ({'x': IMAGES, 'y': LABELS, 'classes': np.array(['a'])}, 'holds class 3; `classes` names 1, from 0'),
        ({'x_train': IMAGES, 'x_test': IMAGES[:, 1:]}, 'image is (5, 5, 1) and (6, 5, 1) in its splits'),
        ({'x_train': IMAGES, 'y_train': LABELS, 'x_test': IMAGES}, 'x and y of test differ from those of train'),
        ({'x': np.array([{}, 1])}, 'is no file of numpy.savez that can be read (Object arrays cannot be loaded'),
    ],
)
def test_mistakes_are_named(members, told, tmp_path):
    message = refusal(save(tmp_path / 'a.npz', **members))
    assert f'{tmp_path}/a.npz: ' in message
    assert told in message


@pytest.mark.parametrize('content', [b'', b'hello', b'PK\3\4hello', None])
def test_damaged_files_are_named(content, tmp_path):
    data = save(tmp_path / 'a.npz', x=IMAGES, y=LABELS)
    whole = (tmp_path / 'a.npz').read_bytes()
    (tmp_path / 'a.npz').write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert 'is no file of numpy.savez that can be read' in refusal(data)


def test_a_single_array_is_no_archive(tmp_path):
    np.save(tmp_path / 'a.npy', IMAGES)
    assert 'is no file of numpy.savez' in refusal(Data(f'arrays:{tmp_path / "a.npy"}'))

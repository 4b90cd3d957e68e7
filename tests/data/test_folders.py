import io
import struct

import numpy as np
import pytest
import scipy.io.wavfile
from PIL import Image

from cnn.config import Data
from cnn.data import sources
from cnn.data.decoding import Unreadable
from cnn.errors import InputError


def png(shape=(4, 5, 3)):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(buffer, 'png')
    return buffer.getvalue()


def wav(count=100, rate=8000):
    buffer = io.BytesIO()
    scipy.io.wavfile.write(buffer, rate, np.arange(count, dtype=np.int16))
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write(root, contents):
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def spec(root, **options):
    return sources.spec(Data(f'folder:{root}', **options))


def refusal(root, **options):
    with pytest.raises(InputError) as caught:
        spec(root, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def many(folder, count=10, content=None, suffix='png'):
    return {f'{folder}/{index}.{suffix}': png() if content is None else content for index in range(count)}


def test_folders_of_splits_and_classes(tmp_path):
    contents = {**many('train/dog'), **many('train/cat'), **many('val/cat', 3), **many('test/dog', 2)}
    contents |= {'train/dog/more/a.JPG': png(), 'train/.hidden/1.png': png(), 'train/dog/.DS_Store': b''}
    found = spec(write(tmp_path, contents))
    assert found.class_names == {'label': ('cat', 'dog')}
    assert found.num_examples == {'train': 21, 'validation': 3, 'test': 2}
    assert found.shapes == {'image': (4, 5, 3), 'label': ()}
    test = sources.load(Data(f'folder:{tmp_path}'), 'test', ['label'])
    assert test.arrays()['label'].tolist() == [1, 1]
    assert test.notes == {}


def test_validation_is_a_tenth_of_train_where_it_is_missing(tmp_path):
    write(tmp_path, {**many('train/dog', 20), **many('train/cat', 20), **many('test/cat', 3)})
    assert spec(tmp_path).num_examples == {'train': 36, 'validation': 4, 'test': 3}
    data = Data(f'folder:{tmp_path}')
    assert sorted(sources.load(data, 'validation', ['label']).arrays()['label']) == [0, 0, 1, 1]


def test_one_folder_is_divided(tmp_path):
    write(tmp_path, {**many('dog', 50), **many('cat', 50)})
    assert spec(tmp_path).num_examples == {'train': 80, 'validation': 10, 'test': 10}


def test_what_is_left_out_is_noted(tmp_path):
    write(tmp_path, {**many('train/dog'), 'train/dog/readme.txt': b'', **many('vaild/dog')})
    source = sources.load(Data(f'folder:{tmp_path}'), 'train', ['label'])
    assert source.notes == {
        'files of other kinds, left out': ['train/dog/readme.txt'],
        'folders left out': [f'{tmp_path}/vaild'],
    }


def test_recordings(tmp_path):
    write(tmp_path, {**many('a', 5, wav(), 'wav'), **many('b', 5, wav(), 'WAV')})
    found = spec(tmp_path)
    assert (found.shapes['signal'], found.dtypes['signal'], found.sample_rate) == ((100, 1), 'float32', 8000)
    write(tmp_path, {'b/long.wav': wav(150)})
    sources._listing.cache_clear()
    assert spec(tmp_path).shapes['signal'] == (-1, 1)
    source = sources.load(Data(f'folder:{tmp_path}'), 'train', ['signal'])
    np.testing.assert_allclose(source[0]['signal'][:, 0], np.arange(100) / 2**15)


def test_two_sample_rates_are_refused_or_resampled(tmp_path):
    write(tmp_path, {**many('a', 6, wav(80), 'wav'), **many('b', 6, wav(160, 16_000), 'wav')})
    message = refusal(tmp_path)
    assert 'a/0.wav has 8000 Hz and b/0.wav has 16000' in message
    assert '--config.data.sample_rate' in message
    found = spec(tmp_path, sample_rate=4000)
    assert (found.shapes['signal'], found.sample_rate) == ((40, 1), 4000)
    data = Data(f'folder:{tmp_path}', sample_rate=4000)
    assert sources.load(data, 'train+test', ['signal']).arrays()['signal'].shape == (11, 40, 1)


def test_arrays(tmp_path):
    contents = {f'a/{index}.npy': npy(np.full((index + 3, 2), index, np.float64)) for index in range(9)}
    found = spec(write(tmp_path, contents), sample_rate=100)
    assert (found.shapes['signal'], found.dtypes['signal'], found.sample_rate) == ((-1, 2), 'float32', 100)
    images = tmp_path / 'images'
    write(images, {'a/1.npy': npy(np.zeros((4, 5), np.uint8)), 'a/2.npy': npy(np.zeros((4, 5, 3), np.uint8))})
    assert spec(images).shapes['image'] == (4, 5, 3)
    assert sources.load(Data(f'folder:{images}'), 'train', ['image']).arrays()['image'].shape == (2, 4, 5, 3)
    videos = write(tmp_path / 'videos', {'a/1.npy': npy(np.zeros((2, 4, 5, 3), np.uint8))})
    assert spec(videos).shapes['video'] == (2, 4, 5, 3)


def test_arrays_of_objects_are_unreadable(tmp_path):
    write(tmp_path, many('a', 20, npy(np.zeros((3, 2))), 'npy'))
    np.save(tmp_path / 'a' / '0.npy', np.array([{}]), allow_pickle=True)
    source = sources.load(Data(f'folder:{tmp_path}'), 'all', ['signal'])
    with pytest.raises(Unreadable, match=r'0.npy: holds Python objects'):
        source.arrays()


def test_unreadable_headers_do_not_decide(tmp_path):
    write(tmp_path, {**many('a', 9, wav(), 'wav'), 'a/bad.wav': b'RIFF', 'a/empty.wav': b''})
    assert spec(tmp_path).shapes['signal'] == (100, 1)
    pictures = write(tmp_path / 'p', {**many('a', 9), 'a/bomb.png': png()[:16] + struct.pack('>II', 10**6, 10**6)})
    assert spec(pictures).shapes['image'] == (4, 5, 3)


@pytest.mark.parametrize(
    ('contents', 'told'),
    [
        ({}, ['has no class folders; put files into', '/CLASS/']),
        ({'1.png': png()}, ['has no class folders']),
        ({'train/1.png': png()}, ['/train: has no class folders']),
        ({'a/1.png': png(), 'b/readme.txt': b''}, ['/b: holds no file that can be read (']),
        ({'a/1.png': png(), 'b/.png': png()}, ['/b: holds no file']),
        ({'train/a/1.png': png(), 'test/b/1.png': png()}, ['/test/b: the training examples have no such class']),
        (
            {'train/a/1.png': png(), 'val/a/1.png': png(), 'valid/a/1.png': png()},
            ['/val and ', '/valid are both there'],
        ),
        ({'a/1.png': png(), 'b/1.wav': wav()}, ['holds pictures (a/1.png) and recordings (b/1.wav); keep one kind']),
        (
            {'a/1.npy': npy(np.zeros(3)), 'a/2.npy': npy(np.zeros((3, 3), np.uint8))},
            ['holds signals (a/1.npy) and images (a/2.npy)'],
        ),
        ({'a/1.npy': npy(np.zeros(3, int))}, ['no array in it is an image']),
    ],
)
def test_mistakes_are_named(contents, told, tmp_path):
    message = refusal(write(tmp_path, contents))
    assert str(tmp_path) in message
    assert all(part in message for part in told), message

import concurrent.futures
import fcntl
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from cnn import datasets
from cnn.data import decoding, prepared, records
from cnn.data.decoding import Unreadable
from cnn.errors import InputError

# A user's data set, in a file that only the process which prepares it can import.
MY_SET = """
import sys
import numpy as np
import tensorflow_datasets as tfds
from cnn.datasets.digits import png

class MySet(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version(sys.argv[2])
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in sys.argv[3:]]

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(None, None, 1)),
            'label': tfds.features.ClassLabel(names=['cat', 'dog']),
            'caption': tfds.features.Text(),
            'map': tfds.features.LabeledImage(shape=(4, 4, 1), labels=['ground', 'sky']),
            'objects': tfds.features.Sequence({'box': tfds.features.BBoxFeature()}),
        }))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(100), 'other': self._generate_examples(10)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {'image': png(np.full((2 + i % 3, 5), i, np.uint8)), 'label': i % 2, 'caption': f'number {i}',
                      'map': png(np.full((4, 4), i % 2, np.uint8)), 'objects': []}

for config in sys.argv[3:] or [None]:
    builder = MySet(config=config, data_dir=sys.argv[1], file_format='array_record')
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
"""


def start(code, *arguments, data_dir=None, **options):
    environment = os.environ | {'TFDS_DATA_DIR': str(data_dir or prepared.data_dir())}
    command = [sys.executable, '-c', code, *map(str, arguments)]
    streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, env=environment, **streams, **options)


def output(process):
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    process.errors = errors
    return out


@pytest.fixture(scope='module')
def my_sets():
    """`my_set` of versions 1.0.0 and 1.2.0, in the data directory of the session."""
    prepared.data_dir().mkdir(parents=True, exist_ok=True)
    with open(prepared.data_dir() / '.my_set.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other workers of pytest-xdist come here too
        for version in ('1.0.0', '1.2.0'):
            output(start(MY_SET, prepared.data_dir(), version))


@pytest.fixture(scope='module')
def digits():
    """The directory of `digits`, prepared."""
    prepared.load('digits', 'train', ['image'])
    return prepared.data_dir() / 'digits' / '1.0.0'


@pytest.fixture
def copy(digits, tmp_path, monkeypatch):
    """A copy of the directory of `digits`, to be damaged."""
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    return shutil.copytree(digits, tmp_path / 'digits' / '1.0.0')


def damaged(directory, split='train'):
    return directory / f'digits-{split}.array_record-00000-of-00001'


def error(name='digits', split='train', fields=('image',)):
    """What the user is told: one line."""
    with pytest.raises(InputError) as caught:
        prepared.load(name, split, fields).arrays()
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_importing_is_cheap():
    heavy = "[name for name in sys.modules if name.split('.')[0] in ('tensorflow_datasets', 'jax', 'PIL', 'sklearn')]"
    assert output(start(f'import sys, cnn.data.prepared; print({heavy})')) == '[]\n'


def test_gives_the_asked_fields_of_each_example():
    source = prepared.load('digits', 'validation', ['label', 'image'])
    arrays = source.arrays()
    assert list(source[0]) == list(arrays) == list(source.spec.shapes) == ['label', 'image']
    assert len(source) == len(arrays['label']) == 144
    examples = list(source)  # IndexError ends it
    for field, array in arrays.items():
        np.testing.assert_array_equal(array, np.stack([example[field] for example in examples]))
    for wrong in (-1, 144):
        with pytest.raises(IndexError, match=f'example {wrong} of 144'):
            source[wrong]

    only = prepared.load('digits', 'validation', ['label'])
    assert list(only[np.int64(3)]) == list(only.arrays()) == list(only.spec.class_names) == ['label']


def test_a_source_goes_to_other_threads_and_processes():
    source = prepared.load('digits', 'validation', ['image', 'label'])
    expected = source.arrays()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda index: source[index]['image'], range(144)))
    np.testing.assert_array_equal(np.stack(images), expected['image'])

    code = 'import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1]))[100]["image"].tobytes().hex())'
    there = start(code, pickle.dumps(source).hex())
    assert output(there) == expected['image'][100].tobytes().hex() + '\n'
    assert there.errors == ''  # it chatters no more than this process


def test_a_users_set_is_read_from_its_files_alone(my_sets):
    spec = prepared.spec('my_set')
    assert spec.shapes == {'caption': (), 'image': (-1, -1, 1), 'label': (), 'map': (4, 4)}  # no nested ones
    assert spec.dtypes == {'caption': 'object', 'image': 'uint8', 'label': 'int64', 'map': 'uint8'}
    assert spec.class_names == {'label': ('cat', 'dog'), 'map': ('ground', 'sky')}
    assert spec.num_examples == {'train': 100, 'other': 10}

    source = prepared.load('my_set', 'train', ['image', 'label', 'caption', 'map'])
    assert len(source) == 100
    for index in (0, 1, 33, 34, 99):  # in three record files
        example = source[index]
        np.testing.assert_array_equal(example['image'], np.full((2 + index % 3, 5, 1), index, np.uint8))
        np.testing.assert_array_equal(example['map'], np.full((4, 4), index % 2, np.uint8))
        assert example['label'] == index % 2
        assert example['caption'] == f'number {index}'.encode()
    assert prepared.load('my_set', 'train', ['caption']).arrays()['caption'][99] == b'number 99'
    assert 'examples of different shapes' in error('my_set')


def test_ragged_features_do_not_disturb_the_asked_ones():
    source = prepared.load('digits', 'train', ['image'])
    (record,) = source._read(0, [5])
    example = tf_example_pb2.Example.FromString(record)
    example.features.feature['pages/ragged_flat_values'].int64_list.value.extend([1, 2, 3])
    example.features.feature['pages/ragged_row_lengths_0'].int64_list.value.extend([1, 2])
    np.testing.assert_array_equal(source._decode(example.SerializeToString())['image'], source[5]['image'])


@pytest.mark.parametrize('order', [('image', 'label'), ('label', 'image')])
def test_fingerprint_is_free_of_the_order_in_which_fields_were_written(monkeypatch, order):
    source = prepared.load('digits', 'train[:20]', ['image'])
    expected, read = source.fingerprint, source._read

    def reordered(*arguments):
        for record in read(*arguments):
            fields = tf_example_pb2.Example.FromString(record).features.feature
            examples = [tf_example_pb2.Example(features={'feature': {name: fields[name]}}) for name in order]
            yield b''.join(example.SerializeToString() for example in examples)  # protobuf reads it as one

    again = prepared.load('digits', 'train[:20]', ['image'])
    monkeypatch.setattr(again, '_read', reordered)
    assert again.fingerprint == expected


@pytest.mark.parametrize(
    ('expression', 'expected'),
    [
        ('train[:90%]', range(90)),
        ('train[90%:]', range(90, 100)),
        ('train[30:70]', range(30, 70)),
        ('train[-5:]', range(95, 100)),
        ('other', range(10)),
        ('train[:2]+other', [0, 1, *range(10)]),
    ],
)
def test_split_expressions(my_sets, expression, expected):
    source = prepared.load('my_set', expression, ['caption'])
    captions = [f'number {i}'.encode() for i in expected]
    assert [example['caption'] for example in source] == captions
    assert source.arrays()['caption'].tolist() == captions
    assert len(source) == len(captions)


def jpeg(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, 'CMYK' if shape[-1] == 4 else None).save(buffer, 'jpeg')
    return buffer.getvalue()


@pytest.fixture
def ragged(tmp_path, monkeypatch):
    """A set like ImageNet: pictures of any size, as the files that they came in; one is broken."""
    pictures = [jpeg((9, 7, 3)), jpeg((4, 5)), jpeg((6, 8, 4)), jpeg((9, 7, 3))[:200]]

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = 'ragged'
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            features = {
                'image': tfds.features.Image(encoding_format='jpeg'),
                'label': tfds.features.ClassLabel(num_classes=2),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            yield from ((index, {'image': data, 'label': index % 2}) for index, data in enumerate(pictures))

    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    datasets.prepare(Builder(data_dir=tmp_path, file_format='array_record'))
    return pictures


def test_pictures_of_any_size_and_mode_are_read(ragged, tmp_path):
    source = prepared.load('ragged', 'train', ['image', 'label'])
    assert source.spec.shapes['image'] == (-1, -1, 3)
    np.testing.assert_array_equal(source[0]['image'], np.asarray(Image.open(io.BytesIO(ragged[0]))))
    grey = np.asarray(Image.open(io.BytesIO(ragged[1])))
    np.testing.assert_array_equal(source[1]['image'], np.repeat(grey[..., None], 3, -1))
    assert source[2]['image'].shape == (6, 8, 3)
    assert [int(source[index]['label']) for index in range(3)] == [0, 1, 0]
    assert source.where(3) == f'example 3 of train in {tmp_path / "ragged" / "1.0.0"}'
    with pytest.raises(Unreadable, match=r'example 3 of train in .*1.0.0: (?i:.*truncated)'):
        source[3]
    with pytest.raises(InputError, match='different shapes'):
        source.arrays()


def test_stored_bytes_are_given_to_another_decoder(ragged):
    given = []

    def decode(data):
        given.append(data)
        return np.full((2, 3, 1), 7, np.uint8)

    example = prepared.load('ragged', 'train', ['image', 'label']).read(3, decode)
    assert given == [ragged[3]]
    np.testing.assert_array_equal(example['image'], np.full((2, 3, 3), 7))
    assert example['label'] == 1


def test_pictures_of_one_size_are_given_to_another_decoder_too(digits):
    source = prepared.load('digits', 'train', ['image', 'label'])
    example = source.read(7, decoding.decode_picture)
    assert {field: value.tolist() for field, value in example.items()} == {
        field: value.tolist() for field, value in source[7].items()
    }


def test_masks_are_not_given_to_another_decoder(my_sets):
    source = prepared.load('my_set', 'train', ['map', 'caption'])
    np.testing.assert_array_equal(source.read(5, None)['map'], source[5]['map'])


def test_sets_of_the_catalogue_need_tensorflow_once(monkeypatch, tmp_path):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    for name in ('imagenet2012', 'eurosat/rgb'):
        with pytest.raises(InputError) as caught:
            prepared.spec(name)
        message = str(caught.value)
        assert f"data set '{name}' is not in {tmp_path}, and preparing it needs TensorFlow, once: " in message
        assert f'pip install tensorflow, then python launch.py data --config.data.name={name}' in message
        assert '\n' not in message


def test_sets_of_the_catalogue_are_prepared_where_tensorflow_is(monkeypatch, tmp_path, my_sets):
    asked = []

    def builder(name, **options):
        asked.append((name, options))
        return tfds.builder_from_directory(prepared.data_dir() / 'my_set' / '1.2.0')

    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
    monkeypatch.setattr(tfds, 'builder', builder)
    assert prepared.spec('eurosat/rgb').num_examples == {'train': 100, 'other': 10}
    assert asked == [('eurosat/rgb', {'data_dir': prepared.data_dir(), 'file_format': 'array_record'})]


def test_what_tfds_asks_for_is_said_in_a_line(monkeypatch, tmp_path, ragged):
    class Manual(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = 'manual'
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({'label': np.int64}))

        def _split_generators(self, dl_manager):
            raise AssertionError('Manual directory is empty.\nDownload it.')

        def _generate_examples(self):
            return iter(())

    made = Manual(data_dir=tmp_path, file_format='array_record')
    monkeypatch.setattr(prepared, '_builder', lambda name: made)
    told = error('manual', fields=['label'])
    assert told == "TFDS can not prepare data set 'manual': Manual directory is empty. Download it."


def test_a_broken_picture_of_one_size_is_unreadable(digits, monkeypatch):
    source = prepared.load('digits', 'train', ['image'])
    (record,) = source._read(0, [5])
    example = tf_example_pb2.Example.FromString(record)
    picture = example.features.feature['image'].bytes_list
    picture.value[0] = picture.value[0][:50]
    broken = example.SerializeToString()
    monkeypatch.setattr(source, '_read', lambda shard, positions: [broken])
    with pytest.raises(Unreadable, match='example 5 of train in '):
        source[5]


def test_versions_and_configs(my_sets, tmp_path, monkeypatch):
    prints = [
        prepared.load(name, 'other', ['label']).fingerprint for name in ('my_set', 'my_set:1.2.0', 'my_set:1.0.0')
    ]
    assert prints[0] == prints[1] != prints[2]
    assert prepared.names()['my_set'].name == '1.2.0'
    assert 'my_set:1.1.0' in error('my_set:1.1.0')

    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    output(start(MY_SET, tmp_path, '1.0.0', 'red', 'blue'))
    assert set(prepared.names()) == {*datasets.files(), 'my_set/red', 'my_set/blue'}
    by_default, red, blue = (prepared.load(name, 'other', []) for name in ('my_set', 'my_set/red', 'my_set/blue:1.0.0'))
    assert by_default.fingerprint == red.fingerprint != blue.fingerprint
    assert "did you mean 'my_set/blue'" in error('my_set/blu')


def test_large_sets_are_fingerprinted_by_their_files(my_sets, monkeypatch):
    monkeypatch.setattr(records, '_HASHED_BYTES', 0)
    monkeypatch.setattr(records.RecordSource, '_records', None)  # it reads none
    splits = ['train', 'train[:50]', 'train[1:]', 'train[:34]', 'other']
    assert len({prepared.load('my_set', split, ['label']).fingerprint for split in splits}) == 5


def test_fingerprint_is_of_the_examples_not_of_their_place(digits, copy):
    first = prepared.load('digits', 'train', ['image']).fingerprint
    assert prepared.load('digits', 'train', ['label']).fingerprint == first
    others = ['validation', 'train[:90%]', 'train[1:]', 'train[:-1]']
    assert len({first} | {prepared.load('digits', split, ['image']).fingerprint for split in others}) == 5

    (copy.parent.parent / 'mine').mkdir()
    copy.rename(copy.parent.parent / 'mine' / '1.0.0')
    assert prepared.load('mine', 'train', ['label']).fingerprint == first  # the name is the one it was prepared with


def test_names_are_files(my_sets):
    names = prepared.names()
    assert {'digit_scenes', 'digits'} <= set(names)
    assert all(names[name].samefile(os.path.join(datasets.__path__[0], f'{name}.py')) for name in datasets.files())
    assert names['my_set'] == prepared.data_dir() / 'my_set' / '1.2.0'


@pytest.mark.parametrize(
    ('asked', 'told'),
    [
        ({'name': 'digit'}, ["unknown data set 'digit'; did you mean 'digits'?", 'cnn/datasets', 'TFDS_DATA_DIR']),
        ({'name': 'my_sett'}, ["did you mean 'my_set'?"]),
        ({'name': 'digits/64'}, ["unknown data set 'digits/64'; did you mean 'digits'?"]),
        ({'name': 'digit_scenes/65'}, ["did you mean 'digit_scenes/64'?"]),
        ({'name': 'digits:9.0.0'}, ["unknown data set 'digits:9.0.0'"]),
        ({'name': 'folder:/pictures'}, ["'folder:/pictures' is not the name of a data set, such as digits"]),
        ({'name': ''}, ["'' is not the name"]),
        ({'split': 'trian'}, ["no split 'trian'; its splits are train, validation, test"]),
        ({'split': 'train[:'}, ["no split 'train[:'"]),
        ({'split': 'train[5:5]'}, ["split 'train[5:5]'", 'no example']),
        ({'split': 'train[1000:2000]'}, ["no split 'train[1000:2000]'"]),
        ({'fields': ['image', 'lable']}, ["no field 'lable'; its fields are image, label"]),
        ({'name': 'my_set', 'fields': ['objects']}, ["no field 'objects'"]),
    ],
)
def test_mistakes_are_named(my_sets, asked, told):
    message = error(**asked)
    assert all(part in message for part in told), message


def test_spec_of_an_unknown_set():
    with pytest.raises(InputError, match="did you mean 'digit_scenes'"):
        prepared.spec('digit_scene')


def test_sets_without_random_access_are_refused(copy):
    mine = shutil.copytree(copy.parent, copy.parent.parent / 'mine') / '1.0.0' / 'dataset_info.json'
    assert len(prepared.load('mine', 'train', ['image'])) == 1293
    mine.write_text(json.dumps(json.loads(mine.read_text()) | {'fileFormat': 'tfrecord'}))
    assert "prepare it again, with file_format='array_record'" in error('mine')


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
    assert 'pip install -r requirements.txt' in error()
    with pytest.raises(InputError, match='tensorflow_datasets'):
        prepared.spec('digits')


@pytest.mark.parametrize('size', [0, 65536, 200_000, -1])
def test_truncated_records_are_named(copy, size):
    damaged(copy).write_bytes(damaged(copy).read_bytes()[:size])
    assert str(damaged(copy)) in error()
    assert len(prepared.load('digits', 'test', ['image'])) == 360


def test_missing_records_are_named(copy):
    damaged(copy).unlink()
    assert f'{damaged(copy)} is damaged (it is missing); delete {copy}' in error()


def test_flipped_bits_are_named(copy):
    content = bytearray(damaged(copy).read_bytes())
    content[200_000] ^= 1
    damaged(copy).write_bytes(content)
    source = prepared.load('digits', 'train', ['image'])
    assert str(damaged(copy)) in error()
    told = []
    for index in range(len(source)):
        try:
            source[index]
        except InputError as caught:
            told.append(str(caught))
    assert len(told) == 1
    assert str(damaged(copy)) in told[0]


def test_damaged_description_is_named(copy):
    (copy / 'dataset_info.json').write_text('{')
    assert str(copy.parent.parent) in error()
    (copy / 'dataset_info.json').unlink()
    assert str(copy) in error()


def test_unwritable_data_directory_is_named(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'file'))
    assert f'in {tmp_path / "file"} (' in error()
    assert 'set TFDS_DATA_DIR' in error()


def test_full_disk_is_named_and_leaves_nothing(tmp_path):
    code = """
import resource, signal
from cnn.errors import InputError
from cnn.data import prepared
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    prepared.load('digits', 'train', ['image'])
except InputError as error:
    print(error)
"""
    told = output(start(code, data_dir=tmp_path))
    assert f"cannot prepare data set 'digits' in {tmp_path}" in told
    assert 'set TFDS_DATA_DIR' in told
    assert told.count('\n') == 1
    assert not list(tmp_path.rglob('*array_record*'))


def test_two_processes_prepare_once(tmp_path):
    code = """
import logging, sys
import tensorflow_datasets
from cnn.data import prepared
logging.basicConfig(level=logging.INFO)
print('ready', flush=True)
print(prepared.load('digits', 'train', ['image']).fingerprint)
"""
    with open(tmp_path / '.digits.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        processes = [start(code, data_dir=tmp_path) for _ in range(2)]
        assert [process.stdout.readline() for process in processes] == ['ready\n', 'ready\n']
        time.sleep(2)
        assert [process.poll() for process in processes] == [None, None]  # both wait
        assert not (tmp_path / 'digits').exists()
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0][0] == results[1][0] == prepared.load('digits', 'train', ['image']).fingerprint + '\n'
    assert ''.join(errors for _, errors in results).count('preparing digits') == 1


def test_a_killed_preparation_does_no_harm(tmp_path, monkeypatch):
    code = """
import itertools, os, signal
from cnn.data import prepared
from cnn.datasets import digits
count, png = itertools.count(), digits.png
digits.png = lambda image: png(image) if next(count) < 1350 else os.kill(os.getpid(), signal.SIGKILL)
prepared.load('digits', 'train', ['image'])
"""
    process = start(code, data_dir=tmp_path)
    process.communicate(timeout=120)
    assert process.returncode == -9
    assert list(tmp_path.glob('digits/incomplete.*/*array_record*'))  # killed while it wrote the second split

    expected = prepared.load('digits', 'validation', ['image']).fingerprint
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    assert prepared.load('digits', 'validation', ['image']).fingerprint == expected
    assert [directory.name for directory in (tmp_path / 'digits').iterdir()] == ['1.0.0']

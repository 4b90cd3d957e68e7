import gzip
import importlib
import io
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from official_files import contents, idx, record, tar
from PIL import Image

from cnn.data import prepared
from cnn.datasets import _archives, _pictures, cifar100
from cnn.errors import InputError

SETS = ['mnist', 'fashion_mnist', 'cifar10', 'cifar100']
VERSIONS = {'mnist': '3.0.1', 'fashion_mnist': '3.0.1', 'cifar10': '3.0.2', 'cifar100': '3.0.2'}

OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError('the network was asked for')
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
import dataclasses, hashlib, importlib, pathlib
from cnn.data import prepared
for name in ('mnist', 'cifar100'):
    module = importlib.import_module(f'cnn.datasets.{name}')
    module.ARCHIVES = [
        dataclasses.replace(archive, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for archive in module.ARCHIVES
        for content in [(pathlib.Path(sys.argv[1]) / archive.name).read_bytes()]
    ]
    assert len(prepared.load(name, 'train', ['image', 'label'], sys.argv[1]).arrays()['image']) == 7
assert 'tensorflow' not in sys.modules
"""


def write(directory, files):
    directory.mkdir(exist_ok=True, parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return str(directory)


def error(name, files, declare, directory):
    declare(name, files)
    with pytest.raises(InputError) as told:
        prepared.load(name, 'train', ['label'], write(directory, files))
    assert '\n' not in str(told.value)
    assert not list(prepared.data_dir().glob(f'{name}/**/*.array_record*'))
    return str(told.value)


@pytest.mark.parametrize('name', SETS)
def test_examples_are_the_archives_in_their_order(name, declare, tmp_path, new_data_dir):
    files, arrays = contents(name)
    declare(name, files)
    prepared.load(name, 'train', ['label'], write(tmp_path / 'archives', files))
    for split, expected in arrays.items():
        read = prepared.load(name, split, list(expected)).arrays()
        assert read['label'].dtype == np.int64
        for field, array in expected.items():
            np.testing.assert_array_equal(read[field], array)
    assert os.listdir(new_data_dir / name) == [VERSIONS[name]]
    first, rest = (prepared.load(name, split, ['label']).arrays()['label'] for split in ('train[:60%]', 'train[60%:]'))
    np.testing.assert_array_equal([*first, *rest], arrays['train']['label'])


@pytest.mark.parametrize('name', SETS)
def test_spec_is_known_before_anything_is_prepared(name, new_data_dir):
    spec = prepared.spec(name)
    assert not new_data_dir.exists()
    assert spec.shapes['image'] == ((28, 28, 1) if 'mnist' in name else (32, 32, 3))
    assert spec.dtypes['image'] == 'uint8'
    assert spec.num_examples == {'train': 60_000 if 'mnist' in name else 50_000, 'test': 10_000}
    assert sorted(spec.class_names) == (['coarse_label', 'label'] if name == 'cifar100' else ['label'])


def test_class_names():
    def names(name):
        return prepared.spec(name).class_names['label']

    assert names('mnist') == tuple('0123456789')
    assert names('fashion_mnist')[::9] == ('T-shirt/top', 'Ankle boot')
    assert names('cifar10')[3::3] == ('cat', 'frog', 'truck')
    assert [len(names(name)) for name in SETS] == [10, 10, 10, 100]
    for ordered, count in [(cifar100.NAMES, 100), (cifar100.COARSE_NAMES, 20)]:  # alphabetically, as in the archive
        assert list(ordered) == sorted(set(ordered))
        assert len(ordered) == count
    # Of the table on Krizhevsky's page, at the numbers that data sets give them.
    people, trees = (2, 11, 35, 46, 98), (47, 52, 56, 59, 96)
    assert [cifar100.NAMES[n] for n in people] == ['baby', 'boy', 'girl', 'man', 'woman']
    assert [cifar100.NAMES[n].partition('_')[0] for n in trees] == ['maple', 'oak', 'palm', 'pine', 'willow']
    assert [cifar100.COARSE_NAMES[n] for n in (14, 17, 18)] == ['people', 'trees', 'vehicles_1']


@pytest.mark.parametrize('name', SETS)
def test_archives_are_those_that_tfds_checks(name):
    table = pathlib.Path(tfds.__file__).parent / 'url_checksums' / f'{name}.txt'
    published = {tuple(line.split('\t')[:3]) for line in table.read_text().splitlines()}
    archives = importlib.import_module(f'cnn.datasets.{name}').ARCHIVES
    assert {(archive.mirrors[0] + archive.name, str(archive.size), archive.sha256) for archive in archives} == published
    assert all(url.startswith('http') and url.endswith('/') for archive in archives for url in archive.mirrors)


def test_prepares_quietly_without_network_and_tensorflow(tmp_path):
    archives = write(tmp_path / 'archives', contents('mnist')[0] | contents('cifar100')[0])
    environment = os.environ | {'TFDS_DATA_DIR': str(tmp_path / 'data')}
    done = subprocess.run([sys.executable, '-c', OFFLINE, archives], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """As TFDS lays it out: with an id, shuffled, names that come with the archive."""

    name = 'cifar10'
    VERSION = tfds.core.Version('3.0.2')

    def _info(self):
        features = {
            'id': tfds.features.Text(),
            'image': tfds.features.Image(shape=(32, 32, 3)),
            'label': tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        self.info.features['label'].names = prepared.spec('cifar10').class_names['label']
        return {'train': self._generate_examples()}

    def _generate_examples(self):
        for row, image in enumerate(contents('cifar10')[1]['train']['image']):
            yield row, {'id': f'train_{row:05}', 'image': _pictures.png(image), 'label': row}


@pytest.mark.parametrize('name', SETS)
def test_tfds_may_register_its_own_set(name):
    importlib.import_module(f'cnn.datasets.{name}')
    type('Builder', (tfds.core.GeneratorBasedBuilder,), {'name': name, '__module__': __name__})


def test_sets_that_tfds_prepared_are_read(new_data_dir):
    tfds.disable_progress_bar()
    Cifar10(data_dir=new_data_dir, file_format='array_record').download_and_prepare()
    read = prepared.load('cifar10', 'train', ['image', 'label'])  # nothing is downloaded
    assert read.spec.num_examples == {'train': 7}
    arrays = read.arrays()
    assert sorted(arrays['label']) == list(range(7)) != list(arrays['label'])
    np.testing.assert_array_equal(arrays['image'], contents('cifar10')[1]['train']['image'][arrays['label']])


@pytest.mark.parametrize('shape', [(28, 28, 1), (32, 32, 3), (5, 3, 3)])
def test_png_is_read_by_pillow(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    picture = Image.open(io.BytesIO(_pictures.png(image)))
    picture.verify()
    read = np.asarray(Image.open(io.BytesIO(_pictures.png(image))))
    np.testing.assert_array_equal(read.reshape(shape), image)


IMAGES, LABELS = 'train-images-idx3-ubyte.gz', 'train-labels-idx1-ubyte.gz'
PIXELS = np.zeros((7, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ('file', 'content', 'told'),
    [
        (IMAGES, b'no gzip file', 'no gzip file, or a damaged one'),
        (IMAGES, gzip.compress(idx(PIXELS))[:-9], 'no gzip file, or a damaged one'),
        (
            IMAGES,
            gzip.compress(b'\x00\x00\x0d\x03' + idx(PIXELS)[4:]),
            "no idx file of 3 dimensions of bytes: it begins with '00 00 0d 03'",
        ),
        (IMAGES, gzip.compress(idx(PIXELS[0])), 'no idx file of 3 dimensions'),
        (IMAGES, gzip.compress(bytes([0, 0, 8, 3, 0, 0])), 'no idx file of 3 dimensions'),
        (IMAGES, gzip.compress(idx(PIXELS)[:-1]), '5487 bytes of data, and the header says (7, 28, 28)'),
        (IMAGES, gzip.compress(idx(PIXELS.reshape(7, 14, 56))), 'images of (14, 56) pixels instead of (28, 28)'),
        (IMAGES, gzip.compress(idx(PIXELS[:6])), 'holds 6 images, and'),
        (LABELS, gzip.compress(idx(PIXELS)), 'no idx file of 1 dimensions'),
        (LABELS, gzip.compress(idx(np.full(7, 10, np.uint8))), 'label 10 in a set of 10 classes'),
    ],
    ids=range(10),  # compressed files hold the time
)
def test_idx_files_of_another_form_are_named(file, content, told, declare, tmp_path, new_data_dir):
    message = error('mnist', contents('mnist')[0] | {file: content}, declare, tmp_path / 'archives')
    assert f'{tmp_path}/archives/{file}' in message
    assert told in message


ROW = record([3, 50], np.zeros((32, 32, 3), np.uint8))
TRAIN, TEST = ('cifar-100-binary/train.bin', ROW), ('cifar-100-binary/test.bin', ROW)


def link(name, target):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    return entry, b''


@pytest.mark.parametrize(
    ('content', 'told'),
    [
        (b'no archive', 'no gzipped tar file, or a damaged one'),
        (tar([TRAIN, TEST])[:-40], 'no gzipped tar file, or a damaged one'),
        (gzip.compress(bytes(5000) + b'x' * 5000), 'holds no file cifar-100-binary/train.bin'),
        (tar([TEST]), 'holds no file cifar-100-binary/train.bin'),
        (tar([TRAIN, link(TEST[0], '/etc/hostname')]), 'holds no file cifar-100-binary/test.bin'),
        (tar([TRAIN, (f'./../{TEST[0]}', ROW)]), 'holds no file cifar-100-binary/test.bin'),
        (tar([(TRAIN[0], ROW + b'0'), TEST]), 'train.bin has 3075 bytes, no multiple of 3074'),
        (tar([(TRAIN[0], bytes([20]) + ROW[1:]), TEST]), 'label'),
        (tar([(TRAIN[0], bytes([3, 100]) + ROW[2:]), TEST]), 'label'),
    ],
    ids=range(9),  # compressed files hold the time
)
def test_tar_files_of_another_form_are_named(content, told, declare, tmp_path, new_data_dir):
    message = error('cifar100', {'cifar-100-binary.tar.gz': content}, declare, tmp_path / 'archives')
    assert f'{tmp_path}/archives/cifar-100-binary.tar.gz: ' in message
    assert told in message


def test_nothing_is_unpacked(declare, tmp_path, new_data_dir):
    evil = [('../evil', b'1'), (f'{tmp_path}/evil', b'2'), link('cifar-100-binary', str(tmp_path)), ('evil', b'3')]
    files = {'cifar-100-binary.tar.gz': tar([*evil, TRAIN, TEST])}
    declare('cifar100', files)
    prepared.load('cifar100', 'train', ['label'], write(tmp_path / 'archives', files))
    assert prepared.load('cifar100', 'test', ['coarse_label', 'label']).arrays() == {'coarse_label': [3], 'label': [50]}
    names = {path.name for path in tmp_path.rglob('*') if path.is_file()}
    assert not names & {'evil', 'train.bin', 'test.bin'}


def test_directory_of_one_set_or_of_several(declare, tmp_path, new_data_dir):
    for name in ('mnist', 'fashion_mnist'):
        declare(name, contents(name)[0])
        write(tmp_path / 'archives' / name, contents(name)[0])
    write(tmp_path / 'archives', contents('mnist')[0])
    for name in ('mnist', 'fashion_mnist'):
        prepared.load(name, 'train', ['label'], str(tmp_path / 'archives'))
        expected = contents(name)[1]['test']['image']
        np.testing.assert_array_equal(prepared.load(name, 'test', ['image']).arrays()['image'], expected)
    assert not (new_data_dir / 'downloads' / 'mnist').exists()


def test_directories_that_lack_files_are_refused(declare, tmp_path, new_data_dir):
    def refused(directory):
        with pytest.raises(InputError) as told:
            prepared.load('mnist', 'train', ['label'], str(directory))
        assert '\n' not in str(told.value)
        return str(told.value).removeprefix(f'config.data.archives={str(directory)!r}: ')

    assert refused(tmp_path / 'nowhere') == 'there is no such directory'
    assert refused(tmp_path / ('long' * 99)).startswith('[Errno 36] File name too long')
    (tmp_path / 'some').mkdir()
    assert refused(tmp_path / 'some') == (
        "data set 'mnist' needs train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, "
        't10k-labels-idx1-ubyte.gz there; the source is https://storage.googleapis.com/cvdf-datasets/mnist/'
    )
    files = contents('mnist')[0]
    declare('mnist', files)
    lacking = 't10k-labels-idx1-ubyte.gz'
    write(tmp_path / 'some', {name: content for name, content in files.items() if name != lacking})
    assert (
        refused(tmp_path / 'some') == f"data set 'mnist' needs {lacking} there; the source is https://nowhere.invalid/"
    )

    flipped = files[lacking][:-1] + bytes([files[lacking][-1] ^ 1])
    write(tmp_path / 'some', {lacking: flipped})
    archive = importlib.import_module('cnn.datasets.mnist').ARCHIVES[-1]
    found = _archives.hashlib.sha256(flipped).hexdigest()
    assert refused(tmp_path / 'some') == (
        f'{tmp_path}/some/{lacking} is not the official file (SHA-256 {found} instead of {archive.sha256})'
    )
    write(tmp_path / 'some', {lacking: flipped[:-1]})
    assert f'({len(flipped) - 1} bytes instead of {len(flipped)})' in refused(tmp_path / 'some')
    assert (tmp_path / 'some' / lacking).exists()  # it is the user's
    assert not [path for path in (new_data_dir / 'mnist').rglob('*') if path.is_file()]

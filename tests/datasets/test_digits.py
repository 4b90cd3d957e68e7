import os
import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets

from cnn.config import Data
from cnn.data import sources

ROWS = {'train': slice(0, 1293), 'validation': slice(1293, 1437), 'test': slice(1437, 1797)}

OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError('the network was asked for')
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse

from cnn.config import Data
from cnn.data import sources
assert len(sources.load(Data('digits'), 'train', ['image', 'label']).arrays()['image']) == 1293
assert 'tensorflow' not in sys.modules
"""


@pytest.mark.parametrize('split', ROWS)
def test_pixels_and_labels_are_scikit_learns(split):
    ink, labels = sklearn.datasets.load_digits(return_X_y=True)
    arrays = sources.load(Data('digits'), split, ['image', 'label']).arrays()
    levels = np.rint(arrays['image'] * (16 / 255))  # the 17 levels can be recovered exactly
    assert arrays['image'].dtype == np.uint8
    assert arrays['image'].max() == 255
    np.testing.assert_array_equal(levels, ink[ROWS[split]].reshape(-1, 8, 8, 1))
    np.testing.assert_array_equal(arrays['label'], labels[ROWS[split]])


def test_spec_is_known_before_anything_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'not there'))
    spec = sources.spec(Data('digits'))
    assert not (tmp_path / 'not there').exists()
    assert spec.shapes == {'image': (8, 8, 1), 'label': ()}
    assert spec.dtypes == {'image': 'uint8', 'label': 'int64'}
    assert spec.class_names == {'label': tuple('0123456789')}
    assert spec.num_examples == {'train': 1293, 'validation': 144, 'test': 360}

    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    assert sources.load(Data('digits'), 'test', ['image', 'label']).spec == spec == sources.spec(Data('digits'))


def test_prepares_quietly_without_network_and_tensorflow(tmp_path):
    environment = os.environ | {'TFDS_DATA_DIR': str(tmp_path)}
    done = subprocess.run([sys.executable, '-c', OFFLINE], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_preparing_again_gives_the_same_examples(tmp_path, monkeypatch):
    first = sources.load(Data('digits'), 'train', ['image'])
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    again = sources.load(Data('digits'), 'train', ['image'])
    assert again.fingerprint == first.fingerprint
    assert len(list(tmp_path.glob('digits/1.0.0/*array_record*'))) == 3

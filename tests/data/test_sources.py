import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from PIL import Image

import launch
from cnn.config import Data
from cnn.data import sources

SPOKEN = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'spoken_digits'


def launched(capsys, *arguments):
    """The exit code of `python launch.py data`, what it printed and what it printed as an error."""
    command = launch.parse(['launch.py', 'data', *map(str, arguments)], flags.FlagValues())
    return launch.main(command), *capsys.readouterr()


def test_importing_is_cheap():
    heavy = "[name for name in sys.modules if name.split('.')[0] in ('tensorflow_datasets', 'jax', 'PIL', 'scipy')]"
    command = [sys.executable, '-c', f'import sys, cnn.data.sources; print({heavy})']
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == '[]\n'


def test_a_name_without_a_kind_is_a_prepared_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'digits').mkdir()
    spec = sources.spec(Data('digits'))
    assert spec.num_examples == {'train': 1293, 'validation': 144, 'test': 360}
    assert len(sources.load(Data('digits'), 'train[:10]', ['image'])) == 10


@pytest.mark.parametrize(
    ('name', 'told'),
    [
        ('folder:', "config.data.name='folder:': give a path, folder:DIR"),
        ('arrays:', "config.data.name='arrays:': give a path, arrays:FILE.npz"),
        ('folder:{}/nothing', 'there is no {}/nothing'),
        ('coco:{}/file', '{}/file is no directory'),
        ('pairs:{}/file', '{}/file is no directory'),
        ('arrays:{}', '{} is a directory'),
        ('folders:{}', "unknown kind of data 'folders'; did you mean 'folder'?"),
        ('array:x.npz', "unknown kind of data 'array'; did you mean 'arrays'?"),
    ],
)
def test_paths_that_are_wrong_are_named(name, told, tmp_path, capsys):
    (tmp_path / 'file').touch()
    code, out, errors = launched(capsys, f'--config.data.name={name.format(tmp_path)}')
    assert (code, out) == (2, '')
    assert told.format(tmp_path) in errors
    assert errors.count('\n') == 1


@pytest.mark.parametrize('kind', ['folder', 'pairs', 'coco'])
def test_empty_folders_are_named(kind, tmp_path, capsys):
    code, out, errors = launched(capsys, f'--config.data.name={kind}:{tmp_path}', f'--workdir={tmp_path / "out"}')
    assert (code, out, errors.count('\n')) == (2, '', 1)
    assert str(tmp_path) in errors
    assert not (tmp_path / 'out').exists()


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    np.savez(tmp_path / 'a.npz', x=np.zeros((20, 4, 4), np.uint8), y=np.arange(20) % 2)
    assert sources.spec(Data('arrays:~/a.npz')).num_examples == {'train': 16, 'validation': 2, 'test': 2}


def test_the_split_seed_divides(tmp_path):
    for index in range(20):
        (tmp_path / 'a').mkdir(exist_ok=True)
        Image.new('L', (3, 3)).save(tmp_path / 'a' / f'{index}.png')

    def places(seed):
        source = sources.load(Data(f'folder:{tmp_path}', split_seed=seed), 'test', ['image'])
        return [source.where(index) for index in range(len(source))]

    assert places(0) == places(0) != places(1)


@pytest.mark.skipif(not SPOKEN.exists(), reason='needs the spoken digits')
def test_spoken_digits():
    data = Data(f'folder:{SPOKEN}')
    spec = sources.spec(data)
    assert spec.num_examples == {'train': 2430, 'validation': 270, 'test': 300}
    assert (spec.shapes['signal'], spec.sample_rate) == ((-1, 1), 8000)
    assert spec.class_names == {'label': tuple('0123456789')}
    source = sources.load(data, 'test', ['signal', 'label'])
    assert [int(source[index]['label']) for index in range(0, 300, 30)] == list(range(10))
    validation = sources.load(data, 'validation', ['label']).arrays()['label']
    assert np.bincount(validation).tolist() == [27] * 10
    doubled = sources.load(Data(data.name, sample_rate=16_000), 'test', ['signal'])
    assert len(doubled[0]['signal']) == 2 * len(source[0]['signal'])

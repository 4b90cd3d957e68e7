import os
import pickle
import re
import stat
import struct
import sys
import types

import ml_dtypes
import numpy as np
import pytest

from cnn.errors import InputError
from cnn.pretrained import files

ARRAYS = {
    'weight': np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    'transposed': np.arange(6, dtype=np.float32).reshape(2, 3).T,
    'every second': np.arange(6, dtype=np.float64)[::2],
    'empty': np.zeros((0, 3), np.float32),
    'count': np.zeros((), np.int64),
    'mask': np.array([True, False]),
}


def refusal(source):
    with pytest.raises(InputError) as caught:
        files.read(str(source))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def safetensors_file(path, header, data=b''):
    path.write_bytes(struct.pack('<Q', len(header)) + header.encode() + data)
    return path


class Code:
    """What a pickle may do when it is read."""

    def __reduce__(self):
        return os.mkdir, ('opened',)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / 'weights.safetensors'
    files.write(path, ARRAYS, {'format': 'pt'})
    return path


def test_what_is_written_is_read_again(weights):
    arrays = files.read(str(weights))
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(arrays[name], array)


def test_what_is_written_is_read_by_the_package_of_the_format(weights):
    from safetensors import safe_open

    with safe_open(weights, 'np') as file:
        assert file.metadata() == {'format': 'pt'}
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_sixteen_bits_become_float32(tmp_path, dtype):
    array = np.array([1, -0.375, 2**-14]).astype(dtype)
    files.write(tmp_path / 'half.safetensors', {'x': array}, {})
    read = files.read(str(tmp_path / 'half.safetensors'))['x']
    assert read.dtype == np.float32
    assert read.tolist() == [1, -0.375, 2**-14]


def test_a_file_has_the_rights_of_any_other(weights, tmp_path):
    (tmp_path / 'other').touch()
    assert stat.S_IMODE(weights.stat().st_mode) == stat.S_IMODE((tmp_path / 'other').stat().st_mode)


def test_a_write_that_fails_leaves_the_file_before_it_and_nothing_else(weights, monkeypatch):
    before = weights.read_bytes()

    def full(*paths):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.replace', full)
    with pytest.raises(OSError, match='No space left'):
        files.write(weights, {'x': np.ones(3)}, {})
    assert weights.read_bytes() == before
    assert os.listdir(weights.parent) == [weights.name]


def test_the_fingerprint_is_that_of_the_content(weights):
    first = files.fingerprint(weights)
    assert re.fullmatch('[0-9a-f]{12}', first)
    files.write(weights, {**ARRAYS, 'mask': np.array([True, True])}, {'format': 'pt'})
    assert files.fingerprint(weights) != first


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('no_such.safetensors', 'there is no such file or folder'),
        ('runs/no_such', 'there is no such file or folder'),
        ('', 'is not a file of weights'),  # the working directory
        ('folder.pth', 'is not a file of weights'),
        ('weights.h5', 'give a run folder or a file .safetensors, .pth, .pt, .bin'),
        ('hf:', 'write hf:OWNER/NAME'),
        ('hf:name', 'write hf:OWNER/NAME'),
        ('hf:owner/name@/file.pth', 'write hf:OWNER/NAME'),
        ('hf:owner/name/model.h5', 'is not a file of weights'),
    ],
)
def test_what_is_no_file_of_weights_is_named(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder.pth').mkdir()
    (tmp_path / 'weights.h5').touch()
    line = refusal(source)
    assert line.startswith(f'{source}: ')
    assert message in line


def test_damaged_files_are_named(weights):
    content = weights.read_bytes()
    for damaged in (b'', b'weights', content[:-1], content[:20], content + b'0', b'\xff' * 8 + content[8:]):
        weights.write_bytes(damaged)
        assert re.fullmatch(rf'{weights}: cannot be read \(.+\); is the file whole\?', refusal(weights)), damaged


def test_files_without_arrays_or_of_unknown_types_are_named(tmp_path):
    path = tmp_path / 'x.safetensors'
    assert refusal(safetensors_file(path, '{}')) == f'{path}: holds no arrays'
    eighth = safetensors_file(path, '{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}', b'0')
    assert refusal(eighth).startswith(f'{path}: a has the type F8_E4M3; known are F64, F32,')


@pytest.mark.parametrize(
    ('package', 'source'),
    [('safetensors', 'x.safetensors'), ('torch', 'x.pth'), ('torch', 'x.bin'), ('huggingface_hub', 'hf:owner/name')],
)
def test_a_missing_package_is_named(package, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('x.safetensors', 'x.pth', 'x.bin'):
        (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, package, None)
    assert refusal(source) == f'{source}: needs the package {package}, which is missing here or incomplete: install it'


def test_without_pytorch_a_pickle_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'x.pth').write_bytes(pickle.dumps(Code()))
    monkeypatch.setitem(sys.modules, 'torch', None)
    refusal('x.pth')
    assert not (tmp_path / 'opened').exists()


@pytest.mark.parametrize('nest', [None, 'state_dict', 'model', 'model_ema'])
def test_state_dicts_of_pytorch_are_read(tmp_path, nest):
    torch = pytest.importorskip('torch')
    state = {
        'module.conv.weight': torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)),
        '_orig_mod.module.half': torch.tensor([0.375], dtype=torch.bfloat16),
        'modules.count': torch.tensor(3),
    }
    torch.save({nest: state, 'epoch': 3} if nest else state, tmp_path / 'x.pth')
    arrays = files.read(str(tmp_path / 'x.pth'))
    assert {name: (array.dtype.name, array.tolist()) for name, array in arrays.items()} == {
        'conv.weight': ('float32', [[0, 1, 2], [3, 4, 5]]),
        'half': ('float32', [0.375]),
        'modules.count': ('int64', 3),
    }


def test_an_average_of_the_weights_goes_before_the_weights(tmp_path):
    torch = pytest.importorskip('torch')
    torch.save({'model': {'x': torch.zeros(1)}, 'model_ema': {'x': torch.ones(1)}}, tmp_path / 'x.pt')
    assert files.read(str(tmp_path / 'x.pt'))['x'].tolist() == [1]


def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path, monkeypatch):
    torch = pytest.importorskip('torch')
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': {'x': torch.ones(1)}, 'args': Code()}, 'zip.pth')
    (tmp_path / 'plain.pth').write_bytes(pickle.dumps(Code()))
    for source in ('zip.pth', 'plain.pth'):
        assert refusal(source).startswith(f'{source}: is damaged or holds more than arrays, which could run any code')
    assert not (tmp_path / 'opened').exists()


def test_damaged_or_other_files_of_pytorch_are_named(tmp_path):
    torch = pytest.importorskip('torch')
    path = tmp_path / 'x.pth'
    for content, message in (
        (torch.ones(2), 'holds Tensor, not arrays by name'),
        ({'x': torch.ones(1), 'epoch': 3}, 'epoch is int, not an array'),
        ({}, 'holds no arrays'),
    ):
        torch.save(content, path)
        assert refusal(path).startswith(f'{path}: {message}')
    torch.save({'x': torch.ones(1000)}, path)
    whole = path.read_bytes()
    for damaged in (b'', b'weights', whole[:-1], whole[:1000]):
        path.write_bytes(damaged)
        assert re.match(rf'{path}: (cannot be read|is damaged)', refusal(path)), damaged


class Missing(Exception):
    """What the hub's package raises where a repository lacks a file."""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one repository; its files are named in the list that comes back, and so is what is asked for."""
    there, asked = [], []

    def download(repo, name, revision=None):
        asked.append((repo, name, revision))
        if repo != 'owner/name':
            raise OSError('401: no such repository\nand much more')
        if name not in there:
            raise Missing('404: no such entry')
        files.write(tmp_path / 'cached.safetensors', {'x': np.ones(2, np.float32)}, {})
        target = tmp_path / name.replace('/', '_')
        (tmp_path / 'cached.safetensors').rename(target)
        return str(target)

    module = types.ModuleType('huggingface_hub')
    module.hf_hub_download = download
    module.utils = types.ModuleType('huggingface_hub.utils')
    module.utils.EntryNotFoundError = Missing
    monkeypatch.setitem(sys.modules, 'huggingface_hub', module)
    monkeypatch.setitem(sys.modules, 'huggingface_hub.utils', module.utils)
    return there, asked


def test_a_repository_of_the_hub_is_read(hub):
    there, asked = hub
    there += ['model.safetensors', 'pytorch_model.bin', 'old/x.safetensors']
    for source, request in {
        'hf:owner/name': ('owner/name', 'model.safetensors', None),
        'hf:owner/name@v1.0': ('owner/name', 'model.safetensors', 'v1.0'),
        'hf:owner/name/old/x.safetensors': ('owner/name', 'old/x.safetensors', None),
        'hf:owner/name@v1/old/x.safetensors': ('owner/name', 'old/x.safetensors', 'v1'),
    }.items():
        assert files.read(source)['x'].tolist() == [1, 1]
        assert asked.pop() == request
        assert not asked


def test_without_safetensors_the_hubs_pickle_is_taken(hub, monkeypatch):
    there, asked = hub
    there += ['pytorch_model.bin']
    read = {'.bin': ('numpy', lambda path: {'x': np.zeros(int(path.name == 'pytorch_model.bin'))})}
    monkeypatch.setattr(files, 'FORMATS', files.FORMATS | read)
    assert files.read('hf:owner/name')['x'].shape == (1,)
    assert [name for _, name, _ in asked] == ['model.safetensors', 'pytorch_model.bin']


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('hf:owner/name', 'has no model.safetensors and no pytorch_model.bin (404: no such entry); name one'),
        ('hf:owner/name/x.pth', 'has no x.pth (404: no such entry)'),
        ('hf:owner/other', 'cannot be downloaded (401: no such repository); check the name and the network'),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub, source, message):
    assert refusal(source).startswith(f'{source}: {message}')

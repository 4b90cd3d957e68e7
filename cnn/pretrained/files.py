"""Files of weights: arrays by their names, as others publish them and for others to read.

A .safetensors file holds arrays and nothing else. A .pth file is a pickle, which can run any code when it is read: it
is read by PyTorch, in the mode that takes arrays alone, and without PyTorch not at all.
"""

import hashlib
import importlib.util
import os
import pathlib
import pickle
import re
import warnings
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from cnn.errors import InputError

Arrays = dict[str, np.ndarray]
HUB = re.compile(r'hf:(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?(/(?P<file>.+))?')
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')  # where none is named; the first that is there
NESTED = (
    'model_ema',
    'state_dict_ema',
    'state_dict',
    'model',
)  # where checkpoints of PyTorch keep the network's arrays
# What wrappers put before every name: data parallelism, torch.compile.
WRAPPERS = re.compile(r'^(module\.|_orig_mod\.)+')
DTYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U8': np.uint8,
    'BOOL': np.bool_,
}


def read(source: str) -> Arrays:
    """The arrays of a file by their names; those of 16 bits become float32.

    `source` is a path to a .safetensors file or to one of PyTorch (.pth, .pt, .bin), in which an average of the weights
    goes before the weights themselves; or `hf:OWNER/NAME[@REVISION][/FILE]`. Raises InputError where it can't be read.
    """
    path = locate(source)
    _, reader = FORMATS[path.suffix]
    try:
        arrays = reader(path)
    except InputError as error:
        raise InputError(f'{source}: {error}') from None
    except Exception as error:  # whatever a damaged file leads the packages to
        raise InputError(f'{source}: cannot be read ({_first_line(error)}); is the file whole?') from error
    if not arrays:
        raise InputError(f'{source}: holds no arrays')
    halves = (np.float16, ml_dtypes.bfloat16)
    return {name: array.astype(np.float32) if array.dtype in halves else array for name, array in arrays.items()}


def locate(source: str) -> pathlib.Path:
    """The file of a source on this machine, downloaded if need be; its content is not looked at.

    Raises InputError where there is none, for another kind of file, and where the package that reads it is missing.
    """
    hub = HUB.fullmatch(source)
    if source.startswith('hf:') and not hub:
        raise InputError(f'{source}: write hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE')
    path = pathlib.Path((hub['file'] or HUB_FILES[0]) if hub else source)
    if not hub and not path.exists():
        raise InputError(f'{source}: there is no such file or folder')
    if path.suffix not in FORMATS or path.is_dir():
        raise InputError(f'{source}: is not a file of weights; give a run folder or a file {", ".join(FORMATS)}')
    path = _download(source, hub) if hub else path
    package, _ = FORMATS[path.suffix]
    if importlib.util.find_spec(package) is None:
        raise _missing_package(source, package)
    return path


def fingerprint(path: pathlib.Path) -> str:
    """Twelve hexadecimal digits that name a file's content."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()[:12]


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a .safetensors file whole or not at all."""
    import safetensors.numpy

    # The package takes the memory of an array as it lies, whatever its strides.
    contiguous = {name: np.asarray(array, order='C') for name, array in arrays.items()}
    temporary = path.with_name(f'.{path.name}')
    try:
        temporary.write_bytes(safetensors.numpy.save(contiguous, dict(metadata)))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_safetensors(path: pathlib.Path) -> Arrays:
    import safetensors

    entries = dict(safetensors.deserialize(path.read_bytes()))
    for name, entry in entries.items():
        if entry['dtype'] not in DTYPES:
            raise InputError(f'{name} has the type {entry["dtype"]}; known are {", ".join(DTYPES)}')
    return {
        name: np.frombuffer(entry['data'], DTYPES[entry['dtype']]).reshape(entry['shape'])
        for name, entry in entries.items()
    }


def _read_torch(path: pathlib.Path) -> Arrays:
    import torch

    try:
        with warnings.catch_warnings(action='ignore'):  # of forms of pickles
            content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            'is damaged or holds more than arrays, which could run any code and is never read; '
            'where you trust it, write its state dict to a .safetensors file'
        ) from None
    if isinstance(content, Mapping):
        content = next((content[key] for key in NESTED if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping):
        raise InputError(f'holds {type(content).__name__}, not arrays by name')
    arrays = {}
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            places = ', '.join(NESTED)
            raise InputError(f'{name} is {type(value).__name__}, not an array; arrays may also lie in {places}')
        wide = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
        arrays[WRAPPERS.sub('', name)] = wide.detach().numpy()
    return arrays


FORMATS: dict[str, tuple[str, Callable[[pathlib.Path], Arrays]]] = {  # the package that reads it, and how
    '.safetensors': ('safetensors', _read_safetensors),
    '.pth': ('torch', _read_torch),
    '.pt': ('torch', _read_torch),
    '.bin': ('torch', _read_torch),
}


def _download(source: str, hub: re.Match[str]) -> pathlib.Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import EntryNotFoundError
    except ImportError:
        raise _missing_package(source, 'huggingface_hub') from None
    names = (hub['file'],) if hub['file'] else HUB_FILES
    for name in names:
        try:
            return pathlib.Path(hf_hub_download(hub['repo'], name, revision=hub['revision']))
        except EntryNotFoundError as error:
            reason = _first_line(error)
        except Exception as error:  # of names, of the network, of rights
            raise InputError(
                f'{source}: cannot be downloaded ({_first_line(error)}); check the name and the network, '
                'or give the path of a file'
            ) from error
    raise InputError(f'{source}: has no {" and no ".join(names)} ({reason}); name one, hf:OWNER/NAME/FILE')


def _missing_package(source: str, package: str) -> InputError:
    return InputError(f'{source}: needs the package {package}, which is missing here or incomplete: install it')


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

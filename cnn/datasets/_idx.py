"""Labelled images in the files of MNIST: `idx`, a big-endian header before the bytes of one array, gzipped."""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from cnn.errors import InputError

SHAPE = (28, 28, 1)
_UINT8 = 8  # the only type of element in these files


def read(images: pathlib.Path, labels: pathlib.Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 28, 28, 1) and labels uint8 (n,), below `classes`. Raises InputError naming the file."""
    pictures, numbers = _array(images, 3), _array(labels, 1)
    if pictures.shape[1:] != SHAPE[:2]:
        raise InputError(f'{images}: images of {pictures.shape[1:]} pixels instead of {SHAPE[:2]}')
    if len(pictures) != len(numbers):
        raise InputError(f'{images} holds {len(pictures)} images, and {labels} {len(numbers)} labels')
    if np.any(numbers >= classes):
        raise InputError(f'{labels}: label {numbers.max()} in a set of {classes} classes')
    return pictures[..., None], numbers


def _array(file: pathlib.Path, rank: int) -> np.ndarray:
    """The array of an idx file: two zero bytes, the type, the rank, the dimensions as 4 bytes each, the elements."""
    try:
        with gzip.open(file) as content:
            data = content.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f'{file}: no gzip file, or a damaged one ({error})') from error
    start = 4 + 4 * rank
    if data[:4] != bytes([0, 0, _UINT8, rank]) or len(data) < start:
        raise InputError(f'{file}: no idx file of {rank} dimensions of bytes: it begins with {data[:4].hex(" ")!r}')
    shape = struct.unpack(f'>{rank}I', data[4:start])
    if len(data) - start != math.prod(shape):
        raise InputError(f'{file}: {len(data) - start} bytes of data, and the header says {shape}')
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)

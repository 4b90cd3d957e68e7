"""`arrays:FILE.npz`: examples `x` and what they are, `y`; or x_train, y_train, x_validation (x_val), ..., x_test.

    x  uint8 [N, H, W] or [N, H, W, C]       image
       uint8 [N, T, H, W, C]                 video
       float [N, T] or [N, T, C]             signal, at config.data.sample_rate
       other integers [N, T]                 tokens
    y  integers [N] or [N, 1]                label
       integers [N, H, W]                    semantic, 255 for no class

`classes` may hold the names of the classes; else they are 0 to the largest number. `divide` in files.py says how
splits that are not there are taken from the others.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from cnn import config
from cnn.config import Spec
from cnn.data import decoding, files
from cnn.data.decoding import Unreadable
from cnn.data.files import IGNORED, Listing, Table
from cnn.errors import InputError


def listing(data: config.Data, file: pathlib.Path) -> Listing:
    """What the file holds. Raises InputError in one line for what a user may have wrong."""
    members = _members(file)
    suffixes = {split: f'_{name}' for split, names in files.SPLITS.items() for name in names if f'x_{name}' in members}
    if 'x' in members and suffixes:
        raise InputError(f'{file}: has x and x{next(iter(suffixes.values()))}; give x alone or one x for each split')
    if 'x' in members:
        suffixes = {'train': ''}
    if 'train' not in suffixes:
        raise InputError(f'{file}: has neither x nor x_train; it has {", ".join(members) or "nothing"}')
    tables = {split: _table(file, members, suffix) for split, suffix in suffixes.items()}
    fields = [(field, values.dtype.name, values.ndim) for field, values in tables['train'].values.items()]
    for split, table in tables.items():
        if [(field, values.dtype.name, values.ndim) for field, values in table.values.items()] != fields:
            raise InputError(f'{file}: x and y of {split} differ from those of train in type or rank')
    shapes = {field: _shape(file, field, tables) for field, _, _ in fields}
    class_names = {
        field: _class_names(file, members, [table.values[field] for table in tables.values()])
        for field in shapes.keys() & {'label', 'semantic', 'tokens'}
    }
    tables = files.divide(tables, data.split_seed)
    spec = Spec(
        shapes=shapes,
        dtypes={field: dtype for field, dtype, _ in fields},
        class_names=class_names,
        num_examples={split: len(table) for split, table in tables.items()},
        sample_rate=data.sample_rate if 'signal' in shapes else None,
    )
    return Listing(file, spec, tables)


def _members(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:  # of whatever the parsing of a damaged file runs into
        reason = getattr(error, 'strerror', None) or ' '.join(str(error).split())
        raise InputError(f'{file}: is no file of numpy.savez that can be read ({reason})') from error


def _table(file: pathlib.Path, members: Mapping[str, np.ndarray], suffix: str) -> Table:
    x, y = members[f'x{suffix}'], members.get(f'y{suffix}')
    if not x.ndim or not len(x):
        raise InputError(f'{file}: x{suffix} holds no examples')
    if x.dtype.kind in 'iu' and x.dtype != np.uint8 and x.ndim == 2:
        columns = {'tokens': x.astype(np.int32)}
    else:
        try:
            header = decoding.example_header(x.shape[1:], x.dtype)
        except Unreadable as error:
            raise InputError(f'{file}: an example of x{suffix}, {error}') from None
        columns = {header.field: x.reshape(len(x), *header.shape)}
        if header.field == 'signal':
            columns['signal'] = columns['signal'].astype(np.float32)
            if not np.isfinite(columns['signal']).all():
                raise InputError(f'{file}: x{suffix} holds numbers that are not finite')
    if y is None:
        return Table({}, columns)
    y = y[:, 0] if y.shape[1:] == (1,) else y
    if len(y) != len(x) or y.dtype.kind not in 'iu':
        raise InputError(f'{file}: y{suffix} is {y.dtype} {list(y.shape)}; give one whole number for each x{suffix}')
    if y.ndim == 1:
        return Table({}, {**columns, 'label': y.astype(np.int64)})
    if 'image' in columns and y.shape == columns['image'].shape[:3] and y.max() <= IGNORED and y.min() >= 0:
        return Table({}, {**columns, 'semantic': y.astype(np.uint8)})
    raise InputError(f'{file}: y{suffix} is {list(y.shape)}; give a class for each example, or for each pixel')


def _shape(file: pathlib.Path, field: str, tables: Mapping[str, Table]) -> tuple[int, ...]:
    shapes = {table.values[field].shape[1:] for table in tables.values()}
    if len(shapes) > 1:
        raise InputError(f'{file}: {field} is {" and ".join(map(str, sorted(shapes)))} in its splits; make them equal')
    return shapes.pop()


def _class_names(file: pathlib.Path, members: Mapping[str, np.ndarray], values: list[np.ndarray]) -> tuple[str, ...]:
    present = np.unique(
        np.concatenate([np.unique(array[array != IGNORED] if array.ndim == 3 else array) for array in values])
    )
    if present.min(initial=0) < 0:
        raise InputError(f'{file}: class {present.min()} is below 0')
    if 'classes' not in members:
        return tuple(map(str, range(int(present.max(initial=0)) + 1)))
    names = tuple(map(str, members['classes'].tolist()))
    if present.max(initial=0) >= len(names):
        raise InputError(f'{file}: holds class {present.max()}; `classes` names {len(names)}, from 0')
    return names

"""`folder:DIR`: pictures, recordings or arrays, in a folder for each class.

DIR/SPLIT/CLASS/* where there is a folder `train` (beside it `validation`, `val` or `valid`, and `test`), else
DIR/CLASS/*; `divide` in files.py says how splits that are not there are taken from the others. Files of a class may lie
in folders of their own. Classes are numbered in the order of their names, as strings.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from cnn import config
from cnn.config import Spec
from cnn.data import files
from cnn.data.decoding import Header
from cnn.data.files import Listing, Table
from cnn.errors import InputError

_KINDS = {**dict.fromkeys(files.PICTURES, 'pictures'), '.wav': 'recordings', '.npy': 'arrays'}


def listing(data: config.Data, root: pathlib.Path) -> Listing:
    """What lies in the folder. Raises InputError in one line for what a user may have wrong."""
    found = files.split_folders(root) or {'train': root}
    classes = {split: _folders(folder) for split, folder in found.items()}
    if not classes['train']:
        raise InputError(f'{found["train"]}: has no class folders; put files into {found["train"]}/CLASS/')
    for split, names in classes.items():
        strange = sorted(set(names) - set(classes['train']))
        if strange:
            raise InputError(f'{found[split] / strange[0]}: the training examples have no such class')
    notes: dict[str, list[str]] = {'files of other kinds, left out': []}
    if found['train'] != root:
        used = {folder.name for folder in found.values()}
        notes['folders left out'] = [str(root / name) for name in _folders(root) if name not in used]
    tables = {
        split: _table(root, folder, classes['train'], notes['files of other kinds, left out'])
        for split, folder in found.items()
    }
    paths = [path for table in tables.values() for path in table.files['']]
    kind = _one_kind(root, paths)
    headers = files.headers(root, paths)
    rate = None
    if kind == 'pictures':
        field, shape = 'image', files.picture_shape(headers)
    elif kind == 'recordings':
        field, (shape, rate) = 'signal', _recordings(root, headers, data.sample_rate)
    else:
        field, shape = _arrays(root, headers or files.headers(root, paths[:1]), len(paths))
        rate = data.sample_rate if field == 'signal' else None
    tables = {split: Table({field: table.files['']}, table.values) for split, table in tables.items()}
    tables = files.divide(tables, data.split_seed)
    return Listing(
        root,
        Spec(
            shapes={field: shape, 'label': ()},
            dtypes={field: 'float32' if field == 'signal' else 'uint8', 'label': 'int64'},
            class_names={'label': tuple(classes['train'])},
            num_examples={split: len(table) for split, table in tables.items()},
            sample_rate=rate,
        ),
        tables,
        {kind: names for kind, names in notes.items() if names},
    )


def _folders(folder: pathlib.Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))


def _table(root: pathlib.Path, folder: pathlib.Path, classes: Sequence[str], others: list[str]) -> Table:
    """The files of a split, under no field as yet; what is none of them is added to `others`."""
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        before = len(paths)
        for place, folders, names in os.walk(folder / name, followlinks=True):
            folders.sort()
            for file in sorted(name for name in names if not name.startswith('.')):
                known = pathlib.PurePath(file).suffix.lower() in _KINDS
                (paths if known else others).append(os.path.relpath(os.path.join(place, file), root))
        if len(paths) == before and (folder / name).is_dir():
            raise InputError(f'{folder / name}: holds no file that can be read ({", ".join(_KINDS)})')
        labels += [label] * (len(paths) - before)
    return Table({'': paths}, {'label': np.array(labels, np.int64)})


def _one_kind(root: pathlib.Path, paths: Sequence[str]) -> str:
    first: dict[str, str] = {}
    for path in paths:
        first.setdefault(_KINDS[pathlib.PurePath(path).suffix.lower()], path)
    if len(first) > 1:
        (kind, path), (other, second), *_ = first.items()
        raise InputError(f'{root}: holds {kind} ({path}) and {other} ({second}); keep one kind')
    return next(iter(first))


def _recordings(
    root: pathlib.Path, headers: Mapping[str, Header], wanted: int | None
) -> tuple[tuple[int, ...], int | None]:
    """Their one shape, of -1 samples where lengths differ, and their one rate. Raises InputError for two rates."""
    if not headers:  # too many to look at, or none can be read
        return (-1, 1), wanted
    first, header = next(iter(headers.items()))
    for path, other in headers.items():
        if other.rate != header.rate and wanted is None:
            raise InputError(
                f'{root}: {first} has {header.rate} Hz and {path} has {other.rate}; '
                '--config.data.sample_rate=HZ resamples them'
            )
    rate = wanted or header.rate
    return files.common_shape([(-(-other.shape[0] * rate // other.rate), 1) for other in headers.values()]), rate


def _arrays(root: pathlib.Path, headers: Mapping[str, Header], count: int) -> tuple[str, tuple[int, ...]]:
    """The field and shape of arrays, `count` in all. Raises InputError where they are of different kinds."""
    if not headers:
        raise InputError(f'{root}: no array in it is an image, video (uint8) or signal (float) that can be read')
    first, header = next(iter(headers.items()))
    for path, other in headers.items():
        if other.field != header.field:
            raise InputError(f'{root}: holds {header.field}s ({first}) and {other.field}s ({path}); keep one kind')
    shape = files.common_shape([other.shape for other in headers.values()])
    return header.field, shape if count <= files.MOST_HEADERS else (*[-1] * (len(shape) - 1), shape[-1])

"""Random access to examples whose files and values are listed in tables, one for each split.

What lists them stands in folders.py, pairs.py, coco.py and arrays.py; what reads them is the same for all.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import operator
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cnn.config import Spec
from cnn.data import decoding
from cnn.data.decoding import Header, Unreadable
from cnn.errors import InputError

PICTURES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
SPLITS = {'train': ('train',), 'validation': ('validation', 'val', 'valid'), 'test': ('test',)}  # names of folders
HASHED_BYTES = 64 * 2**20  # splits are fingerprinted by content below this size, by names and sizes of files above
MOST_HEADERS = 20_000  # files that are opened to learn their sizes; where there are more, sizes count as different
IGNORED = 255  # in masks: no class


@dataclasses.dataclass(frozen=True)
class Table:
    """The examples of a split, column by column."""

    files: Mapping[str, Sequence[str]]  # by field: paths under the root
    values: Mapping[str, np.ndarray]  # by field: (examples, ...)

    def __len__(self) -> int:
        columns: list[Any] = [*self.files.values(), *self.values.values()]
        return len(columns[0])

    def take(self, indices: Sequence[int] | np.ndarray) -> 'Table':
        """These examples, in this order."""
        files = {field: [paths[index] for index in indices] for field, paths in self.files.items()}
        return Table(files, {field: values[indices] for field, values in self.values.items()})


@dataclasses.dataclass(frozen=True)
class Listing:
    """What lies in a folder or an archive."""

    root: pathlib.Path
    spec: Spec
    tables: Mapping[str, Table]  # by split
    notes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)  # by kind: what was left out, changed


class FileSource:
    """The Source of a split expression of a Listing; see cnn/data/sources.py. `notes` are those of the whole listing.

    Raises:
      InputError: a split or field that does not exist, a split without examples.
    """

    def __init__(self, name: str, listing: Listing, split: str, fields: Sequence[str]):
        whole = listing.spec
        self.spec = narrowed(name, whole, fields)
        self.notes = listing.notes
        self._root, self._split = listing.root, split
        self._described = json.dumps([whole.shapes, whole.dtypes, whole.class_names, whole.sample_rate], sort_keys=True)
        self._table = select(name, listing.tables, split)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = self.read(index, decoding.decode_picture)
        for field, value in example.items():
            expected = self.spec.shapes[field]
            fits = len(expected) == value.ndim and all(map(_fits, value.shape, expected))
            if not fits:
                raise Unreadable(f'{self.where(index)}: {field} is {list(value.shape)}, others are {list(expected)}')
        if {'image', 'semantic'} <= example.keys() and example['image'].shape[:2] != example['semantic'].shape:
            sizes = ' and '.join(str(list(example[field].shape[:2])) for field in ('image', 'semantic'))
            raise Unreadable(f'{self.where(index)}: the picture and its mask differ in size, {sizes}')
        return example

    def read(self, index: int, decode: Callable[[bytes], np.ndarray]) -> dict[str, Any]:
        """Example `index` with its picture decoded by `decode`, from the file's bytes. Raises Unreadable."""
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f'example {index} of {len(self)}')
        example = {}
        for field in self.spec.shapes:
            if field in self._table.values:
                example[field] = self._table.values[field][index]
                continue
            path = self._root / self._table.files[field][index]
            try:
                example[field] = self._decoded(field, path, decode)
            except (Unreadable, OSError) as error:
                reason = getattr(error, 'strerror', None) or error
                raise Unreadable(f'{path}: {reason}') from error
        return example

    def arrays(self) -> dict[str, np.ndarray]:
        """The whole split, decoded: each field stacked, (examples, ...).

        Raises:
          InputError: examples of different shapes.
          Unreadable: the first file that can't be read.
        """
        ragged = [field for field, shape in self.spec.shapes.items() if -1 in shape]
        if ragged:
            raise InputError(f'{", ".join(ragged)}: examples of different shapes cannot be stacked; stream them')
        if not self.spec.shapes.keys() & self._table.files.keys():
            return {field: self._table.values[field] for field in self.spec.shapes}
        shapes, dtypes = self.spec.shapes, self.spec.dtypes
        stacked = {field: np.empty((len(self), *shapes[field]), dtypes[field]) for field in shapes}
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for index, example in enumerate(pool.map(self.__getitem__, range(len(self)))):
                for field, value in example.items():
                    stacked[field][index] = value
        return stacked

    def where(self, index: int) -> str:
        """The file of an example, for messages."""
        for paths in self._table.files.values():
            return str(self._root / paths[index])
        return f'example {index} of {self._split} in {self._root}'

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hexadecimal; of all fields of these examples, wherever the root lies."""
        digest = hashlib.sha256(self._described.encode())
        for field, values in self._table.values.items():
            digest.update(f'{field} {values.dtype} {values.shape}'.encode())
            digest.update(np.ascontiguousarray(values).data)
        names = [name for paths in self._table.files.values() for name in paths]
        sizes = [_size(self._root / name) for name in names]
        for name, size in zip(names, sizes, strict=True):
            digest.update(f'{name} {size}\n'.encode())
            if size and sum(sizes) < HASHED_BYTES:
                digest.update(hashlib.sha256((self._root / name).read_bytes()).digest())
        return digest.hexdigest()

    def _decoded(self, field: str, path: pathlib.Path, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
        data, kind, channels = path.read_bytes(), path.suffix.lower(), self.spec.shapes[field][-1]
        if kind == '.wav':
            samples, rate = decoding.decode_sound(data)
            return decoding.resample(samples[:, None], rate, self.spec.sample_rate or rate)
        if kind == '.npy':
            array = decoding.decode_array(data)
            return np.repeat(array, channels, -1) if array.shape[-1] == 1 else array
        if field == 'semantic':
            mask = decoding.decode_mask(data)
            classes = len(self.spec.class_names[field])
            wrong = mask[(mask >= classes) & (mask != IGNORED)]
            if wrong.size:
                raise Unreadable(f'holds class {wrong.max()}; there are {classes}, from 0, and {IGNORED} for none')
            return mask
        picture = decode(data)
        return np.repeat(picture, channels, -1) if picture.shape[-1] == 1 else picture


def narrowed(name: str, spec: Spec, fields: Sequence[str]) -> Spec:
    """The spec of some fields of data set `name`. Raises InputError for one that it does not have."""
    for field in fields:
        if field not in spec.shapes:
            raise InputError(f'data set {name!r} has no field {field!r}; its fields are {", ".join(spec.shapes)}')
    return dataclasses.replace(
        spec,
        shapes={field: spec.shapes[field] for field in fields},
        dtypes={field: spec.dtypes[field] for field in fields},
        class_names={field: spec.class_names[field] for field in fields if field in spec.class_names},
    )


def _fits(size: int, expected: int) -> bool:
    return expected in (-1, size)


def _size(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f'{path}: {error.strerror}') from error


def select(name: str, tables: Mapping[str, Table], expression: str) -> Table:
    """The examples of a split expression as TFDS has them: 'train[:90%]', 'train+test'. Raises InputError."""
    import tensorflow_datasets as tfds

    lengths = {split: _Length(split, len(table)) for split, table in tables.items()}
    try:
        parts = tfds.core.ReadInstruction.from_spec(expression).to_absolute(lengths)
    except (KeyError, ValueError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f'data set {name!r} has no split {expression!r}; its splits are {", ".join(tables)}, '
            "and slices of them such as 'train[:90%]'; --config.data.test_split=none trains without that split"
        ) from error
    chosen = [tables[part.splitname].take(range(len(tables[part.splitname]))[part.from_ : part.to]) for part in parts]
    if not sum(map(len, chosen)):
        raise InputError(f'split {expression!r} of data set {name!r} holds no example')
    return chosen[0] if len(chosen) == 1 else _joined(chosen)


@dataclasses.dataclass(frozen=True)
class _Length:
    name: str
    num_examples: int


def _joined(tables: Sequence[Table]) -> Table:
    files = {field: [path for table in tables for path in table.files[field]] for field in tables[0].files}
    values = {field: np.concatenate([table.values[field] for table in tables]) for field in tables[0].values}
    return Table(files, values)


def divide(tables: Mapping[str, Table], seed: int) -> dict[str, Table]:
    """Takes the splits that there are none of from `train`, by the seed.

    Where `train` is all that there is, 8 of ten examples stay, one each makes validation and test. Where validation
    alone is missing, 9 of ten stay; where test alone is missing, it stays so. Every tenth example is taken from those
    in the order of their classes and, in a class, of a hash of the seed and the example's name, so that every class
    has its share to within one example.
    """
    if 'validation' in tables:
        return dict(tables)
    train = tables['train']
    names = next(iter(train.files.values()), None) or list(map(str, range(len(train))))
    labels = train.values.get('label', np.zeros(len(train), int))
    hashes = [hashlib.sha256(f'{seed} {name}'.encode()).digest() for name in names]
    order = sorted(range(len(train)), key=lambda index: (labels[index], hashes[index]))
    shares = {'validation': order[4::10]} | ({} if 'test' in tables else {'test': order[9::10]})
    taken = {index for indices in shares.values() for index in indices}
    shares = {'train': [index for index in range(len(train)) if index not in taken]} | shares
    divided = {**tables, **{split: train.take(sorted(indices)) for split, indices in shares.items()}}
    return {split: divided[split] for split in SPLITS if split in divided}


def split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders of the splits that lie in `root`, by split; empty where there are none. Raises InputError."""
    found = {split: [root / name for name in names if (root / name).is_dir()] for split, names in SPLITS.items()}
    for folders in found.values():
        if len(folders) > 1:
            raise InputError(f'{folders[0]} and {folders[1]} are both there; keep one of them')
    if found['train']:
        return {split: folders[0] for split, folders in found.items() if folders}
    return {}


def headers(root: pathlib.Path, paths: Sequence[str]) -> dict[str, Header]:
    """What readable files say of themselves, by path; beyond MOST_HEADERS files nothing is opened."""
    found = map(functools.partial(_header, root), paths) if len(paths) <= MOST_HEADERS else ()
    return {path: header for path, header in zip(paths, found, strict=False) if header}


def picture_shape(found: Mapping[str, Header]) -> tuple[int, ...]:
    """The shape of all pictures: colour where one of them is, or where none was looked at."""
    return common_shape([header.shape for header in found.values()]) if found else (-1, -1, 3)


def _header(root: pathlib.Path, name: str) -> Header | None:
    kind = pathlib.PurePath(name).suffix.lower()
    read = {'.wav': decoding.sound_header, '.npy': decoding.array_header}.get(kind, decoding.picture_header)
    try:
        with open(root / name, 'rb') as file:
            return read(file)
    except (Unreadable, OSError):
        return None  # reading the example will tell


def common_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """One shape for all: -1 where sizes differ, and the most channels; those with one repeat it."""
    *sides, channels = zip(*shapes, strict=True)
    return (*(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in sides), max(channels))

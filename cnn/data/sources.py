"""Name -> random-access source of examples.

    digits, mnist, imagenet2012, my_set/config:1.0.0    prepared sets (prepared.py)
    folder:DIR                                          a folder of files for each class (folders.py)
    arrays:FILE.npz                                     x and y (arrays.py)
    pairs:DIR                                           pictures and masks (pairs.py)
    coco:DIR                                            pictures and boxes in COCO's JSON (coco.py)

Splits are TFDS split expressions for all of them: 'train', 'train[:90%]', 'train[100:200]', 'train+test'. Of these
config.data.classes and config.data.examples_per_class may leave some (subsets.py).
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from cnn.config import Data, Spec
from cnn.data import arrays, coco, folders, pairs, prepared, subsets
from cnn.data.files import FileSource, Listing
from cnn.errors import InputError, nearest

LISTINGS: Mapping[str, Callable[[Data, pathlib.Path], Listing]] = {
    'folder': folders.listing,
    'arrays': arrays.listing,
    'pairs': pairs.listing,
    'coco': coco.listing,
}


class Source(Protocol):
    """The examples of a split: `source[i]` is a dict of arrays. Safe to share between threads and processes.

    Attributes:
      spec: the Spec, of the asked fields only; a dimension of -1 differs between examples.
      notes: what was left out of the data set or changed, by kind.
    """

    spec: Spec
    notes: Mapping[str, Sequence[str]]

    @property
    def fingerprint(self) -> str:
        """Hexadecimal; of the set's description and of all fields of these examples, wherever the files lie."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Decoded in full, at its own size. Raises Unreadable naming the file and the reason."""

    def read(self, index: int, decode: Callable[[bytes], np.ndarray]) -> dict[str, Any]:
        """The same with `decode` for pictures, given the bytes of their files; not called where there are none."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The whole split, each field stacked: (examples, ...). Raises InputError where shapes differ, Unreadable."""

    def where(self, index: int) -> str:
        """The file or place of an example, for messages."""


def spec(data: Data) -> Spec:
    """The spec of a data set: nothing is prepared, and files are not decoded. A dimension of -1 differs.

    Raises:
      InputError: unknown name; a folder or file that does not hold what its name says.
    """
    kind, path = _kind(data.name)
    whole = _listing(kind, path, data.split_seed, data.sample_rate).spec if kind else prepared.spec(data.name)
    if data.classes or data.examples_per_class:
        subsets.check(whole, data.classes, data.name)
    return subsets.with_classes(whole, data.classes) if data.classes else whole


def load(data: Data, split: str, fields: Sequence[str]) -> Source:
    """The examples of a split, with just these fields.

    Raises:
      InputError: unknown name, split or field; damaged or missing files; too few examples of a class.
    """
    per_class = data.examples_per_class if split == data.train_split else None
    source = _load(data, split, fields)
    if not data.classes and per_class is None:
        return source
    labels = _load(data, split, ('label',))
    names = labels.spec.class_names['label']
    numbers = labels.arrays()['label']
    return subsets.Subset(source, numbers, names, data.classes or names, per_class, data.split_seed)


def _load(data: Data, split: str, fields: Sequence[str]) -> Source:
    kind, path = _kind(data.name)
    if not kind:
        return prepared.load(data.name, split, fields, data.archives)
    listing = _listing(kind, path, data.split_seed, data.sample_rate)
    return FileSource(data.name, listing, split, fields)


def _kind(name: str) -> tuple[str, pathlib.Path]:
    """The kind and the path in a name such as folder:DIR; no kind where it is a prepared set's."""
    kind, colon, rest = name.partition(':')
    path = pathlib.Path(rest).expanduser()
    if kind in LISTINGS and colon:
        if not rest:
            raise InputError(
                f'config.data.name={name!r}: give a path, {kind}:{"FILE.npz" if kind == "arrays" else "DIR"}'
            )
        if not path.exists():
            raise InputError(f'config.data.name={name!r}: there is no {path}')
        if path.is_dir() == (kind == 'arrays'):
            raise InputError(f'config.data.name={name!r}: {path} is {"a" if path.is_dir() else "no"} directory')
        return kind, path
    if colon and ('/' in rest or rest.endswith('.npz')):
        raise nearest('kind of data', kind, LISTINGS)
    return '', path


@functools.lru_cache(maxsize=8)
def _listing(kind: str, path: pathlib.Path, split_seed: int, sample_rate: int | None) -> Listing:
    """Listed once in a process."""
    try:
        return LISTINGS[kind](Data(split_seed=split_seed, sample_rate=sample_rate), path)
    except OSError as error:
        raise InputError(f'config.data.name={kind}:{path}: {error.filename}: {error.strerror}') from error

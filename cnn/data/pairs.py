"""`pairs:DIR`: pictures and masks of the same names, for segmentation.

DIR/images/NAME.jpg and DIR/masks/NAME.png; splits are DIR/SPLIT/images or DIR/images/SPLIT, for `train`, `validation`
(`val`, `valid`) and `test`; `divide` in files.py says how splits that are not there are taken from the others. A mask
holds a class for each pixel, from 0, as grey values or palette indices; 255 is none. DIR/classes.txt names the classes,
one a line; without it they are 0 to the largest number in any mask.
"""

import os
import pathlib

import numpy as np

from cnn import config
from cnn.config import Spec
from cnn.data import decoding, files
from cnn.data.decoding import Unreadable
from cnn.data.files import IGNORED, Listing, Table
from cnn.errors import InputError


def listing(data: config.Data, root: pathlib.Path) -> Listing:
    """What lies in the folder. Raises InputError in one line for what a user may have wrong."""
    folders = _folders(root)
    tables = {split: _table(root, *pair) for split, pair in folders.items()}
    masks = [path for table in tables.values() for path in table.files['semantic']]
    headers = files.headers(root, [path for table in tables.values() for path in table.files['image']])
    shape = files.picture_shape(headers)
    names = _class_names(root, masks)
    tables = files.divide(tables, data.split_seed)
    spec = Spec(
        shapes={'image': shape, 'semantic': shape[:2]},
        dtypes={'image': 'uint8', 'semantic': 'uint8'},
        class_names={'semantic': names},
        num_examples={split: len(table) for split, table in tables.items()},
    )
    return Listing(root, spec, tables)


def _folders(root: pathlib.Path) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
    """The folders of pictures and of masks, by split."""
    outside = files.split_folders(root)
    if outside:
        pairs = {split: (folder / 'images', folder / 'masks') for split, folder in outside.items()}
    else:
        pairs = {'train': (root / 'images', root / 'masks')}
        inside = files.split_folders(root / 'images')
        if inside:
            pairs = {split: (folder, root / 'masks' / folder.name) for split, folder in inside.items()}
    for folder in (folder for pair in pairs.values() for folder in pair):
        if not folder.is_dir():
            raise InputError(f'{folder}: there is no such folder; pairs:DIR has DIR/images and DIR/masks')
    return pairs


def _table(root: pathlib.Path, pictures: pathlib.Path, masks: pathlib.Path) -> Table:
    found, theirs = _files(pictures), _files(masks)
    for kind, lonely, other in (
        ('mask', found.keys() - theirs.keys(), masks),
        ('picture', theirs.keys() - found.keys(), pictures),
    ):
        if lonely:
            path = (pictures / found[min(lonely)]) if kind == 'mask' else masks / theirs[min(lonely)]
            raise InputError(f'{path}: has no {kind} of that name in {other} ({len(lonely)} such files)')
    if not found:
        raise InputError(f'{pictures}: holds no pictures ({", ".join(files.PICTURES)})')
    names = sorted(found)
    columns = {'image': (pictures, found), 'semantic': (masks, theirs)}
    return Table(
        {
            field: [os.path.relpath(place / by_name[name], root) for name in names]
            for field, (place, by_name) in columns.items()
        },
        {},
    )


def _files(folder: pathlib.Path) -> dict[str, str]:
    """Pictures by name without the suffix. Raises InputError for two of the same name."""
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in files.PICTURES and not path.name.startswith('.'):
            if path.stem in found:
                raise InputError(f'{path}: and {found[path.stem]} have the same name; keep one of them')
            found[path.stem] = path.name
    return found


def _class_names(root: pathlib.Path, masks: list[str]) -> tuple[str, ...]:
    file = root / 'classes.txt'
    if file.exists():
        names = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
        if not names or len(set(names)) < len(names):
            raise InputError(f'{file}: give one class a line, each once')
        return names
    if len(masks) > files.MOST_HEADERS:
        raise InputError(f'{file}: is missing, and {len(masks)} masks are too many to look for their classes; write it')
    present: set[int] = set()
    for mask in masks:
        try:
            present |= set(np.unique(decoding.decode_mask((root / mask).read_bytes())).tolist())
        except (Unreadable, OSError):
            continue  # reading the example will tell
    if present <= {0, IGNORED}:
        raise InputError(
            f'{root}: its masks hold no class but 0 ({IGNORED} is none); number the classes from 0, or name '
            f'them in {file}'
        )
    return tuple(map(str, range(max(present - {IGNORED}) + 1)))

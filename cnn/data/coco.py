"""`coco:DIR`: pictures and boxes of COCO's JSON, for detection.

The boxes of a split lie in DIR/annotations_SPLIT.json, DIR/annotations/instances_SPLIT*.json or
DIR/SPLIT/_annotations.coco.json, its pictures in DIR/SPLIT*, DIR/images/SPLIT* or DIR/images, where SPLIT is `train`,
`val` (`valid`, `validation`) or `test`; or all boxes in DIR/annotations.json. `divide` in files.py says how splits that
are not there are taken from the others. Classes are numbered in the order of their ids.

Boxes are x0 y0 x1 y1 in pixels, padded to the largest number that a picture has; `box_labels` is -1 there. Boxes of
crowds are left out, those without area or outside of their picture dropped, those that reach outside clipped: `notes`
names each.
"""

import collections
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cnn import config
from cnn.config import Spec
from cnn.data import files
from cnn.data.decoding import Header
from cnn.data.files import Listing, Table
from cnn.errors import InputError

DROPPED, CLIPPED, CROWDS = 'boxes dropped', 'boxes clipped', 'boxes of crowds left out'
Notes = dict[str, list[str]]


def listing(data: config.Data, root: pathlib.Path) -> Listing:
    """What lies in the folder. Raises InputError in one line for what a user may have wrong."""
    found = _annotations(root)
    contents = {split: _read(file) for split, (file, _) in found.items()}
    classes = _classes({found[split][0]: content for split, content in contents.items()})
    images = {split: _pictures(root, *found[split], content['images']) for split, content in contents.items()}
    headers = files.headers(root, [path for by_id in images.values() for path, _ in by_id.values()])
    notes: Notes = {DROPPED: [], CLIPPED: [], CROWDS: []}
    boxes = {
        split: _boxes(found[split][0], content['annotations'], images[split], headers, list(classes), notes)
        for split, content in contents.items()
    }
    slots = max((len(some) for by_id in boxes.values() for some in by_id.values()), default=0)
    tables = {split: _table(images[split], boxes[split], slots) for split in found}
    tables = files.divide(tables, data.split_seed)
    spec = Spec(
        shapes={'image': files.picture_shape(headers), 'boxes': (slots, 4), 'box_labels': (slots,)},
        dtypes={'image': 'uint8', 'boxes': 'float32', 'box_labels': 'int64'},
        class_names={'box_labels': tuple(classes.values())},
        num_examples={split: len(table) for split, table in tables.items()},
    )
    return Listing(root, spec, tables, {kind: some for kind, some in notes.items() if some})


def _annotations(root: pathlib.Path) -> dict[str, tuple[pathlib.Path, list[pathlib.Path]]]:
    """The JSON file of each split and the folders in which its pictures may lie."""
    found: dict[str, tuple[pathlib.Path, list[pathlib.Path]]] = {}
    for split, names in files.SPLITS.items():
        for name in names:
            patterns = (
                f'annotations_{name}.json',
                f'annotations/instances_{name}*.json',
                f'{name}/_annotations.coco.json',
            )
            for file in (file for pattern in patterns for file in sorted(root.glob(pattern))):
                if split in found:
                    raise InputError(f'{found[split][0]} and {file} are both of the {split} split; keep one of them')
                folder = file.stem.partition('_')[2] if file.stem.startswith('instances_') else name
                found[split] = file, [root / folder, root / 'images' / folder, root / 'images', root]
    single = root / 'annotations.json'
    if not found and single.exists():
        found['train'] = single, [root / 'images', root]
    if 'train' not in found:
        raise InputError(
            f'{root}: has no annotations_train.json, annotations/instances_train*.json, '
            'train/_annotations.coco.json or annotations.json'
        )
    return found


def _read(file: pathlib.Path) -> Mapping[str, list[dict[str, Any]]]:
    try:
        content = json.loads(file.read_bytes())
        required = {
            'images': ('id', 'file_name'),
            'annotations': ('id', 'image_id', 'category_id', 'bbox'),
            'categories': ('id', 'name'),
        }
        for part, keys in required.items():
            for entry in content[part]:
                for key in keys:
                    entry[key]
        return content
    except KeyError as error:
        raise InputError(f'{file}: has no {error}; COCO files have images, annotations and categories') from error
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f'{file}: is no COCO file ({" ".join(str(error).split())})') from error


def _by_id(file: pathlib.Path, kind: str, entries: Iterable[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    by_id: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        if entry['id'] in by_id:
            raise InputError(f'{file}: two of its {kind} have the id {entry["id"]!r}')
        by_id[entry['id']] = entry
    return by_id


def _classes(contents: Mapping[pathlib.Path, Any]) -> dict[Any, str]:
    """Names of the classes by id, in the order of the ids; the same in every file."""
    (first, expected), *others = (
        (file, {id: entry['name'] for id, entry in sorted(_by_id(file, 'categories', content['categories']).items())})
        for file, content in contents.items()
    )
    for file, classes in others:
        if classes != expected:
            raise InputError(f'{file}: has other categories than {first}')
    if not expected:
        raise InputError(f'{first}: has no categories')
    return expected


def _pictures(
    root: pathlib.Path, file: pathlib.Path, folders: list[pathlib.Path], entries: list[dict[str, Any]]
) -> dict[Any, tuple[str, dict[str, Any]]]:
    """By id: the path under the root and the entry of each picture."""
    by_id = _by_id(file, 'images', entries)
    if not by_id:
        raise InputError(f'{file}: names no picture')
    name = entries[0]['file_name']
    folder = next((folder for folder in folders if (folder / name).is_file()), folders[0])
    missing = [entry['file_name'] for entry in entries if not (folder / entry['file_name']).is_file()]
    if missing:
        raise InputError(f'{file}: names {missing[0]}, which is not in {folder} ({len(missing)} such pictures)')
    return {id: (os.path.relpath(folder / entry['file_name'], root), entry) for id, entry in by_id.items()}


def _boxes(
    file: pathlib.Path,
    annotations: list[dict[str, Any]],
    images: Mapping[Any, tuple[str, dict[str, Any]]],
    headers: Mapping[str, Header],
    classes: list[Any],
    notes: Notes,
) -> dict[Any, list[tuple[float, float, float, float, int]]]:
    """x0 y0 x1 y1 and class of the boxes of each picture, by its id; adds to `notes`."""
    boxes: dict[Any, list[tuple[float, float, float, float, int]]] = collections.defaultdict(list)
    for id, entry in _by_id(file, 'annotations', annotations).items():
        if entry['image_id'] not in images:
            raise InputError(f'{file}: annotation {id} is of picture {entry["image_id"]!r}, which it does not name')
        if entry['category_id'] not in classes:
            raise InputError(f'{file}: annotation {id} is of class {entry["category_id"]!r}, which it does not name')
        path, picture = images[entry['image_id']]
        note = f'{path}: annotation {id}, {entry["bbox"]}'
        if entry.get('iscrowd'):
            notes[CROWDS].append(note)
            continue
        left, top, width, height = _numbers(file, entry)
        most_x, most_y = _size(file, path, picture, headers)
        box = (max(left, 0), max(top, 0), min(left + width, most_x), min(top + height, most_y))
        if not (box[0] < box[2] and box[1] < box[3]):  # also where a number is NaN
            notes[DROPPED].append(note)
            continue
        if box != (left, top, left + width, top + height):
            notes[CLIPPED].append(note)
        boxes[entry['image_id']].append((*box, classes.index(entry['category_id'])))
    return boxes


def _numbers(file: pathlib.Path, entry: Mapping[str, Any]) -> tuple[float, ...]:
    try:
        left, top, width, height = map(float, entry['bbox'])
    except (TypeError, ValueError):
        raise InputError(f'{file}: the bbox of annotation {entry["id"]} is not four numbers') from None
    return left, top, width, height


def _size(
    file: pathlib.Path, path: str, entry: Mapping[str, Any], headers: Mapping[str, Header]
) -> tuple[float, float]:
    """Width and height of a picture: its own, which the JSON must not contradict."""
    stated = (entry.get('width', math.inf), entry.get('height', math.inf))
    if path not in headers:
        return stated
    height, width, _ = headers[path].shape
    if math.inf not in stated and stated != (width, height):
        raise InputError(f'{file}: {path} is {width} x {height} pixels and not {stated[0]} x {stated[1]}')
    return width, height


def _table(images: Mapping[Any, tuple[str, Any]], boxes: Mapping[Any, list[Any]], slots: int) -> Table:
    corners = np.zeros((len(images), slots, 4), np.float32)
    labels = np.full((len(images), slots), -1, np.int64)
    for row, id in enumerate(images):
        for slot, (*box, label) in enumerate(boxes.get(id, ())):
            corners[row, slot], labels[row, slot] = box, label
    return Table({'image': [path for path, _ in images.values()]}, {'boxes': corners, 'box_labels': labels})

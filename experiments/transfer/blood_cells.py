"""Blood cells, of which a few have labels, learnt by MobileNetV1 from its own initialisation.

    python -m experiments.transfer.blood_cells --source=DIR
    python launch.py --config=experiments/transfer/blood_cells.py --config.data.examples_per_class=5

DIR is the Blood Cell Count data set (Shenggan/BCCD_Dataset) with COCO annotations; the first command cuts a square
around each cell into data/blood_cells: 209, 83 and 69 of each of three kinds to train, to validate and to test. There
is no validation here: 100 steps, and the last state is tested. experiments/ablations/pretraining.py compares with
ImageNet's weights, and tells what we measured.
"""

import json
import pathlib
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image

from cnn.config import Experiment
from cnn.errors import InputError

FLAGS = flags.FLAGS
SIDE = 64  # pixels of a crop


def get_config() -> Experiment:
    config = mobilenet()
    config.data.name = 'folder:data/blood_cells'
    config.augment.flip = True
    return config


def mobilenet() -> Experiment:
    """MobileNetV1 from its own initialisation, for pictures of 64 pixels of which a few have labels."""
    config = Experiment()
    config.model.name = 'mobilenet/v1_025'
    config.model.options = {'norm_momentum': 0.9}  # there are few steps
    config.data.image_size = (SIDE, SIDE)
    config.data.mean, config.data.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    config.data.batch_size = 32
    config.data.validation_split = None
    config.optimizer.name = 'adam'
    config.optimizer.learning_rate = 3e-2
    config.schedule.name = 'one_cycle'
    config.schedule.warmup = '30%'
    config.train.duration = '100'
    config.checkpoint.every = '0'
    return config


def crops(picture: Image.Image, boxes: np.ndarray) -> list[Image.Image]:
    """A square of SIDE pixels around each box x, y, width, height; the edge of the picture is repeated outside it."""
    margin = max(picture.size)
    padded = Image.fromarray(np.pad(np.asarray(picture), ((margin, margin), (margin, margin), (0, 0)), 'edge'))
    squares = []
    for x, y, width, height in boxes:
        half, across, down = 0.6 * max(width, height), margin + x + width / 2, margin + y + height / 2
        square = across - half, down - half, across + half, down + half
        squares.append(padded.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=square))
    return squares


def cut(source: pathlib.Path, target: pathlib.Path, split: str) -> dict[str, int]:
    """Cuts the cells of a split into target/split/CLASS; as many of each class as of the rarest, spread over all.

    Raises InputError where there is no such split.
    """
    file = source / f'annotations_{split}.json'
    if not file.exists():
        raise InputError(f'--source={source}: has no {file.name}')
    coco: Any = json.loads(file.read_text())
    pictures = {entry['id']: source / split / entry['file_name'] for entry in coco['images']}
    names = {entry['id']: entry['name'] for entry in coco['categories']}
    cells: dict[str, list[Any]] = {name: [] for name in names.values()}
    for entry in coco['annotations']:
        if min(entry['bbox'][2:]) > 0:
            cells[names[entry['category_id']]].append((entry['image_id'], entry['bbox']))
    cells = {name: members for name, members in cells.items() if members}
    count = min(map(len, cells.values()))
    for name, members in cells.items():
        folder = target / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image, box = members[index * len(members) // count]
            with Image.open(pictures[image]) as picture:
                (square,) = crops(picture.convert('RGB'), np.array([box]))
            square.save(folder / f'{image:05d}_{index:04d}.png')
    return dict.fromkeys(cells, count)


def main(_: Any) -> None:
    """Cuts every split."""
    for split in ('train', 'val', 'test'):
        print(split, cut(pathlib.Path(FLAGS.source), pathlib.Path(FLAGS.target), split))


if __name__ == '__main__':
    flags.DEFINE_string('source', None, 'the Blood Cell Count data set', required=True)
    flags.DEFINE_string('target', 'data/blood_cells', 'where the crops go')
    app.run(main)

"""Handwritten digits on cluttered canvases, for detection, instance and semantic segmentation.

Each scene holds real digits of one split of `digits`, so no writer is in two splits. They lie at random places and
sizes over a smooth background, strokes and fragments of other digits (distractors, which bear no label); later digits
hide at most a tenth of an earlier one. Scenes are a function of (SEED, split, index): only integers are drawn and
blended.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw

from cnn.datasets import digits

SEED = 0
NUM_SCENES = {'train': 2000, 'validation': 250, 'test': 500}
INK = 128  # a pixel is the digit's where at least this much of 255 of it is covered; below, the edge only blends
HIDDEN = 0.1  # the part of a digit's ink that later ones may hide
PLACEMENTS = 50  # tried before a digit is left out


@dataclasses.dataclass(kw_only=True)
class SceneConfig(tfds.core.BuilderConfig):
    """size: of the canvas; digits: at most, and heights: least and largest of a digit, in pixels."""

    size: int
    digits: int
    heights: tuple[int, int] = (18, 32)


def scene(
    rng: np.random.Generator, images: np.ndarray, labels: np.ndarray, config: SceneConfig
) -> dict[str, np.ndarray]:
    """One scene, of `images` uint8 (n, 8, 8) of the classes `labels` (n,); the fields are those of Builder.

    Later instances lie on top of earlier ones. Slots without an instance have label -1, and zeros elsewhere.
    """
    canvas = _clutter(rng, images, config)
    masks = np.zeros((config.digits, config.size, config.size), bool)
    drawn = np.zeros(config.digits, np.int64)  # pixels of each digit's ink
    visible = drawn.copy()  # of these, what later digits do not hide
    classes = np.full(config.digits, -1, np.int64)
    count = 0
    for _ in range(rng.integers(1, config.digits, endpoint=True)):
        chosen = rng.integers(len(images))
        alpha = _resized(rng, images[chosen], config)
        ink = alpha >= INK
        brightness = rng.integers(180, 255, endpoint=True)
        for _ in range(PLACEMENTS):
            window = _place(rng, alpha, config.size)
            lost = (masks[:, *window] & ink).sum((1, 2))
            if np.all(visible - lost >= (1 - HIDDEN) * drawn):
                _blend(canvas, window, alpha, brightness)
                masks[:, *window] &= ~ink
                visible -= lost
                masks[count, *window] = ink
                drawn[count] = visible[count] = ink.sum()
                classes[count] = labels[chosen]
                count += 1
                break
    noise = rng.integers(-8, 8, canvas.shape, endpoint=True)
    return {
        'image': np.clip(canvas + noise, 0, 255).astype(np.uint8)[..., None],
        'boxes': np.stack([_box(mask) for mask in masks]),
        'box_labels': classes,
        'instance_masks': masks,
        'semantic': (masks * (classes + 1)[:, None, None]).sum(0).astype(np.uint8),
    }


def _clutter(rng: np.random.Generator, images: np.ndarray, config: SceneConfig) -> np.ndarray:
    """What lies under the digits: int64 (size, size), 0 .. 255. The larger the canvas, the more there is of it."""
    area = (config.size // 64) ** 2
    cells = rng.integers(0, 80, (5, 5)).astype(np.uint8)
    drawing = Image.fromarray(cells).resize((config.size, config.size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(drawing)
    for _ in range(rng.integers(2 * area, 6 * area)):
        (x, y), (dx, dy) = rng.integers(0, config.size, 2), rng.integers(-24, 24, 2, endpoint=True)
        brightness = int(rng.integers(80, 180))
        draw.line([int(x), int(y), int(x + dx), int(y + dy)], fill=brightness, width=int(rng.integers(1, 3)))
    canvas = np.asarray(drawing).astype(np.int64)
    for _ in range(rng.integers(3 * area, endpoint=True)):
        fragment = np.zeros((8, 8), np.uint8)
        (x, y), (width, height) = rng.integers(0, 5, 2), rng.integers(3, 5, 2)
        window = np.s_[y : y + height, x : x + width]
        fragment[window] = images[rng.integers(len(images))][window]
        alpha = _resized(rng, fragment, config)
        _blend(canvas, _place(rng, alpha, config.size), alpha, rng.integers(80, 160))
    return canvas


def _resized(rng: np.random.Generator, image: np.ndarray, config: SceneConfig) -> np.ndarray:
    """An 8 x 8 image at a random size of random aspect: uint8 (height, width)."""
    height = int(rng.integers(*config.heights, endpoint=True))
    width = height * int(rng.integers(75, 110)) // 100
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _place(rng: np.random.Generator, alpha: np.ndarray, size: int) -> tuple[slice, slice]:
    """The rows and columns of a random place on the canvas that holds all of an image."""
    height, width = alpha.shape
    y, x = rng.integers(0, [size - height, size - width], endpoint=True)
    return slice(y, y + height), slice(x, x + width)


def _blend(canvas: np.ndarray, window: tuple[slice, slice], alpha: np.ndarray, brightness: np.integer) -> None:
    opacity = alpha.astype(np.int64)
    canvas[window] = (canvas[window] * (255 - opacity) + brightness * opacity + 127) // 255


def _box(mask: np.ndarray) -> np.ndarray:
    """x0 y0 x1 y1 of the pixels set, float32, x1 and y1 exclusive; zeros where there are none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Scenes of `size` x `size` pixels with up to `digits` digits.

    image uint8 (size, size, 1); boxes float32 (digits, 4), x0 y0 x1 y1 in pixels, tight around what is visible, x1 and
    y1 exclusive; box_labels int64 (digits,), -1 where there is no digit; instance_masks bool (digits, size, size), the
    visible pixels, each of one instance at most; semantic uint8 (size, size), 0 background, 1 + digit elsewhere.
    """

    name = 'digit_scenes'
    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [SceneConfig(name='64', size=64, digits=5), SceneConfig(name='128', size=128, digits=10)]
    NUM_EXAMPLES = NUM_SCENES

    def _info(self) -> tfds.core.DatasetInfo:
        size, slots = self.builder_config.size, self.builder_config.digits
        features = {
            'image': tfds.features.Image(shape=(size, size, 1), encoding_format='png'),
            'boxes': tfds.features.Tensor(shape=(slots, 4), dtype=np.float32),
            'box_labels': tfds.features.Sequence(tfds.features.ClassLabel(names=digits.NAMES), length=slots),
            'instance_masks': tfds.features.Tensor(shape=(slots, size, size), dtype=np.bool_, encoding='zlib'),
            'semantic': tfds.features.LabeledImage(
                shape=(size, size, 1), labels=['background', *digits.NAMES], encoding_format='png'
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in NUM_SCENES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = digits.read(split)
        for index in range(NUM_SCENES[split]):
            example: dict[str, Any] = scene(generator(SEED, split, index), images, labels, self.builder_config)
            example['image'] = digits.png(example['image'][..., 0])
            example['semantic'] = digits.png(example['semantic'])
            yield index, example


def generator(seed: int, split: str, index: int) -> np.random.Generator:
    """The random numbers of one scene."""
    key = np.array([seed, list(NUM_SCENES).index(split) << 32 | index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))

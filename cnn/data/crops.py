"""Which part of a picture is taken, and that part at the wanted size; pure functions."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

TRIES = 10  # of torchvision
MASKS = ('semantic', 'instance_masks')  # fields: classes or yes and no, [..., H, W], for the pixels of the picture
_CROPS = 1 << 32  # seeds are below: the first word of the keys of Philox, apart from those of the order of examples


class Window(NamedTuple):
    """A rectangle of a picture, in its pixels."""

    top: float
    left: float
    height: float
    width: float
    inside: bool  # pixels around it do not count when it is resized


Choose = Callable[[int, int], Window]  # height and width of a picture -> what is taken of it


def uniforms(seed: int, position: int) -> np.ndarray:
    """[TRIES, 4] numbers in [0, 1): the draws of the crop at a position in the stream of training examples."""
    bits = np.random.Philox(key=[_CROPS + seed, position]).random_raw(TRIES * 4)
    return (bits >> np.uint64(11)).reshape(TRIES, 4) * 2.0**-53


def random_window(
    height: int, width: int, scale: tuple[float, ...], ratio: tuple[float, ...], draws: np.ndarray
) -> Window:
    """The window of torchvision's RandomResizedCrop (Szegedy et al. 2015, section 6).

    Its share of the area is uniform in `scale`, the logarithm of its width by its height in that of `ratio`. The first
    row of draws [tries, 4] (area, ratio, top, left) that fits decides; if none does, the largest middle part with such
    a ratio is taken.
    """
    low, high = (math.log(bound) for bound in ratio)
    for area, aspect, top, left in draws.tolist():
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(low + (high - low) * aspect)
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            return Window(int(top * (height - tall + 1)), int(left * (width - wide + 1)), tall, wide, inside=True)
    wide = min(width, max(round(height * ratio[1]), 1))
    tall = min(height, max(round(width / ratio[0]), 1))
    return Window((height - tall) // 2, (width - wide) // 2, tall, wide, inside=True)


def middle_window(height: int, width: int, size: tuple[int, int], side: int | None) -> Window:
    """What torchvision's Resize(side) and then CenterCrop(size) show; `side` None is 8/7 of the shorter one of `size`.

    Where the resized picture would not cover `size`, its scale is the smallest that does.
    """
    side = round(min(size) * 8 / 7) if side is None else side
    scale = max(side / min(height, width), size[0] / height, size[1] / width)
    tall, wide = (max(int(old * scale + 1e-6), new) for old, new in zip((height, width), size, strict=True))
    top, left = round((tall - size[0]) / 2), round((wide - size[1]) / 2)
    down, across = height / tall, width / wide
    return Window(top * down, left * across, size[0] * down, size[1] * across, inside=False)


def move(found: Mapping[str, Any], window: Window, size: tuple[int, int]) -> dict[str, Any]:
    """An example with its masks, by the nearest pixel, and boxes moved as its image was; empty boxes get label -1."""
    moved = dict(found)
    top, left, tall, wide, _ = window
    rows = (top + (np.arange(size[0]) + 0.5) * (tall / size[0])).astype(int)
    columns = (left + (np.arange(size[1]) + 0.5) * (wide / size[1])).astype(int)
    for field in set(MASKS) & moved.keys():
        moved[field] = moved[field][..., rows[:, None], columns]
    if 'boxes' in moved:
        boxes, labels = moved['boxes'], moved['box_labels']
        factor = np.array([size[1] / wide, size[0] / tall] * 2)
        inside = np.clip((boxes - np.array([left, top] * 2)) * factor, 0, [size[1], size[0]] * 2).astype(boxes.dtype)
        empty = (inside[..., 2] <= inside[..., 0]) | (inside[..., 3] <= inside[..., 1])
        moved['boxes'] = np.where((labels >= 0)[..., None], inside, boxes)
        moved['box_labels'] = np.where(empty, -1, labels).astype(labels.dtype)
    return moved


def resample(pixels: np.ndarray, window: Window, size: tuple[int, int]) -> np.ndarray:
    """The window of uint8 [H, W, 1 or 3] by antialiased bilinear interpolation (Pillow's): [*size, C]."""
    from PIL import Image

    top, left, tall, wide, inside = window
    first, start = (math.floor(top), math.floor(left)) if inside else (0, 0)
    if inside:
        pixels = pixels[first : math.ceil(top + tall), start : math.ceil(left + wide)]
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    box = (left - start, top - first, min(left + wide - start, image.width), min(top + tall - first, image.height))
    resized = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR, box=box))
    return resized if resized.ndim == 3 else resized[..., None]

"""Geometry of batches of images: flips, shifts, crops, affine maps. Boxes and masks move with their images.

A batch holds `image` [N, H, W, C], and may hold `semantic` [N, H, W], `instance_masks` [N, M, H, W], `boxes` [N, B, 4]
(x0 y0 x1 y1, pixels) and `box_labels` [N, B], -1 where there is no box. Pixel (y, x) covers y..y+1, x..x+1. A moved box
is the smallest that holds its four corners, clipped to the image; one of which nothing is left gets label -1.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn import config
from cnn.data import crops

Batch = Mapping[str, Any]
MASKS = {'semantic': 255, 'instance_masks': 0}  # by field: what comes in at the border; 255 is ignored


def flip(batch: Batch, key: jax.Array, _numbers: Any, _augment: config.Augment) -> Batch:
    """Mirrors half of the examples, left to right."""
    return mirror(batch, jax.random.bernoulli(key, 0.5, (len(batch['image']),)))


def alternating_flip(batch: Batch, _key: jax.Array, numbers: Any, _augment: config.Augment) -> Batch:
    """Mirrors a random half of the data set in even epochs and the other half in odd ones (Jordan 2024, airbench).

    `index` and `epoch` [N] of the batch say which examples these are; the halves depend on the seed only.
    """
    key = jax.random.key(numbers['seed'])
    half = jax.vmap(lambda index: jax.random.bernoulli(jax.random.fold_in(key, index)))(batch['index'])
    return mirror(batch, half ^ (batch['epoch'] % 2 == 1))


def mirror(batch: Batch, chosen: jax.Array) -> Batch:
    """Mirrors the examples chosen [N], left to right."""

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(chosen.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    width = batch['image'].shape[2]

    def mirrored(boxes: jax.Array) -> jax.Array:
        moved = jnp.stack([width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], -1)
        return choose(moved, boxes)

    flipped = {**batch, 'image': choose(batch['image'][:, :, ::-1], batch['image'])}
    for field in MASKS.keys() & batch.keys():
        flipped[field] = choose(batch[field][..., ::-1], batch[field])
    return _with_boxes(flipped, mirrored)


def shift(batch: Batch, key: jax.Array, numbers: Any, augment: config.Augment) -> Batch:
    """Moves each example by whole pixels, uniform in -shift..shift in each direction.

    The same as padding and cropping. Black comes in, or the image's reflection, whose pixels in `semantic` are ignored.
    """
    count, height, width, _ = batch['image'].shape
    limit = numbers.get('shift', 0)
    uniform = jax.random.uniform(key, (count, 2))
    offsets = jnp.floor(uniform * (2 * limit + 1)).astype(jnp.int32) - jnp.asarray(limit, jnp.int32)
    rows = jnp.arange(height)[:, None] - offsets[:, 0, None, None]
    columns = jnp.arange(width) - offsets[:, 1, None, None]
    if augment.shift_border == 'reflect':
        image = _pixels(batch['image'], _reflected(rows, height), _reflected(columns, width))
    else:
        image = _pixels(batch['image'], rows, columns, 0)
    shifted = _with_masks({**batch, 'image': image}, rows, columns)
    return _with_boxes(shifted, lambda boxes: boxes + jnp.tile(offsets[:, None, ::-1], 2))


def _reflected(positions: jax.Array, size: int) -> jax.Array:
    """Positions outside 0..size-1 mirrored at the first and the last, which are not repeated."""
    period = max(2 * size - 2, 1)
    positions = positions % period
    return jnp.minimum(positions, period - positions) if size > 1 else positions


def affine(batch: Batch, key: jax.Array, numbers: Any, _augment: config.Augment) -> Batch:
    """Translates, rotates and shears each example about its centre; bilinear, and black comes in.

    All are uniform: the translation within -translate..translate of the width and of the height, the angle within
    -rotate..rotate degrees, the shear along x within -shear..shear degrees (as torchvision's RandomAffine).
    """
    count, height, width, _ = batch['image'].shape
    uniform = jax.random.uniform(key, (count, 4), minval=-1)
    down, right = (uniform[:, axis] * numbers.get('translate', 0) * size for axis, size in enumerate((height, width)))
    rotate, shear = (
        jnp.deg2rad(uniform[:, axis] * numbers.get(field, 0)) for axis, field in ((2, 'rotate'), (3, 'shear'))
    )
    return warp(batch, inverse_affine(rotate, shear, right, down, (width / 2, height / 2)), 'bilinear')


def inverse_affine(
    rotate: jax.Array, shear: jax.Array, right: jax.Array, down: jax.Array, center: tuple[float, float]
) -> jax.Array:
    """[N, 2, 3] from (x, y, 1) of the new image to (x, y) of the old, for `warp`.

    First sheared along x by an angle, then rotated clockwise (radians), both about the centre (x, y), then moved.
    """
    cos, sin, tan = jnp.cos(rotate), jnp.sin(rotate), jnp.tan(shear)
    a, b, d, e = cos - tan * sin, sin + tan * cos, -sin, cos
    x, y = center[0] + right, center[1] + down
    return jnp.stack(
        [jnp.stack([a, b, center[0] - a * x - b * y], -1), jnp.stack([d, e, center[1] - d * x - e * y], -1)], -2
    )


def warp(batch: Batch, matrices: jax.Array, method: str) -> Batch:
    """Each new pixel from the old image at matrix [N, 2, 3] times (x, y, 1) of its centre, as Pillow's Image.transform.

    `method` is nearest or bilinear, of images; masks take the nearest. Black comes in where that is outside.
    """
    count, height, width, _ = batch['image'].shape
    a, b, c, d, e, f = (matrices.reshape(count, 6, 1, 1)[:, place] for place in range(6))
    x, y = jnp.arange(width) + 0.5, (jnp.arange(height) + 0.5)[:, None]
    columns, rows = a * x + b * y + c, d * x + e * y + f  # [N, H, W]
    row, column = jnp.floor(rows).astype(jnp.int32), jnp.floor(columns).astype(jnp.int32)
    image = batch['image']
    if method == 'nearest':
        image = _pixels(image, row, column, 0)
    else:
        image = jnp.where(
            _inside(row, column, height, width)[..., None], _bilinear(image, rows - 0.5, columns - 0.5), 0
        )
    warped = _with_masks({**batch, 'image': image}, row, column)

    def moved(boxes: jax.Array) -> jax.Array:
        corners = boxes[..., [0, 1, 2, 1, 0, 3, 2, 3]].reshape(*boxes.shape[:-1], 4, 2)
        x, y = corners[..., 0] - c, corners[..., 1] - f
        corners = jnp.stack([e * x - b * y, a * y - d * x], -1) / (a * e - b * d)[..., None]
        return jnp.concatenate([corners.min(-2), corners.max(-2)], -1)

    return _with_boxes(warped, moved)


def _inside(rows: jax.Array, columns: jax.Array, height: int, width: int) -> jax.Array:
    return (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)


def _pixels(array: jax.Array, rows: jax.Array, columns: jax.Array, fill: int | None = None) -> jax.Array:
    """[N, H, W, C] at rows and columns that broadcast to [N, H', W']; `fill` outside, else the nearest at the edge."""
    count, height, width, channels = array.shape
    index = jnp.clip(rows, 0, height - 1) * width + jnp.clip(columns, 0, width - 1)
    index = jnp.broadcast_to(index, (count, *index.shape[1:]))
    flat = index.reshape(count, -1)
    take = jax.vmap(lambda pixels, places: pixels.at[places].get(mode='promise_in_bounds'))
    taken = take(array.reshape(count, height * width, channels), flat).reshape(*index.shape, channels)
    if fill is None:
        return taken
    return jnp.where(_inside(rows, columns, height, width)[..., None], taken, jnp.asarray(fill, array.dtype))


def _bilinear(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """[N, H, W, C] between pixels; beyond the outermost centres their values go on."""
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = ((rows - top).astype(image.dtype)[..., None], (columns - left).astype(image.dtype)[..., None])
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    upper, lower = (
        _pixels(image, row, left) * (1 - right) + _pixels(image, row, left + 1) * right for row in (top, top + 1)
    )
    return upper * (1 - down) + lower * down


def _with_masks(batch: Batch, rows: jax.Array, columns: jax.Array) -> Batch:
    """The batch with the pixels of its masks at rows and columns that broadcast to [N, H', W']."""
    moved = dict(batch)
    for field in MASKS.keys() & batch.keys():
        masks = batch[field]
        maps = jnp.moveaxis(masks.reshape(len(masks), -1, *masks.shape[-2:]), 1, -1)
        taken = _pixels(maps, rows, columns, MASKS[field])
        moved[field] = jnp.moveaxis(taken, -1, 1).reshape(*masks.shape[:-2], *taken.shape[1:3])
    return moved


def _with_boxes(batch: Batch, moved: Callable[[jax.Array], jax.Array]) -> Batch:
    """The batch, whose image has its new size, with its boxes moved and clipped."""
    if 'boxes' not in batch:
        return batch
    height, width = batch['image'].shape[1:3]
    boxes, labels = batch['boxes'], batch['box_labels']
    clipped = jnp.clip(moved(boxes), 0, jnp.asarray([width, height] * 2, boxes.dtype)).astype(boxes.dtype)
    empty = (clipped[..., 2] <= clipped[..., 0]) | (clipped[..., 3] <= clipped[..., 1])
    present = (labels >= 0)[..., None]
    return {**batch, 'boxes': jnp.where(present, clipped, boxes), 'box_labels': jnp.where(empty, -1, labels)}


def resize(batch: Batch, size: tuple[int, int]) -> Batch:
    """Images by antialiased bilinear interpolation, masks by the nearest pixel, boxes in proportion."""
    old = batch['image'].shape[1:3]
    return _rescaled(batch, size, (size[0] / old[0], size[1] / old[1]), (0, 0))


def resize_and_crop(batch: Batch, size: tuple[int, int], side: int | None = None) -> Batch:
    """The middle of images whose shorter side was resized to `side`, as `crops.middle_window` has it."""
    height, width = batch['image'].shape[1:3]
    window = crops.middle_window(height, width, size, side)
    scale = size[0] / window.height, size[1] / window.width
    return _rescaled(batch, size, scale, (window.top * scale[0], window.left * scale[1]))


def _rescaled(batch: Batch, size: tuple[int, int], scale: tuple[float, float], start: tuple[float, float]) -> Batch:
    """The window [start, start + size) of the batch resized by scale (y, x)."""
    image = batch['image']
    translation = -jnp.asarray(start, image.dtype)
    image = jax.image.scale_and_translate(
        image, (len(image), *size, image.shape[-1]), (1, 2), jnp.asarray(scale, image.dtype), translation, 'linear'
    )
    rows, columns = (
        ((np.arange(new) + first + 0.5) / factor).astype(int)
        for new, first, factor in zip(size, start, scale, strict=True)
    )
    batch = _with_masks({**batch, 'image': image}, jnp.asarray(rows)[None, :, None], jnp.asarray(columns)[None, None])
    factors, offsets = np.asarray([*scale[::-1]] * 2), np.asarray([*start[::-1]] * 2)
    return _with_boxes(batch, lambda boxes: boxes * factors.astype(np.float32) - offsets.astype(np.float32))


def random_crop(batch: Batch, key: jax.Array, augment: config.Augment, size: tuple[int, ...]) -> Batch:
    """A random part of each image, resized: as torchvision's RandomResizedCrop, antialiased bilinear.

    Its share of the area is uniform in crop_scale and the logarithm of its ratio of width to height in that of
    crop_ratio. The first of ten draws that fits is taken; where none does, the largest middle part with such a ratio.
    """
    count, height, width, _ = batch['image'].shape
    draws = jax.random.uniform(key, (count, 10, 4))
    windows = crop_windows(draws, (height, width), augment.crop_scale, augment.crop_ratio)
    top, left, tall, wide = windows.astype(batch['image'].dtype).T
    image = _resampled(_resampled(batch['image'], top, tall, size[0], 1), left, wide, size[1], 2)
    rows, columns = (
        jnp.floor(start[:, None] + (jnp.arange(new) + 0.5) * (length / new)[:, None]).astype(jnp.int32)
        for start, length, new in ((top, tall, size[0]), (left, wide, size[1]))
    )
    cropped = _with_masks({**batch, 'image': image}, rows[:, :, None], columns[:, None, :])
    start = jnp.stack([left, top, left, top], -1)[:, None]
    factor = jnp.stack([size[1] / wide, size[0] / tall] * 2, -1)[:, None]
    return _with_boxes(cropped, lambda boxes: (boxes - start) * factor)


def crop_windows(
    draws: jax.Array, size: tuple[int, int], scale: tuple[float, ...], ratio: tuple[float, ...]
) -> jax.Array:
    """[N, 4] whole numbers: top, left, height, width of the windows of `random_crop` in images of this size.

    `draws` [N, tries, 4] in 0..1 are those of area, ratio, top and left.
    """
    height, width = size
    area = (scale[0] + (scale[1] - scale[0]) * draws[..., 0]) * height * width
    aspect = jnp.exp(jnp.log(ratio[0]) + (jnp.log(ratio[1]) - jnp.log(ratio[0])) * draws[..., 1])
    wide, tall = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    top, left = jnp.floor(draws[..., 2] * (height - tall + 1)), jnp.floor(draws[..., 3] * (width - wide + 1))
    drawn = jnp.stack([top, left, tall, wide], -1)
    first = jnp.take_along_axis(drawn, jnp.argmax(fits, 1)[:, None, None], 1)[:, 0]
    middle_wide = min(width, max(round(height * ratio[1]), 1))
    middle_tall = min(height, max(round(width / ratio[0]), 1))
    middle = jnp.asarray([(height - middle_tall) // 2, (width - middle_wide) // 2, middle_tall, middle_wide])
    return jnp.where(fits.any(1)[:, None], first, middle).astype(jnp.int32)


def _resampled(image: jax.Array, start: jax.Array, length: jax.Array, new: int, axis: int) -> jax.Array:
    """[N, H, W, C] with `new` pixels along axis 1 or 2, of the window start..start+length [N]: antialiased bilinear."""
    old = image.shape[axis]
    if new < old:
        weights = _window_weights(start, length, old, new)
        return jnp.einsum('nih,nhwc->niwc' if axis == 1 else 'njw,nhwc->nhjc', weights, image, precision='highest')
    # Of a window that is not made smaller each new pixel has two old ones, which are sooner taken than multiplied.
    places = start[:, None] + (jnp.arange(new) + 0.5) * (length / new)[:, None] - 0.5
    lower = jnp.floor(places)
    share = jnp.expand_dims(places - lower, (2, 3) if axis == 1 else (1, 3))
    first, last = start[:, None], (start + length - 1)[:, None]
    before, after = (
        jax.vmap(functools.partial(_take, axis=axis - 1))(image, jnp.clip(at, first, last).astype(jnp.int32))
        for at in (lower, lower + 1)
    )
    return before * (1 - share) + after * share


def _take(array: jax.Array, places: jax.Array, axis: int) -> jax.Array:
    """Those places along an axis, all of which there are."""
    return array.at[(slice(None),) * axis + (places,)].get(mode='promise_in_bounds')


def _window_weights(start: jax.Array, length: jax.Array, old: int, new: int) -> jax.Array:
    """[N, new, old]: what each pixel of the window start..start+length gives to each of the new ones."""
    step = (length / new)[:, None, None]
    centers = start[:, None, None] + (jnp.arange(new)[:, None] + 0.5) * step
    pixels = jnp.arange(old) + 0.5
    weights = jnp.maximum(1 - jnp.abs(pixels - centers) / jnp.maximum(step, 1), 0)
    inside = (pixels > start[:, None, None]) & (pixels < (start + length)[:, None, None])
    weights = jnp.where(inside, weights, 0)
    return weights / weights.sum(-1, keepdims=True)

"""From raw batches to the model's: scaling, resizing, augmentation, normalisation; on the device, pure in the key.

Boxes and masks move with their images.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn import config

Batch = Mapping[str, Any]
MASKS = {'semantic': 255, 'instance_masks': 0}  # by field: what comes in at the border; 255 is ignored


def prepare(batch: Batch, key: jax.Array | None, numbers: Any, *, data: config.Data, augment: config.Augment) -> Batch:
    """The batch that the model sees: pixels scaled to 0..1, augmented where a key is given, then normalised."""
    if 'image' not in batch:
        return batch
    dtype = jax.dtypes.canonicalize_dtype(jnp.float64)  # float32, unless 64 bits are enabled
    batch = {**batch, 'image': batch['image'].astype(dtype) / 255}
    if data.image_size is not None:
        batch = resize(batch, data.image_size)
    if key is not None:
        for index, (name, operation) in enumerate(OPERATIONS.items()):
            if getattr(augment, name):
                batch = operation(batch, jax.random.fold_in(key, index), numbers['augment'].get(name))
    if data.mean:
        mean, std = (jnp.asarray(values, dtype) for values in (data.mean, data.std))
        batch = {**batch, 'image': (batch['image'] - mean) / std}
    return batch


def prepared_spec(spec: config.Spec, data: config.Data) -> config.Spec:
    """What an example is after `prepare`. Raises InputError where mean and channels don't agree."""
    if 'image' not in spec.shapes:
        return spec
    height, width, channels = spec.shapes['image']
    if len(data.mean) not in (0, channels):
        raise config.InputError(f'config.data.mean={data.mean}: give {channels} numbers, one for each channel')
    size = data.image_size or (height, width)
    shapes = {**spec.shapes, 'image': (*size, channels)}
    if 'semantic' in shapes:
        shapes['semantic'] = size
    dtypes = {**spec.dtypes, 'image': 'float32'}
    return config.Spec(shapes, dtypes, spec.class_names, spec.num_examples, normalized=bool(data.mean))


def resize(batch: Batch, size: tuple[int, int]) -> Batch:
    """Images by antialiased bilinear interpolation, masks by the nearest pixel, boxes in proportion."""
    image = batch['image']
    count, height, width, channels = image.shape
    resized = {**batch, 'image': jax.image.resize(image, (count, *size, channels), 'linear')}
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, (height, width), strict=True))
    for field in MASKS.keys() & batch.keys():
        resized[field] = batch[field][..., rows[:, None], columns]
    if 'boxes' in batch:
        resized['boxes'] = batch['boxes'] * jnp.asarray([size[1] / width, size[0] / height] * 2, jnp.float32)
    return resized


def shift(batch: Batch, key: jax.Array, limit: Any) -> Batch:
    """Moves each example by whole pixels, uniform in -limit..limit in each direction; black comes in."""
    height, width = batch['image'].shape[1:3]
    uniform = jax.random.uniform(key, (len(batch['image']), 2))
    offsets = jnp.floor(uniform * (2 * limit + 1)).astype(jnp.int32) - jnp.asarray(limit, jnp.int32)
    shifted = {**batch, 'image': _translate(batch['image'], offsets, 0)}
    for field in MASKS.keys() & batch.keys():
        maps = batch[field].reshape(len(offsets), -1, height, width)
        moved = _translate(jnp.moveaxis(maps, 1, -1), offsets, MASKS[field])
        shifted[field] = jnp.moveaxis(moved, -1, 1).reshape(batch[field].shape)
    if 'boxes' in batch:
        moved = batch['boxes'] + jnp.tile(offsets[:, None, ::-1], 2)
        boxes = jnp.clip(moved, 0, jnp.asarray([width, height] * 2, moved.dtype))
        shifted['boxes'] = boxes
        empty = (boxes[..., 2] <= boxes[..., 0]) | (boxes[..., 3] <= boxes[..., 1])
        shifted['box_labels'] = jnp.where(empty, -1, batch['box_labels'])
    return shifted


def _translate(array: jax.Array, offsets: jax.Array, fill: int) -> jax.Array:
    """[N, H, W, C] with pixel (y, x) of each example moved to (y, x) + offset; `fill` comes in."""
    for axis in (1, 2):
        size = array.shape[axis]
        source = jnp.arange(size) - offsets[:, axis - 1, None]  # [N, size]
        index = jnp.expand_dims(source, (3 - axis, 3))
        moved = jnp.take_along_axis(array, jnp.clip(index, 0, size - 1), axis)
        array = jnp.where((index >= 0) & (index < size), moved, jnp.asarray(fill, array.dtype))
    return array


def flip(batch: Batch, key: jax.Array, _: Any) -> Batch:
    """Mirrors half of the examples, left to right."""
    chosen = jax.random.bernoulli(key, 0.5, (len(batch['image']),))

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(chosen.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    flipped = {**batch, 'image': choose(batch['image'][:, :, ::-1], batch['image'])}
    for field in MASKS.keys() & batch.keys():
        flipped[field] = choose(batch[field][..., ::-1], batch[field])
    if 'boxes' in batch:
        boxes, width = batch['boxes'], batch['image'].shape[2]
        mirrored = jnp.stack([width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], -1)
        present = (batch['box_labels'] >= 0)[..., None]
        flipped['boxes'] = choose(jnp.where(present, mirrored, boxes), boxes)
    return flipped


# By the name of the field in config.Augment; an operation takes the batch, a key and its traced strength.
OPERATIONS: dict[str, Callable[[Batch, jax.Array, Any], Batch]] = {'shift': shift, 'flip': flip}

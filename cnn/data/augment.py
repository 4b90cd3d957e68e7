"""From raw batches to the model's: scaling, resizing, augmentation, normalisation; on the device, pure in the key.

Boxes and masks move with their images.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cnn import config
from cnn.data import color, fitting, geometry, mixing, policies, signals
from cnn.data.geometry import Batch
from cnn.errors import InputError


class Operation(NamedTuple):
    """What augments a batch, and the fields of config.Augment of which any turns it on."""

    fields: tuple[str, ...]
    function: Callable[[Batch, jax.Array, Any, config.Augment], Batch]  # (batch, key, traced numbers, what is on)


def _erase(batch: Batch, key: jax.Array, numbers: Any, _augment: config.Augment) -> Batch:
    return mixing.erase(batch, key, numbers['erase'])


def _mix(batch: Batch, key: jax.Array, numbers: Any, _augment: config.Augment) -> Batch:
    return mixing.mix(batch, key, numbers.get('mixup'), numbers.get('cutmix'))


# In the order in which they are applied. Repeats are made before, in cnn/data/batches.py; crops by `_resized`; what is
# done to signals, in cnn/data/signals.py.
IMAGE: tuple[Operation, ...] = (  # on `image`, pixels in 0..1; not on spectrograms
    Operation(('shift',), geometry.shift),
    Operation(('flip',), geometry.flip),
    Operation(('alternating_flip',), geometry.alternating_flip),
    Operation(('translate', 'rotate', 'shear'), geometry.affine),
    Operation(('brightness', 'contrast', 'saturation', 'hue'), color.jitter),
    Operation(('policy',), policies.apply),
)
INPUT: tuple[Operation, ...] = (  # on what the model sees, after normalisation
    Operation(('erase',), _erase),
    Operation(('mixup', 'cutmix'), _mix),
)


def prepare(
    batch: Batch,
    key: jax.Array | None,
    numbers: Any,
    *,
    data: config.Data,
    augment: config.Augment,
    spectrogram: config.Spectrogram | None = None,
    sample_rate: int | None = None,
) -> Batch:
    """The batch that the model sees: pixels scaled to 0..1, augmented where a key is given, then normalised.

    Signals may become spectrograms; sample_rate is theirs, in Hz.
    """
    dtype = jax.dtypes.canonicalize_dtype(jnp.float64)  # float32, unless 64 bits are enabled
    augmented = functools.partial(_augmented, key=key, numbers=numbers, augment=augment)
    if 'signal' in batch:
        batch = signals.prepare(
            batch,
            None if key is None else _key(key, 'signal'),
            numbers.get('augment', {}),
            spectrogram=spectrogram or config.Spectrogram(),
            augment=augment,
            sample_rate=sample_rate,
        )
        if 'image' in batch:
            batch = _resized({**batch, 'image': color.channels(batch['image'], data.channels)}, key, data, augment)
    elif 'image' in batch:
        batch = {**batch, 'image': color.channels(batch['image'].astype(dtype) / 255, data.channels)}
        batch = augmented(_resized(batch, key, data, augment), IMAGE)
    if 'image' in batch and data.mean:
        mean, std = (jnp.asarray(values, dtype) for values in (data.mean, data.std))
        batch = {**batch, 'image': (batch['image'] - mean) / std}
    return augmented(batch, INPUT)


def check(augment: config.Augment, spec: config.Spec, prepared: config.Spec, reads: Sequence[str]) -> None:
    """Raises InputError for augmentation that this data, raw and prepared, can't have or the task takes no notice of.

    `reads` are the fields that the task reads.
    """
    there = {
        'pictures': 'image' in spec.shapes,
        'signals': 'signal' in spec.shapes,
        'spectrograms': 'image' in prepared.shapes and 'image' not in spec.shapes,
    }
    for field, kinds in _augmentable().items():
        if _is_on(augment, field) and not any(there[kind] for kind in kinds):
            fields = ', '.join(sorted(spec.shapes))
            raise InputError(f'config.augment.{field}: is for {" and ".join(kinds)}; the data has {fields}')
    for field in ('mixup', 'cutmix'):
        if _is_on(augment, field) and 'label' not in reads:
            raise InputError(f'config.augment.{field}: mixes labels; the task reads {", ".join(reads)}')


def _augmentable() -> dict[str, tuple[str, ...]]:
    """The kinds of data that the fields of config.Augment are for."""
    kinds: dict[str, tuple[str, ...]] = dict.fromkeys((field for row in IMAGE for field in row.fields), ('pictures',))
    kinds |= dict.fromkeys(signals.OPERATIONS, ('signals',))
    return kinds | {
        'crop_scale': ('pictures',),
        'shift': ('pictures', 'signals'),
        'time_masks': ('spectrograms',),
        'frequency_masks': ('spectrograms',),
        'erase': ('pictures', 'spectrograms'),
        'mixup': ('pictures', 'signals'),
        'cutmix': ('pictures', 'signals'),
    }


def _is_on(augment: config.Augment, field: str) -> bool:
    return getattr(augment, field) not in (0, (), 'none')  # NaN stands for a traced number


def _augmented(
    batch: Batch, operations: tuple[Operation, ...], key: jax.Array | None, numbers: Any, augment: config.Augment
) -> Batch:
    if key is None:
        return batch
    numbers = {**numbers['augment'], 'seed': numbers.get('seed', 0)}
    for fields, function in operations:
        if any(_is_on(augment, field) for field in fields):
            batch = function(batch, _key(key, fields[0]), numbers, augment)
    return batch


# The draws of an operation do not depend on which others are on: its key has its number here. Append only: published
# results would change.
NUMBERED = (
    'shift', 'flip', 'alternating_flip', 'crop_scale', 'translate', 'brightness', 'policy', 'signal', 'erase', 'mixup',
)  # fmt: skip


def _key(key: jax.Array, name: str) -> jax.Array:
    return jax.random.fold_in(key, NUMBERED.index(name))


def _resized(batch: Batch, key: jax.Array | None, data: config.Data, augment: config.Augment) -> Batch:
    """Images at the size of training (with a key) or of evaluation; those that have it stay as they are."""
    size = data.image_size
    if key is None:
        size = data.test_size or size
    if key is not None and augment.crop_scale:
        return geometry.random_crop(batch, _key(key, 'crop_scale'), augment, size or batch['image'].shape[1:3])
    if size is None or batch['image'].shape[1:3] == tuple(size):
        return batch
    if data.resize == 'crop':
        return geometry.resize_and_crop(batch, size, data.resize_side)
    return geometry.resize(batch, size)


def preparation(structure: config.Experiment, spec: config.Spec) -> Callable[[Batch, jax.Array | None, Any], Batch]:
    """`prepare` as a function of batch, key and numbers, for raw examples of this spec."""
    data = structure.data
    return functools.partial(
        prepare,
        data=data,
        augment=of_device(structure.augment, spec),
        spectrogram=structure.spectrogram,
        sample_rate=data.sample_rate or spec.sample_rate,
    )


def of_device(augment: config.Augment, spec: config.Spec) -> config.Augment:
    """What of the augmentation is left to `prepare`: pictures of several sizes are cropped where they are read."""
    if fitting.is_ragged(spec):
        return dataclasses.replace(augment, crop_scale=())
    return augment


def prepared_spec(spec: config.Spec, data: config.Data, spectrogram: config.Spectrogram | None = None) -> config.Spec:
    """What an example is after `prepare`, in training. Raises InputError where size, channels or mean don't fit."""
    spec = fitting.fitted_spec(spec, data)
    if spectrogram is not None:
        spec = signals.prepared_spec(spec, spectrogram, data.sample_rate or spec.sample_rate)
    if 'image' not in spec.shapes:
        if data.mean:
            raise InputError('config.data.mean: is for images and spectrograms')
        return spec
    size, channels = data.image_size or spec.shapes['image'][:2], data.channels or spec.shapes['image'][2]
    if -1 in size:
        raise InputError('the pictures differ in size: give config.data.image_size=HEIGHT,WIDTH')
    if channels == -1:
        raise InputError('some pictures are grey and some in colour: give config.data.channels=3, or 1')
    if len(data.mean) not in (0, channels):
        raise InputError(f'config.data.mean={data.mean}: give {channels} numbers, one for each channel')
    shapes = {**spec.shapes, 'image': (*size, channels)}
    for field in geometry.MASKS.keys() & shapes.keys():
        shapes[field] = (*shapes[field][:-2], *size)
    dtypes = {**spec.dtypes, 'image': 'float32'}
    return dataclasses.replace(spec, shapes=shapes, dtypes=dtypes, normalized=bool(data.mean))

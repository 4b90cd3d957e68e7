"""From raw signals to the model's: shift, gain, noise; log-mel spectrograms and their masks; on the device.

Pure in the key. A signal is [N, samples, channels]; a spectrogram is an image [N, frames, bands, 1].
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cnn import config
from cnn.errors import InputError
from cnn.ops.spectrogram import log_mel, mel_filters, num_frames

Batch = Mapping[str, Any]


def prepare(
    batch: Batch,
    key: jax.Array | None,
    numbers: Mapping[str, Any],
    *,
    spectrogram: config.Spectrogram,
    augment: config.Augment,
    sample_rate: int | None,
) -> Batch:
    """A batch with `signal` augmented where a key is given, and in its place an `image` where spectrograms are on.

    `numbers` are the strengths of augmentation, by field; sample_rate is in Hz and counts for spectrograms only.
    """
    signal = batch['signal'].astype(jax.dtypes.canonicalize_dtype(jnp.float64))  # float32, unless 64 bits are enabled
    if key is not None:
        for index, (name, operation) in enumerate(OPERATIONS.items()):
            if getattr(augment, name):
                signal = operation(signal, jax.random.fold_in(key, index), numbers[name])
    if not spectrogram.bands:
        return {**batch, 'signal': signal}
    assert sample_rate is not None  # prepared_spec says so to the user
    image = log_mel(signal[..., 0], sample_rate, **vars(spectrogram))[..., None]
    if key is not None:
        for index, (kind, axis) in enumerate((('time', 1), ('frequency', 2)), start=len(OPERATIONS)):
            count = getattr(augment, f'{kind}_masks')
            if count and getattr(augment, f'{kind}_mask_width'):
                image = mask(
                    image, jax.random.fold_in(key, index), numbers[f'{kind}_mask_width'], count=count, axis=axis
                )
    return {**{field: value for field, value in batch.items() if field != 'signal'}, 'image': image}


def prepared_spec(spec: config.Spec, spectrogram: config.Spectrogram, sample_rate: int | None) -> config.Spec:
    """What an example is after `prepare`. Raises InputError where spectrograms are on and can't be made."""
    if not spectrogram.bands:
        return spec
    if 'signal' not in spec.shapes:
        fields = ', '.join(sorted(spec.shapes))
        raise InputError(f'config.spectrogram.bands={spectrogram.bands}: needs signals; the data has {fields}')
    samples, channels = spec.shapes['signal']
    if channels != 1:
        raise InputError(f'config.spectrogram.bands={spectrogram.bands}: needs signals of one channel, not {channels}')
    if samples < 0:
        raise InputError('config.data.length: the signals differ in length; give the number of samples')
    if sample_rate is None:
        raise InputError('config.data.sample_rate: give the sample rate of the signals, in Hz')
    frames = num_frames(samples, spectrogram.window, spectrogram.hop)
    mel_filters(sample_rate, spectrogram.window, spectrogram.bands, spectrogram.low, spectrogram.high)
    shapes = {field: shape for field, shape in spec.shapes.items() if field != 'signal'}
    dtypes = {field: dtype for field, dtype in spec.dtypes.items() if field != 'signal'}
    return dataclasses.replace(
        spec,
        shapes={**shapes, 'image': (frames, spectrogram.bands, 1)},
        dtypes={**dtypes, 'image': 'float32'},
    )


def shift(signal: jax.Array, key: jax.Array, limit: Any) -> jax.Array:
    """Moves each example by whole samples, uniform in -limit..limit; zeros come in."""
    count, size = signal.shape[:2]
    limit = jnp.asarray(limit, jnp.int32)
    offset = jax.random.randint(key, (count, 1, 1), -limit, limit + 1)
    source = jnp.arange(size)[:, None] - offset  # [N, samples, 1]
    moved = jnp.take_along_axis(signal, jnp.clip(source, 0, size - 1), axis=1)
    return jnp.where((source >= 0) & (source < size), moved, 0)


def gain(signal: jax.Array, key: jax.Array, limit: Any) -> jax.Array:
    """Makes each example louder or quieter, uniform in -limit..limit dB."""
    decibels = jax.random.uniform(key, (len(signal), 1, 1), signal.dtype, -1, 1) * limit
    return signal * 10 ** (decibels / 20)


def noise(signal: jax.Array, key: jax.Array, deviation: Any) -> jax.Array:
    """Adds to each sample a normal number of this standard deviation."""
    return signal + jax.random.normal(key, signal.shape, signal.dtype) * jnp.asarray(deviation, signal.dtype)


def mask(image: jax.Array, key: jax.Array, limit: Any, *, count: int, axis: int) -> jax.Array:
    """Blanks `count` spans of each example along an axis, each uniform in 0..limit wide and uniform in its place.

    Spans may overlap. They take the example's mean, which is the zero of spectrograms whose mean was taken off
    (SpecAugment, Park et al. 2019, section 2).
    """
    size = image.shape[axis]
    uniform = jax.random.uniform(key, (2, len(image), count, 1))
    width = jnp.floor(uniform[0] * (jnp.minimum(limit, size) + 1))
    start = jnp.floor(uniform[1] * (size - width + 1))
    position = jnp.arange(size)
    blank = ((position >= start) & (position < start + width)).any(axis=1)  # [N, size]
    blank = blank.reshape(len(image), *(size if dimension == axis else 1 for dimension in range(1, image.ndim)))
    return jnp.where(blank, image.mean(axis=range(1, image.ndim), keepdims=True), image)


# By the name of the field in config.Augment; an operation takes the signals, a key and its traced strength.
OPERATIONS: dict[str, Callable[[jax.Array, jax.Array, Any], jax.Array]] = {'shift': shift, 'gain': gain, 'noise': noise}

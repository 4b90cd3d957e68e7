"""Colours of batches of images [N, H, W, C], C = 1 or 3, values in 0..1, as Pillow and torchvision change them.

Where an operation takes a `factor` or the like, it is a number or one for each example [N].
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn import config

Batch = Mapping[str, Any]
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def channels(image: jax.Array, number: int | None) -> jax.Array:
    """Images with one channel (luma) or three (copies of the one of grey images); None keeps what they have."""
    if number is None or image.shape[-1] == number:
        return image
    return luma(image) if number == 1 else jnp.repeat(image, number, -1)


def luma(image: jax.Array) -> jax.Array:
    """[N, H, W, 1]: brightness to the eye; a grey image is its own."""
    if image.shape[-1] == 1:
        return image
    return sum(image[..., place, None] * weight for place, weight in enumerate(LUMA))  # type: ignore[return-value]


def jitter(batch: Batch, key: jax.Array, numbers: Any, augment: config.Augment) -> Batch:
    """Changes brightness, contrast, saturation and hue, in this order, as torchvision's ColorJitter.

    The first three by factors uniform in max(0, 1 - x)..1 + x, the hue by a share of the circle uniform in -x..x, of
    each example by itself. torchvision draws the order of the four too.
    """
    image = batch['image']
    uniform = jax.random.uniform(key, (4, len(image)), image.dtype)
    for draw, change in zip(uniform, (brightness, contrast, saturation, hue), strict=True):
        if getattr(augment, change.__name__):
            strength = numbers[change.__name__]
            low, high = (-strength, strength) if change is hue else (jnp.maximum(1 - strength, 0), 1 + strength)
            image = change(image, low + (high - low) * draw)
    return {**batch, 'image': image}


def blend(reference: jax.Array, image: jax.Array, factor: Any) -> jax.Array:
    """From the reference (factor 0) to the image (1) and beyond, clipped."""
    return jnp.clip(reference + _each(factor) * (image - reference), 0, 1)


def _each(value: Any) -> jax.Array:
    return jnp.asarray(value)[..., None, None, None]


def brightness(image: jax.Array, factor: Any) -> jax.Array:
    """0 is black, 1 the image."""
    return blend(jnp.zeros_like(image), image, factor)


def contrast(image: jax.Array, factor: Any) -> jax.Array:
    """0 is grey of the image's mean luma, 1 the image."""
    return blend(mean_luma(image), image, factor)


def mean_luma(image: jax.Array) -> jax.Array:
    """[N, 1, 1, 1]."""
    count, height, width, number = image.shape
    weights = jnp.asarray(LUMA if number == 3 else (1.0,), image.dtype) / (height * width)
    # One product is much faster than sums over images on a CPU.
    mean = jnp.matmul(image.reshape(count, -1), jnp.tile(weights, height * width), precision='highest')
    return mean[:, None, None, None]


def saturation(image: jax.Array, factor: Any) -> jax.Array:
    """0 is the image's luma, 1 the image."""
    return blend(luma(image), image, factor)


def sharpness(image: jax.Array, factor: Any) -> jax.Array:
    """0 is the smoothed image, 1 the image."""
    return blend(smoothed(image), image, factor)


def smoothed(image: jax.Array) -> jax.Array:
    """The mean over 3x3 pixels of which the middle one counts five times; the outermost pixels stay."""
    count, height, width, number = image.shape
    row, flat = width * number, image.reshape(count, -1)
    # Neighbours lie at fixed distances in the flat image: a dozen times faster on a CPU than a convolution.
    padded = jnp.pad(flat, ((0, 0), (row + number, row + number)))
    starts = [place * row + offset * number for place in range(3) for offset in range(3)]
    total = sum((padded[:, start : start + flat.shape[1]] for start in starts), 4 * flat)
    inner = np.zeros((height, width, number), bool)
    inner[1:-1, 1:-1] = True
    return jnp.where(inner.ravel(), total / 13, flat).reshape(image.shape)


def hue(image: jax.Array, turn: Any) -> jax.Array:
    """Turns the hue by a share of the circle, at the same value and saturation (HSV)."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = jnp.moveaxis(image, -1, 0)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    safe = jnp.where(chroma > 0, chroma, 1)
    sector = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = sector + 6 * jnp.asarray(turn)[..., None, None]

    def primary(offset: int) -> jax.Array:
        place = turned + offset
        place -= 6 * jnp.floor(place / 6)
        return value - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)

    return jnp.stack([primary(5), primary(3), primary(1)], -1)


# Of the following, those that are defined on 8 bits take a pixel as the nearest of 0/255 .. 255/255 and give such.


def invert(image: jax.Array) -> jax.Array:
    """The negative."""
    return 1 - image


def levels(image: jax.Array) -> jax.Array:
    """The nearest of 0..255."""
    return jnp.round(image * 255)


def posterize(image: jax.Array, bits: Any) -> jax.Array:
    """The highest bits of 8."""
    step = 2 ** (8 - _each(bits))
    return jnp.floor(levels(image) / step) * step / 255


def solarize(image: jax.Array, threshold: Any) -> jax.Array:
    """The negative of pixels of a threshold (of 0..255) and above."""
    return jnp.where(levels(image) >= _each(threshold), 1 - image, image)


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretches each channel from its darkest and brightest pixel to 0..255; a channel of one value stays."""
    count, height, width, number = image.shape
    # By rows first, and the levels of the extremes alone: faster on a CPU than over both axes and all levels.
    low, high = (
        levels(extreme(extreme(image.reshape(count, height, -1), 1).reshape(count, width, number), 1))[:, None, None]
        for extreme in (jnp.min, jnp.max)
    )
    pixels = levels(image)
    stretched = jnp.floor((pixels - low) * 255 / jnp.maximum(high - low, 1))
    return jnp.where(high > low, stretched, pixels) / 255


def equalize(image: jax.Array) -> jax.Array:
    """Gives each channel a flat histogram, as far as whole levels go; a channel of one value stays."""
    count, number = len(image), image.shape[-1]
    pixels = levels(image).astype(jnp.int32).reshape(count, -1, number)
    places = (pixels + 256 * jnp.arange(number)).reshape(count, -1)  # one table for each channel, one after the other
    counts = _histograms(places, 256 * number).reshape(-1, 256).astype(jnp.float32)
    below = jnp.matmul(counts, np.triu(np.ones((256, 256), np.float32), 1), precision='highest')  # faster than cumsum
    step = jnp.floor(jnp.max(jnp.where(counts > 0, below, 0), -1, keepdims=True) / 255)  # the brightest level left out
    flat = jnp.clip(jnp.floor((jnp.floor(step / 2) + below) / jnp.maximum(step, 1)), 0, 255)
    tables = jnp.where(step > 0, flat, jnp.arange(256)).astype(image.dtype).reshape(count, -1)
    equalized = jnp.take_along_axis(tables, places, 1, mode='promise_in_bounds')
    return equalized.reshape(image.shape) / 255


def _histograms(places: jax.Array, size: int) -> jax.Array:
    """[N, size]: how often each of 0..size-1 is in each row of places [N, P]."""
    if jax.device_count() > 1:  # row by row, so that each device counts its own
        return jax.vmap(lambda row: jnp.zeros(size, jnp.int32).at[row].add(1, mode='promise_in_bounds'))(places)
    count = len(places)  # as one histogram: five times as fast on a CPU
    whole = places + size * jnp.arange(count)[:, None]
    return jnp.zeros(count * size, jnp.int32).at[whole].add(1, mode='promise_in_bounds').reshape(count, size)

"""Examples with parts blanked, or mixed with one another: random erasing, mixup, CutMix; on the device.

Pure in the key. They come last, on what the model sees: after normalisation, zero is the mean.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Batch = Mapping[str, Any]
FIELDS = ('image', 'signal')  # what can be mixed
SCALE, RATIO, ATTEMPTS = (0.02, 0.33), (0.3, 3.3), 10  # of erased rectangles: share of the area, height to width


def erase(batch: Batch, key: jax.Array, probability: Any) -> Batch:
    """Blanks a rectangle of each image with this probability: zero, the mean of normalised images.

    Area, ratio and place are drawn as by torchvision's RandomErasing: until the rectangle is lower and narrower than
    the image, ten times at most (Zhong et al. 2020, algorithm 1).
    """
    image = batch['image']
    count, size = len(image), jnp.asarray(image.shape[1:3])
    chosen, area, ratio, place = jax.random.split(key, 4)
    area = jax.random.uniform(area, (count, ATTEMPTS), minval=SCALE[0], maxval=SCALE[1]) * size.prod()
    low, high = jnp.log(jnp.asarray(RATIO))
    ratio = jnp.exp(jax.random.uniform(ratio, (count, ATTEMPTS)) * (high - low) + low)
    sides = jnp.round(jnp.sqrt(jnp.stack([area * ratio, area / ratio], -1)))  # [N, ATTEMPTS, 2]
    fits = (sides < size).all(-1)
    side = jnp.take_along_axis(sides, fits.argmax(1)[:, None, None], axis=1)[:, 0]  # [N, 2], the first that fits
    start = jnp.floor(jax.random.uniform(place, (count, 2)) * (size - side + 1))
    rows, columns = (
        (jnp.arange(image.shape[1 + axis]) >= start[:, axis, None])
        & (jnp.arange(image.shape[1 + axis]) < (start + side)[:, axis, None])
        for axis in range(2)
    )
    blank = jax.random.bernoulli(chosen, probability, (count,)) & fits.any(1)
    inside = rows[:, :, None] & columns[:, None, :] & blank[:, None, None]
    return {**batch, 'image': jnp.where(inside[..., None], 0, image)}


def mix(batch: Batch, key: jax.Array, mixup: Any = None, cutmix: Any = None) -> Batch:
    """Each example mixed with a partner, by a share drawn from Beta(alpha, alpha) for the whole batch.

    `mixup` and `cutmix` are their alphas, or None; with both, one is taken, each with probability 1/2. The partner of
    example i of N is example N - 1 - i, as in timm: over several devices a pair of them exchange their examples. An
    example that is not valid is nobody's partner: who would have it stays as it is. Leaves in the batch `mixed_label`,
    the partner's, and `mix`, the share of the own one.

    mixup: Zhang et al. 2018. cutmix: Yun et al. 2019, algorithm A1; for signals a span in place of a box.
    """
    field = next(field for field in FIELDS if field in batch)
    array, valid = batch[field], batch['valid']
    choice, *keys = jax.random.split(key, 3)
    weights = [
        kind(key, jnp.asarray(alpha, array.dtype), array.shape[1:-1])
        for kind, key, alpha in zip((_blend, _box), keys, (mixup, cutmix), strict=True)
        if alpha is not None
    ]
    weight = jnp.where(jax.random.bernoulli(choice), weights[0], weights[-1])  # which are one where one is off
    # The reverse and not a shift by one, which would pair the repeats of an example: they stand in a row.
    paired = valid & valid[::-1]
    own = jnp.where(paired.reshape(-1, *[1] * weight.ndim), weight, 1)[..., None]  # [N, *sides, 1]
    return {
        **batch,
        field: own * array + (1 - own) * array[::-1],
        'mixed_label': batch['label'][::-1],
        'mix': jnp.where(paired, weight.mean(), 1),
    }


def _blend(key: jax.Array, alpha: jax.Array, sides: tuple[int, ...]) -> jax.Array:
    """The weight of the own pixels by place, of `sides`: the same share everywhere."""
    return jnp.full(sides, jax.random.beta(key, alpha, alpha, dtype=alpha.dtype))


def _box(key: jax.Array, alpha: jax.Array, sides: tuple[int, ...]) -> jax.Array:
    """The weight of the own pixels by place, of `sides`: 0 in a box about a uniform centre, cut off at the border."""
    share, centre = jax.random.split(key)
    foreign = 1 - jax.random.beta(share, alpha, alpha, dtype=alpha.dtype)
    inside = jnp.asarray(True)
    for side, uniform in zip(sides, jax.random.uniform(centre, (len(sides),)), strict=True):
        half = jnp.floor(side * foreign ** (1 / len(sides))) // 2
        middle = jnp.floor(uniform * side)
        inside = inside[..., None] & (jnp.arange(side) >= middle - half) & (jnp.arange(side) < middle + half)
    return 1 - inside.astype(alpha.dtype)

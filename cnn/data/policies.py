"""Policies that draw operations and their strengths for each example: RandAugment, TrivialAugment, AutoAugment.

The operations and their ranges are those of torchvision's classes of these names: shears are about the upper left
corner, rotations about the centre, translations by whole pixels; the geometric ones take the nearest pixel, and black
comes in. Unlike there, every example of a batch draws its own. Boxes and masks move with their images.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnn import config
from cnn.data import color, geometry
from cnn.data.autoaugment import POLICIES

Batch = Mapping[str, Any]

WARPS = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate')
BLENDS = ('brightness', 'saturation', 'contrast', 'sharpness')
SIGNED = (*WARPS, *BLENDS)  # their strength is drawn up or down
OPERATIONS = ('identity', *SIGNED, 'posterize', 'solarize', 'autocontrast', 'equalize', 'invert')


class Ranges(NamedTuple):
    """How strong operations are at the highest level, 1."""

    shear: float  # tangent of the angle
    translate: tuple[float, float]  # pixels, x and y
    rotate: float  # degrees
    blend: float  # added to the factor 1, or taken from it
    posterize: int  # bits that are dropped


def usual_ranges(height: int, width: int) -> Ranges:
    """Those of RandAugment and AutoAugment, for images of this size."""
    return Ranges(0.3, (150 / 331 * width, 150 / 331 * height), 30.0, 0.9, 4)


WIDE = Ranges(0.99, (32.0, 32.0), 135.0, 0.99, 6)  # TrivialAugmentWide


Drawn = tuple[jax.Array, jax.Array]  # [N]: index into OPERATIONS; level -1..1, below zero where the sign is negative


def apply(batch: Batch, key: jax.Array, numbers: Mapping[str, Any], augment: config.Augment) -> Batch:
    """The batch after augment.policy; the magnitude of RandAugment and its deviation are among the numbers."""
    count, height, width, _ = batch['image'].shape
    ranges = WIDE if augment.policy == 'trivialaugment' else usual_ranges(height, width)
    for operation, level in draw(key, count, numbers, augment):
        batch = one_of(batch, ranges, operation, level)
    return batch


def draw(key: jax.Array, count: int, numbers: Mapping[str, Any], augment: config.Augment) -> list[Drawn]:
    """What augment.policy does to each of so many examples, operation after operation."""
    if augment.policy == 'trivialaugment':
        return [trivialaugment(key, count)]
    if augment.policy == 'randaugment':
        strength = numbers.get('magnitude', 0), numbers.get('magnitude_std', 0)
        return randaugment(key, count, augment.num_operations, *strength)
    return autoaugment(key, count, augment.policy.removeprefix('autoaugment_'))


def trivialaugment(key: jax.Array, count: int) -> Drawn:
    """One operation for each example, at one of 31 levels (Müller and Hutter 2021, TrivialAugment Wide)."""
    operation, level, sign = jax.random.split(key, 3)
    levels = jax.random.randint(level, (count,), 0, 31) / 30
    return _draw_operation(operation, count), levels * jax.random.rademacher(sign, (count,))


def randaugment(key: jax.Array, count: int, num_operations: int, magnitude: Any, deviation: Any) -> list[Drawn]:
    """Operations one after the other at a magnitude of 0 to 30, its deviation normal (Cubuk et al. 2020)."""
    steps = []
    for step in range(num_operations):
        operation, level, sign = jax.random.split(jax.random.fold_in(key, step), 3)
        levels = jnp.clip(magnitude + deviation * jax.random.normal(level, (count,)), 0, 30) / 30
        steps.append((_draw_operation(operation, count), levels * jax.random.rademacher(sign, (count,))))
    return steps


def _draw_operation(key: jax.Array, count: int) -> jax.Array:
    return jax.random.randint(key, (count,), 0, OPERATIONS.index('invert'))  # all but the last


def autoaugment(key: jax.Array, count: int, name: str) -> list[Drawn]:
    """One of the 25 pairs of operations of a policy, each of the two with its probability."""
    rows = np.asarray(
        [[(OPERATIONS.index(step[0]), *step[1:]) for step in pair] for pair in POLICIES[name]], np.float32
    )
    pair, *keys = jax.random.split(key, 3)
    chosen = jnp.asarray(rows)[jax.random.randint(pair, (count,), 0, len(rows))]  # [N, 2, 3]
    steps = []
    for step, step_key in enumerate(keys):
        happens, sign = jax.random.split(step_key)
        operation, probability, level = chosen[:, step].T
        operation = jnp.where(jax.random.uniform(happens, (count,)) < probability, operation, 0).astype(jnp.int32)
        steps.append((operation, level / 9 * jax.random.rademacher(sign, (count,))))
    return steps


def one_of(batch: Batch, ranges: Ranges, operation: jax.Array, level: jax.Array) -> Batch:
    """Applies to each example its own one of OPERATIONS, at its level."""
    height, width = batch['image'].shape[1:3]
    matrices = warps(operation, level, ranges, height, width)
    moved = geometry.warp(batch, matrices, 'nearest')  # of which the compiler leaves out the image
    alone = jax.default_backend() == 'cpu' and jax.device_count() == 1
    change = in_groups if alone else in_full
    return {**moved, 'image': change(batch['image'], operation, matrices, level, ranges)}


Change = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (images, matrices, levels) -> images


def _changes(ranges: Ranges) -> list[tuple[tuple[str, ...], Change]]:
    """What changes the pixels, and the operations that it does."""

    def warp(image: jax.Array, matrices: jax.Array, _: jax.Array) -> jax.Array:
        return geometry.warp({'image': image}, matrices, 'nearest')['image']

    def blend(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Change:
        return lambda image, _, level: function(image, (1 + level * ranges.blend).astype(image.dtype))

    def posterize(image: jax.Array, _: jax.Array, level: jax.Array) -> jax.Array:
        return color.posterize(image, 8 - jnp.round(jnp.abs(level) * ranges.posterize))

    def solarize(image: jax.Array, _: jax.Array, level: jax.Array) -> jax.Array:
        return color.solarize(image, 255 * (1 - jnp.abs(level)))

    def always(function: Callable[[jax.Array], jax.Array]) -> Change:
        return lambda image, _, level: function(image)

    return [
        (WARPS, warp),
        *(((name,), blend(getattr(color, name))) for name in BLENDS),
        (('posterize',), posterize),
        (('solarize',), solarize),
        *(((name,), always(getattr(color, name))) for name in ('autocontrast', 'equalize', 'invert')),
    ]


def in_full(image: jax.Array, operation: jax.Array, matrices: jax.Array, level: jax.Array, ranges: Ranges) -> jax.Array:
    """Every operation on the whole batch, of which each example keeps its own: each device has its part of a batch."""
    result = image
    for names, change in _changes(ranges):
        chosen = jnp.isin(operation, jnp.asarray([OPERATIONS.index(name) for name in names]))
        result = jnp.where(chosen[:, None, None, None], change(image, matrices, level), result)
    return result


def in_groups(
    image: jax.Array, operation: jax.Array, matrices: jax.Array, level: jax.Array, ranges: Ranges
) -> jax.Array:
    """The same, each operation on chunks of its own examples only: seven times as fast on one CPU."""
    changes = _changes(ranges)
    groups = np.full(len(OPERATIONS), len(changes))
    for group, (names, _) in enumerate(changes):
        groups[[OPERATIONS.index(name) for name in names]] = group
    group_of = jnp.asarray(groups)[operation]
    order = jnp.argsort(group_of)
    starts = jnp.searchsorted(group_of[order], jnp.arange(len(changes) + 1))
    size = min(max(len(image) // 32, 1), 32)
    result = image
    for group, (_, change) in enumerate(changes):
        start, stop = starts[group], starts[group + 1]

        def body(
            chunk: jax.Array, result: jax.Array, start: Any = start, stop: Any = stop, change: Change = change
        ) -> jax.Array:
            # A last chunk that is too long does the group's last example again.
            places = order[jnp.minimum(start + chunk * size + jnp.arange(size), stop - 1)]
            return result.at[places].set(change(image[places], matrices[places], level[places]))

        result = jax.lax.fori_loop(0, -((start - stop) // size), body, result)
    return result


def warps(operation: jax.Array, level: jax.Array, ranges: Ranges, height: int, width: int) -> jax.Array:
    """[N, 2, 3] for `geometry.warp`; the identity where the operation is none of WARPS."""

    def amount(name: str, most: float) -> jax.Array:
        return jnp.where(operation == OPERATIONS.index(name), level * most, 0)

    angle = -jnp.deg2rad(amount('rotate', ranges.rotate))
    right, down = (
        jnp.trunc(amount(f'translate_{axis}', most)) for axis, most in zip('xy', ranges.translate, strict=True)
    )
    matrices = geometry.inverse_affine(angle, jnp.zeros_like(angle), right, down, (width / 2, height / 2))
    shears = [amount(f'shear_{axis}', ranges.shear) for axis in 'xy']
    return matrices.at[:, 0, 1].add(shears[0]).at[:, 1, 0].add(shears[1])

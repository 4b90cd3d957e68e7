"""Pooling [N, *spatial, C] of rank 1 to 3, in forms whose gradients are exact, deterministic and fast on CPUs."""

import functools
import itertools
import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Padding = str | Sequence[tuple[int, int]]
Shape = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]


def max_pool(
    x: jax.Array, window_shape: Sequence[int], strides: Sequence[int] | None = None, padding: Padding = 'VALID'
) -> jax.Array:
    """The maximum of each window: flax.linen.max_pool, with another gradient.

    Each window gives its gradient to its first maximum in row-major order, as XLA and PyTorch do; XLA's own
    (select-and-scatter) is an order of magnitude slower on CPUs and not deterministic on GPUs. A window with a NaN is
    NaN, and gives its gradient to one of its elements. Strides default to 1. Raises ValueError for shapes that do not
    fit.
    """
    window, stride, pads = _geometry(x, window_shape, strides, padding)
    for one in _by_axis(window, stride, pads):
        x = _max_pool(x, *one)
    return x


def avg_pool(
    x: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = 'VALID',
    count_include_pad: bool = True,
) -> jax.Array:
    """The mean of each window: flax.linen.avg_pool, by slices. Strides default to 1."""
    window, stride, pads = _geometry(x, window_shape, strides, padding)
    sides, total = x.shape[1:-1], x
    for one_window, one_stride, one_pads in _by_axis(window, stride, pads):
        number = _windows(total.shape[1:-1], one_window, one_stride, one_pads)
        low = tuple(before for before, _ in one_pads)
        total = functools.reduce(jnp.add, _taps(total, one_window, one_stride, low, number, 0))
    if count_include_pad:
        return total / math.prod(window)
    count = np.ones((), int)
    for side, size, step, (before, after) in zip(sides, window, stride, pads, strict=True):
        start = np.arange(-before, side + after - size + 1, step)
        count = count[..., None] * (np.clip(start + size, 0, side) - np.clip(start, 0, side))
    return total / jnp.asarray(count[..., None], x.dtype)


def _geometry(
    x: jax.Array, window_shape: Sequence[int], strides: Sequence[int] | None, padding: Padding
) -> tuple[Shape, Shape, Pads]:
    """Window, strides and explicit padding, one entry for each spatial axis. Raises ValueError where they don't fit."""
    window = tuple(window_shape)
    stride = tuple(strides) if strides else (1,) * len(window)
    sides = x.shape[1:-1]
    if not len(window) == len(stride) == len(sides):
        raise ValueError(f'window {window} and strides {stride} do not fit an input {x.shape}: [N, *spatial, C]')
    pads = lax.padtype_to_pads(sides, window, stride, padding) if isinstance(padding, str) else padding
    if len(pads) != len(window):
        raise ValueError(f'padding {padding} does not fit the window {window}')
    return window, stride, tuple((low, high) for low, high in pads)


def _by_axis(window: Shape, stride: Shape, pads: Pads) -> list[tuple[Shape, Shape, Pads]]:
    """The steps of a pooling: one, or for a large window one an axis, since each element of a window is an operation.

    The last axis goes first: so the first maximum of the first maxima is the first maximum of the window.
    """
    if math.prod(window) <= 32:
        return [(window, stride, pads)]
    steps = []
    for axis in reversed(range(len(window))):
        before, after = (1,) * axis, (1,) * (len(window) - axis - 1)
        none: Pads = ((0, 0),)
        one_pads = none * axis + (pads[axis],) + none * len(after)
        steps.append(((*before, window[axis], *after), (*before, stride[axis], *after), one_pads))
    return steps


def _windows(sides: Shape, window: Shape, stride: Shape, pads: Pads) -> Shape:
    """Number of windows along each axis."""
    return tuple(
        (side + low + high - size) // step + 1
        for side, size, step, (low, high) in zip(sides, window, stride, pads, strict=True)
    )


def _pad(x: jax.Array, pads: Iterable[tuple[int, int]], value: float = 0) -> jax.Array:
    """x with its spatial axes padded, or cropped where an entry is negative."""
    return lax.pad(x, jnp.asarray(value, x.dtype), [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)])


def _lowest(x: jax.Array) -> float:
    """What is no greater than any number of x's type."""
    return jnp.iinfo(x.dtype).min if jnp.issubdtype(x.dtype, jnp.integer) else -jnp.inf


def _taps(x: jax.Array, window: Shape, stride: Shape, low: Shape, number: Shape, value: float) -> list[jax.Array]:
    """Element k of each of `number` windows, the first of which begins `low` before x, k in row-major order."""
    high = [
        step * (n - 1) + size - side - before
        for side, size, step, before, n in zip(x.shape[1:-1], window, stride, low, number, strict=True)
    ]
    x = _pad(x, zip(low, high, strict=True), value)
    taps = []
    for start in itertools.product(*map(range, window)):
        limit = [first + (n - 1) * step + 1 for first, n, step in zip(start, number, stride, strict=True)]
        taps.append(lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *stride, 1)))
    return taps


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: jax.Array, window: Shape, stride: Shape, pads: Pads) -> jax.Array:
    low = tuple(before for before, _ in pads)
    number = _windows(x.shape[1:-1], window, stride, pads)
    return functools.reduce(jnp.maximum, _taps(x, window, stride, low, number, _lowest(x)))


@_max_pool.defjvp
def _max_pool_jvp(
    window: Shape, stride: Shape, pads: Pads, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Written for the transpose of the tangent, which is what training runs.

    With x cut into cells of `stride` elements, element r of cell g is element stride * d + r + low of window g - d, for
    the few d that keep it inside the window. So the gradient is a sum over d of where(index == that element, dy, 0) at
    g - d: elementwise, with no scatter. Windows are taken on a grid that has g - d for every g and d, beyond those of
    the output, so that the index needs no padding afterwards.
    """
    (x,), (t,) = primals, tangents
    sides = x.shape[1:-1]
    number = _windows(sides, window, stride, pads)
    cells = tuple(-(-side // step) for side, step in zip(sides, stride, strict=True))
    first = [-((step - 1 + low) // step) for step, (low, _) in zip(stride, pads, strict=True)]
    last = [(size - 1 - low) // step for size, step, (low, _) in zip(window, stride, pads, strict=True)]
    grid = tuple(cell + after - before for cell, before, after in zip(cells, first, last, strict=True))
    beyond = [(-after, n + after - size) for after, n, size in zip(last, number, grid, strict=True)]
    low = tuple(before + step * after for (before, _), step, after in zip(pads, stride, last, strict=True))

    maximum, *taps = _taps(x, window, stride, low, grid, -jnp.inf)
    index = jnp.broadcast_to(_first_inside(window, stride, low, grid) ** 2, maximum.shape)
    for k, tap in enumerate(taps, 1):
        index = jnp.where(tap > maximum, k * k, index)
        maximum = jnp.maximum(maximum, tap)

    overlapping = first != last
    if overlapping:
        # XLA on the CPU would decide each window again wherever it is read, were the decision cheap; so it ends in an
        # operation that XLA does not repeat. Rounded, because square roots are approximate on some devices.
        index = (lax.sqrt(index.astype(jnp.float32)) + 0.5).astype(jnp.int32)

    rest = [step * cell - side for side, step, cell in zip(sides, stride, cells, strict=True)]
    t = _pad(t, [(0, more) for more in rest])
    t = t.reshape(len(t), *(n for pair in zip(cells, stride, strict=True) for n in pair), t.shape[-1])
    within = range(2, 2 * len(window) + 1, 2)
    total = jnp.zeros((), t.dtype)
    for shift in itertools.product(*(range(before, after + 1) for before, after in zip(first, last, strict=True))):
        element, inside = np.zeros((), int), np.ones((), bool)
        for d, size, step, (before, _) in zip(shift, window, stride, pads, strict=True):
            offset = step * d + np.arange(step) + before
            element = element[..., None] * size + offset
            inside = inside[..., None] & (offset >= 0) & (offset < size)
        element = np.where(inside, element if overlapping else element**2, -1).astype(np.int32)
        element = element.reshape(1, *(n for step in stride for n in (1, step)), 1)
        around = [(after - d, d - before) for before, after, d in zip(first, last, shift, strict=True)]
        near = _pad(index, [(-before, -after) for before, after in around])
        picked = jnp.where(jnp.expand_dims(near, within) == element, t, 0).sum(within)
        total += _pad(picked, around)
    return _pad(maximum, beyond, -jnp.inf), _pad(total, beyond)


def _first_inside(window: Shape, stride: Shape, low: Shape, number: Shape) -> np.ndarray:
    """The first element of each window that is not padding, [1, *number, 1]: where the maximum of -inf alone is."""
    index = np.zeros((), int)
    for size, step, before, n in zip(window, stride, low, number, strict=True):
        index = index[..., None] * size + np.clip(before - step * np.arange(n), 0, size - 1)
    return index[None, ..., None].astype(np.int32)

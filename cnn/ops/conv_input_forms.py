"""The forms that the gradient of a convolution's input can take, from that g of y and the kernel: see conv_forms.py."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnn.ops.conv_forms import (
    LARGE,
    forward,
    plain_forward,
    positions,
    seen_by_taps,
    spread,
    strided_depthwise,
    swapped,
)
from cnn.ops.geometry import Geometry
from cnn.ops.native import lanes
from cnn.ops.native_conv import native_input, suited, vector_length


def plain_input(g: jax.Array, kernel: jax.Array, geometry: Geometry, size: tuple[int, ...]) -> jax.Array:
    """The gradient of x as JAX derives it."""
    x = jax.ShapeDtypeStruct((len(g), *size, kernel.shape[-2] * geometry.groups), g.dtype)
    return jax.linear_transpose(lambda x: plain_forward(x, kernel, geometry), x)(g)[0]


def input(g: jax.Array, kernel: jax.Array, geometry: Geometry, size: tuple[int, ...], *, library: bool) -> jax.Array:
    """The gradient of x [N, *size, C] in the form that is fastest on a CPU: sub-pixels.

    Positions of x that are equal modulo the strides see the same taps of the kernel, so each such phase is a
    convolution of stride 1 of g with some of the taps, backwards. A stride of 1 has one phase, the whole kernel.
    Groups of several channels gain more from one convolution with the channels of every phase, although it multiplies
    zeros; a channel with several outputs from zeros between the positions of g, without phases.
    """
    groups = geometry.groups
    shape = (len(g), *size, kernel.shape[-2] * groups)
    if 0 in (*g.shape, *kernel.shape, *shape):
        return jnp.zeros(shape, g.dtype)
    if library and natively(g, kernel, geometry, shape):
        return native_input(g, swapped(kernel, groups), geometry, size)
    if strided_depthwise(kernel.shape, geometry):
        return depthwise_input(g, kernel, geometry, size)
    if groups > 1 and (kernel.shape[-2] == 1 or max(geometry.dilation) > 1):
        g, geometry = spread(g, geometry)
    kernel = swapped(kernel, groups)  # [*K, O / groups, C]
    counts = tuple(-(-length // stride) for length, stride in zip(size, geometry.strides, strict=True))
    lows = (low for low, _ in geometry.padding)
    numbers = zip(counts, g.shape[1:-1], kernel.shape[:-2], geometry.strides, lows, geometry.dilation, strict=True)
    axes_of_phases = list(itertools.starmap(phases, numbers))
    sub_kernels = [list(axes) for axes in itertools.product(*axes_of_phases)]

    def convolved(kernel: jax.Array, axes: list[Phase]) -> jax.Array:
        padding, dilation = tuple(axis.padding for axis in axes), tuple(axis.dilation for axis in axes)
        part = Geometry((1,) * len(size), padding, dilation, groups, geometry.precision)
        return forward(g, kernel, part, library=library)

    parts = [kernel[np.ix_(*(axis.taps for axis in axes))] for axes in sub_kernels]
    seeing = [index for index, part in enumerate(parts) if part.size]
    if len(parts) > len(seeing) == 1:  # as where the kernel has size 1
        x = convolved(parts[seeing[0]], sub_kernels[seeing[0]])
        phase = np.unravel_index(seeing[0], geometry.strides)
        ends = [
            (int(first), length - (count - 1) * stride - 1 - int(first), stride - 1)
            for first, length, count, stride in zip(phase, size, counts, geometry.strides, strict=True)
        ]
        return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    if groups > 1 or all(map(alike, sub_kernels[0], *sub_kernels[1:])):
        reach = [widest(axis) for axis in axes_of_phases]
        parts = [widened(part, axes, reach) for part, axes in zip(parts, sub_kernels, strict=True)]
        together = jnp.concatenate([part.reshape(*part.shape[:-1], groups, -1) for part in parts], axis=-1)
        x = convolved(together.reshape(*together.shape[:-2], -1), reach)
        x = x.reshape(*x.shape[:-1], groups, len(parts), -1)
        found = [x[..., index, :].reshape(*x.shape[:-3], -1) for index in range(len(parts))]
    else:
        found = list(map(convolved, parts, sub_kernels))
    return woven(found, geometry.strides, size)


def natively(g: jax.Array, kernel: jax.Array, geometry: Geometry, x: tuple[int, ...]) -> bool:
    """Whether our loops are the fastest form for the gradient of x: in groups, or strided, as they weave nothing."""
    if geometry.groups > 1:
        return suited(g.shape[-1], x, geometry.groups, kernel.shape[:-2])
    strided = kernel.ndim == 4 and max(geometry.strides) > 1 and math.prod(kernel.shape[:2]) > 1
    return strided and 4 * math.prod(x) > LARGE and vector_length(x[-1], 1, lanes()) >= 8


def depthwise_input(g: jax.Array, kernel: jax.Array, geometry: Geometry, size: tuple[int, ...]) -> jax.Array:
    """The gradient of x of a strided depthwise kernel [*K, 1, C]: for each phase a sum over the taps that it sees."""
    seen = seen_by_taps(g, geometry, size, kernel.shape[:-2])
    counts = [-(-length // stride) for length, stride in zip(size, geometry.strides, strict=True)]
    parts = {phase: jnp.zeros((len(g), *counts, g.shape[-1]), g.dtype) for phase in positions(geometry.strides)}
    for position, (phase, outputs) in zip(positions(kernel.shape[:-2]), seen, strict=True):
        parts[phase] += outputs * kernel[position][0]
    return woven(list(parts.values()), geometry.strides, size)


def woven(parts: Sequence[jax.Array], strides: tuple[int, ...], size: tuple[int, ...]) -> jax.Array:
    """The phases [N, *counts, C] of x [N, *size, C], row by row: position u stride + phase is at u of its phase."""
    for axis in reversed(range(len(size))):
        rows = [parts[first : first + strides[axis]] for first in range(0, len(parts), strides[axis])]
        before, after = parts[0].shape[: axis + 1], parts[0].shape[axis + 2 :]
        parts = [jnp.stack(row, axis + 2).reshape(*before, -1, *after) for row in rows]
    return parts[0][(slice(None), *(slice(length) for length in size))]


class Phase(NamedTuple):
    """Of one axis, the taps that positions of one remainder see, last first, and how they lie over g."""

    taps: tuple[int, ...]
    padding: tuple[int, int]
    dilation: int


def phases(count: int, outputs: int, taps: int, stride: int, padding: int, dilation: int) -> list[Phase]:
    """The phases of one axis, of `count` positions each.

    Position i = u stride + phase of x sees output o through tap t where o stride - padding + t dilation = i. With the
    next such t, o falls by dilation over the common divisor.
    """
    spread = dilation // math.gcd(stride, dilation)
    found = []
    for phase in range(stride):
        seen = tuple(tap for tap in range(taps) if (phase + padding - tap * dilation) % stride == 0)
        start = (phase + padding - seen[0] * dilation) // stride if seen else 0  # what the first of them sees at u = 0
        pad = ((len(seen) - 1) * spread - start, count + start - outputs)
        found.append(Phase(seen[::-1], pad, spread))
    return found


def alike(*axis: Phase) -> bool:
    """Whether phases of an axis differ only in which taps they have."""
    return len({(len(phase.taps), phase.padding, phase.dilation) for phase in axis}) == 1


def widest(axis: Sequence[Phase]) -> Phase:
    """The reach of a kernel that holds the taps of every phase of an axis, in the places of its padding."""
    low, high = (max(phase.padding[end] for phase in axis) for end in (0, 1))
    return Phase((), (low, high), axis[0].dilation)


def widened(kernel: jax.Array, axes: Sequence[Phase], reach: Sequence[Phase]) -> jax.Array:
    """The kernel of a phase with zeros for the taps that it lacks in `reach`."""
    zeros = [
        [(most - own) // whole.dilation for most, own in zip(whole.padding, axis.padding, strict=True)]
        for axis, whole in zip(axes, reach, strict=True)
    ]
    return jnp.pad(kernel, [*zeros, (0, 0), (0, 0)])

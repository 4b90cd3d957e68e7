"""The forms that a convolution and the gradient of its input can take, pure and of fixed shapes.

A convolution is y[n, o] = sum over t of x[n, o stride - padding + t dilation] kernel[t]; each form computes y of x and
kernel (`forward`), or the gradient of x from that of y and kernel (`input`). The gradient of the kernel is in
conv_weight_forms.py. All are bilinear. Arrays are x [N, *S, C], kernel [*K, C / groups, O], y and g [N, *S', O].
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnn.ops import onednn


class Geometry(NamedTuple):
    """The numbers of a convolution, one of each kind for each spatial axis, and the number of groups of channels."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    precision: Any = None  # as lax takes it

    def output_size(self, size: Sequence[int], kernel_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial shape of y for those of x and kernel."""
        numbers = zip(size, kernel_size, self.strides, self.padding, self.dilation, strict=True)
        return tuple((n + low + high - (k - 1) * d - 1) // s + 1 for n, k, s, (low, high), d in numbers)

    def after_first(self) -> 'Geometry':
        """Without the first axis."""
        return self._replace(strides=self.strides[1:], padding=self.padding[1:], dilation=self.dilation[1:])

    def before_first(self) -> 'Geometry':
        """With one more axis before the first, of length 1."""
        return self._replace(strides=(1, *self.strides), padding=((0, 0), *self.padding), dilation=(1, *self.dilation))


def plain_forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """y as XLA's convolution."""
    spatial = 'DHW'[-(x.ndim - 2) :]
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=(f'N{spatial}C', f'{spatial}IO', f'N{spatial}C'),
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def plain_input(g: jax.Array, kernel: jax.Array, geometry: Geometry, size: tuple[int, ...]) -> jax.Array:
    """The gradient of x as JAX derives it."""
    x = jax.ShapeDtypeStruct((len(g), *size, kernel.shape[-2] * geometry.groups), g.dtype)
    return jax.linear_transpose(lambda x: plain_forward(x, kernel, geometry), x)(g)[0]


def forward(x: jax.Array, kernel: jax.Array, geometry: Geometry, *, library: bool) -> jax.Array:
    """y in the form that is fastest on a CPU."""
    shape = (len(x), *geometry.output_size(x.shape[1:-1], kernel.shape[:-2]), kernel.shape[-1])
    if 0 in (*x.shape, *kernel.shape, *shape):
        return jnp.zeros(tuple(max(length, 0) for length in shape), x.dtype)
    if x.ndim == 3:
        return forward(x[:, None], kernel[None], geometry.before_first(), library=library)[:, 0]
    multiplied = kernel.shape[-2] == 1 and kernel.shape[-1] > x.shape[-1] > 1  # depthwise, several outputs a channel
    if library and not multiplied:
        return library_forward(x, kernel, geometry)
    if geometry.groups > 1:
        return (shifted_forward if kernel.shape[-2] == 1 else blocks_forward)(x, kernel, geometry)
    if math.prod(kernel.shape[:-2]) == 1:
        return dot_forward(x, kernel, geometry)
    return (planes_forward if x.ndim == 5 else plain_forward)(x, kernel, geometry)


def library_forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """y by oneDNN."""
    return onednn.convolution(x, kernel, geometry.strides, geometry.padding, geometry.dilation, geometry.groups)


def dot_forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """y of a kernel of size 1, as a matmul of every stride-th position."""
    size = geometry.output_size(x.shape[1:-1], kernel.shape[:-2])
    x = tap(*padded(x, geometry), size, (0,) * len(size))
    return jnp.matmul(x, kernel.reshape(kernel.shape[-2:]), precision=geometry.precision)


def shifted_forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """y of a depthwise kernel [*K, 1, O]: a sum over taps of shifted inputs, each times one number for each channel."""
    size = geometry.output_size(x.shape[1:-1], kernel.shape[:-2])
    dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    x, geometry = padded(x.astype(wide), geometry)
    x = jnp.repeat(x, kernel.shape[-1] // x.shape[-1], axis=-1)
    products = (tap(x, geometry, size, position) * kernel[position][0] for position in positions(kernel.shape[:-2]))
    return functools.reduce(jnp.add, products).astype(dtype)


def blocks_forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """y of a grouped kernel: dense convolutions of a few groups at a time, with zeros where groups do not meet."""
    blocks = num_blocks(x.shape[-1], geometry.groups)
    inside, dense = geometry.groups // blocks, geometry._replace(groups=1)
    *size, inner, outputs = kernel.shape
    kernel = kernel.reshape(*size, inner, blocks, inside, outputs // geometry.groups)
    kernel = jnp.einsum('...cbgo,gh->b...hcgo', kernel, jnp.eye(inside, dtype=kernel.dtype))
    kernel = kernel.reshape(blocks, *size, inner * inside, outputs // blocks)
    parts = zip(jnp.split(x, blocks, axis=-1), kernel, strict=True)
    return jnp.concatenate([forward(part, block, dense, library=False) for part, block in parts], axis=-1)


def planes_forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """y of rank 3: a sum over the planes of the kernel, each a convolution of rank 2 of all planes of x."""
    x, geometry = padded(x, geometry)
    depth, *_ = geometry.output_size(x.shape[1:-1], kernel.shape[:-2])

    def plane(index: int) -> jax.Array:
        planes = tap(x, geometry, (depth,), (index,))
        y = forward(merged(planes), kernel[index], geometry.after_first(), library=False)
        return y.reshape(len(x), depth, *y.shape[1:])

    return functools.reduce(jnp.add, map(plane, range(len(kernel))))


def input(g: jax.Array, kernel: jax.Array, geometry: Geometry, size: tuple[int, ...], *, library: bool) -> jax.Array:
    """The gradient of x [N, *size, C] in the form that is fastest on a CPU: sub-pixels.

    Positions of x that are equal modulo the strides see the same taps of the kernel, so each such phase is a
    convolution of stride 1 of g with some of the taps, backwards. A stride of 1 has one phase, the whole kernel.
    Groups of several channels gain more from one convolution with the channels of every phase, although it multiplies
    zeros; for single channels zeros between the positions of g, without phases, are the faster ones.
    """
    groups = geometry.groups
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
    else:
        x = jnp.concatenate(list(map(convolved, parts, sub_kernels)), axis=-1)
    return interleaved(x, geometry.strides, size, groups)


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


def interleaved(x: jax.Array, strides: tuple[int, ...], size: tuple[int, ...], groups: int) -> jax.Array:
    """[N, *counts, groups x phases of all axes x C / groups] -> [N, *size, C], where position u stride + phase comes
    from x[u, phase]."""
    if math.prod(strides) == 1:
        return x
    rank, counts = len(size), x.shape[1:-1]
    x = x.reshape(len(x), *counts, groups, *strides, -1)
    order = itertools.chain.from_iterable((1 + axis, 2 + rank + axis) for axis in range(rank))
    x = x.transpose(0, *order, 1 + rank, 2 * rank + 2)
    x = x.reshape(len(x), *(count * stride for count, stride in zip(counts, strides, strict=True)), -1)
    return x[(slice(None), *(slice(length) for length in size))]


def num_blocks(channels: int, groups: int) -> int:
    """Into how many blocks of whole groups, of at most 32 channels where groups are smaller, channels are cut."""
    fitting = (blocks for blocks in range(1, groups) if groups % blocks == 0 and channels <= 32 * blocks)
    return next(fitting, groups)


def positions(kernel_size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every tap of a kernel, row by row."""
    return list(np.ndindex(*kernel_size))


def padded(x: jax.Array, geometry: Geometry) -> tuple[jax.Array, Geometry]:
    """x with its padding, and the geometry without."""
    if any(pair != (0, 0) for pair in geometry.padding):
        widths = [(low, high, 0) for low, high in geometry.padding]
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *widths, (0, 0, 0)])
    return x, geometry._replace(padding=((0, 0),) * len(geometry.padding))


def spread(g: jax.Array, geometry: Geometry) -> tuple[jax.Array, Geometry]:
    """The gradient of y with zeros between its positions, and the geometry that it has so: without strides."""
    if max(geometry.strides) > 1:
        zeros = [(0, 0, stride - 1) for stride in geometry.strides]
        g = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *zeros, (0, 0, 0)])
    return g, geometry._replace(strides=(1,) * len(geometry.strides))


def fitted(
    size: Sequence[int], outputs: Sequence[int], geometry: Geometry, kernel_size: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """The padding with which the last tap of the last output ends the input; negative where none sees its end."""
    numbers = zip(size, outputs, kernel_size, *geometry[:3], strict=True)
    return tuple(
        (low, (taps - 1) * dilation + (outputs - 1) * stride + 1 - length - low)
        for length, outputs, taps, stride, (low, _), dilation in numbers
    )


def tap(x: jax.Array, geometry: Geometry, size: Sequence[int], position: tuple[int, ...]) -> jax.Array:
    """What the tap at `position` sees of x, which is padded already: [N, *size, C]. Axes without a position stay."""
    slices = [
        slice(t * dilation, t * dilation + (length - 1) * stride + 1, stride)
        for t, length, stride, dilation in zip(position, size, geometry.strides, geometry.dilation, strict=False)
    ]
    return x[(slice(None), *slices)]


def swapped(kernel: jax.Array, groups: int) -> jax.Array:
    """The kernel of the opposite direction: [*K, A / groups, B] -> [*K, B / groups, A]."""
    kernel = kernel.reshape(*kernel.shape[:-1], groups, -1)  # [*K, A / groups, groups, B / groups]
    kernel = jnp.swapaxes(kernel, -1, -3)
    return kernel.reshape(*kernel.shape[:-2], -1)


def merged(x: jax.Array) -> jax.Array:
    """[N, D, ...] as [N D, ...]."""
    return x.reshape(-1, *x.shape[2:])

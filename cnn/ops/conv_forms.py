"""The forms that a convolution can take, pure and of fixed shapes, and what they share with those of its gradients.

A convolution is y[n, o] = sum over t of x[n, o stride - padding + t dilation] kernel[t]; each form computes y of x and
kernel. Those of the gradients are in conv_input_forms.py and conv_weight_forms.py. All are bilinear. Arrays are
x [N, *S, C], kernel [*K, C / groups, O], y and g [N, *S', O].
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnn.ops import onednn
from cnn.ops.geometry import Geometry
from cnn.ops.native_conv import native_forward, suited

LARGE = 2**21  # bytes, about what a core keeps to itself; smaller arrays gain little from other forms


def plain_forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """y as XLA's convolution, padded before where some is negative: there, on a CPU, it may use what is beyond x."""
    if any(end < 0 for pair in geometry.padding for end in pair):
        x, geometry = padded(x, geometry)
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


def forward(x: jax.Array, kernel: jax.Array, geometry: Geometry, *, library: bool) -> jax.Array:
    """y in the form that is fastest on a CPU."""
    shape = (len(x), *geometry.output_size(x.shape[1:-1], kernel.shape[:-2]), kernel.shape[-1])
    if 0 in (*x.shape, *kernel.shape, *shape):
        return jnp.zeros(tuple(max(length, 0) for length in shape), x.dtype)
    if x.ndim == 3:
        return forward(x[:, None], kernel[None], geometry.before_first(), library=library)[:, 0]
    if library and suited(x.shape[-1], shape, geometry.groups, kernel.shape[:-2]):
        return native_forward(x, kernel, geometry)
    depthwise = kernel.shape[-2] == 1 and geometry.groups > 1
    if library and not (depthwise and (kernel.shape[-1] > x.shape[-1] or max(geometry.dilation) > 1)):
        return library_forward(x, kernel, geometry)
    if geometry.groups > 1:
        return (shifted_forward if depthwise else blocks_forward)(x, kernel, geometry)
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
    x, geometry = padded(x, geometry)
    x = jnp.repeat(x, kernel.shape[-1] // x.shape[-1], axis=-1)
    products = (tap(x, geometry, size, position) * kernel[position][0] for position in positions(kernel.shape[:-2]))
    return functools.reduce(jnp.add, products)


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


def strided_depthwise(kernel_shape: tuple[int, ...], geometry: Geometry) -> bool:
    """Whether a kernel has one input and one output for each channel, strides, and few enough taps to write all out."""
    *size, inner, outputs = kernel_shape
    return inner == 1 and outputs == geometry.groups > 1 and max(geometry.strides) > 1 and math.prod(size) <= 49


def seen_by_taps(
    g: jax.Array, geometry: Geometry, size: Sequence[int], kernel_size: Sequence[int]
) -> list[tuple[tuple[int, ...], jax.Array]]:
    """For each tap of a kernel, the phase of the positions of x [N, *size, C] that it sees, and what these see of g.

    Through tap t position u stride + phase sees output u - shift, where t dilation - padding = shift stride + phase;
    where there is no such output, zero. [N, *counts, C], as many positions as the longest phase has.
    """
    axes, ends = [], []
    numbers = zip(size, g.shape[1:-1], kernel_size, *geometry[:3], strict=True)
    for length, outputs, taps, stride, (low, _), dilation in numbers:
        count = -(-length // stride)
        shifts, phases = zip(*(divmod(tap * dilation - low, stride) for tap in range(taps)), strict=True)
        before = max(*shifts, 0)
        ends.append((before, max(count - min(shifts) - outputs, 0), 0))
        starts = (before - shift for shift in shifts)
        axes.append([(phase, slice(start, start + count)) for phase, start in zip(phases, starts, strict=True)])
    g = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    return [
        (tuple(phase for phase, _ in tap), g[(slice(None), *(outputs for _, outputs in tap))])
        for tap in itertools.product(*axes)
    ]


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

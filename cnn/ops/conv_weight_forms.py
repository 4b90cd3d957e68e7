"""The forms that the gradient of a convolution's kernel can take, from x and the gradient g of y: see conv_forms.py."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from cnn.ops import onednn
from cnn.ops.conv_forms import (
    LARGE,
    fitted,
    merged,
    num_blocks,
    padded,
    plain_forward,
    positions,
    seen_by_taps,
    strided_depthwise,
    tap,
)
from cnn.ops.geometry import Geometry
from cnn.ops.native import lanes
from cnn.ops.native_conv import suited, vector_length
from cnn.ops.native_weight import native_weight


def plain_weight(x: jax.Array, g: jax.Array, geometry: Geometry, kernel_size: tuple[int, ...]) -> jax.Array:
    """The gradient of the kernel as JAX derives it."""
    kernel = jax.ShapeDtypeStruct((*kernel_size, x.shape[-1] // geometry.groups, g.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: plain_forward(x, kernel, geometry), kernel)(g)[0]


def weight(x: jax.Array, g: jax.Array, geometry: Geometry, kernel_size: tuple[int, ...], *, library: bool) -> jax.Array:
    """The gradient of the kernel [*kernel_size, C / groups, O] in the form that is fastest on a CPU."""
    if 0 in (*x.shape, *g.shape):
        return jnp.zeros((*kernel_size, x.shape[-1] // geometry.groups, g.shape[-1]), x.dtype)
    if x.ndim == 3:
        return weight(x[:, None], g[:, None], geometry.before_first(), (1, *kernel_size), library=library)[0]
    if x.ndim == 5:
        return planes_weight(x, g, geometry, kernel_size, library=library)
    if library and suited(x.shape[-1], g.shape, geometry.groups, kernel_size):
        return native_weight(x, g, geometry, kernel_size)
    if strided_depthwise((*kernel_size, x.shape[-1] // geometry.groups, g.shape[-1]), geometry):
        return strided_depthwise_weight(x, g, geometry, kernel_size)
    if geometry.groups > 1:
        depthwise = geometry.groups == x.shape[-1] == g.shape[-1]
        return (shifted_weight if depthwise else blocks_weight)(x, g, geometry, kernel_size)
    if math.prod(kernel_size) == 1:
        return (library_dot_weight if library else dot_weight)(x, g, geometry, kernel_size)
    wide = g.shape[2] >= 24 or max(geometry.dilation) > 1  # others oneDNN does as fast
    if library and wide and g.nbytes > LARGE and vector_length(g.shape[-1], 1, lanes()) >= 8:
        return native_weight(x, g, geometry, kernel_size)
    narrow = x.shape[-1] < 8 and max(geometry.strides) == 1
    library &= not narrow and max(geometry.dilation) == 1
    return (library_weight if library else transposed_weight)(x, g, geometry, kernel_size)


def transposed_weight(x: jax.Array, g: jax.Array, geometry: Geometry, kernel_size: tuple[int, ...]) -> jax.Array:
    """The gradient of a dense kernel as XLA's convolution, images and channels exchanged by explicit transpositions.

    As JAX derives it, by other dimension numbers, the same convolution is naive code inside loops on the CPU.
    """
    padding = fitted(x.shape[1:-1], g.shape[1:-1], geometry, kernel_size)
    exchanged = Geometry(geometry.dilation, padding, geometry.strides, 1, geometry.precision)
    kernel = plain_forward(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), exchanged)
    return kernel.transpose(1, 2, 0, 3)


def dot_weight(x: jax.Array, g: jax.Array, geometry: Geometry, kernel_size: tuple[int, ...]) -> jax.Array:
    """The gradient of a kernel of size 1: a matmul over all positions."""
    x = tap(*padded(x, geometry), g.shape[1:-1], (0,) * len(kernel_size))
    axes = tuple(range(x.ndim - 1))
    kernel = jnp.tensordot(x, g, (axes, axes), precision=geometry.precision)
    return kernel.reshape(*kernel_size, *kernel.shape)


def library_weight(x: jax.Array, g: jax.Array, geometry: Geometry, kernel_size: tuple[int, ...]) -> jax.Array:
    """The gradient of a dense kernel by oneDNN, of large arrays a few images at a time, which the cache holds.

    Not of signals: one row is done faster at once.
    """
    images = min(len(x), 16) if x.shape[1] > 1 and x.nbytes > LARGE else len(x)

    def add(sums: jax.Array, some: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        return sums + library_exchanged_weight(some[0], some[1], geometry, kernel_size), None

    whole = len(x) - len(x) % images
    pieces = tuple(array[:whole].reshape(-1, images, *array.shape[1:]) for array in (x, g))
    kernel, _ = lax.scan(add, jnp.zeros((*kernel_size, x.shape[-1], g.shape[-1]), x.dtype), pieces)
    if whole < len(x):
        kernel, _ = add(kernel, (x[whole:], g[whole:]))
    return kernel


def library_exchanged_weight(x: jax.Array, g: jax.Array, geometry: Geometry, kernel_size: tuple[int, ...]) -> jax.Array:
    """The gradient of a dense kernel by oneDNN, which has no call for it here: as a convolution of another kind.

    Its channels are the images, its kernel is g, and its outputs are the taps. Input channels lie beside each other in
    the last spatial axis, so that one convolution with that axis dilated by their number gives them all:
    kernel'[t, c, o] = sum over n and s of x[n, s stride - padding + t dilation, c] g[n, s, o].
    """
    rows_padding, (left, right) = fitted(x.shape[1:-1], g.shape[1:-1], geometry, kernel_size)
    images, height, width, channels = x.shape
    kernel = onednn.convolution(
        x.reshape(images, height, width * channels).transpose(1, 2, 0)[None],
        g,
        (geometry.dilation[0], 1),
        (rows_padding, (left * channels, right * channels)),
        (geometry.strides[0], geometry.strides[1] * channels),
        1,
        inputs_first=True,
    )
    return kernel.reshape(*kernel_size, channels, -1)


def strided_depthwise_weight(x: jax.Array, g: jax.Array, geometry: Geometry, kernel_size: tuple[int, ...]) -> jax.Array:
    """The gradient of a strided depthwise kernel [*K, 1, C]: for each tap a sum of products over pieces of columns,
    whose rows of channels are vectors to XLA, and then over all else as a matmul with ones.

    XLA's own reductions over all but the last axis jump from row to row in memory.
    """
    strides, (*size, channels) = geometry.strides, x.shape[1:]
    ends = [(0, -length % stride, 0) for length, stride in zip(size, strides, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    columns = x.shape[-2] // strides[-1]
    piece = next(length for length in range(min(columns, 14), 0, -1) if columns % length == 0)
    sums = []
    for phase, outputs in seen_by_taps(g, geometry, size, kernel_size):
        seen = x[(slice(None), *(slice(first, None, stride) for first, stride in zip(phase, strides, strict=True)))]
        pieces = [array.reshape(*array.shape[:-2], -1, piece, channels) for array in (seen, outputs)]
        products = (math.prod(array[..., column, :] for array in pieces) for column in range(piece))
        sums.append(functools.reduce(jnp.add, products))
    sums = lax.optimization_barrier(sums)  # or XLA would compute them as one with the matmul, elements one by one
    ones = jnp.ones((1, sums[0].size // channels), x.dtype)
    kernel = jnp.concatenate([ones @ total.reshape(-1, channels) for total in sums])
    return kernel.reshape(*kernel_size, 1, channels)


def library_dot_weight(x: jax.Array, g: jax.Array, geometry: Geometry, kernel_size: tuple[int, ...]) -> jax.Array:
    """The gradient of a kernel of size 1 by oneDNN's matmul."""
    x = tap(*padded(x, geometry), g.shape[1:-1], (0,) * len(kernel_size))
    kernel = onednn.transposed_matmul(x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]))
    return kernel.reshape(*kernel_size, *kernel.shape)


def shifted_weight(x: jax.Array, g: jax.Array, geometry: Geometry, kernel_size: tuple[int, ...]) -> jax.Array:
    """The gradient of a depthwise kernel [*K, 1, C]: a loop over rows of g, which adds to one row for each tap.

    XLA's reductions over all but the last axis jump from row to row in memory; sums of rows do not.
    """
    x, geometry = padded(x, geometry)
    images, height, width, channels = g.shape
    (down, right), (below, beside) = geometry.strides, geometry.dilation
    reach = (1, 1, (width - 1) * right + 1, channels)

    def add_row(sums: list[jax.Array], index: jax.Array) -> tuple[list[jax.Array], None]:
        image, row = index // height, index % height
        products = []
        for i, j in positions(kernel_size):
            seen = lax.dynamic_slice(x, (image, row * down + i * below, j * beside, 0), reach)[0, 0, ::right]
            products.append(seen * g[image, row])
        return [total + product for total, product in zip(sums, products, strict=True)], None

    zeros = [jnp.zeros((width, channels), x.dtype) for _ in positions(kernel_size)]
    sums, _ = lax.scan(add_row, zeros, jnp.arange(images * height))
    return jnp.stack(sums).sum(1).reshape(*kernel_size, 1, channels)


def blocks_weight(x: jax.Array, g: jax.Array, geometry: Geometry, kernel_size: tuple[int, ...]) -> jax.Array:
    """The gradient of a grouped kernel: those of dense kernels of a few groups at a time, where groups meet."""
    blocks = num_blocks(x.shape[-1], geometry.groups)
    inside, dense = geometry.groups // blocks, geometry._replace(groups=1)
    parts = zip(jnp.split(x, blocks, axis=-1), jnp.split(g, blocks, axis=-1), strict=True)
    kernel = jnp.stack([weight(*part, dense, kernel_size, library=False) for part in parts], axis=-1)
    kernel = kernel.reshape(*kernel_size, inside, x.shape[-1] // geometry.groups, inside, -1, blocks)
    kernel = jnp.einsum('...gcgob->...cbgo', kernel)
    return kernel.reshape(*kernel_size, kernel.shape[-4], -1)


def planes_weight(
    x: jax.Array, g: jax.Array, geometry: Geometry, kernel_size: tuple[int, ...], *, library: bool
) -> jax.Array:
    """The gradient of a kernel of rank 3: for each of its planes one of rank 2, over all planes of x and g."""
    x, geometry = padded(x, geometry)
    planes = [
        weight(
            merged(tap(x, geometry, g.shape[1:2], (index,))),
            merged(g),
            geometry.after_first(),
            kernel_size[1:],
            library=library,
        )
        for index in range(kernel_size[0])
    ]
    return jnp.stack(planes)

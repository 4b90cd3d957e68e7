"""The forms that the gradient of a convolution's kernel can take, from x and the gradient g of y: see conv_forms.py."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from cnn.ops import onednn
from cnn.ops.conv_forms import (
    Geometry,
    fitted,
    merged,
    num_blocks,
    padded,
    plain_forward,
    positions,
    seen_by_taps,
    spread,
    strided_depthwise,
    tap,
)

LARGE = 2**21  # bytes, about what a core keeps to itself; smaller arrays gain nothing from being cut


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
    depthwise = geometry.groups == x.shape[-1] == g.shape[-1]
    if strided_depthwise((*kernel_size, x.shape[-1] // geometry.groups, g.shape[-1]), geometry):
        return strided_depthwise_weight(x, g, geometry, kernel_size)
    if depthwise and geometry.groups > 1:
        return (library_depthwise_weight if library else shifted_weight)(x, g, geometry, kernel_size)
    if geometry.groups > 1:
        suited = x.shape[-1] > geometry.groups and geometry.dilation[-1] == 1
        return (library_weight if library and suited else blocks_weight)(x, g, geometry, kernel_size)
    if math.prod(kernel_size) == 1:
        return (library_dot_weight if library else dot_weight)(x, g, geometry, kernel_size)
    if library and math.prod(kernel_size) * x.shape[-1] <= g.shape[-1] and g.nbytes > 4 * LARGE:
        return library_patches_weight(x, g, geometry, kernel_size)
    narrow = x.shape[-1] < 8 and max(geometry.strides) == 1
    suited = not narrow and max(geometry.dilation) == 1
    return (library_weight if library and suited else transposed_weight)(x, g, geometry, kernel_size)


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
    """The gradient of the kernel by oneDNN, of large arrays a few images and groups at a time, which the cache holds.

    Not of signals: one row is done faster at once.
    """
    images, blocks = len(x), 1
    if x.shape[1] > 1 and x.nbytes > LARGE:
        images = min(len(x), 16 if geometry.groups == 1 else 8)
        while geometry.groups % (4 * blocks) == 0 and images * x.nbytes // len(x) > blocks * LARGE:
            blocks *= 2
    part = geometry._replace(groups=geometry.groups // blocks)

    def add(sums: jax.Array, some: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        parts = zip(*(jnp.split(array, blocks, axis=-1) for array in some), strict=True)
        kernel = jnp.concatenate([library_exchanged_weight(a, b, part, kernel_size) for a, b in parts], axis=-1)
        return sums + kernel, None

    whole = len(x) - len(x) % images
    pieces = tuple(array[:whole].reshape(-1, images, *array.shape[1:]) for array in (x, g))
    zeros = jnp.zeros((*kernel_size, x.shape[-1] // geometry.groups, g.shape[-1]), x.dtype)
    kernel, _ = lax.scan(add, zeros, pieces)
    if whole < len(x):
        kernel, _ = add(kernel, (x[whole:], g[whole:]))
    return kernel


def library_exchanged_weight(x: jax.Array, g: jax.Array, geometry: Geometry, kernel_size: tuple[int, ...]) -> jax.Array:
    """The gradient of the kernel by oneDNN, which has no call for it here: as a convolution of another kind.

    Its channels are the images, its kernel is g, and its outputs are the taps. Input channels lie beside each other in
    the last spatial axis, so that one convolution with that axis dilated by their number gives them all:
    kernel'[t, c, o] = sum over n and s of x[n, s stride - padding + t dilation, c] g[n, s, o].
    """
    (rows, columns), groups = kernel_size, geometry.groups
    rows_padding, (left, right) = fitted(x.shape[1:-1], g.shape[1:-1], geometry, kernel_size)
    images, height, width, channels = x.shape
    inner = channels // groups
    x = x.reshape(images, height * width, groups, inner).transpose(1, 3, 2, 0)
    inputs_first = groups == 1  # oneDNN's own transposition of g is the faster one there, XLA's elsewhere
    kernel = onednn.convolution(
        x.reshape(1, height, width * inner, groups * images),
        g if inputs_first else g.transpose(1, 2, 0, 3),
        (geometry.dilation[0], 1),
        (rows_padding, (left * inner, right * inner)),
        (geometry.strides[0], geometry.strides[1] * inner),
        groups,
        inputs_first=inputs_first,
    )
    return kernel.reshape(rows, columns, inner, -1)


def library_patches_weight(x: jax.Array, g: jax.Array, geometry: Geometry, kernel_size: tuple[int, ...]) -> jax.Array:
    """The gradient of a dense kernel by oneDNN's matmul, of what each tap sees of each channel, and g.

    With the channels in front, what a tap sees is made of whole rows, which are copied fast.
    """
    x, geometry = padded(x, geometry)
    x = lax.optimization_barrier(jnp.moveaxis(x, -1, 0))  # [C, N, *S]
    for axis in reversed(range(len(kernel_size))):
        stride, dilation = geometry.strides[axis], geometry.dilation[axis]
        reach = (g.shape[axis + 1] - 1) * stride + 1
        taps = [
            lax.slice_in_dim(x, tap * dilation, tap * dilation + reach, stride, axis + 2)
            for tap in range(kernel_size[axis])
        ]
        x = lax.optimization_barrier(jnp.concatenate(taps))  # an axis after the other, or XLA copies single elements
    kernel = onednn.matmul(x.reshape(len(x), -1), g.reshape(-1, g.shape[-1]))
    return kernel.reshape(*kernel_size, -1, g.shape[-1])


def library_depthwise_weight(x: jax.Array, g: jax.Array, geometry: Geometry, kernel_size: tuple[int, ...]) -> jax.Array:
    """The gradient of a depthwise kernel [*K, 1, C] by oneDNN: g, with the images as one more axis, is the kernel.

    Strides would dilate that kernel, for which oneDNN has no fast code; zeros between its positions are faster.
    """
    g, geometry = spread(g, geometry)
    padding = fitted(x.shape[1:-1], g.shape[1:-1], geometry, kernel_size)
    kernel = onednn.convolution(
        x[None], g[..., None, :], (1, *geometry.dilation), ((0, 0), *padding), (1, 1, 1), geometry.groups
    )
    return kernel.reshape(*kernel_size, 1, -1)


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
    kernel = onednn.matmul(x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]), transpose_first=True)
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

"""Normalisation by the statistics of a batch, of parts of it, or by running statistics."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Statistics(NamedTuple):
    """What batch normalisation goes by in training, and what becomes of its running statistics."""

    groups: int = 1  # of examples, each normalised by itself; 0: by the running statistics, which stay as they are
    measured: bool = False  # the running statistics become those of this batch; otherwise they move towards them


GLOBAL = Statistics()
_statistics = contextvars.ContextVar('statistics', default=GLOBAL)


def statistics() -> Statistics:
    """Those in force where a network is traced."""
    return _statistics.get()


@contextlib.contextmanager
def forced(choice: Statistics) -> Iterator[None]:
    """Networks traced inside go by these statistics."""
    token = _statistics.set(choice)
    try:
        yield
    finally:
        _statistics.reset(token)


def grouped_batch_norm(
    x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, epsilon: float, groups: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`batch_norm` of each of `groups` runs of examples by itself, and the mean of their statistics.

    The groups follow each other in the batch [N, ..., C], as the parts of a sharded batch do: where each lies on one
    device, y needs no communication and the statistics one sum. Ghost batch normalisation, Hoffer et al. 2017, section
    4. Raises ValueError where the groups do not divide the batch.
    """
    if groups == 1:  # as XLA on the CPU has it fastest
        return batch_norm(x, scale, bias, epsilon)
    if len(x) % groups:
        raise ValueError(f'{groups} groups can not share a batch of {len(x)}')
    apart = x.reshape(groups, len(x) // groups, *x.shape[1:])
    scales, biases = (None if p is None else jnp.broadcast_to(p, (groups, *p.shape)) for p in (scale, bias))
    y, mean, var = batch_norm(apart, scales, biases, epsilon, range(1, apart.ndim - 1))
    return y.reshape(x.shape), mean.mean(0), var.mean(0)


def batch_norm(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    epsilon: float,
    axes: int | Sequence[int] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x normalised by its own statistics over `axes` (default: all but the last), and these statistics.

    Returns y = (x - mean) / sqrt(var + epsilon) * scale + bias in x's type; mean and biased variance in at least
    float32. Scale, bias, mean and variance have the shape of the other axes; a scale or bias of None is left out. Under
    jit with a sharded batch the statistics are those of the whole batch. Ioffe & Szegedy 2015, algorithm 1.
    Raises ValueError for a scale or bias of another shape.
    """
    axes = range(x.ndim - 1) if axes is None else (axes,) if isinstance(axes, int) else axes
    axes = tuple(sorted({axis % x.ndim for axis in axes}))
    shape = tuple(side for axis, side in enumerate(x.shape) if axis not in axes)
    for name, parameter in (('scale', scale), ('bias', bias)):
        if parameter is not None and parameter.shape != shape:
            raise ValueError(f'{name} {parameter.shape} does not fit the features {shape} of an input {x.shape}')
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    scale = jnp.ones(shape, dtype) if scale is None else scale.astype(dtype)
    bias = jnp.zeros(shape, dtype) if bias is None else bias.astype(dtype)
    return _batch_norm(x, scale, bias, epsilon, axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    dtype = scale.dtype
    # Two passes: the mean of squares less the square of the mean is off by 1e-3 at mean 100, deviation 1, and
    # saves little on CPUs, where each sum is a pass of its own.
    mean = x.astype(dtype).mean(axes)
    deviation = x.astype(dtype) - jnp.expand_dims(mean, axes)
    # XLA on the CPU fuses a difference into a sum only if neither it nor its broadcast mean has another use, and else
    # writes it to memory; so the sum has its own, of -mean.
    var = lax.square(x.astype(dtype) + jnp.expand_dims(-mean, axes)).mean(axes)
    multiplier = jnp.expand_dims(lax.rsqrt(var + epsilon) * scale, axes)
    return (deviation * multiplier + jnp.expand_dims(bias, axes)).astype(x.dtype), mean, var


@_batch_norm.defjvp
def _batch_norm_jvp(
    epsilon: float,
    axes: tuple[int, ...],
    primals: tuple[jax.Array, jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    (x, scale, bias), (x_dot, scale_dot, bias_dot) = primals, tangents
    y, mean, var = _batch_norm(x, scale, bias, epsilon, axes)
    dtype, count = scale.dtype, math.prod(x.shape[axis] for axis in axes)
    deviation = x.astype(dtype) - jnp.expand_dims(mean, axes)
    x_dot = x_dot.astype(dtype)
    inverse = lax.rsqrt(var + epsilon)
    mean_dot = x_dot.sum(axes) / count
    var_dot = 2 / count * (deviation * x_dot).sum(axes)
    # What depends on the channel alone is gathered in two sums, so that the transpose has two reductions over the batch
    # (of dy, and of dy times deviation) and one elementwise pass. Where the transpose sums the deviation it is doubled,
    # which is exact, so that it has a use of its own, as above.
    slope = scale_dot * inverse - 0.5 * scale * inverse**3 * var_dot
    offset = bias_dot - scale * inverse * mean_dot
    y_dot = (
        jnp.expand_dims(scale * inverse, axes) * x_dot
        + (2 * x.astype(dtype) - jnp.expand_dims(2 * mean, axes)) * jnp.expand_dims(0.5 * slope, axes)
        + jnp.expand_dims(offset, axes)
    )
    return (y, mean, var), (y_dot.astype(x.dtype), mean_dot, var_dot)

"""What several families are built from."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn.config import nearest
from cnn.ops.conv import conv, conv_general_dilated, conv_transpose
from cnn.ops.norm import batch_norm

Dtype = Any

# flax.linen.Conv, its parameters and arguments, in the form of convolution that is fastest where it runs.
Conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'relu': jax.nn.relu,
    'leaky_relu': jax.nn.leaky_relu,
    'elu': jax.nn.elu,
    'gelu': jax.nn.gelu,
    'silu': jax.nn.silu,
    'tanh': jnp.tanh,
    'scaled_tanh': lambda x: 1.7159 * jnp.tanh(2 / 3 * x),  # through (-1, -1) and (1, 1): LeCun et al. 1998, appendix A
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function of that name. Raises InputError with the nearest name."""
    if name not in ACTIVATIONS:
        raise nearest('activation', name, ACTIVATIONS)
    return ACTIVATIONS[name]


class BatchNorm(nn.Module):
    """Batch normalisation of [..., C] over all but the channels, with the variables of flax.linen.BatchNorm.

    Running statistics move by 1 - momentum of those of the batch, with the biased variance, and are at least float32.
    Ioffe & Szegedy 2015.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Callable[..., jax.Array] = nn.initializers.ones
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:]
        wide = jnp.promote_types(self.param_dtype, jnp.float32)
        scale = self.param('scale', self.scale_init, shape, self.param_dtype)
        bias = self.param('bias', nn.initializers.zeros, shape, self.param_dtype)
        mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, wide)
        var = self.variable('batch_stats', 'var', jnp.ones, shape, wide)
        if self.use_running_average:
            multiplier = jax.lax.rsqrt(var.value + self.epsilon) * scale.astype(wide)
            y = (x.astype(wide) - mean.value) * multiplier + bias.astype(wide)
            return y.astype(self.dtype)
        y, batch_mean, batch_var = batch_norm(x.astype(self.dtype), scale, bias, self.epsilon)
        if not self.is_initializing():
            for running, current in ((mean, batch_mean), (var, batch_var)):
                running.value = self.momentum * running.value + (1 - self.momentum) * current.astype(wide)
        return y


def norm_layer(kind: str, *, train: bool, dtype: Dtype, param_dtype: Dtype) -> Callable[..., Callable]:
    """What a network hands to its blocks to build normalisations from, called with `name`.

    `kind`: 'batch' (momentum .9, epsilon 1e-5), 'group' (Wu & He 2018, with 8 channels a group so that narrow networks
    have it too) or 'none'. Raises InputError for another kind.
    """
    kinds: dict[str, Callable[..., Callable]] = {
        'batch': functools.partial(BatchNorm, use_running_average=not train, dtype=dtype, param_dtype=param_dtype),
        'group': functools.partial(
            nn.GroupNorm, num_groups=None, group_size=8, epsilon=1e-5, dtype=dtype, param_dtype=param_dtype
        ),
        'none': lambda name=None: lambda x: x,
    }
    if kind not in kinds:
        raise nearest('norm', kind, kinds)
    return kinds[kind]


def adaptive_average_pool(x: jax.Array, output_size: Sequence[int]) -> jax.Array:
    """Averages [N, *spatial, C] over a grid of `output_size` bins, as PyTorch does.

    Of n positions bin i covers floor(i n / size) up to ceil((i + 1) n / size), so bins overlap where the sizes do not
    divide, and repeat positions where the map is smaller than the grid.
    """
    dtype = x.dtype
    for axis, size in enumerate(output_size, start=1):
        length = x.shape[axis]
        bins = np.arange(size)[:, None]
        starts, ends = bins * length // size, -(-(bins + 1) * length // size)
        position = np.arange(length)
        covers = (starts <= position) & (position < ends)  # [size, length]
        # Ones, divided afterwards in at least float32: exact in bfloat16 and on matrix units, where 1/3 would not be.
        total = jnp.tensordot(
            x,
            jnp.asarray(covers, x.dtype),
            axes=(axis, 1),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.promote_types(dtype, jnp.float32),
        )
        x = jnp.moveaxis(total / covers.sum(1), -1, axis)
    return x.astype(dtype)


def center_crop(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The middle of [N, H, W, ...] in the height and width of `shape`."""
    top, left = ((x.shape[axis] - shape[axis]) // 2 for axis in (1, 2))
    return x[:, top : top + shape[1], left : left + shape[2]]


class ConvTranspose(nn.Module):
    """flax.linen.ConvTranspose, its parameters and results: [N, *S, C] -> [N, *S', features], S' = S strides if SAME.

    The kernel [*kernel_size, C, features] is not flipped. Many outputs see only some of its taps, so that an
    initialiser which counts all of them starts too small where strides are large.
    """

    features: int
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...] = 'SAME'
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param('kernel', self.kernel_init, shape, self.param_dtype)
        bias = self.param('bias', nn.initializers.zeros, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv_transpose(x, kernel, self.strides, self.padding)
        return y if bias is None else y + bias


class CausalConv(nn.Module):
    """A dilated 1-D convolution whose output t sees inputs t, t - dilation, ..., t - (kernel_size - 1) dilation.

    A whole sequence [N, T, C] gives [N, T, features], with zeros before its start. Given `position`, x is the one input
    [N, C] at that time; the output is [N, features], equal to the whole sequence's, and the past is kept in a ring
    buffer in the collection 'cache', which starts from zeros at position 0. Parameters are those of nn.Conv.
    """

    features: int
    kernel_size: int = 2
    dilation: int = 1
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, position: jax.Array | None = None) -> jax.Array:
        shape = (self.kernel_size, x.shape[-1], self.features)
        kernel = self.param('kernel', nn.initializers.lecun_normal(), shape, self.param_dtype)
        bias = self.param('bias', nn.initializers.zeros, (self.features,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        reach = (self.kernel_size - 1) * self.dilation
        if position is None:
            return conv(x, kernel, padding=[(reach, 0)], dilation=(self.dilation,)) + bias
        # Written before it is read, because XLA copies a whole buffer that is read first.
        length = reach + 1
        past = self.variable('cache', 'past', jnp.zeros, (len(x), length, x.shape[-1]), x.dtype)
        buffer = jax.lax.dynamic_update_index_in_dim(past.value, x, position % length, axis=1)
        y = bias
        for tap in range(self.kernel_size):
            slot = (position - reach + tap * self.dilation) % length
            y += jax.lax.dynamic_index_in_dim(buffer, slot, axis=1, keepdims=False) @ kernel[tap]
        if not self.is_initializing():
            past.value = buffer
        return y

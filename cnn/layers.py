"""What several families are built from."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn.errors import InputError, nearest
from cnn.ops.conv import conv, conv_general_dilated, conv_transpose
from cnn.ops.norm import grouped_batch_norm, statistics
from cnn.ops.pool import avg_pool, max_pool

Dtype = Any

# flax.linen.Conv, its parameters and arguments, in the form of convolution that is fastest where it runs.
Conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'relu': jax.nn.relu,
    'leaky_relu': jax.nn.leaky_relu,
    'elu': jax.nn.elu,
    'gelu': functools.partial(jax.nn.gelu, approximate=False),
    'silu': jax.nn.silu,
    'relu6': jax.nn.relu6,
    'hard_sigmoid': jax.nn.hard_sigmoid,
    'hard_swish': jax.nn.hard_swish,
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
    Ioffe & Szegedy 2015. In training `cnn.ops.norm.forced` has it take groups of examples, or the running statistics.
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
        groups, measured = statistics()
        if self.use_running_average or not groups:
            multiplier = jax.lax.rsqrt(var.value + self.epsilon) * scale.astype(wide)
            y = (x.astype(wide) - mean.value) * multiplier + bias.astype(wide)
            return y.astype(self.dtype)
        y, batch_mean, batch_var = grouped_batch_norm(x.astype(self.dtype), scale, bias, self.epsilon, groups)
        momentum = 0 if measured else self.momentum
        if not self.is_initializing():
            for running, current in ((mean, batch_mean), (var, batch_var)):
                running.value = momentum * running.value + (1 - momentum) * current.astype(wide)
        return y


def norm_layer(
    kind: str, *, train: bool, dtype: Dtype, param_dtype: Dtype, momentum: float = 0.9, epsilon: float = 1e-5
) -> Callable[..., Callable]:
    """What a network hands to its blocks to build normalisations from, called with `name`, and `scale_init` if need be.

    `kind`: 'batch'; 'group' (Wu & He 2018, with 8 channels a group so that narrow networks have it too, or the greatest
    common divisor of 8 and the channels); 'layer' (over the channels of each position, as ConvNeXt has it); 'none'.
    Raises InputError for another kind.
    """
    types = {'dtype': dtype, 'param_dtype': param_dtype}

    def group(name: str | None = None, **options: Any) -> Callable[[jax.Array], jax.Array]:
        def normalize(x: jax.Array) -> jax.Array:
            size = math.gcd(x.shape[-1], 8)
            return nn.GroupNorm(None, size, epsilon=epsilon, name=name, **types, **options)(x)

        return normalize

    kinds: dict[str, Callable[..., Callable]] = {
        'batch': functools.partial(
            BatchNorm, use_running_average=not train, momentum=momentum, epsilon=epsilon, **types
        ),
        'group': group,
        'layer': functools.partial(nn.LayerNorm, epsilon=epsilon, **types),
        'none': lambda name=None, scale_init=None: lambda x: x,
    }
    if kind not in kinds:
        raise nearest('norm', kind, kinds)
    return kinds[kind]


PADDINGS = ('symmetric', 'SAME')
# As PyTorch's kaiming_normal_(mode='fan_out') (He et al. 2015, section 2.2).
he_normal_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def conv_layer(
    padding: str, *, dtype: Dtype, param_dtype: Dtype, kernel_init: Callable[..., jax.Array] = he_normal_fan_out
) -> Callable[..., nn.Module]:
    """What a network hands to its blocks to build square 2-D convolutions from.

    It is called with features, kernel_size, stride, and by keyword groups, dilation, use_bias (default: none), name and
    `pad`, the zeros on each side where `padding` does not say: 'symmetric', as PyTorch pads, or 'SAME', as TensorFlow.
    They differ in their values at strides of 2. Raises InputError for another padding.
    """
    if padding not in PADDINGS:
        raise nearest('padding', padding, PADDINGS)

    def build(
        features: int,
        kernel_size: int,
        stride: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        use_bias: bool = False,
        pad: int | None = None,
        **options: Any,
    ) -> nn.Module:
        pads = (kernel_size - 1) * dilation // 2 if padding == 'symmetric' else 'SAME'
        return Conv(
            features,
            (kernel_size, kernel_size),
            strides=(stride, stride),
            padding=pads if pad is None else pad,
            kernel_dilation=(dilation, dilation),
            feature_group_count=groups,
            use_bias=use_bias,
            **{'dtype': dtype, 'param_dtype': param_dtype, 'kernel_init': kernel_init, **options},
        )

    return build


class ConvNorm(nn.Module):
    """A convolution, its normalisation and an activation: [N, H, W, C] -> [N, H / stride, W / stride, features]."""

    features: int
    kernel_size: int
    conv: Callable[..., nn.Module]  # of conv_layer
    norm: Callable[..., Callable]  # of norm_layer
    activation: Callable[[jax.Array], jax.Array] = lambda x: x
    stride: int = 1
    groups: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = self.conv(
            self.features, self.kernel_size, self.stride, groups=self.groups, dilation=self.dilation, name='conv'
        )
        return self.activation(self.norm(name='norm')(conv(x)))


def round_channels(channels: float) -> int:
    """The nearest multiple of 8 that is at least 8 and not below nine tenths of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class SqueezeExcite(nn.Module):
    """Each channel times a gate that all channels' means decide (Hu et al. 2018, figure 2): [N, *S, C].

    `width` is that of the hidden layer.
    """

    width: int
    conv: Callable[..., nn.Module]  # of conv_layer
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu
    gate: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        means = x.mean(range(1, x.ndim - 1), keepdims=True)  # [N, 1, 1, C]
        hidden = self.activation(self.conv(self.width, 1, use_bias=True, name='reduce')(means))
        return x * self.gate(self.conv(x.shape[-1], 1, use_bias=True, name='expand')(hidden))


class Attention(nn.Module):
    """Each position's mean of all positions' values, weighted by how its query matches their keys: [N, T, C].

    The result is [N, T, width]. Queries, keys and values come from one dense layer, in this order, each of them head by
    head; the weights are computed in at least float32. `bias` [heads, T, T] is added to the scores of queries with
    keys. Raises InputError for heads that do not divide the width. Vaswani et al. 2017, section 3.2.
    """

    width: int
    heads: int
    dense: Callable[..., nn.Module]  # called with features and `name`
    dropout: float = 0.0  # of the weights

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array | None = None, *, train: bool) -> jax.Array:
        if self.width % self.heads:
            raise InputError(f'attention: {self.heads} heads do not divide a width of {self.width}; change either')
        length = x.shape[1]
        x = self.dense(3 * self.width, name='qkv')(x)
        query, key, value = jnp.moveaxis(x.reshape(-1, length, 3, self.heads, self.width // self.heads), 2, 0)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        scores = jnp.einsum('nqhd,nkhd->nhqk', query, key, preferred_element_type=wide) / math.sqrt(query.shape[-1])
        weights = jax.nn.softmax(scores if bias is None else scores + bias)
        weights = nn.Dropout(self.dropout)(weights, deterministic=not train)
        x = jnp.einsum('nhqk,nkhd->nqhd', weights.astype(x.dtype), value)
        return self.dense(self.width, name='out')(x.reshape(-1, length, self.width))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training a residual branch is left out of this share of the examples.

    Kept branches are divided by the share that is kept.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dropout(self.rate, broadcast_dims=range(1, x.ndim))(x, deterministic=not train)


POOLS = ('max', 'average', 'conv', 'blur')


class Pool(nn.Module):
    """Makes a map smaller: [N, H, W, C] -> [N, H / stride, W / stride, C].

    `kind`: 'max'; 'average', of what is inside the map; 'conv', a convolution with that stride; 'blur', a max pool of
    stride 1 and a binomial filter with the stride (Zhang 2019, figure 4). Raises InputError for another kind.
    """

    kind: str
    window: int
    stride: int
    conv: Callable[..., nn.Module]  # of conv_layer
    pad: int | None = None  # on each side; None: what makes the size a stride-th, as TensorFlow's SAME

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kind not in POOLS:
            raise nearest('pool', self.kind, POOLS)
        window, strides = (self.window, self.window), (self.stride, self.stride)
        pads = 'SAME' if self.pad is None else ((self.pad, self.pad),) * 2
        if self.kind == 'max':
            return max_pool(x, window, strides, pads)
        if self.kind == 'average':
            return avg_pool(x, window, strides, pads, count_include_pad=False)
        if self.kind == 'conv':
            return self.conv(x.shape[-1], self.window, self.stride, pad=self.pad, name='conv')(x)
        binomial = np.array([1, 2, 1]) / 4
        kernel = jnp.asarray(np.outer(binomial, binomial)[..., None, None], x.dtype)
        kernel = jnp.broadcast_to(kernel, (3, 3, 1, x.shape[-1]))
        return conv(max_pool(x, window, (1, 1), pads), kernel, strides, [(1, 1), (1, 1)], groups=x.shape[-1])


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

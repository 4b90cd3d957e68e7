"""A plain stack of layers in which every textbook choice is an option: what ablations of a CNN are made with.

Kinds of layer: a convolution; a depthwise-separable one (Howard et al. 2017, figure 2); one with weights of its own at
each position (locally connected: LeCun 1989, Gregor & LeCun 2010); a dense layer over the whole map.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError, nearest
from cnn.layers import POOLS, ConvNorm, Pool, activation, conv_layer, norm_layer
from cnn.models import Variant

Dtype = Any
KINDS = ('conv', 'separable', 'local', 'dense')
BETWEEN = (*POOLS, 'stride', 'none')
SUMMARIES = ('mean', 'max', 'flatten')
he_normal = nn.initializers.he_normal()


class LocalConv(nn.Module):
    """A convolution, with zeros around, whose weights are not shared: [N, H, W, C] -> [N, H, W, features].

    The kernel is [H, W, kernel_size ** 2 C, features], so that it fits one size of map.
    """

    features: int
    kernel_size: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, height, width, channels = x.shape
        init = nn.initializers.variance_scaling(2.0, 'fan_in', 'truncated_normal', batch_axis=(0, 1))
        shape = (height, width, self.kernel_size**2 * channels, self.features)
        kernel = self.param('kernel', init, shape, self.param_dtype)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        before, after = (self.kernel_size - 1) // 2, self.kernel_size // 2
        # With positions first the product is one of matrices, [N, taps C] by [taps C, features], for each position.
        padded = jnp.pad(jnp.moveaxis(x, 0, 2), ((before, after), (before, after), (0, 0), (0, 0)))
        taps = range(self.kernel_size)
        seen = [padded[row : row + height, column : column + width] for row in taps for column in taps]
        return jnp.moveaxis(jnp.concatenate(seen, axis=-1) @ kernel, 2, 0)


class DenseMap(nn.Module):
    """A dense layer from a whole map to a whole map: [N, H, W, C] -> [N, H, W, features]."""

    features: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*x.shape[:3], self.features)
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        dense = nn.Dense(shape[1] * shape[2] * shape[3], use_bias=False, kernel_init=he_normal, name='dense', **types)
        return dense(x.reshape(len(x), -1)).reshape(shape)


class PlainCNN(nn.Module):
    """Stages of equal layers, each normalised and activated, a pool between stages, a summary, dense layers, the head.

    Takes images [N, H, W, C]; returns [N, num_outputs], or what enters the head. Raises InputError for unknown options
    and images that the pools leave nothing of.
    """

    num_outputs: int | None
    widths: tuple[int, ...] = (32, 64, 128)  # channels of each stage
    layers: tuple[str, ...] = ('conv', 'conv', 'conv')  # of each stage: conv, separable, local, dense
    depth: int = 1  # layers of each stage
    kernel_size: int = 3
    pool: str = 'max'  # between stages: max, average, blur; conv: a strided layer; stride: of the layer before; none
    summary: str = 'mean'  # of the last map: mean, max, flatten
    hidden: tuple[int, ...] = ()  # dense layers after it
    dropout: float = 0.0  # before each dense layer after the summary, the head too
    norm: str = 'batch'
    activation: str = 'relu'
    linear_stack: bool = False  # of the layers of a stage only the last is activated
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.param_dtype)
        self.dense = [dense(width, kernel_init=he_normal) for width in self.hidden]
        self.drop = nn.Dropout(self.dropout)
        if self.num_outputs is not None:
            self.head = dense(self.num_outputs)

    @nn.compact
    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The map of each stage, before the pool that follows."""
        self._check(x)
        conv = conv_layer('symmetric', dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=he_normal)
        norm = norm_layer(self.norm, train=train, dtype=self.dtype, param_dtype=self.param_dtype)
        act = activation(self.activation)
        maps, stride = {}, 1
        for stage, (kind, width) in enumerate(zip(self.layers, self.widths, strict=True), start=1):
            if stage > 1 and self.pool == 'conv':
                x = self._layer(x, 'conv', x.shape[-1], 2, conv, norm, act, f'pool{stage - 1}')
                stride *= 2
            elif stage > 1 and self.pool not in ('stride', 'none'):
                x, stride = Pool(self.pool, 2, 2, conv, 0, name=f'pool{stage - 1}')(x), 2 * stride
            for layer in range(self.depth):
                last = layer == self.depth - 1
                strides = self.pool == 'stride' and last and stage < len(self.widths)
                own = act if last or not self.linear_stack else lambda x: x
                x = self._layer(x, kind, width, 1 + strides, conv, norm, own, f'stage{stage}_layer{layer}')
                stride *= 1 + strides
            maps[f'stage{stage}'] = (stride, x)  # [N, H / stride, W / stride, width]
        return maps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        _, x = self.features(x, train=train)[f'stage{len(self.widths)}']
        x = {'mean': lambda x: x.mean((1, 2)), 'max': lambda x: x.max((1, 2)), 'flatten': flatten}[self.summary](x)
        for dense in self.dense:
            x = activation(self.activation)(dense(self.drop(x, deterministic=not train)))
        if self.num_outputs is not None:
            x = self.head(self.drop(x, deterministic=not train))
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _layer(
        self,
        x: jax.Array,
        kind: str,
        width: int,
        stride: int,
        conv: Callable[..., nn.Module],
        norm: Callable[..., Callable],
        act: Callable[[jax.Array], jax.Array],
        name: str,
    ) -> jax.Array:
        """A layer of that kind, its normalisation and activation."""
        if kind in ('conv', 'separable'):
            if kind == 'separable':
                channels = x.shape[-1]
                depthwise = ConvNorm(channels, self.kernel_size, conv, norm, act, stride, channels, name=f'{name}_each')
                x, stride = depthwise(x), 1
            size = 1 if kind == 'separable' else self.kernel_size
            return ConvNorm(width, size, conv, norm, act, stride, name=name)(x)
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        if kind == 'dense':
            x = DenseMap(width, name=name, **types)(x)
        else:
            x = LocalConv(width, self.kernel_size, name=name, **types)(x)
        return act(norm(name=f'{name}_norm')(x))

    def _check(self, x: jax.Array) -> None:
        for option, known in (('pool', BETWEEN), ('summary', SUMMARIES)):
            if getattr(self, option) not in known:
                raise nearest(f'{option} of plain', getattr(self, option), known)
        for kind in self.layers:
            if kind not in KINDS:
                raise nearest('layer of plain', kind, KINDS)
            if self.pool == 'stride' and kind not in ('conv', 'separable'):
                raise InputError(f'plain: pool=stride needs convolutions, not layers={self.layers}')
        if len(self.layers) != len(self.widths):
            raise InputError(f'plain: layers={self.layers} must name a kind for each of widths={self.widths}')
        least = 1 if self.pool == 'none' else 2 ** (len(self.widths) - 1)
        if min(x.shape[1:3]) < least:
            raise InputError(f'plain: {len(self.widths)} stages need an image of {least} pixels a side at least')


def flatten(x: jax.Array) -> jax.Array:
    """[N, ...] as [N, M]."""
    return x.reshape(len(x), -1)


VARIANTS = {
    '': Variant({}, 94_762, (32, 32, 3), 10, 'three 3x3 convolutions, 32-64-128, and the mean over positions'),
}
NETWORK = PlainCNN

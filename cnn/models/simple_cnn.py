"""SimpleCNN: three convolutions and a dense layer, the network to try first."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError
from cnn.layers import Conv, activation, adaptive_average_pool, norm_layer
from cnn.models import Variant
from cnn.ops.pool import max_pool

Dtype = Any


class SimpleCNN(nn.Module):
    """3x3 convolutions with pools between them, a 4x4 adaptive average pool, one hidden dense layer, dropout, head.

    Takes images [N, H, W, C] of any size that survives the pools; returns [N, num_outputs], or [N, hidden].
    """

    num_outputs: int | None
    widths: tuple[int, ...] = (32, 64, 128)
    pools: tuple[bool, ...] = (True, True, False)  # after which convolutions a 2x2 max pool halves the map
    hidden: int = 256
    dropout: float = 0.5
    norm: str = 'none'  # after each convolution: none, batch, group
    activation: str = 'relu'
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.param_dtype)
        self.dense = dense(self.hidden)
        self.drop = nn.Dropout(self.dropout)
        if self.num_outputs is not None:
            self.head = dense(self.num_outputs)

    @nn.compact
    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The map of each convolution, before its pool."""
        if len(self.pools) != len(self.widths):
            raise InputError(
                f'simple_cnn: pools={self.pools} must say for each of widths={self.widths} whether it is pooled'
            )
        if min(x.shape[1:3]) < 2 ** sum(self.pools):
            raise InputError(
                f'simple_cnn: {sum(self.pools)} pools need an input of at least {2 ** sum(self.pools)} pixels a side, '
                f'not {x.shape[1]} x {x.shape[2]}'
            )
        conv = functools.partial(
            Conv, kernel_size=(3, 3), use_bias=self.norm == 'none', dtype=self.dtype, param_dtype=self.param_dtype
        )
        norm = norm_layer(self.norm, train=train, dtype=self.dtype, param_dtype=self.param_dtype)
        act = activation(self.activation)
        maps, stride = {}, 1
        for index, (width, pooled) in enumerate(zip(self.widths, (False, *self.pools[:-1]), strict=True), start=1):
            if pooled:
                x = max_pool(x, window_shape=(2, 2), strides=(2, 2))
                stride *= 2
            x = conv(width, name=f'conv{index}')(x)
            x = act(norm(name=f'norm{index}')(x))
            maps[f'conv{index}'] = (stride, x)  # [N, H / stride, W / stride, width]
        return maps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        _, x = self.features(x, train=train)[f'conv{len(self.widths)}']
        if self.pools[-1]:
            x = max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = adaptive_average_pool(x, (4, 4))
        x = x.reshape(len(x), -1)  # [N, 16 width]
        x = self.drop(activation(self.activation)(self.dense(x)), deterministic=not train)
        if self.num_outputs is not None:
            x = self.head(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))


VARIANTS = {
    '': Variant({}, 620_362, (32, 32, 3), 10, 'three 3x3 convolutions, 32-64-128, and a dense layer of 256'),
}
NETWORK = SimpleCNN

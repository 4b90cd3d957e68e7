"""A multilayer perceptron: what a convolutional network is compared with."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.layers import activation
from cnn.models import Variant

Dtype = Any


class MLP(nn.Module):
    """Dense layers, each followed by an activation and dropout, over the flattened input; then the head.

    Takes [N, ...] and returns [N, num_outputs], or [N, widths[-1]].
    """

    num_outputs: int | None
    widths: tuple[int, ...] = (256,)
    dropout: float = 0.0
    activation: str = 'relu'
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        if self.num_outputs is not None:
            self.head = nn.Dense(self.num_outputs, dtype=self.dtype, param_dtype=self.param_dtype)

    @nn.compact
    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """Each hidden layer as a map [N, 1, 1, width] of one position, whose stride is the height of the input."""
        dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.param_dtype)
        stride = x.shape[1]
        x = x.reshape(len(x), 1, 1, -1)
        maps = {'input': (stride, x)}
        for index, width in enumerate(self.widths, start=1):
            x = activation(self.activation)(dense(width, name=f'dense{index}')(x))
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
            maps[f'dense{index}'] = (stride, x)
        return maps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        *_, (_, x) = self.features(x, train=train).values()
        x = x.reshape(len(x), -1)
        if self.num_outputs is not None:
            x = self.head(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))


VARIANTS = {
    '': Variant({}, 789_258, (32, 32, 3), 10, 'one hidden layer of 256'),
}
NETWORK = MLP

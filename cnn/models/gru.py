"""Gated recurrent units (Cho et al. 2014, section 2.3) over an image as a sequence: a baseline without convolutions.

The reset gate acts on the product with the state, as in cuDNN and PyTorch, and not on the state before it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError, nearest
from cnn.models import Variant

Dtype = Any
READS = ('rows', 'pixels')
SUMMARIES = ('last', 'mean')


class GRU(nn.Module):
    """Layers of gated units over an image as a sequence, a summary of the last one's states, the head.

    Takes [N, H, W, C], as a sequence of H rows of W C numbers or of H W pixels, row by row, of C; returns
    [N, num_outputs], or what enters the head: [N, width], or [N, 2 width] where each layer reads in both directions.
    Parameters fit the width of image that they were made for where it is read by rows. Raises InputError for unknown
    options.
    """

    num_outputs: int | None
    reads: str = 'rows'  # or pixels
    width: int = 128  # of the state, in each direction
    depth: int = 1  # layers
    bidirectional: bool = False
    summary: str = 'last'  # state of each direction; or mean, over the sequence
    dropout: float = 0.0  # of what enters each layer but the first, and the head
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.drop = nn.Dropout(self.dropout)
        if self.num_outputs is not None:
            self.head = nn.Dense(self.num_outputs, dtype=self.dtype, param_dtype=self.param_dtype)

    @nn.compact
    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The states of each layer, as a map [N, H, W, C] of pixels or [N, H, 1, C] of rows."""
        self._check()
        cell = functools.partial(nn.GRUCell, self.width, dtype=self.dtype, param_dtype=self.param_dtype, parent=None)
        count, height, width, channels = x.shape
        grid, length = ((height, 1), width * channels) if self.reads == 'rows' else ((height, width), channels)
        x = x.reshape(count, -1, length)
        # The state is at least float32: many small changes add up in it.
        start = jnp.zeros((count, self.width), jnp.promote_types(self.dtype, jnp.float32))
        maps = {}
        for index in range(1, self.depth + 1):
            if index > 1:
                x = self.drop(x, deterministic=not train)
            directions = [
                nn.RNN(cell(), reverse=reverse, keep_order=True, name=f'layer{index}' + '_reverse' * reverse)
                for reverse in (False, True)[: 1 + self.bidirectional]
            ]
            states: list[Any] = [read(x, initial_carry=start) for read in directions]
            x = jnp.concatenate(states, axis=-1).astype(self.dtype)  # [N, T, width or 2 width]
            maps[f'layer{index}'] = (1, x.reshape(count, *grid, -1))
        return maps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        _, states = self.features(x, train=train)[f'layer{self.depth}']
        states = states.reshape(len(x), -1, states.shape[-1])
        if self.summary == 'mean':
            x = states.mean(1)
        else:
            x = jnp.concatenate([states[:, -1, : self.width], states[:, 0, self.width :]], axis=-1)
        if self.num_outputs is not None:
            x = self.head(self.drop(x, deterministic=not train))
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _check(self) -> None:
        for option, known in (('reads', READS), ('summary', SUMMARIES)):
            if getattr(self, option) not in known:
                raise nearest(f'{option} of gru', getattr(self, option), known)
        if self.depth < 1:
            raise InputError(f'gru: depth={self.depth}: it needs a layer at least')


VARIANTS = {
    '': Variant({}, 61_706, (28, 28, 1), 10, 'one layer of 128 units, which reads 28 rows of 28 pixels'),
}
NETWORK = GRU

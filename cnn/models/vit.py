"""Vision transformers (Dosovitskiy et al. 2021, An Image Is Worth 16x16 Words), figure 1.

The small and the tiny one: Touvron et al. 2021 (DeiT), table 1. The mean over positions instead of a class token:
Beyer et al. 2022, Better Plain ViT Baselines for ImageNet-1k.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError, nearest
from cnn.layers import Attention, DropPath, activation, conv_layer, norm_layer
from cnn.models import Variant

Dtype = Any
POOLS = ('token', 'mean')


class Block(nn.Module):
    """Attention between positions, then a perceptron at each, both around what they are added to: [N, T, C]."""

    heads: int
    mlp_width: int
    dropout: float
    attention_dropout: float
    drop_path: float
    dense: Callable[..., nn.Module]
    norm: Callable[..., Callable]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = x.shape[-1]
        dropout = functools.partial(nn.Dropout(self.dropout), deterministic=not train)
        small = nn.initializers.normal(1e-6)

        y = self.norm(name='norm1')(x)
        y = Attention(width, self.heads, self.dense, self.attention_dropout, name='attention')(y, train=train)
        x = x + DropPath(self.drop_path)(dropout(y), train=train)

        y = self.norm(name='norm2')(x)
        y = dropout(self.activation(self.dense(self.mlp_width, bias_init=small, name='dense1')(y)))
        y = dropout(self.dense(width, bias_init=small, name='dense2')(y))
        return x + DropPath(self.drop_path)(y, train=train)


class VisionTransformer(nn.Module):
    """Patches as tokens, a class token before them, learned positions, blocks, a normalisation, a dense layer.

    Takes images [N, H, W, C] of which the patch size divides H and W; returns [N, num_outputs], or the class token
    [N, width]. Parameters hold a position for each patch, and so fit the size of image that they were made for. Raises
    InputError for unknown options and sizes that do not divide.
    """

    num_outputs: int | None
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    pool: str = 'token'  # or mean, over all positions, without a class token
    position_embedding: bool = True
    dropout: float = 0.0  # of the tokens, and after each dense layer of the blocks
    attention_dropout: float = 0.0  # of the weights of attention
    drop_path: float = 0.0  # of the last block, growing from 0 linearly
    norm: str = 'layer'
    norm_epsilon: float = 1e-6
    activation: str = 'gelu'
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        if self.num_outputs is not None:
            zeros = nn.initializers.zeros
            self.head = nn.Dense(self.num_outputs, kernel_init=zeros, dtype=self.dtype, param_dtype=self.param_dtype)

    @nn.compact
    def _encode(self, x: jax.Array, train: bool) -> tuple[dict[str, tuple[int, jax.Array]], jax.Array]:
        """The maps, and what enters the head."""
        self._check(x)
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        conv = conv_layer('symmetric', kernel_init=nn.initializers.lecun_normal(), **types)
        dense = functools.partial(nn.Dense, kernel_init=nn.initializers.glorot_uniform(), **types)
        norm = norm_layer(self.norm, train=train, epsilon=self.norm_epsilon, **types)

        x = conv(self.width, self.patch_size, self.patch_size, pad=0, use_bias=True, name='patch_embedding')(x)
        maps = {'stem': (self.patch_size, x)}  # [N, H / patch_size, W / patch_size, width]
        shape = x.shape
        x = x.reshape(len(x), -1, self.width)  # [N, T, width]
        if self.pool == 'token':
            token = self.param('class_token', nn.initializers.zeros, (1, 1, self.width), self.param_dtype)
            x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (len(x), 1, self.width)), x], axis=1)
        if self.position_embedding:
            init = nn.initializers.normal(0.02)
            x = x + self.param('position_embedding', init, (1, *x.shape[1:]), self.param_dtype).astype(x.dtype)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        patches = slice(int(self.pool == 'token'), None)

        for block in range(1, self.depth + 1):
            x = Block(
                self.heads,
                self.mlp_width,
                self.dropout,
                self.attention_dropout,
                self.drop_path * (block - 1) / max(self.depth - 1, 1),
                dense,
                norm,
                activation(self.activation),
                name=f'block{block}',
            )(x, train=train)
            maps[f'block{block}'] = (self.patch_size, x[:, patches].reshape(shape))
        x = norm(name='norm')(x)
        return maps, x[:, 0] if self.pool == 'token' else x.mean(1)

    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The map of the patches, and of each block, without the class token and before the last normalisation."""
        maps, _ = self._encode(x, train)
        return maps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        _, x = self._encode(x, train)
        if self.num_outputs is not None:
            x = self.head(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _check(self, x: jax.Array) -> None:
        if self.pool not in POOLS:
            raise nearest('pool of vit', self.pool, POOLS)
        height, width = x.shape[1:3]
        if height % self.patch_size or width % self.patch_size:
            raise InputError(
                f'vit: patches of {self.patch_size} do not tile an image of {height}x{width}; change its size or '
                f'patch_size'
            )


IMAGENET = (224, 224, 3)
SMALL = 'Touvron et al. 2021, table 1'
VARIANTS = {
    'b_16': Variant(
        {},
        86_567_656,
        IMAGENET,
        1000,
        'Dosovitskiy et al. 2021, table 1',
        multiply_adds=16_848_500_736,
        accuracy=(81.072,),
    ),
    's_16': Variant({'width': 384, 'heads': 6, 'mlp_width': 1536}, 22_050_664, IMAGENET, 1000, SMALL),
    'ti_16': Variant({'width': 192, 'heads': 3, 'mlp_width': 768}, 5_717_416, IMAGENET, 1000, SMALL),
}
NETWORK = VisionTransformer

"""U-Net (Ronneberger et al. 2015, U-Net: Convolutional Networks for Biomedical Image Segmentation)."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError, nearest
from cnn.layers import Conv, ConvTranspose, center_crop, norm_layer
from cnn.models import Variant
from cnn.ops.pool import max_pool

Dtype = Any


class Block(nn.Module):
    """Two 3x3 convolutions, each normalised and rectified: [N, H, W, C] -> [N, H, W, width], less 4 a side if valid."""

    width: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., Callable]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for index in (1, 2):
            x = self.conv(self.width, name=f'conv{index}')(x)
            x = nn.relu(self.norm(name=f'norm{index}')(x))
        return x


class UNet(nn.Module):
    """A contracting and an expanding path, joined at each resolution: a class for every pixel.

    Takes images [N, H, W, C], returns [N, H', W', num_outputs], or the last map [N, H', W', width]. With padding SAME
    H' = H, which 2**depth must divide; with VALID it is `output_size(H)`, and the map lies in the middle of the image.

    Raises InputError for a size that can't be halved at each level, and for unknown options.
    """

    num_outputs: int | None
    width: int = 64  # of the finest level; each level down doubles it
    depth: int = 4  # number of halvings
    padding: str = 'SAME'  # SAME, or VALID as in the paper
    norm: str = 'batch'  # after each convolution: batch, group, none
    up: str = 'transposed'  # transposed 2x2 convolution; or nearest neighbours, then a 3x3 convolution
    dropout: float = 0.0  # at the end of the contracting path: on its two coarsest maps
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        if self.num_outputs is not None:
            self.head = Conv(self.num_outputs, (1, 1), dtype=self.dtype, param_dtype=self.param_dtype)

    @nn.compact
    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The map of each level of the expanding path, finest first; the last one is the bottleneck."""
        self._check(x.shape)
        conv = functools.partial(Conv, kernel_size=(3, 3), dtype=self.dtype, param_dtype=self.param_dtype)
        block = functools.partial(
            Block,
            conv=functools.partial(
                conv, padding=self.padding, use_bias=self.norm == 'none', kernel_init=nn.initializers.he_normal()
            ),
            norm=norm_layer(self.norm, train=train, dtype=self.dtype, param_dtype=self.param_dtype),
        )
        transposed = functools.partial(
            ConvTranspose,
            kernel_size=(2, 2),
            strides=(2, 2),
            kernel_init=nn.initializers.lecun_normal(batch_axis=(0, 1)),  # each output sees one of the four positions
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

        def upsample(x: jax.Array, level: int) -> jax.Array:
            width, name = self.width * 2**level, f'up{level}'
            if self.up == 'transposed':
                return transposed(width, name=name)(x)
            return conv(width, padding='SAME', name=name)(x.repeat(2, axis=1).repeat(2, axis=2))

        skips = []
        for level in range(self.depth + 1):
            if level:
                x = max_pool(x, window_shape=(2, 2), strides=(2, 2))
            x = block(self.width * 2**level, name=f'encoder{level}')(x)
            if level >= self.depth - 1:
                x = nn.Dropout(self.dropout)(x, deterministic=not train)
            skips.append(x)  # [N, H / 2**level, W / 2**level, width 2**level]
        maps = {f'level{self.depth}': (2**self.depth, x)}
        for level in reversed(range(self.depth)):
            x = upsample(x, level)
            x = jnp.concatenate([center_crop(skips[level], x.shape), x], axis=-1)
            x = block(self.width * 2**level, name=f'decoder{level}')(x)
            maps[f'level{level}'] = (2**level, x)
        return dict(reversed(maps.items()))

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        _, x = self.features(x, train=train)['level0']
        if self.num_outputs is not None:
            x = self.head(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))

    def output_size(self, size: int) -> int:
        """The side of the output for a side of the input; 0 where the input does not fit."""
        lost = 4 if self.padding == 'VALID' else 0  # by the two convolutions of a block
        for _ in range(self.depth):
            size -= lost
            if size <= 0 or size % 2:
                return 0
            size //= 2
        for _ in range(self.depth):
            size = 2 * (size - lost)
        return max(size - lost, 0)

    def _check(self, shape: tuple[int, ...]) -> None:
        for option, choices in (('padding', ('SAME', 'VALID')), ('up', ('transposed', 'nearest'))):
            if getattr(self, option) not in choices:
                raise nearest(f'{option} of unet', getattr(self, option), choices)
        for size in shape[1:3]:
            if not self.output_size(size):
                fitting = next(larger for larger in itertools.count(size) if self.output_size(larger))
                raise InputError(
                    f'unet of depth {self.depth} with padding {self.padding} does not fit an input of '
                    f'{shape[1]} x {shape[2]}: {size} can not be halved so often; the next size that can is {fitting}'
                )


VARIANTS = {
    '': Variant({}, 31_037_698, (256, 256, 3), 2, 'Ronneberger et al. 2015, padded and with batch normalisation'),
    '2015': Variant(
        {'padding': 'VALID', 'norm': 'none', 'dropout': 0.5},
        31_030_658,
        (572, 572, 1),
        2,
        'Ronneberger et al. 2015, section 2 and figure 1',
    ),
}
NETWORK = UNet

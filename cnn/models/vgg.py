"""VGG (Simonyan & Zisserman 2015, Very Deep Convolutional Networks for Large-Scale Image Recognition)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError
from cnn.layers import Pool, SqueezeExcite, activation, adaptive_average_pool, conv_layer, norm_layer
from cnn.models import Variant

Dtype = Any


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each ended by a 2x2 pool, an adaptive average pool, dense layers with dropout.

    Takes images [N, H, W, C] that survive the pools, 32 x 32 by default; returns [N, num_outputs], or [N, hidden].
    Raises InputError for unknown options and smaller images.
    """

    num_outputs: int | None
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)  # convolutions of each stage
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    width_multiplier: float = 1.0  # of the convolutions
    norm: str = 'none'
    use_bias: bool = True  # of the convolutions; published forms with batch normalisation keep them, to no effect
    squeeze_excite: float = 0.0  # width of its hidden layer by the channels, after each activation (Hu et al. 2018)
    pool: str = 'max'  # max, average, conv, blur
    grid: int = 7  # side of the adaptive average pool
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5  # after each hidden layer
    activation: str = 'relu'
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        dense = functools.partial(
            nn.Dense, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, param_dtype=self.param_dtype
        )
        self.dense = [dense(width) for width in self.hidden]
        self.drop = nn.Dropout(self.dropout)
        if self.num_outputs is not None:
            self.head = dense(self.num_outputs)

    @nn.compact
    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The map of each stage before its pool, and of the last pool."""
        self._check(x.shape)
        conv = conv_layer('symmetric', dtype=self.dtype, param_dtype=self.param_dtype)
        norm = norm_layer(self.norm, train=train, dtype=self.dtype, param_dtype=self.param_dtype)
        act = activation(self.activation)
        maps, stride = {}, 1
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), start=1):
            width = round(width * self.width_multiplier)
            for index in range(1, depth + 1):
                x = conv(width, 3, use_bias=self.use_bias, name=f'stage{stage}_conv{index}')(x)
                x = act(norm(name=f'stage{stage}_norm{index}')(x))
                if self.squeeze_excite:
                    hidden = round(self.squeeze_excite * width)
                    x = SqueezeExcite(hidden, conv, name=f'stage{stage}_squeeze_excite{index}')(x)
            maps[f'stage{stage}'] = (stride, x)  # [N, H / stride, W / stride, width]
            x, stride = Pool(self.pool, 2, 2, conv, pad=0, name=f'stage{stage}_pool')(x), 2 * stride
        return maps | {'pool': (stride, x)}  # [N, H / 32, W / 32, width]

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        _, x = self.features(x, train=train)['pool']
        x = adaptive_average_pool(x, (self.grid, self.grid))
        x = x.reshape(len(x), -1)  # [N, grid**2 width]
        for dense in self.dense:
            x = activation(self.activation)(dense(x))
            x = self.drop(x, deterministic=not train)
        if self.num_outputs is not None:
            x = self.head(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(self.depths) != len(self.widths):
            raise InputError(f'vgg: depths={self.depths} must be as many as widths={self.widths}, one a stage')
        if self.dropout and not self.hidden:
            raise InputError('vgg: dropout acts after hidden layers, of which there are none: set dropout=0')
        side = 2 ** len(self.depths)
        if min(shape[1:3]) < side:
            raise InputError(
                f'vgg: {len(self.depths)} pools need images of at least {side} x {side}, not {shape[1]} x {shape[2]}'
            )


def imagenet(
    configuration: str, depths: tuple[int, ...], multiply_adds: int, plain: tuple[int, float], batch: tuple[int, float]
) -> dict[str, Variant]:
    """A configuration of table 1 without and with batch normalisation: parameters and top-1 of each."""
    source = f'Simonyan & Zisserman 2015, table 1, configuration {configuration}'
    name = str(sum(depths) + 3)
    return {
        key: Variant(
            fields, parameters, (224, 224, 3), 1000, source + more, multiply_adds=multiply_adds, accuracy=(top,)
        )
        for key, fields, (parameters, top), more in (
            (name, {'depths': depths}, plain, ''),
            (f'{name}_bn', {'depths': depths, 'norm': 'batch'}, batch, ', with batch normalisation'),
        )
    }


VARIANTS = {
    **imagenet('A', (1, 1, 2, 2, 2), 7_609_090_048, (132_863_336, 69.020), (132_868_840, 70.370)),
    **imagenet('B', (2, 2, 2, 2, 2), 11_308_466_176, (133_047_848, 69.928), (133_053_736, 71.586)),
    **imagenet('D', (2, 2, 3, 3, 3), 15_470_264_320, (138_357_544, 71.592), (138_365_992, 73.360)),
    **imagenet('E', (2, 2, 4, 4, 4), 19_632_062_464, (143_667_240, 72.376), (143_678_248, 74.218)),
}
NETWORK = VGG

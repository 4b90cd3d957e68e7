"""SqueezeNet (Iandola et al. 2016, AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError, nearest
from cnn.layers import DropPath, Pool, SqueezeExcite, activation, conv_layer, norm_layer
from cnn.models import Variant

Dtype = Any
BYPASSES = ('none', 'simple', 'complex')


class Fire(nn.Module):
    """1x1 filters that squeeze the channels, then 1x1 and 3x3 filters side by side (figure 1): [N, H, W, width]."""

    squeeze: int
    width: int
    width3x3: int  # of it
    bypass: str
    squeeze_excite: float
    drop_path: float
    use_bias: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., Callable]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self._layer(x, self.squeeze, 1, 'squeeze')
        parts = [
            self._layer(y, self.width - self.width3x3, 1, 'expand1x1'),
            self._layer(y, self.width3x3, 3, 'expand3x3'),
        ]
        y = jnp.concatenate(parts, -1)
        if self.squeeze_excite:
            y = SqueezeExcite(round(self.squeeze_excite * self.width), self.conv, name='squeeze_excite')(y)
        if self.bypass == 'none' or (self.bypass == 'simple' and x.shape[-1] != self.width):
            return y
        if x.shape[-1] != self.width:
            x = self.conv(self.width, 1, use_bias=True, name='bypass')(x)
        return DropPath(self.drop_path)(y, train=train) + x

    def _layer(self, x: jax.Array, features: int, kernel_size: int, name: str) -> jax.Array:
        x = self.conv(features, kernel_size, use_bias=self.use_bias, name=name)(x)
        return self.activation(self.norm(name=f'{name}_norm')(x))


def odd_sides(x: jax.Array) -> jax.Array:
    """[N, H, W, C] with the last position of even sides repeated, so that windows of 3 at strides of 2 hold it.

    Their maxima are those of Caffe, and of PyTorch's ceil_mode, whose last windows end beyond the map.
    """
    return jnp.pad(x, ((0, 0), *((0, 1 - side % 2) for side in x.shape[1:3]), (0, 0)), mode='edge')


class SqueezeNet(nn.Module):
    """A convolution, fire modules with pools between them, and a 1x1 convolution whose maps' means are the outputs.

    Takes images [N, H, W, C] of at least 21 x 21 (1.1: 17 x 17); returns [N, num_outputs], or the means of the last
    fire module's maps. Fire modules count from 2, as in the paper. Raises InputError for unknown options and smaller
    images.
    """

    num_outputs: int | None
    widths: tuple[int, ...] = (128, 128, 256, 256, 384, 384, 512, 512)  # of the fire modules
    width_multiplier: float = 1.0  # of all
    stem_width: int = 96
    stem_kernel_size: int = 7  # its stride is 2
    pool_after: tuple[int, ...] = (1, 4, 8)  # the convolution is 1
    squeeze_ratio: float = 0.125  # filters that squeeze, by the width (section 5.2)
    share_3x3: float = 0.5  # of the expanding filters (section 5.3)
    bypass: str = 'none'  # simple: around modules that keep the width; complex: 1x1 convolutions around the others too
    squeeze_excite: float = 0.0  # width of its hidden layer by the channels, after each fire module
    drop_path: float = 0.0  # of the last module, growing from 0 linearly; of those with a bypass
    norm: str = 'none'  # after each convolution but the last
    pool: str = 'max'  # max, average, conv, blur
    dropout: float = 0.5  # before the last convolution
    activation: str = 'relu'
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.drop = nn.Dropout(self.dropout)
        if self.num_outputs is not None:
            self.head = self._conv()(self.num_outputs, 1, use_bias=True, kernel_init=nn.initializers.normal(0.01))

    @nn.compact
    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The map of the convolution, of each fire module that a pool follows, and of the last one."""
        self._check(x.shape)
        conv = self._conv()
        norm = norm_layer(self.norm, train=train, dtype=self.dtype, param_dtype=self.param_dtype)
        act = activation(self.activation)
        use_bias, stem = self.norm == 'none', round(self.stem_width * self.width_multiplier)
        x = conv(stem, self.stem_kernel_size, 2, pad=0, use_bias=use_bias, name='conv1')(x)
        x = act(norm(name='norm1')(x))
        maps, stride = {'conv1': (2, x)}, 2
        for index, width in enumerate(self.widths, start=2):
            if index - 1 in self.pool_after:
                x, stride = Pool(self.pool, 3, 2, conv, pad=0, name=f'pool{index - 1}')(odd_sides(x)), 2 * stride
            width = round(width * self.width_multiplier)
            x = Fire(
                round(self.squeeze_ratio * width),
                width,
                round(self.share_3x3 * width),
                self.bypass,
                self.squeeze_excite,
                self.drop_path * (index - 2) / max(len(self.widths) - 1, 1),
                use_bias,
                conv,
                norm,
                act,
                name=f'fire{index}',
            )(x, train=train)
            if index in (*self.pool_after, len(self.widths) + 1):
                maps[f'fire{index}'] = (stride, x)  # [N, H / stride, W / stride, width]
        return maps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        _, x = self.features(x, train=train)[f'fire{len(self.widths) + 1}']
        x = self.drop(x, deterministic=not train)
        if self.num_outputs is not None:
            x = activation(self.activation)(self.head(x))
        return x.mean((1, 2)).astype(jnp.promote_types(self.dtype, jnp.float32))

    def _conv(self) -> Callable[..., nn.Module]:
        init = nn.initializers.he_uniform()
        return conv_layer('symmetric', dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=init)

    def _check(self, shape: tuple[int, ...]) -> None:
        if self.bypass not in BYPASSES:
            raise nearest('bypass of squeezenet', self.bypass, BYPASSES)
        if self.drop_path and self.bypass == 'none':
            raise InputError('squeezenet: drop_path needs a bypass, without which nothing is left: set bypass=simple')
        if not set(self.pool_after) <= set(range(1, len(self.widths) + 1)):
            raise InputError(
                f'squeezenet: pool_after={self.pool_after} must name layers from 1, the convolution, to '
                f'{len(self.widths)}, the last but one fire module'
            )
        for width in self.widths:
            squeeze, width3x3 = round(self.squeeze_ratio * width), round(self.share_3x3 * width)
            if squeeze < 1 or not 0 < width3x3 < width:
                raise InputError(
                    f'squeezenet: squeeze_ratio={self.squeeze_ratio} and share_3x3={self.share_3x3} leave no filters '
                    f'of one kind in a module of width {width}: both must lie between 0 and 1, and not near them'
                )
        side = 2 * (2 ** len(self.pool_after) - 1) + self.stem_kernel_size
        if min(shape[1:3]) < side:
            raise InputError(
                f'squeezenet needs images of at least {side} x {side}, not {shape[1]} x {shape[2]}: pad or resize them'
            )


IMAGENET = (224, 224, 3)
VARIANTS = {
    '1_0': Variant({}, 1_248_424, IMAGENET, 1000, 'Iandola et al. 2016, table 1', accuracy=(58.092,)),
    '1_1': Variant(
        {'stem_width': 64, 'stem_kernel_size': 3, 'pool_after': (1, 3, 5)},
        1_235_496,
        IMAGENET,
        1000,
        'SqueezeNet 1.1 of its authors, as torchvision has it',
        accuracy=(58.178,),
    ),
}
NETWORK = SqueezeNet

"""ConvNeXt (Liu et al. 2022, A ConvNet for the 2020s), figure 4 and table 9."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError
from cnn.layers import DropPath, activation, conv_layer, norm_layer
from cnn.models import Variant

Dtype = Any


class Block(nn.Module):
    """A depthwise convolution, then a perceptron at each position, around which the input is carried: [N, H, W, C].

    The perceptron's layers are convolutions of size 1, which on CPUs are faster than dense layers on large maps.
    """

    kernel_size: int
    expansion: int
    scale: float
    drop_path: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., Callable]
    activation: Callable[[jax.Array], jax.Array]
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = x.shape[-1]
        y = self.conv(width, self.kernel_size, groups=width, use_bias=True, name='depthwise')(x)
        y = self.norm(name='norm')(y)
        y = self.activation(self.conv(self.expansion * width, 1, use_bias=True, name='expand')(y))
        y = self.conv(width, 1, use_bias=True, name='project')(y)
        if self.scale:
            init = nn.initializers.constant(self.scale)
            y = y * self.param('layer_scale', init, (width,), self.param_dtype).astype(y.dtype)
        return x + DropPath(self.drop_path)(y, train=train)


class ConvNeXt(nn.Module):
    """A stem of patches, stages of blocks with convolutions of stride 2 between, means, a normalisation, a dense layer.

    Takes images [N, H, W, C]; returns [N, num_outputs], or the normalised means [N, features]. What is beyond a
    multiple of a stride is left out. Raises InputError for unknown options, and for images of which nothing is left.
    """

    num_outputs: int | None
    depths: tuple[int, ...] = (3, 3, 9, 3)  # blocks of each stage
    widths: tuple[int, ...] = (96, 192, 384, 768)
    width_multiplier: float = 1.0
    patch_size: int = 4  # of the stem, and its stride
    kernel_size: int = 7  # of the depthwise convolutions
    expansion: int = 4  # of the perceptrons
    layer_scale: float = 1e-6  # its start: a learned factor for each channel of a block's result; 0: none
    drop_path: float = 0.1  # of the last block, growing from 0 linearly
    norm: str = 'layer'
    norm_epsilon: float = 1e-6
    activation: str = 'gelu'
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        if self.num_outputs is not None:
            init = nn.initializers.normal(0.02)
            self.head = nn.Dense(self.num_outputs, kernel_init=init, dtype=self.dtype, param_dtype=self.param_dtype)

    @nn.compact
    def _encode(self, x: jax.Array, train: bool) -> tuple[dict[str, tuple[int, jax.Array]], jax.Array]:
        """The maps, and what enters the head."""
        self._check(x)
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        conv = conv_layer('symmetric', kernel_init=nn.initializers.normal(0.02), **types)
        norm = norm_layer(self.norm, train=train, epsilon=self.norm_epsilon, **types)
        stride, maps = self.patch_size, {}
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), start=1):
            width = round(width * self.width_multiplier)
            if stage == 1:
                x = conv(width, stride, stride, pad=0, use_bias=True, name='stem_conv')(x)
                x = norm(name='stem_norm')(x)
                maps['stem'] = (stride, x)  # [N, H / patch_size, W / patch_size, widths[0]]
            else:
                x = norm(name=f'stage{stage}_norm')(x)
                x = conv(width, 2, 2, pad=0, use_bias=True, name=f'stage{stage}_conv')(x)
                stride *= 2
            for block in range(depth):
                before = sum(self.depths[: stage - 1]) + block
                x = Block(
                    self.kernel_size,
                    self.expansion,
                    self.layer_scale,
                    self.drop_path * before / max(sum(self.depths) - 1, 1),
                    conv,
                    norm,
                    activation(self.activation),
                    self.param_dtype,
                    name=f'stage{stage}_block{block}',
                )(x, train=train)
            maps[f'stage{stage}'] = (stride, x)  # [N, H / stride, W / stride, width]
        return maps, norm(name='norm')(x.mean((1, 2)))

    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The map of the stem and of each stage."""
        maps, _ = self._encode(x, train)
        return maps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        _, x = self._encode(x, train)
        if self.num_outputs is not None:
            x = self.head(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _check(self, x: jax.Array) -> None:
        if len(self.depths) != len(self.widths):
            raise InputError(f'convnext: {len(self.depths)} depths for {len(self.widths)} widths; give one for each')
        if self.kernel_size % 2 == 0:
            raise InputError(f'convnext: kernel_size={self.kernel_size} changes the size of maps; give an odd one')
        least = self.patch_size * 2 ** (len(self.depths) - 1)
        height, width = x.shape[1:3]
        if min(height, width) < least:
            raise InputError(
                f'convnext: nothing is left of an image of {height}x{width}; it needs {least} on each side, or '
                f'a smaller patch_size'
            )


IMAGENET = (224, 224, 3)
WIDE = {'depths': (3, 3, 27, 3), 'drop_path': 0.5}


def imagenet(fields: dict[str, Any], parameters: int, multiply_adds: int, accuracy: float) -> Variant:
    """A network for ImageNet, with the stochastic depth of torchvision's."""
    return Variant(
        fields, parameters, IMAGENET, 1000, 'Liu et al. 2022, table 1', 'float32', multiply_adds, (accuracy,)
    )


VARIANTS = {
    'tiny': imagenet({}, 28_589_128, 4_455_531_264, 82.520),
    'small': imagenet({'depths': (3, 3, 27, 3), 'drop_path': 0.4}, 50_223_688, 8_683_712_256, 83.616),
    'base': imagenet({'widths': (128, 256, 512, 1024)} | WIDE, 88_591_464, 15_354_729_472, 84.062),
    'large': imagenet({'widths': (192, 384, 768, 1536)} | WIDE, 197_767_336, 34_361_433_600, 84.414),
}
NETWORK = ConvNeXt

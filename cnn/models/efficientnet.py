"""EfficientNets: inverted bottlenecks with squeeze-excitation, of which width, depth and input grow together.

B0 to B7: Tan & Le 2019, EfficientNet. V2, whose early stages fuse the expansion and the depthwise convolution into one:
Tan & Le 2021, EfficientNetV2.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError, nearest
from cnn.layers import ConvNorm, DropPath, SqueezeExcite, activation, conv_layer, norm_layer, round_channels
from cnn.models import Variant

Dtype = Any
BLOCKS = ('mbconv', 'fused')


class Block(nn.Module):
    """MBConv or Fused-MBConv (Tan & Le 2021, figure 2): [N, H, W, C] -> [N, H / stride, W / stride, features].

    Without expansion MBConv begins with its depthwise convolution, and Fused-MBConv is one convolution.
    """

    kind: str
    expansion: float
    kernel_size: int
    stride: int
    features: int
    residual: bool
    squeeze_excite: float
    drop_path: float
    zero_init: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., Callable]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        inputs, hidden = x.shape[-1], round_channels(self.expansion * x.shape[-1])
        residual = self.residual and self.stride == 1 and inputs == self.features
        layer = functools.partial(ConvNorm, conv=self.conv, norm=self.norm, activation=self.activation)
        zeros = {'scale_init': nn.initializers.zeros} if self.zero_init and residual else {}
        last = functools.partial(ConvNorm, conv=self.conv, norm=functools.partial(self.norm, **zeros))
        if self.kind == 'mbconv':
            y = x if hidden == inputs else layer(hidden, 1, name='expand')(x)  # [N, H, W, hidden]
            y = layer(hidden, self.kernel_size, stride=self.stride, groups=hidden, name='depthwise')(y)
            if self.squeeze_excite:
                width = max(1, int(self.squeeze_excite * inputs))
                y = SqueezeExcite(width, self.conv, self.activation, name='squeeze_excite')(y)
            y = last(self.features, 1, name='project')(y)
        elif hidden == inputs:
            y = last(self.features, self.kernel_size, stride=self.stride, activation=self.activation, name='fused')(x)
        else:
            y = layer(hidden, self.kernel_size, stride=self.stride, name='fused_expand')(x)
            y = last(self.features, 1, name='fused_project')(y)
        return DropPath(self.drop_path)(y, train=train) + x if residual else y


class EfficientNet(nn.Module):
    """A stem, stages of blocks, a 1x1 convolution as the last stage, the mean over positions, a dense layer.

    Takes images [N, H, W, C]; returns [N, num_outputs], or what would have entered the dense layer, [N, features].
    Raises InputError for stages that can't be built, unknown options and those that would change nothing.
    """

    num_outputs: int | None
    # Of each stage: block, expansion, kernel size, stride of the first block, features, blocks.
    stages: tuple[tuple[str, float, int, int, int, int], ...] = (
        ('mbconv', 1, 3, 1, 16, 1),
        ('mbconv', 6, 3, 2, 24, 2),
        ('mbconv', 6, 5, 2, 40, 2),
        ('mbconv', 6, 3, 2, 80, 3),
        ('mbconv', 6, 5, 1, 112, 3),
        ('mbconv', 6, 5, 2, 192, 4),
        ('mbconv', 6, 3, 1, 320, 1),
    )
    stem_width: int = 32
    last_width: int = 1280  # of the 1x1 convolution
    width_multiplier: float = 1.0  # of all features, rounded to multiples of 8
    depth_multiplier: float = 1.0  # of the number of blocks of each stage, rounded up
    residual: bool = True  # where a block changes neither size nor width
    squeeze_excite: float = 0.25  # width of its hidden layer by the inputs of the block; fused blocks have none
    drop_path: float = 0.2  # growing linearly over the blocks from 0 to just below this
    dropout: float = 0.2  # before the dense layer
    zero_init: bool = False  # of the last scale of each residual block, so that it starts as the identity
    norm: str = 'batch'  # with 'none' convolutions have biases
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.9
    activation: str = 'silu'
    padding: str = 'symmetric'  # or SAME, which is TensorFlow's
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.drop = nn.Dropout(self.dropout)
        if self.num_outputs is not None:
            init = nn.initializers.variance_scaling(1 / 3, 'fan_out', 'uniform')
            self.head = nn.Dense(self.num_outputs, kernel_init=init, dtype=self.dtype, param_dtype=self.param_dtype)

    @nn.compact
    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The map of the stem and of each stage, the 1x1 convolution being the last one."""
        self._check()
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        conv = functools.partial(conv_layer(self.padding, **types), use_bias=self.norm == 'none')
        norm = norm_layer(self.norm, train=train, momentum=self.norm_momentum, epsilon=self.norm_epsilon, **types)
        act = activation(self.activation)

        x = ConvNorm(self._width(self.stem_width), 3, conv, norm, act, 2, name='stem')(x)
        stride = 2
        maps = {'stem': (stride, x)}  # [N, H / 2, W / 2, stem_width]
        depths = [math.ceil(depth * self.depth_multiplier) for *_, depth in self.stages]
        for stage, (kind, expansion, kernel_size, first, features, _) in enumerate(self.stages, start=1):
            for block in range(depths[stage - 1]):
                before = sum(depths[: stage - 1]) + block
                x = Block(
                    kind,
                    expansion,
                    kernel_size,
                    first if block == 0 else 1,
                    self._width(features),
                    self.residual,
                    self.squeeze_excite,
                    self.drop_path * before / sum(depths),
                    self.zero_init,
                    conv,
                    norm,
                    act,
                    name=f'stage{stage}_block{block}',
                )(x, train=train)
            stride *= first
            maps[f'stage{stage}'] = (stride, x)  # [N, H / stride, W / stride, features]
        last = f'stage{len(self.stages) + 1}'
        maps[last] = (stride, ConvNorm(self._width(self.last_width), 1, conv, norm, act, name=last)(x))
        return maps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        _, x = self.features(x, train=train)[f'stage{len(self.stages) + 1}']
        x = self.drop(x.mean((1, 2)), deterministic=not train)
        if self.num_outputs is not None:
            x = self.head(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _width(self, channels: int) -> int:
        return round_channels(channels * self.width_multiplier)

    def _check(self) -> None:
        for stage in self.stages:
            kind, *numbers = stage
            if kind not in BLOCKS:
                raise nearest('block of efficientnet', kind, BLOCKS)
            if min(numbers) <= 0 or stage[2] % 2 == 0:
                raise InputError(
                    f'efficientnet: stage {stage} must be (block, expansion, kernel size, stride, features, blocks), '
                    'the numbers above 0 and the kernel size odd'
                )
        gated = any(kind == 'mbconv' for kind, *_ in self.stages)
        multipliers = self.width_multiplier, self.depth_multiplier
        needs = {
            'width_multiplier and depth_multiplier must be above 0': min(multipliers) <= 0,
            'squeeze_excite needs a stage of mbconv; without one give 0': self.squeeze_excite and not gated,
            'drop_path needs residual=True; without it give 0': self.drop_path and not self.residual,
            'zero_init needs residual=True': self.zero_init and not self.residual,
            'zero_init needs a norm, whose scales it sets to zero': self.zero_init and self.norm == 'none',
        }
        for message, missing in needs.items():
            if missing:
                raise InputError(f'efficientnet: {message}')


def scaled(
    width: float,
    depth: float,
    size: int,
    dropout: float,
    parameters: int,
    multiply_adds: int,
    *accuracy: float,
    **fields: float,
) -> Variant:
    """B0 with its width, depth and input grown together."""
    fields = {'width_multiplier': width, 'depth_multiplier': depth, 'dropout': dropout} | fields
    source = 'Tan & Le 2019, tables 1 and 2'
    return Variant(fields, parameters, (size, size, 3), 1000, source, multiply_adds=multiply_adds, accuracy=accuracy)


def second(fields: dict[str, Any], size: int, parameters: int, source: str, multiply_adds: int, top1: float) -> Variant:
    """A network of the second version."""
    fields = {'norm_epsilon': 1e-3} | fields
    return Variant(fields, parameters, (size, size, 3), 1000, source, multiply_adds=multiply_adds, accuracy=(top1,))


SMALL = (
    ('fused', 1, 3, 1, 24, 2),
    ('fused', 4, 3, 2, 48, 4),
    ('fused', 4, 3, 2, 64, 4),
    ('mbconv', 4, 3, 2, 128, 6),
    ('mbconv', 6, 3, 1, 160, 9),
    ('mbconv', 6, 3, 2, 256, 15),
)
MEDIUM = (
    ('fused', 1, 3, 1, 24, 3),
    ('fused', 4, 3, 2, 48, 5),
    ('fused', 4, 3, 2, 80, 5),
    ('mbconv', 4, 3, 2, 160, 7),
    ('mbconv', 6, 3, 1, 176, 14),
    ('mbconv', 6, 3, 2, 304, 18),
    ('mbconv', 6, 3, 1, 512, 5),
)
LARGE = (
    ('fused', 1, 3, 1, 32, 4),
    ('fused', 4, 3, 2, 64, 7),
    ('fused', 4, 3, 2, 96, 7),
    ('mbconv', 4, 3, 2, 192, 10),
    ('mbconv', 6, 3, 1, 224, 19),
    ('mbconv', 6, 3, 2, 384, 25),
    ('mbconv', 6, 3, 1, 640, 7),
)
S, GROWN = 'Tan & Le 2021, table 4', 'Tan & Le 2021, section 3.3 (scaling)'
TENSORFLOW = {'norm_epsilon': 1e-3, 'norm_momentum': 0.99}  # with which the published weights were trained
VARIANTS = {
    'b0': scaled(1.0, 1.0, 224, 0.2, 5_288_548, 385_814_752, 77.692),
    'b1': scaled(1.0, 1.1, 240, 0.2, 7_794_184, 686_802_832, 78.642, 79.838),
    'b2': scaled(1.1, 1.2, 288, 0.3, 9_109_994, 1_087_529_456, 80.608),
    'b3': scaled(1.2, 1.4, 300, 0.3, 12_233_232, 1_827_141_392, 82.008),
    'b4': scaled(1.4, 1.8, 380, 0.4, 19_341_616, 4_393_771_024, 83.384),
    'b5': scaled(1.6, 2.2, 456, 0.4, 30_389_784, 10_266_384_752, 83.444, **TENSORFLOW),
    'b6': scaled(1.8, 2.6, 528, 0.5, 43_040_704, 19_067_593_536, 84.008, **TENSORFLOW),
    'b7': scaled(2.0, 3.1, 600, 0.5, 66_347_960, 37_745_884_192, 84.122, **TENSORFLOW),
    'v2_s': second({'stages': SMALL, 'stem_width': 24}, 384, 21_458_488, S, 8_365_617_152, 84.228),
    'v2_m': second(
        {'stages': MEDIUM, 'stem_width': 24, 'dropout': 0.3}, 480, 54_139_356, GROWN, 24_582_460_384, 85.112
    ),
    'v2_l': second({'stages': LARGE, 'dropout': 0.4}, 480, 118_515_272, GROWN, 56_079_699_008, 85.808),
}
NETWORK = EfficientNet

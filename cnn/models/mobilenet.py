"""MobileNets: depthwise convolutions with a stride and pointwise ones, for phones.

v1, separable convolutions: Howard et al. 2017, MobileNets. v2, inverted residuals with linear bottlenecks: Sandler et
al. 2018, MobileNetV2. v3, with squeeze-excitation and hard swish: Howard et al. 2019, Searching for MobileNetV3.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError, nearest
from cnn.layers import (
    ConvNorm,
    DropPath,
    SqueezeExcite,
    activation,
    conv_layer,
    he_normal_fan_out,
    norm_layer,
    round_channels,
)
from cnn.models import Variant

Dtype = Any
GATES = {'hard_sigmoid': jax.nn.hard_sigmoid, 'sigmoid': jax.nn.sigmoid}
KERNEL_INITS = {  # of convolutions and of dense layers
    'he': (he_normal_fan_out, nn.initializers.normal(0.01)),
    'glorot': (nn.initializers.glorot_uniform(), nn.initializers.glorot_uniform()),
}


class Block(nn.Module):
    """Convolutions 1x1, depthwise, 1x1 (Howard et al. 2019, figure 4): -> [N, H / stride, W / stride, width].

    With an expansion of 1 it begins with its depthwise convolution. `gated` is the share of the expanded channels that
    squeeze-excitation has in its hidden layer, 0 for none.
    """

    expansion: float
    kernel_size: int
    stride: int
    width: int
    linear: bool
    residual: bool
    gated: float
    drop_path: float
    zero_init: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., Callable]
    activation: Callable[[jax.Array], jax.Array]
    gate: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        inputs, expanded = x.shape[-1], x.shape[-1]
        residual = self.residual and self.stride == 1 and inputs == self.width
        layer = functools.partial(ConvNorm, conv=self.conv, norm=self.norm, activation=self.activation)
        y = x
        if self.expansion != 1:
            expanded = round_channels(inputs * self.expansion)
            y = layer(expanded, 1, name='expand')(y)  # [N, H, W, expanded]
        y = layer(expanded, self.kernel_size, stride=self.stride, groups=expanded, name='depthwise')(y)
        if self.gated:
            width = round_channels(expanded * self.gated)
            y = SqueezeExcite(width, self.conv, gate=self.gate, name='squeeze_excite')(y)
        zeros = {'scale_init': nn.initializers.zeros} if self.zero_init and residual else {}
        y = ConvNorm(self.width, 1, self.conv, functools.partial(self.norm, **zeros), name='project')(y)
        y = y if self.linear else self.activation(y)
        return DropPath(self.drop_path)(y, train=train) + x if residual else y


class MobileNet(nn.Module):
    """A stem, stages of blocks, a last convolution, the mean over positions, one dense layer or two.

    Takes images [N, H, W, C]; returns [N, num_outputs], or what would have entered the last layer, [N, features].
    Raises InputError for stages that can't be built, unknown options and those that would change nothing.
    """

    num_outputs: int | None
    # Of each stage: expansion, kernel size, stride of the first block, width, blocks (Sandler et al. 2018, table 2).
    stages: tuple[tuple[float, int, int, int, int], ...] = (
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 3, 2, 32, 3),
        (6, 3, 2, 64, 4),
        (6, 3, 1, 96, 3),
        (6, 3, 2, 160, 3),
        (6, 3, 1, 320, 1),
    )
    stem_width: int = 32
    stem_stride: int = 2
    last_width: int = 1280  # of the last convolution; 0: none
    scale_last: bool = False  # by multipliers below 1 too
    hidden_width: int = 0  # of a dense layer before the head, which no multiplier changes; 0: none
    width_multiplier: float = 1.0  # of all widths, rounded to multiples of 8
    linear_bottleneck: bool = True  # no activation after the last convolution of a block
    residual: bool = True  # where a block changes neither size nor width
    squeeze_excite: float = 0.0  # width of its hidden layer by the channels that it gates; 0: none, in any stage
    squeeze_stages: tuple[int, ...] = ()  # that have it, from 1; none named: all
    gate: str = 'hard_sigmoid'  # of squeeze-excitation, or sigmoid
    activation: str = 'relu6'
    relu_stages: int = 0  # first stages, whose blocks have relu instead
    dropout: float = 0.2  # before the head
    drop_path: float = 0.0  # of the last block, growing from 0 linearly
    zero_init: bool = False  # of the last scale of each residual block, so that it starts as the identity
    norm: str = 'batch'  # with 'none' convolutions have biases
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.9
    padding: str = 'symmetric'  # or SAME, which is TensorFlow's
    kernel_init: str = 'he'  # normal by the outputs, .01 in dense layers; glorot: uniform, as Keras has it
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self._check()
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype, 'kernel_init': KERNEL_INITS[self.kernel_init][1]}
        self.drop = nn.Dropout(self.dropout)
        if self.hidden_width:
            self.hidden = nn.Dense(self.hidden_width, **types)
        if self.num_outputs is not None:
            self.head = nn.Dense(self.num_outputs, **types)

    @nn.compact
    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The map of the stem, of each stage and, where there is one, of the last convolution."""
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        conv = conv_layer(self.padding, kernel_init=KERNEL_INITS[self.kernel_init][0], **types)
        conv = functools.partial(conv, use_bias=self.norm == 'none')
        norm = norm_layer(self.norm, train=train, momentum=self.norm_momentum, epsilon=self.norm_epsilon, **types)
        act = activation(self.activation)
        depth = sum(blocks for *_, blocks in self.stages)

        stride, index = self.stem_stride, 0
        x = ConvNorm(self._width(self.stem_width), 3, conv, norm, act, stride, name='stem')(x)
        maps = {'stem': (stride, x)}  # [N, H / 2, W / 2, stem_width]
        for stage, (expansion, kernel_size, first, width, blocks) in enumerate(self.stages, start=1):
            squeezed = stage in (self.squeeze_stages or (stage,))
            for block in range(blocks):
                x = Block(
                    expansion,
                    kernel_size,
                    first if block == 0 else 1,
                    self._width(width),
                    self.linear_bottleneck,
                    self.residual,
                    self.squeeze_excite * squeezed,
                    self.drop_path * index / max(depth - 1, 1),
                    self.zero_init,
                    conv,
                    norm,
                    activation('relu') if stage <= self.relu_stages else act,
                    GATES[self.gate],
                    name=f'block{index + 1}',
                )(x, train=train)
                index += 1
            stride *= first
            maps[f'stage{stage}'] = (stride, x)  # [N, H / stride, W / stride, width]
        if self.last_width:
            wide = (
                self.last_width if self.width_multiplier < 1 and not self.scale_last else self._width(self.last_width)
            )
            maps['last'] = (stride, ConvNorm(wide, 1, conv, norm, act, name='last')(x))
        return maps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        *_, (_, x) = self.features(x, train=train).values()
        x = x.mean((1, 2))
        if self.hidden_width:
            x = activation(self.activation)(self.hidden(x))
        if self.num_outputs is not None:
            x = self.head(self.drop(x, deterministic=not train))
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _width(self, channels: int) -> int:
        return round_channels(channels * self.width_multiplier)

    def _check(self) -> None:
        for option, choices in (('kernel_init', KERNEL_INITS), ('gate', GATES)):
            if getattr(self, option) not in choices:
                raise nearest(f'{option} of mobilenet', getattr(self, option), choices)
        for stage in self.stages:
            if min(stage) <= 0 or stage[1] % 2 == 0:
                raise InputError(
                    f'mobilenet: stage {stage} must be (expansion, kernel size, stride, width, blocks), above 0 and '
                    'the kernel size odd'
                )
        if self.width_multiplier <= 0:
            raise InputError(f'mobilenet: width_multiplier={self.width_multiplier} must be above 0')
        if not set(self.squeeze_stages) <= set(range(1, len(self.stages) + 1)):
            raise InputError(f'mobilenet: squeeze_stages={self.squeeze_stages} must be among 1 to {len(self.stages)}')
        if not 0 <= self.relu_stages <= len(self.stages):
            raise InputError(f'mobilenet: relu_stages={self.relu_stages} must be 0 to {len(self.stages)}')
        needs = {
            'gate=sigmoid needs squeeze_excite': self.gate != 'hard_sigmoid' and not self.squeeze_excite,
            'scale_last needs last_width': self.scale_last and not self.last_width,
            'drop_path needs residual=True': self.drop_path and not self.residual,
            'zero_init needs residual=True': self.zero_init and not self.residual,
            'zero_init needs a norm, whose scales it sets to zero': self.zero_init and self.norm == 'none',
        }
        for message, missing in needs.items():
            if missing:
                raise InputError(f'mobilenet: {message}')


def imagenet(
    fields: dict[str, Any], parameters: int, source: str, multiply_adds: int | None = None, *accuracy: float
) -> Variant:
    """A network for ImageNet."""
    return Variant(fields, parameters, (224, 224, 3), 1000, source, multiply_adds=multiply_adds, accuracy=accuracy)


V1 = {
    'stages': ((1, 3, 1, 64, 1), (1, 3, 2, 128, 2), (1, 3, 2, 256, 2), (1, 3, 2, 512, 6), (1, 3, 2, 1024, 2)),
    'last_width': 0,
    'linear_bottleneck': False,
    'residual': False,
    'dropout': 1e-3,
    'norm_epsilon': 1e-3,
    'norm_momentum': 0.99,
    'padding': 'SAME',
    'kernel_init': 'glorot',
}
V3 = {
    'stem_width': 16,
    'scale_last': True,
    'squeeze_excite': 0.25,
    'activation': 'hard_swish',
    'norm_epsilon': 1e-3,
    'norm_momentum': 0.99,
}
SMALL = {
    'stages': (
        (1, 3, 2, 16, 1),
        (4.5, 3, 2, 24, 1),
        (3.67, 3, 1, 24, 1),  # to 88 channels
        (4, 5, 2, 40, 1),
        (6, 5, 1, 40, 2),
        (3, 5, 1, 48, 2),
        (6, 5, 2, 96, 3),
    ),
    'last_width': 576,
    'hidden_width': 1024,
    'squeeze_stages': (1, 4, 5, 6, 7),
    'relu_stages': 3,
}
LARGE = {
    'stages': (
        (1, 3, 1, 16, 1),
        (4, 3, 2, 24, 1),
        (3, 3, 1, 24, 1),
        (3, 5, 2, 40, 3),
        (6, 3, 2, 80, 1),
        (2.5, 3, 1, 80, 1),
        (2.3, 3, 1, 80, 2),
        (6, 3, 1, 112, 2),
        (6, 5, 2, 160, 3),
    ),
    'last_width': 960,
    'hidden_width': 1280,
    'squeeze_stages': (4, 8, 9),
    'relu_stages': 4,
}
FIRST, SECOND = 'Howard et al. 2017, tables 1 and 6', 'Sandler et al. 2018, table 2'
VARIANTS = {  # v1: top-1 of the paper
    'v1': imagenet(V1, 4_231_976, FIRST, 568_740_352, 70.6),
    'v1_075': imagenet(V1 | {'width_multiplier': 0.75}, 2_585_560, FIRST, None, 68.4),
    'v1_050': imagenet(V1 | {'width_multiplier': 0.5}, 1_331_592, FIRST, None, 63.7),
    'v1_025': imagenet(V1 | {'width_multiplier': 0.25}, 470_072, FIRST, None, 50.6),
    'v2': imagenet({}, 3_504_872, SECOND, 300_774_272, 71.878, 72.154),
    'v3_small': imagenet(V3 | SMALL, 2_542_856, 'Howard et al. 2019, table 2', 56_510_400, 67.668),
    'v3_large': imagenet(V3 | LARGE, 5_483_032, 'Howard et al. 2019, table 1', 216_589_760, 74.042, 75.274),
}
NETWORK = MobileNet

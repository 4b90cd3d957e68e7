"""ShuffleNets: cheap convolutions, and channels that change places between them.

v1: Zhang et al. 2018, ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices.
v2: Ma et al. 2018, ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError, nearest
from cnn.layers import POOLS, DropPath, Pool, SqueezeExcite, activation, conv_layer, norm_layer
from cnn.models import Variant
from cnn.ops.pool import avg_pool

Dtype = Any
CHOICES = {'unit': ('v1', 'v2'), 'stem_stride': (4, 2, 1), 'pool': POOLS}
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def channel_shuffle(x: jax.Array, groups: int) -> jax.Array:
    """The first channel of each group, then the second of each, and so on: [..., C] -> [..., C].

    Zhang et al. 2018, section 3.1: channels as a matrix [groups, C / groups], transposed.
    """
    return x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2).reshape(x.shape)


class Unit(nn.Module):
    """What both units are made of: [N, H, W, C] -> [N, H / stride, W / stride, features]."""

    features: int
    stride: int
    groups: tuple[int, int]  # of the first and of the last convolution
    shuffle: bool
    residual: bool
    squeeze_excite: float
    drop_path: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., Callable]
    activation: Callable[[jax.Array], jax.Array]
    pads: str | tuple[tuple[int, int], ...]

    def _convs(self, x: jax.Array, inner: int, outer: int) -> jax.Array:
        """A 1x1, a depthwise 3x3 and a 1x1 convolution; the last two are not activated."""
        first, last = self.groups
        y = self.activation(self.norm(name='norm1')(self.conv(inner, 1, groups=first, name='conv1')(x)))
        y = channel_shuffle(y, last) if self.shuffle else y
        y = self.norm(name='norm2')(self.conv(inner, 3, self.stride, groups=inner, name='conv2')(y))
        return self.norm(name='norm3')(self.conv(outer, 1, groups=last, name='conv3')(y))

    def _excite(self, x: jax.Array) -> jax.Array:
        if not self.squeeze_excite:
            return x
        return SqueezeExcite(round(self.squeeze_excite * x.shape[-1]), self.conv, name='squeeze_excite')(x)


class UnitV1(Unit):
    """Zhang et al. 2018, figure 2 b, and c with a stride of 2."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        inner = self.features // 4
        if self.stride == 2:
            y = self._excite(self._convs(x, inner, self.features - x.shape[-1]))
            return self.activation(jnp.concatenate([avg_pool(x, (3, 3), (2, 2), self.pads), y], -1))
        y = self._excite(self._convs(x, inner, self.features))
        return self.activation(DropPath(self.drop_path)(y, train=train) + x if self.residual else y)


class UnitV2(Unit):
    """Ma et al. 2018, figure 3 c, and d with a stride of 2; residual and squeeze_excite as in its appendix."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width = self.features // 2
        if self.stride == 2:
            carried = self.conv(x.shape[-1], 3, 2, groups=x.shape[-1], name='shortcut_conv1')(x)
            carried = self.conv(width, 1, name='shortcut_conv2')(self.norm(name='shortcut_norm1')(carried))
            carried = self.activation(self.norm(name='shortcut_norm2')(carried))
        else:
            carried, x = jnp.split(x, 2, -1)
        y = self._excite(self.activation(self._convs(x, width, width)))
        if self.residual and self.stride == 1:
            y = DropPath(self.drop_path)(y, train=train) + x
        y = jnp.concatenate([carried, y], -1)
        return channel_shuffle(y, 2) if self.shuffle else y


class ShuffleNet(nn.Module):
    """A stem, three stages of units, a 1x1 convolution (v2), the mean over positions, a dense layer.

    Takes images [N, H, W, C]; returns [N, num_outputs], or the means [N, features]. Raises InputError for unknown
    options and for those that do not apply.
    """

    num_outputs: int | None
    depths: tuple[int, ...] = (4, 8, 4)  # units of each stage
    unit: str = 'v2'
    stem_width: int = 24
    widths: tuple[int, ...] = (116, 232, 464)  # of each stage
    last_width: int = 1024  # of the 1x1 convolution; 0: there is none
    width_multiplier: float = 1.0  # of the stages; widths are rounded to what the groups divide
    groups: int = 1  # of the 1x1 convolutions of v1
    shuffle: bool = True
    residual: bool = False  # a sum around the convolutions where the stride is 1
    squeeze_excite: float = 0.0  # width of its hidden layer by the channels
    drop_path: float = 0.0  # of the last unit, growing from 0 linearly; of the sums
    dropout: float = 0.0  # before the head
    stem_stride: int = 4  # a convolution of stride 2 and a pool; 2: no pool; 1, for small images: no stride either
    pool: str = 'max'  # of the stem: max, average, conv, blur
    norm: str = 'batch'
    activation: str = 'relu'
    padding: str = 'symmetric'  # or SAME, which is TensorFlow's
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.drop = nn.Dropout(self.dropout)
        if self.num_outputs is not None:
            types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
            self.head = nn.Dense(self.num_outputs, kernel_init=uniform_fan_in, **types)

    @nn.compact
    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The map of the stem and of each stage; the last one's after the 1x1 convolution."""
        self._check()
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        conv = conv_layer(self.padding, kernel_init=uniform_fan_in, **types)
        norm = norm_layer(self.norm, train=train, **types)
        act = activation(self.activation)
        symmetric = self.padding == 'symmetric'
        unit_type = {'v1': UnitV1, 'v2': UnitV2}[self.unit]

        stride = min(self.stem_stride, 2)
        x = act(norm(name='stem_norm')(conv(self.stem_width, 3, stride, name='stem_conv')(x)))
        maps = {'stem': (stride, x)}  # [N, H / 2, W / 2, stem_width]
        if self.stem_stride == 4:
            x, stride = Pool(self.pool, 3, 2, conv, 1 if symmetric else None, name='stem_pool')(x), 4

        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), start=2):
            for unit in range(depth):
                before = sum(self.depths[: stage - 2]) + unit
                x = unit_type(
                    self._rounded(width * self.width_multiplier),
                    2 if unit == 0 else 1,
                    # The stem has too few channels for groups (section 3.2 of v1).
                    (1 if before == 0 else self.groups, self.groups),
                    self.shuffle,
                    self.residual,
                    self.squeeze_excite,
                    self.drop_path * before / max(sum(self.depths) - 1, 1),
                    conv,
                    norm,
                    act,
                    ((1, 1), (1, 1)) if symmetric else 'SAME',
                    name=f'stage{stage}_unit{unit}',
                )(x, train=train)
            stride *= 2
            if self.last_width and stage == len(self.depths) + 1:
                x = act(norm(name='last_norm')(conv(self.last_width, 1, name='last_conv')(x)))
            maps[f'stage{stage}'] = (stride, x)  # [N, H / stride, W / stride, width]
        return maps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        _, x = self.features(x, train=train)[f'stage{len(self.depths) + 1}']
        x = x.mean((1, 2))
        if self.num_outputs is not None:
            x = self.head(self.drop(x, deterministic=not train))
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _rounded(self, width: float) -> int:
        """The nearest width of which groups of the units' convolutions have equal shares."""
        divisor = 4 * self.groups if self.unit == 'v1' else 2
        return max(int(width / divisor + 0.5), 1) * divisor

    def _check(self) -> None:
        for option, choices in CHOICES.items():
            if getattr(self, option) not in choices:
                raise nearest(f'{option} of shufflenet', str(getattr(self, option)), map(str, choices))
        if len(self.widths) != len(self.depths):
            raise InputError(f'shufflenet: widths={self.widths} must have an entry for each of depths={self.depths}')
        if self.unit == 'v2' and self.groups != 1:
            raise InputError(f'shufflenet: groups={self.groups} needs unit=v1; the 1x1 convolutions of v2 have none')
        if self.stem_width % self.groups:
            raise InputError(f'shufflenet: stem_width={self.stem_width} must be a multiple of groups={self.groups}')
        widths = [self.stem_width, *(self._rounded(width * self.width_multiplier) for width in self.widths)]
        if self.unit == 'v1' and any(wide <= narrow for narrow, wide in itertools.pairwise(widths)):
            raise InputError(
                f'shufflenet: widths={tuple(widths)}, stem included, must grow; v1 adds channels to a pool'
            )
        if self.drop_path and not self.residual:
            raise InputError(f'shufflenet: drop_path={self.drop_path} needs residual=True; there is no sum without')
        if self.stem_stride != 4 and self.pool != 'max':
            raise InputError(f'shufflenet: pool={self.pool} needs stem_stride=4; there is no pool in the stem without')


IMAGENET = (224, 224, 3)
V1 = {'unit': 'v1', 'residual': True, 'last_width': 0}
V1_WIDTHS = {
    1: (144, 288, 576),
    2: (200, 400, 800),
    3: (240, 480, 960),
    4: (272, 544, 1088),
    8: (384, 768, 1536),
}


def v1(groups: int, parameters: int, source: str = 'Zhang et al. 2018, table 1', **fields: Any) -> Variant:
    """A network of Zhang et al. 2018."""
    fields = V1 | {'groups': groups, 'widths': V1_WIDTHS[groups]} | fields
    return Variant(fields, parameters, IMAGENET, 1000, source)


def v1_scaled(multiplier: float, stem_width: int, parameters: int) -> Variant:
    """One of table 2 or 5; the widths of the stems are those of the authors' code, where 1.5 leaves 24."""
    source = 'Zhang et al. 2018, tables 2 and 5; stems: https://github.com/megvii-model/ShuffleNet-Series'
    return v1(3, parameters, source, width_multiplier=multiplier, stem_width=stem_width)


def v2(widths: tuple[int, ...], last_width: int, parameters: int, multiply_adds: int, accuracy: float) -> Variant:
    """A network of Ma et al. 2018, table 5."""
    fields = {'widths': widths, 'last_width': last_width}
    source = 'Ma et al. 2018, table 5'
    return Variant(fields, parameters, IMAGENET, 1000, source, multiply_adds=multiply_adds, accuracy=(accuracy,))


VARIANTS = {
    'v1_g1': v1(1, 1_531_936),
    'v1_g2': v1(2, 1_733_848),
    'v1_g3': v1(3, 1_865_728),
    'v1_g4': v1(4, 1_968_344),
    'v1_g8': v1(8, 2_434_768),
    'v1_g3_x0_5': v1_scaled(0.5, 12, 718_324),
    'v1_g3_x1_5': v1_scaled(1.5, 24, 3_442_168),
    'v1_g3_x2_0': v1_scaled(2.0, 48, 5_450_776),
    'v2_x0_5': v2((48, 96, 192), 1024, 1_366_792, 40_476_448, 60.552),
    'v2_x1_0': v2((116, 232, 464), 1024, 2_278_604, 144_907_992, 69.362),
    'v2_x1_5': v2((176, 352, 704), 1024, 3_503_624, 295_759_392, 72.996),
    'v2_x2_0': v2((244, 488, 976), 2048, 7_393_996, 583_253_464, 76.230),
}
NETWORK = ShuffleNet

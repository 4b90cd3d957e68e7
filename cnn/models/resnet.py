"""Residual networks (He et al. 2016, Deep Residual Learning for Image Recognition), their ablations and descendants.

Bottlenecks carry their stride in the 3x3 convolution, as torchvision's do (v1.5). Wide: Zagoruyko & Komodakis 2016.
ResNeXt: Xie et al. 2017. Pre-activation: He et al. 2016, Identity Mappings in Deep Residual Networks. The stem of three
3x3 convolutions and the average before a projection: He et al. 2019, Bag of Tricks, figure 2.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError, nearest
from cnn.layers import DropPath, Pool, SqueezeExcite, activation, conv_layer, norm_layer
from cnn.models import Variant
from cnn.ops.pool import avg_pool

Dtype = Any
CHOICES = {
    'block': ('basic', 'bottleneck'),
    'stem': ('7x7', '3x3', 'deep'),
    'shortcut': ('projection', 'identity', 'average'),
    'stride_on': ('3x3', '1x1'),
}


class Block(nn.Module):
    """Convolutions around which the input is carried: [N, H, W, C] -> [N, H / stride, W / stride, width].

    `convs` are (features, kernel size, stride, groups), the last one of `width`. Each is followed by a normalisation
    and an activation, the last activation after the sum; or, with preactivation, each is preceded by them.
    """

    convs: tuple[tuple[int, int, int, int], ...]
    residual: bool
    shortcut: str
    preactivation: bool
    zero_init: bool
    squeeze_excite: float
    drop_path: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., Callable]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = carried = x
        last = len(self.convs)
        for index, (features, kernel_size, stride, groups) in enumerate(self.convs, start=1):
            if self.preactivation:
                y = self.activation(self.norm(name=f'norm{index}')(y))
                if index == 1 and self._resizes(x):
                    carried = y
            y = self.conv(features, kernel_size, stride, groups=groups, name=f'conv{index}')(y)
            if not self.preactivation:
                zeros = {'scale_init': nn.initializers.zeros} if index == last and self.zero_init else {}
                y = self.norm(name=f'norm{index}', **zeros)(y)
                y = self.activation(y) if index < last else y
        if self.squeeze_excite:
            y = SqueezeExcite(round(self.squeeze_excite * y.shape[-1]), self.conv, name='squeeze_excite')(y)
        if self.residual:
            y = DropPath(self.drop_path)(y, train=train) + self._carry(carried)
        return y if self.preactivation else self.activation(y)

    def _stride(self) -> int:
        return max(stride for _, _, stride, _ in self.convs)

    def _resizes(self, x: jax.Array) -> bool:
        return self._stride() > 1 or x.shape[-1] != self.convs[-1][0]

    def _carry(self, x: jax.Array) -> jax.Array:
        """The shortcut, where sizes differ: B or A of section 4.1, or an average before the projection."""
        width, stride = self.convs[-1][0], self._stride()
        if not self._resizes(x):
            return x
        if self.shortcut == 'identity':
            return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1])))
        if self.shortcut == 'average' and stride > 1:
            x, stride = avg_pool(x, (2, 2), (2, 2), 'SAME', count_include_pad=False), 1
        x = self.conv(width, 1, stride, name='shortcut_conv')(x)
        return x if self.preactivation else self.norm(name='shortcut_norm')(x)


class ResNet(nn.Module):
    """A stem, stages of blocks that halve the map and double the width, the mean over positions, a dense layer.

    Takes images [N, H, W, C]; returns [N, num_outputs], or the means [N, features]. Raises InputError for unknown
    options.
    """

    num_outputs: int | None
    depths: tuple[int, ...] = (3, 4, 6, 3)  # blocks of each stage
    block: str = 'bottleneck'  # 1x1, 3x3, 1x1 to four times the width; or basic, two 3x3
    width: int = 64  # of the first stage
    width_multiplier: float = 1.0  # of all
    stem_width: int = 0  # of a 3x3 stem, whatever the multiplier; 0: that of the first stage
    groups: int = 1  # of the 3x3 convolution of a bottleneck
    group_width: int = 64  # its channels in each group, where the stage's width is 64
    stem: str = (
        '7x7'  # of stride 2, then a pool; 3x3, for small images: stride 1, no pool; deep: three 3x3, then a pool
    )
    pool: str = 'max'  # of the stem: max, average, conv, blur
    residual: bool = True  # False: the plain networks of section 3.3
    shortcut: str = 'projection'  # where sizes differ: B of section 4.1; identity: A, zeros; average: B after a mean
    stride_on: str = '3x3'  # of a bottleneck; 1x1 as in the paper
    preactivation: bool = False
    zero_init: bool = False  # of the last scale of each block, so that it starts as the identity
    squeeze_excite: float = 0.0  # width of its hidden layer by the channels
    drop_path: float = 0.0  # of the last block, growing from 0 linearly
    norm: str = 'batch'
    activation: str = 'relu'
    padding: str = 'symmetric'  # or SAME, which is TensorFlow's
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        if self.num_outputs is not None:
            init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
            self.head = nn.Dense(self.num_outputs, kernel_init=init, dtype=self.dtype, param_dtype=self.param_dtype)

    @nn.compact
    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The map of the stem and of each stage."""
        self._check()
        conv = conv_layer(self.padding, dtype=self.dtype, param_dtype=self.param_dtype)
        norm = norm_layer(self.norm, train=train, dtype=self.dtype, param_dtype=self.param_dtype)
        act = activation(self.activation)
        width = round(self.width * self.width_multiplier)

        if self.stem == 'deep':
            x = act(norm(name='stem_norm1')(conv(width // 2, 3, 2, name='stem_conv1')(x)))
            x = act(norm(name='stem_norm2')(conv(width // 2, 3, name='stem_conv2')(x)))
            x = conv(width, 3, name='stem_conv')(x)
        else:
            x = conv(self.stem_width or width, *((7, 2) if self.stem == '7x7' else (3, 1)), name='stem_conv')(x)
        if not self.preactivation:
            x = act(norm(name='stem_norm')(x))
        stride = 1 if self.stem == '3x3' else 2
        maps = {'stem': (stride, x)}  # [N, H / 2, W / 2, width]
        if self.stem != '3x3':
            pad = 1 if self.padding == 'symmetric' else None
            x, stride = Pool(self.pool, 3, 2, conv, pad, name='stem_pool')(x), 4

        for stage, depth in enumerate(self.depths, start=1):
            for block in range(depth):
                step = 2 if stage > 1 and block == 0 else 1
                before = sum(self.depths[: stage - 1]) + block
                x = Block(
                    self._convs(width * 2 ** (stage - 1), step),
                    self.residual,
                    self.shortcut,
                    self.preactivation,
                    self.zero_init,
                    self.squeeze_excite,
                    self.drop_path * before / max(sum(self.depths) - 1, 1),
                    conv,
                    norm,
                    act,
                    name=f'stage{stage}_block{block}',
                )(x, train=train)
                stride *= step
            if self.preactivation and stage == len(self.depths):
                x = act(norm(name='norm')(x))
            maps[f'stage{stage}'] = (stride, x)  # [N, H / stride, W / stride, width 2**(stage - 1) (x 4)]
        return maps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        _, x = self.features(x, train=train)[f'stage{len(self.depths)}']
        x = x.mean((1, 2))
        if self.num_outputs is not None:
            x = self.head(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _convs(self, width: int, stride: int) -> tuple[tuple[int, int, int, int], ...]:
        """(features, kernel size, stride, groups) of the convolutions of a block."""
        if self.block == 'basic':
            return (width, 3, stride, 1), (width, 3, 1, 1)
        inner = width * self.group_width // 64 * self.groups
        first, second = (stride, 1) if self.stride_on == '1x1' else (1, stride)
        return (inner, 1, first, 1), (inner, 3, second, self.groups), (4 * width, 1, 1, 1)

    def _check(self) -> None:
        for option, choices in CHOICES.items():
            if getattr(self, option) not in choices:
                raise nearest(f'{option} of resnet', getattr(self, option), choices)
        defaults = {'groups': 1, 'group_width': 64, 'stride_on': '3x3'}
        for option, default in defaults.items():
            if self.block == 'basic' and getattr(self, option) != default:
                raise InputError(f'resnet: {option}={getattr(self, option)} needs block=bottleneck')
        if self.stem != '3x3' and self.stem_width:
            raise InputError(f'resnet: stem_width={self.stem_width} needs stem=3x3')
        if self.stem == '3x3' and self.pool != 'max':
            raise InputError(f'resnet: a stem 3x3 has no pool, so pool={self.pool} needs another stem')
        if not self.residual and (self.drop_path or self.shortcut != 'projection'):
            raise InputError('resnet: drop_path and shortcut need residual=True')
        if self.preactivation and self.zero_init:
            raise InputError('resnet: zero_init needs preactivation=False, where a block ends in a normalisation')
        if self.norm == 'none' and self.zero_init:
            raise InputError('resnet: zero_init needs a norm, whose last scale it is')


IMAGENET = (224, 224, 3)
V1, V2 = 'He et al. 2016, table 1', 'He et al. 2016 (Identity Mappings), figure 4e'
WIDE, NEXT = 'Zagoruyko & Komodakis 2016, section 3', 'Xie et al. 2017, table 1'
BASIC = {'block': 'basic'}
DEEP, DEEPER = (3, 4, 23, 3), (3, 8, 36, 3)


def imagenet(
    fields: dict[str, Any], parameters: int, source: str, multiply_adds: int | None = None, *accuracy: float
) -> Variant:
    """A network for ImageNet."""
    return Variant(fields, parameters, IMAGENET, 1000, source, multiply_adds=multiply_adds, accuracy=accuracy)


def cifar(depth: int, parameters: int) -> Variant:
    """A network of section 4.2, with 6 n + 2 layers."""
    fields = {'depths': (depth // 6,) * 3, 'block': 'basic', 'width': 16, 'stem': '3x3', 'shortcut': 'identity'}
    return Variant(fields, parameters, (32, 32, 3), 10, 'He et al. 2016, section 4.2, shortcut A')


def cifar_wide(depth: int, multiplier: int, parameters: int) -> Variant:
    """A wide network, WRN-depth-multiplier, with 6 n + 4 layers."""
    fields = {'depths': ((depth - 4) // 6,) * 3, 'width': 16, 'width_multiplier': float(multiplier), 'stem_width': 16}
    fields |= {'block': 'basic', 'stem': '3x3', 'preactivation': True}
    return Variant(fields, parameters, (32, 32, 3), 10, 'Zagoruyko & Komodakis 2016, table 1')


VARIANTS = {
    '18': imagenet({'depths': (2, 2, 2, 2)} | BASIC, 11_689_512, V1, 1_814_073_344, 69.758),
    '34': imagenet(BASIC, 21_797_672, V1, 3_663_761_408, 73.314),
    '50': imagenet({}, 25_557_032, V1, 4_089_184_256, 76.130, 80.858),
    '101': imagenet({'depths': DEEP}, 44_549_160, V1, 7_801_405_440, 77.374, 81.886),
    '152': imagenet({'depths': DEEPER}, 60_192_808, V1, 11_513_626_624, 78.312, 82.284),
    'wide50_2': imagenet({'group_width': 128}, 68_883_240, WIDE, 11_398_021_120, 78.468, 81.602),
    'wide101_2': imagenet({'depths': DEEP, 'group_width': 128}, 126_886_696, WIDE, None, 78.848, 82.510),
    'resnext50_32x4d': imagenet({'groups': 32, 'group_width': 4}, 25_028_904, NEXT, 4_230_479_872, 77.618, 81.198),
    'resnext101_32x8d': imagenet(
        {'depths': DEEP, 'groups': 32, 'group_width': 8}, 88_791_336, NEXT, None, 79.312, 82.834
    ),
    'resnext101_64x4d': imagenet({'depths': DEEP, 'groups': 64, 'group_width': 4}, 83_455_272, NEXT, None, 83.246),
    'v2_50': imagenet({'preactivation': True}, 25_549_352, V2),
    'v2_101': imagenet({'preactivation': True, 'depths': DEEP}, 44_541_480, V2),
    'plain18': imagenet({'depths': (2, 2, 2, 2), 'residual': False} | BASIC, 11_515_688, 'He et al. 2016, section 3.3'),
    'plain34': imagenet({'residual': False} | BASIC, 21_623_848, 'He et al. 2016, section 3.3'),
    'cifar18': Variant(
        {'depths': (2, 2, 2, 2), 'stem': '3x3'} | BASIC,
        11_173_962,
        (32, 32, 3),
        10,
        'ResNet-18 with a 3x3 stem and no pool, as for CIFAR',
        multiply_adds=555_422_720,
    ),
    'cifar20': cifar(20, 269_722),
    'cifar32': cifar(32, 464_154),
    'cifar44': cifar(44, 658_586),
    'cifar56': cifar(56, 853_018),
    'cifar110': cifar(110, 1_727_962),
    'cifar_wide16_8': cifar_wide(16, 8, 10_961_370),
    'cifar_wide28_10': cifar_wide(28, 10, 36_479_194),
}
NETWORK = ResNet

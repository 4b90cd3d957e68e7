"""Densely connected networks (Huang et al. 2017, Densely Connected Convolutional Networks).

Each layer of a block reads the maps of all layers before it. The networks for ImageNet are DenseNet-BC (table 1); those
for small images are of section 4.2.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError, nearest
from cnn.layers import POOLS, Pool, activation, conv_layer, norm_layer
from cnn.models import Variant

Dtype = Any
CHOICES = {'stem': ('7x7', '3x3'), 'pool': POOLS, 'transition_pool': POOLS}
he_normal_fan_in = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


class DenseLayer(nn.Module):
    """New features from all earlier ones: [N, H, W, C], ... -> [N, H, W, growth_rate].

    Section 3, composite function and bottleneck layers. The earlier maps come apart, so that they are what is kept
    for the gradient where this layer is computed again.
    """

    growth_rate: int
    bottleneck: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., Callable]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> jax.Array:
        x = self.activation(self.norm(name='norm1')(jnp.concatenate(maps, -1)))
        if not self.bottleneck:
            return self.conv(self.growth_rate, 3, name='conv1')(x)
        x = self.conv(self.bottleneck * self.growth_rate, 1, name='conv1')(x)
        return self.conv(self.growth_rate, 3, name='conv2')(self.activation(self.norm(name='norm2')(x)))


class DenseNet(nn.Module):
    """A stem, dense blocks with transitions that halve the map between them, the mean over positions, a dense layer.

    Takes images [N, H, W, C]; returns [N, num_outputs], or the means [N, features]. Raises InputError for unknown
    options, options that do not apply, and images that the transitions would leave nothing of.
    """

    num_outputs: int | None
    depths: tuple[int, ...] = (6, 12, 24, 16)  # layers of each block
    growth_rate: int = 32  # channels that each layer adds: k
    stem_width: int = 64
    bottleneck: int = 4  # width of the 1x1 convolution of each layer by the growth rate; 0: no such convolution
    compression: float = 0.5  # channels that a transition keeps: theta
    dropout: float = 0.0  # of the features that each layer adds
    stem: str = '7x7'  # of stride 2, normalised, then a pool; 3x3, for small images: a convolution of stride 1 alone
    pool: str = 'max'  # of the stem: max, average, conv, blur
    transition_pool: str = 'average'
    memory_efficient: bool = False  # layers are computed again for the gradient: Pleiss et al. 2017
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
        """The map of the stem and of each block; a block's as the transition or the head reads it, normalised."""
        self._check(x)
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        conv = conv_layer(self.padding, kernel_init=he_normal_fan_in, **types)
        norm = norm_layer(self.norm, train=train, **types)
        act = activation(self.activation)
        layer_type = nn.remat(DenseLayer) if self.memory_efficient else DenseLayer
        symmetric = self.padding == 'symmetric'

        if self.stem == '7x7':
            x = act(norm(name='stem_norm')(conv(self.stem_width, 7, 2, name='stem_conv')(x)))
            maps = {'stem': (2, x)}  # [N, H / 2, W / 2, stem_width]
            x, stride = Pool(self.pool, 3, 2, conv, 1 if symmetric else None, name='stem_pool')(x), 4
        else:
            x, stride = conv(self.stem_width, 3, name='stem_conv')(x), 1
            maps = {'stem': (1, x)}  # [N, H, W, stem_width]

        for block, depth in enumerate(self.depths, start=1):
            grown = [x]
            for layer in range(1, depth + 1):
                new = layer_type(self.growth_rate, self.bottleneck, conv, norm, act, name=f'block{block}_layer{layer}')(
                    grown
                )
                grown.append(nn.Dropout(self.dropout)(new, deterministic=not train))
            x = jnp.concatenate(grown, -1)  # [N, H / stride, W / stride, C + depth growth_rate]
            last = block == len(self.depths)
            x = act(norm(name='norm' if last else f'transition{block}_norm')(x))
            maps[f'block{block}'] = (stride, x)
            if not last:
                x = conv(int(self.compression * x.shape[-1]), 1, name=f'transition{block}_conv')(x)
                pool = Pool(self.transition_pool, 2, 2, conv, 0 if symmetric else None, name=f'transition{block}_pool')
                x, stride = pool(x), 2 * stride
        return maps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        _, x = self.features(x, train=train)[f'block{len(self.depths)}']
        x = x.mean((1, 2))
        if self.num_outputs is not None:
            x = self.head(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _check(self, x: jax.Array) -> None:
        for option, choices in CHOICES.items():
            if getattr(self, option) not in choices:
                raise nearest(f'{option} of densenet', getattr(self, option), choices)
        if self.stem == '3x3' and self.pool != 'max':
            raise InputError(f'densenet: pool={self.pool} needs stem=7x7; no pool follows a stem of 3x3')
        if not 0 < self.compression <= 1:
            raise InputError(f'densenet: compression={self.compression} must be above 0 and at most 1')
        halvings = len(self.depths) - 1
        least = 2**halvings if self.stem == '3x3' else 4 * 2**halvings - 3
        if self.padding == 'symmetric' and min(x.shape[1:3]) < least:
            raise InputError(
                f'densenet: {halvings} transitions need an input of at least {least} pixels a side, '
                f'not {x.shape[1]} x {x.shape[2]}'
            )


IMAGENET, CIFAR = (224, 224, 3), (32, 32, 3)
TABLE_1, SECTION_4 = 'Huang et al. 2017, table 1', 'Huang et al. 2017, section 4.2 and table 2'
WIDE = {'growth_rate': 48, 'stem_width': 96}
VARIANTS = {
    '121': Variant({}, 7_978_856, IMAGENET, 1000, TABLE_1, multiply_adds=2_834_161_664, accuracy=(74.434,)),
    '161': Variant(
        {'depths': (6, 12, 36, 24)} | WIDE,
        28_681_000,
        IMAGENET,
        1000,
        'the authors, k = 48; https://github.com/liuzhuang13/DenseNet',
        accuracy=(77.138,),
    ),
    '169': Variant({'depths': (6, 12, 32, 32)}, 14_149_480, IMAGENET, 1000, TABLE_1, accuracy=(75.600,)),
    '201': Variant({'depths': (6, 12, 48, 32)}, 20_013_928, IMAGENET, 1000, TABLE_1, accuracy=(76.896,)),
    'cifar40_k12': Variant(
        {
            'depths': (12, 12, 12),
            'growth_rate': 12,
            'stem_width': 16,
            'bottleneck': 0,
            'compression': 1.0,
            'stem': '3x3',
        },
        1_019_722,
        CIFAR,
        10,
        SECTION_4,
    ),
    'cifar_bc100_k12': Variant(
        {'depths': (16, 16, 16), 'growth_rate': 12, 'stem_width': 24, 'stem': '3x3'}, 769_162, CIFAR, 10, SECTION_4
    ),
}
NETWORK = DenseNet

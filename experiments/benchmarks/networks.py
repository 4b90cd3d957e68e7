"""The networks whose training steps are compared, one for each way that networks use convolutions.

Those of cnn.models come from there; the others are written here with the product's layers, in the forms that
networks_torch.py has too: the same names, paddings and constants.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn import models
from cnn.layers import Conv, norm_layer

Dtype = Any


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5 left): -> [N, H / stride, W / stride, width]."""

    width: int
    stride: int
    train: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The output."""
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype)
        norm = norm_layer('batch', train=self.train, dtype=self.dtype, param_dtype=jnp.float32)
        strides = (self.stride, self.stride)
        y = conv(self.width, (3, 3), strides=strides, padding=1, name='conv1')(x)
        y = nn.relu(norm(name='norm1')(y))
        y = conv(self.width, (3, 3), padding=1, name='conv2')(y)
        y = norm(name='norm2')(y)
        if x.shape != y.shape:
            x = conv(self.width, (1, 1), strides=strides, padding=0, name='projection')(x)
            x = norm(name='projection_norm')(x)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """The ResNet-18 of CIFAR: a 3x3 stem and no pool. [N, 32, 32, 3] -> [N, num_outputs]."""

    num_outputs: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The output."""
        norm = norm_layer('batch', train=train, dtype=self.dtype, param_dtype=jnp.float32)
        x = Conv(64, (3, 3), padding=1, use_bias=False, dtype=self.dtype, name='stem')(x)
        x = nn.relu(norm(name='stem_norm')(x))
        for stage, width in enumerate((64, 128, 256, 512), start=1):
            for block in (1, 2):
                stride = 2 if stage > 1 and block == 1 else 1
                x = BasicBlock(width, stride, train, self.dtype, name=f'stage{stage}_block{block}')(x)
        return _head(x, self.num_outputs, self.dtype)


class GroupedBlock(nn.Module):
    """1x1, 3x3 in 32 groups, 1x1 to twice the width, and a shortcut (Xie et al. 2017, figure 3c)."""

    width: int
    stride: int
    train: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The output."""
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype)
        norm = norm_layer('batch', train=self.train, dtype=self.dtype, param_dtype=jnp.float32)
        strides = (self.stride, self.stride)
        y = conv(self.width, (1, 1), padding=0, name='conv1')(x)
        y = nn.relu(norm(name='norm1')(y))
        y = conv(self.width, (3, 3), strides=strides, padding=1, feature_group_count=32, name='conv2')(y)
        y = nn.relu(norm(name='norm2')(y))
        y = conv(2 * self.width, (1, 1), padding=0, name='conv3')(y)
        y = norm(name='norm3')(y)
        if x.shape != y.shape:
            x = conv(2 * self.width, (1, 1), strides=strides, padding=0, name='projection')(x)
            x = norm(name='projection_norm')(x)
        return nn.relu(x + y)


class ResNeXt(nn.Module):
    """The first three stages of ResNeXt-50, two blocks each: [N, 112, 112, 3] -> 56, 28 and 14 a side -> outputs."""

    num_outputs: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The output."""
        norm = norm_layer('batch', train=train, dtype=self.dtype, param_dtype=jnp.float32)
        x = Conv(64, (3, 3), strides=(2, 2), padding=1, use_bias=False, dtype=self.dtype, name='stem')(x)
        x = nn.relu(norm(name='stem_norm')(x))
        for stage, width in enumerate((128, 256, 512), start=1):
            for block in (1, 2):
                stride = 2 if stage > 1 and block == 1 else 1
                x = GroupedBlock(width, stride, train, self.dtype, name=f'stage{stage}_block{block}')(x)
        return _head(x, self.num_outputs, self.dtype)


class SeparableBlock(nn.Module):
    """3x3 depthwise and 1x1, each normalised and rectified (Howard et al. 2017, figure 3 right)."""

    width: int
    stride: int
    train: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The output."""
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype)
        norm = norm_layer('batch', train=self.train, dtype=self.dtype, param_dtype=jnp.float32)
        channels, strides = x.shape[-1], (self.stride, self.stride)
        x = conv(channels, (3, 3), strides=strides, padding=1, feature_group_count=channels, name='depthwise')(x)
        x = nn.relu(norm(name='norm1')(x))
        x = conv(self.width, (1, 1), padding=0, name='pointwise')(x)
        return nn.relu(norm(name='norm2')(x))


class MobileNet(nn.Module):
    """A shorter MobileNetV1: [N, 64, 64, 3] -> 32 down to 4 a side -> [N, num_outputs]."""

    num_outputs: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The output."""
        norm = norm_layer('batch', train=train, dtype=self.dtype, param_dtype=jnp.float32)
        x = Conv(32, (3, 3), strides=(2, 2), padding=1, use_bias=False, dtype=self.dtype, name='stem')(x)
        x = nn.relu(norm(name='stem_norm')(x))
        blocks = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1))
        for index, (width, stride) in enumerate(blocks, start=1):
            x = SeparableBlock(width, stride, train, self.dtype, name=f'block{index}')(x)
        return _head(x, self.num_outputs, self.dtype)


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise, layer norm, 1x1 to four times the width, GELU, 1x1, shortcut (Liu et al. 2022, figure 4)."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The output."""
        width = x.shape[-1]
        y = Conv(width, (7, 7), padding=3, feature_group_count=width, dtype=self.dtype, name='depthwise')(x)
        y = nn.LayerNorm(1e-6, dtype=self.dtype, name='norm')(y)
        y = nn.Dense(4 * width, dtype=self.dtype, name='expand')(y)
        y = nn.gelu(y, approximate=False)
        return x + nn.Dense(width, dtype=self.dtype, name='reduce')(y)


class ConvNeXt(nn.Module):
    """The first two stages of ConvNeXt-T without layer scale: [N, 112, 112, 3] -> 28 and 14 a side -> outputs."""

    num_outputs: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The output."""
        norm = functools.partial(nn.LayerNorm, 1e-6, dtype=self.dtype)
        x = Conv(96, (4, 4), strides=(4, 4), padding=0, dtype=self.dtype, name='stem')(x)
        x = norm(name='stem_norm')(x)
        for block in (1, 2, 3):
            x = ConvNeXtBlock(self.dtype, name=f'stage1_block{block}')(x)
        x = norm(name='down_norm')(x)
        x = Conv(192, (2, 2), strides=(2, 2), padding=0, dtype=self.dtype, name='down')(x)
        for block in (1, 2, 3):
            x = ConvNeXtBlock(self.dtype, name=f'stage2_block{block}')(x)
        x = norm(name='head_norm')(x.mean((1, 2)))
        return nn.Dense(self.num_outputs, dtype=self.dtype, name='head')(x).astype(jnp.float32)


def _head(x: jax.Array, num_outputs: int, dtype: Dtype) -> jax.Array:
    return nn.Dense(num_outputs, dtype=dtype, name='head')(x.mean((1, 2))).astype(jnp.float32)


NETWORKS: dict[str, Any] = {
    'simple_cnn': functools.partial(models.build, 'simple_cnn'),
    'resnet18': ResNet18,
    'resnext': ResNeXt,
    'mobilenet': MobileNet,
    'convnext': ConvNeXt,
    'unet': functools.partial(models.build, 'unet', width=16, depth=3),
    # As in experiments/digit_sequences.py.
    'wavenet': functools.partial(
        models.build, 'wavenet', channels=32, skip_channels=64, dilations=(1, 2, 4, 8, 16, 32), stacks=1
    ),
}


def build(name: str, num_outputs: int, dtype: str = 'float32') -> nn.Module:
    """The network of that name, computing in `dtype` with float32 parameters."""
    return NETWORKS[name](num_outputs=num_outputs, dtype=jnp.dtype(dtype))


def from_torch(params: Any, weights: dict[str, np.ndarray]) -> Any:
    """`params` with the values of a PyTorch state_dict, `weights`, whose modules have the same names.

    Kernels [features, C, *K] become [*K, C, features], those of transposed convolutions, [C, features, *K], too and
    flipped, and the dense layer after a flattened map [C, 4, 4] that of [4, 4, C].
    """

    def converted(path: Any, leaf: Any) -> jax.Array:
        *modules, kind = (key.key for key in path)
        weight = weights['.'.join([*modules, 'bias' if kind == 'bias' else 'weight'])]
        if kind == 'kernel':
            if modules == ['dense']:
                weight = weight.reshape(len(weight), -1, 4, 4)
            spatial = tuple(range(2, weight.ndim))
            if modules[-1].startswith('up'):
                weight = np.flip(weight.transpose(*spatial, 0, 1), (0, 1))
            else:
                weight = weight.transpose(*spatial, 1, 0)
        if weight.size != math.prod(leaf.shape):
            raise ValueError(f'{".".join(modules)} has {weight.shape} in PyTorch and {leaf.shape} in Flax')
        return jnp.asarray(weight.reshape(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(converted, params)

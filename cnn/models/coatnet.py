"""CoAtNet (Dai et al. 2021, Marrying Convolution and Attention for All Data Sizes), table 3, in timm's form.

Stages of inverted residuals, then stages of transformers whose attention knows how far apart positions are. Means make
maps smaller where the paper has maxima, and the depthwise convolution carries the stride.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn.errors import InputError
from cnn.layers import Attention, DropPath, Pool, SqueezeExcite, activation, conv_layer, norm_layer
from cnn.models import Variant

Dtype = Any
# Of depthwise convolutions, whose outputs each see one channel: as PyTorch's fan_out divided by the groups.
depthwise_init = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


class Shortcut(nn.Module):
    """What is carried around a block: [N, H, W, C] -> [N, H / stride, W / stride, width]."""

    width: int
    stride: int
    pool: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.stride > 1:
            x = self.pool(name='pool')(x)
        if x.shape[-1] != self.width:
            x = self.conv(self.width, 1, use_bias=True, name='conv')(x)
        return x


class ConvolutionBlock(nn.Module):
    """An inverted residual with the normalisation first: [N, H, W, C] -> [N, H / stride, W / stride, width]."""

    width: int
    stride: int
    expansion: int
    squeeze_excite: float
    drop_path: float
    pool: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
    norm: Callable[..., Callable]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        carried = Shortcut(self.width, self.stride, self.pool, self.conv, name='shortcut')(x)
        inner = self.expansion * self.width
        depthwise = functools.partial(self.conv, groups=inner, kernel_init=depthwise_init)
        y = self.conv(inner, 1, name='conv1')(self.norm(name='norm')(x))
        y = depthwise(inner, 3, self.stride, name='conv2')(self.activation(self.norm(name='norm1')(y)))
        y = self.activation(self.norm(name='norm2')(y))
        if self.squeeze_excite:
            hidden = round(self.squeeze_excite * self.width)
            y = SqueezeExcite(hidden, self.conv, jax.nn.silu, name='squeeze_excite')(y)
        y = self.conv(self.width, 1, use_bias=True, name='conv3')(y)
        return carried + DropPath(self.drop_path)(y, train=train)


class RelativePosition(nn.Module):
    """A learned number for each head and each way from one position of a map to another: [heads, H W, H W].

    The table has a row for each difference of rows and columns, query minus key. Equation 3.
    """

    heads: int
    param_dtype: Dtype

    @nn.compact
    def __call__(self, height: int, width: int) -> jax.Array:
        shape = ((2 * height - 1) * (2 * width - 1), self.heads)
        table = self.param('table', nn.initializers.normal(0.02), shape, self.param_dtype)
        row, column = np.divmod(np.arange(height * width), width)
        rows, columns = (ways[:, None] - ways for ways in (row, column))  # [H W, H W]
        return jnp.moveaxis(table[(rows + height - 1) * (2 * width - 1) + columns + width - 1], -1, 0)


class TransformerBlock(nn.Module):
    """Attention between positions, then a perceptron at each: [N, H, W, C] -> [N, H / stride, W / stride, width]."""

    width: int
    stride: int
    head_width: int
    relative_position: bool
    expansion: int
    drop_path: float
    pool: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
    dense: Callable[..., nn.Module]
    norm: Callable[..., Callable]
    activation: Callable[[jax.Array], jax.Array]
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        carried = Shortcut(self.width, self.stride, self.pool, self.conv, name='shortcut')(x)
        y = self.norm(name='attention_norm')(x)
        y = self.pool(name='pool')(y) if self.stride > 1 else y
        shape, heads = (*y.shape[:-1], self.width), self.width // self.head_width
        bias = None
        if self.relative_position:
            bias = RelativePosition(heads, self.param_dtype, name='relative_position')(*y.shape[1:3])
        y = y.reshape(len(y), -1, y.shape[-1])  # [N, H W / stride**2, C]
        y = Attention(self.width, heads, self.dense, name='attention')(y, bias, train=train)
        x = carried + DropPath(self.drop_path)(y.reshape(shape), train=train)

        small = nn.initializers.normal(1e-6)
        y = self.norm(name='mlp_norm')(x)
        y = self.activation(self.dense(self.expansion * self.width, bias_init=small, name='dense1')(y))
        y = self.dense(self.width, bias_init=small, name='dense2')(y)
        return x + DropPath(self.drop_path)(y, train=train)


class CoAtNet(nn.Module):
    """A stem, stages of blocks that halve the map, means, a normalisation, a hidden layer, a dense layer.

    Takes images [N, H, W, C]; returns [N, num_outputs], or the hidden layer [N, features]. With relative positions,
    parameters fit the size of image that they were made for. Raises InputError for unknown options, stages that do not
    match, and heads that do not divide a width.
    """

    num_outputs: int | None
    stages: str = 'CCTT'  # C: convolutions, T: transformers
    depths: tuple[int, ...] = (2, 3, 5, 2)  # blocks of each stage
    widths: tuple[int, ...] = (96, 192, 384, 768)
    stem_width: int = 64
    width_multiplier: float = 1.0  # of all
    expansion: int = 4  # of the inverted residuals and perceptrons
    head_width: int = 32  # channels of each head of attention
    relative_position: bool = True  # False: attention without it, as in table 8
    pool: str = 'average'  # where maps become smaller: average, max (the paper's), conv, blur
    squeeze_excite: float = 0.25  # width of its hidden layer by that of the stage; 0: none
    dropout: float = 0.0  # before the last layer
    drop_path: float = 0.0  # of the last block, growing from 0 linearly
    norm: str = 'batch'  # of the stem and the convolutions; transformers have layer normalisation
    activation: str = 'gelu'
    padding: str = 'symmetric'  # or SAME, which is TensorFlow's
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        if self.num_outputs is not None:
            init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
            self.head = nn.Dense(self.num_outputs, kernel_init=init, dtype=self.dtype, param_dtype=self.param_dtype)

    @nn.compact
    def _encode(self, x: jax.Array, train: bool) -> tuple[dict[str, tuple[int, jax.Array]], jax.Array]:
        """The maps, and what enters the head."""
        self._check()
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        conv = conv_layer(self.padding, **types)
        pool = functools.partial(Pool, self.pool, 2, 2, conv)
        norm = norm_layer(self.norm, train=train, **types)
        layer_norm = norm_layer('layer', train=train, epsilon=1e-6, **types)
        act = activation(self.activation)
        glorot = nn.initializers.glorot_uniform()
        dense: Callable[..., nn.Module] = functools.partial(nn.Dense, kernel_init=glorot, **types)

        width = round(self.stem_width * self.width_multiplier)
        x = act(norm(name='stem_norm')(conv(width, 3, 2, name='stem_conv1')(x)))
        x = conv(width, 3, name='stem_conv2')(x)
        stride = 2
        maps = {'stem': (stride, x)}  # [N, H / 2, W / 2, stem_width]
        for stage, (kind, depth, width) in enumerate(zip(self.stages, self.depths, self.widths, strict=True), start=1):
            width = round(width * self.width_multiplier)
            stride *= 2
            for block in range(depth):
                before = sum(self.depths[: stage - 1]) + block
                common: dict[str, Any] = {
                    'width': width,
                    'stride': 2 if block == 0 else 1,
                    'expansion': self.expansion,
                    'drop_path': self.drop_path * before / max(sum(self.depths) - 1, 1),
                    'pool': pool,
                    'activation': act,
                    'name': f'stage{stage}_block{block}',
                }
                x = (
                    ConvolutionBlock(squeeze_excite=self.squeeze_excite, conv=conv, norm=norm, **common)
                    if kind == 'C'
                    else TransformerBlock(
                        head_width=self.head_width,
                        relative_position=self.relative_position,
                        conv=functools.partial(conv, kernel_init=glorot),
                        dense=dense,
                        norm=layer_norm,
                        param_dtype=self.param_dtype,
                        **common,
                    )
                )(x, train=train)
            maps[f'stage{stage}'] = (stride, x)  # [N, H / stride, W / stride, width]
        x = layer_norm(name='norm')(x.mean((1, 2)))
        init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
        x = jnp.tanh(dense(width, kernel_init=init, name='hidden')(x))
        return maps, nn.Dropout(self.dropout)(x, deterministic=not train)

    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The map of the stem and of each stage."""
        maps, _ = self._encode(x, train)
        return maps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        _, x = self._encode(x, train)
        if self.num_outputs is not None:
            x = self.head(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _check(self) -> None:
        if not set(self.stages) <= {'C', 'T'}:
            raise InputError(f'coatnet: stages={self.stages!r} has other letters than C and T')
        if not len(self.stages) == len(self.depths) == len(self.widths):
            raise InputError(
                f'coatnet: {len(self.stages)} stages, {len(self.depths)} depths, {len(self.widths)} widths; give one '
                f'for each stage'
            )
        for kind, width in zip(self.stages, self.widths, strict=True):
            width = round(width * self.width_multiplier)
            if kind == 'T' and width % self.head_width:
                raise InputError(f'coatnet: heads of {self.head_width} do not divide a width of {width}')


VARIANTS = {
    '0': Variant(
        {}, 25_036_820, (224, 224, 3), 1000, 'Dai et al. 2021, table 3, as timm has it', multiply_adds=4_391_614_464
    ),
}
NETWORK = CoAtNet

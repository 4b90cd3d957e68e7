"""WaveNet (van den Oord et al. 2016, WaveNet: A Generative Model for Raw Audio)."""

import functools
from collections.abc import Callable
from typing import Any, Optional

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError
from cnn.layers import CausalConv
from cnn.models import Variant

Dtype = Any


class ResidualLayer(nn.Module):
    """Gated activation unit with residual and skip connections (figure 4): x -> (x + residual, skip).

    The last layer has no residual connection, since nothing reads it.
    """

    skip_channels: int
    last: bool
    conv: Callable[..., nn.Module]  # the dilated convolution
    dense: Callable[..., nn.Module]  # 1x1 convolution

    @nn.compact
    def __call__(
        self, x: jax.Array, condition: jax.Array | None, position: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        channels = x.shape[-1]
        gates = self.conv(2 * channels, name='gates')(x, position)
        if condition is not None:
            gates += self.dense(2 * channels, use_bias=False, name='condition')(condition)
        filtered, gate = jnp.split(gates, 2, axis=-1)
        y = jnp.tanh(filtered) * nn.sigmoid(gate)
        skip = self.dense(self.skip_channels, name='skip')(y)
        return (x if self.last else x + self.dense(channels, name='residual')(y)), skip


class WaveNet(nn.Module):
    """Dilated causal convolutions: output t depends on inputs up to t, so the task shifts the sequence by one.

    Takes tokens [N, T] below `levels`, where -1 stands for nothing yet, or a signal [N, T, C] of floats; `condition`
    (section 2.5) is [N, C] for the whole sequence or [N, T, C] for each step. Returns [N, T, num_outputs], or the sum
    of the skip connections [N, T, skip_channels].
    """

    num_outputs: int | None
    levels: Optional[int] = None  # number of tokens; None: as many as outputs
    initial_kernel: int = 1  # of the causal convolution that reads the input
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    stacks: int = 3  # times that the dilations are gone through
    kernel_size: int = 2
    channels: int = 64
    skip_channels: int = 256
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def receptive_field(self) -> int:
        """The number of inputs that an output depends on."""
        return self.initial_kernel + self.stacks * sum((self.kernel_size - 1) * dilation for dilation in self.dilations)

    def setup(self) -> None:
        if self.num_outputs is not None:
            dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.param_dtype)
            self.hidden = dense(self.skip_channels)
            self.head = dense(self.num_outputs)

    @nn.compact
    def features(
        self, x: jax.Array, *, train: bool, condition: jax.Array | None = None, decode: bool = False
    ) -> dict[str, tuple[int, jax.Array]]:
        """The residual stream after each stack but the last, and the sum of the skip connections."""
        conv = functools.partial(CausalConv, dtype=self.dtype, param_dtype=self.param_dtype)
        dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.param_dtype)
        position = None
        if decode:
            counter = self.variable('cache', 'position', jnp.zeros, (), jnp.int32)
            position = counter.value
            if not self.is_initializing():
                counter.value = position + 1
        elif condition is not None and condition.ndim == 2:
            condition = condition[:, None]  # [N, 1, C]
        if jnp.issubdtype(x.dtype, jnp.integer):
            levels = self.levels or self.num_outputs
            if levels is None:
                raise InputError('wavenet: tokens without outputs need the option levels')
            x = jax.nn.one_hot(x, levels, dtype=self.dtype)  # [N, T, levels]; -1 becomes zeros

        x = conv(self.channels, kernel_size=self.initial_kernel, name='input')(x, position)  # [N, T, channels]
        maps: dict[str, tuple[int, jax.Array]] = {}
        skips: Any = 0
        for stack in range(1, self.stacks + 1):
            for index, dilation in enumerate(self.dilations, start=1):
                last = (stack, index) == (self.stacks, len(self.dilations))
                dilated = functools.partial(conv, kernel_size=self.kernel_size, dilation=dilation)
                layer = ResidualLayer(self.skip_channels, last, dilated, dense, name=f'stack{stack}_layer{index}')
                x, skip = layer(x, condition, position)
                skips += skip
            if stack < self.stacks:
                maps[f'stack{stack}'] = (1, x)
        return maps | {'skip': (1, skips)}

    def __call__(self, x: jax.Array, *, train: bool, condition: jax.Array | None = None) -> jax.Array:
        return self._outputs(self.features(x, train=train, condition=condition))

    def decode(self, x: jax.Array, *, train: bool = False, condition: jax.Array | None = None) -> jax.Array:
        """One step: tokens [N] or [N, 1], or a signal [N, C], and `condition` [N, C] of that step -> [N, num_outputs].

        The past is in the collection 'cache', mutable, which is made of zeros where it is missing.
        """
        if jnp.issubdtype(x.dtype, jnp.integer):
            x = x.reshape(len(x))
        return self._outputs(self.features(x, train=train, condition=condition, decode=True))

    def _outputs(self, maps: dict[str, tuple[int, jax.Array]]) -> jax.Array:
        _, x = maps['skip']
        if self.num_outputs is not None:
            x = self.head(nn.relu(self.hidden(nn.relu(x))))
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))


VARIANTS = {
    '': Variant(
        {}, 1_263_232, (4096,), 256, 'van den Oord et al. 2016; the widths are ours, the paper gives none', 'int32'
    ),
}
NETWORK = WaveNet

"""The network of cifar10-airbench (Jordan 2024, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU), as with Muon.

It has a frozen convolution that whitens patches, and normalisations without a learned scale. Both are parameters here,
so that published counts and weights agree: config.optimizer.frozen = ('whiten/kernel', '.*/scale') keeps them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError
from cnn.layers import activation, conv_layer, norm_layer
from cnn.models import Variant
from cnn.ops.pool import max_pool

Dtype = Any
# PyTorch's default: uniform within 1 / sqrt(fan-in).
torch_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def dirac(key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
    """A kernel [H, W, inputs, outputs] whose first outputs are the inputs; others are random (section 3.3)."""
    height, width, inputs, outputs = shape
    same = min(inputs, outputs)
    identity = jnp.zeros((height, width, inputs, same), dtype).at[height // 2, width // 2].set(jnp.eye(inputs, same))
    return torch_uniform(key, shape, dtype).at[..., :same].set(identity)


def whitening_kernel(images: jax.Array, kernel_size: int, epsilon: float = 5e-4) -> jax.Array:
    """The kernel [k, k, C, 2 k k C] that makes patches of images [N, H, W, C] uncorrelated and of variance 1.

    Its filters are the eigenvectors of the patches' second moments by the roots of the eigenvalues, and their
    negatives (section 3.2). At least float32.
    """
    height, width, channels = images.shape[1:]
    corners = [(row, column) for row in range(kernel_size) for column in range(kernel_size)]
    rows, columns = height - kernel_size + 1, width - kernel_size + 1
    patches = jnp.stack([images[:, i : i + rows, j : j + columns] for i, j in corners], axis=-2)
    patches = patches.astype(jnp.promote_types(images.dtype, jnp.float32)).reshape(-1, len(corners) * channels)
    moments = jnp.matmul(patches.T, patches, precision=jax.lax.Precision.HIGHEST) / len(patches)
    eigenvalues, eigenvectors = jnp.linalg.eigh(moments)  # columns
    filters = eigenvectors / jnp.sqrt(eigenvalues + epsilon)
    return jnp.concatenate([filters, -filters], axis=1).reshape(kernel_size, kernel_size, channels, -1)


class Group(nn.Module):
    """Two 3x3 convolutions, a 2x2 pool after the first: [N, H, W, C] -> [N, H // 2, W // 2, width]."""

    width: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., Callable]
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = max_pool(self.conv(self.width, 3, name='conv1')(x), (2, 2), (2, 2))
        x = self.activation(self.norm(name='norm1')(x))
        return self.activation(self.norm(name='norm2')(self.conv(self.width, 3, name='conv2')(x)))


class Airbench(nn.Module):
    """A whitening convolution, groups that halve the map, the maximum over positions, a dense layer without bias.

    Takes images [N, H, W, C]; returns [N, num_outputs], or the maxima [N, widths[-1]]. Raises InputError for unknown
    options, and for images of which nothing is left.
    """

    num_outputs: int | None
    widths: tuple[int, ...] = (64, 256, 256)
    kernel_size: int = 2  # of the whitening
    data_init_images: int = 5000  # from which the whitening is made
    head_scale: float = 1.0  # deviation of the head's weights at the start; its outputs are divided by it
    norm: str = 'batch'
    norm_momentum: float = 0.6
    norm_epsilon: float = 1e-12
    activation: str = 'gelu'
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        if self.num_outputs is not None:
            variance = self.head_scale**2
            init = nn.initializers.variance_scaling(variance * self.widths[-1], 'fan_in', 'uniform')
            self.head = nn.Dense(
                self.num_outputs, use_bias=False, kernel_init=init, dtype=self.dtype, param_dtype=self.param_dtype
            )

    @nn.nowrap
    def data_init(self, variables: Any, images: jax.Array) -> Any:
        """The variables with the whitening of these images [N, H, W, C], which are prepared as in evaluation."""
        whiten = variables['params']['whiten']
        kernel = whitening_kernel(images, self.kernel_size).astype(whiten['kernel'].dtype)
        return {**variables, 'params': {**variables['params'], 'whiten': {**whiten, 'kernel': kernel}}}

    @nn.compact
    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The map of the whitening and of each group."""
        least = 2 ** len(self.widths) + self.kernel_size - 1
        if min(x.shape[1:3]) < least:
            raise InputError(
                f'airbench: nothing is left of images of {x.shape[1]} x {x.shape[2]}; it needs {least} x {least}'
            )
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        conv = conv_layer('symmetric', kernel_init=dirac, **types)
        norm = norm_layer(self.norm, train=train, momentum=self.norm_momentum, epsilon=self.norm_epsilon, **types)
        act = activation(self.activation)
        fan_in = self.kernel_size**2 * x.shape[-1]

        def bias_init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -1, 1) / fan_in**0.5

        whiten = conv(
            2 * fan_in,
            self.kernel_size,
            use_bias=True,
            pad=0,
            kernel_init=torch_uniform,
            bias_init=bias_init,
            name='whiten',
        )
        x = whiten(x)
        maps, stride = {'whiten': (1, x)}, 1
        x = act(x)
        for index, width in enumerate(self.widths, start=1):
            x, stride = Group(width, conv, norm, act, name=f'group{index}')(x), 2 * stride
            maps[f'group{index}'] = (stride, x)  # [N, (H - 1) // stride, (W - 1) // stride, width]
        return maps

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        _, x = self.features(x, train=train)[f'group{len(self.widths)}']
        x = x.max((1, 2))  # of CIFAR's 3x3 positions: the 3x3 pool of the original
        if self.num_outputs is not None:
            x = self.head(x) / (self.head_scale * x.shape[-1])
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))


VARIANTS = {
    '': Variant({}, 1_972_792, (32, 32, 3), 10, 'github.com/KellerJordan/cifar10-airbench, airbench94_muon.py'),
}
NETWORK = Airbench

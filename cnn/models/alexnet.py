"""AlexNet: as one tower, and as the ImageNet network of 2012.

Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks, in the widths that torchvision
publishes weights for; Krizhevsky et al. 2012, ImageNet Classification with Deep Convolutional Neural Networks.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn.errors import InputError, nearest
from cnn.layers import Pool, activation, adaptive_average_pool, conv_layer, norm_layer
from cnn.models import Variant
from cnn.ops.pool import avg_pool

Dtype = Any
CHOICES = {'norm': ('none', 'local', 'batch', 'group', 'layer'), 'initializer': ('uniform', 'normal')}
KERNEL_SIZES = (11, 5, 3, 3, 3)
SPLIT = (2, 4, 5)  # convolutions that see only the maps of their own GPU (figure 2); they start with biases of one
POOLED = (1, 2, 5)


def local_response_norm(
    x: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
) -> jax.Array:
    """Each activity by a power of the squares of `size` channels around it, an odd number: [N, H, W, C].

    a / (k + alpha * sum a**2)**beta (section 3.3); PyTorch divides alpha by the size. At least in float32.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = avg_pool(jnp.square(wide)[..., None], (1, 1, size), padding='SAME')[..., 0]
    return (wide / (k + alpha * size * mean) ** beta).astype(x.dtype)


def uniform(fan_in: int) -> Callable[..., jax.Array]:
    """PyTorch's initialiser of kernels and biases, between -1 and 1 by the root of the fan-in."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class AlexNet(nn.Module):
    """Five convolutions, pools after the first two and the last, an adaptive average pool, dense layers with dropout.

    Takes images [N, H, W, C] of at least 63 x 63; of 224 x 224, two zeros on each side make the paper's 55 x 55
    positions. Returns [N, num_outputs], or [N, hidden]. Raises InputError for unknown options and smaller images.
    """

    num_outputs: int | None
    widths: tuple[int, ...] = (64, 192, 384, 256, 256)
    width_multiplier: float = 1.0  # of the convolutions
    groups: int = 1  # of convolutions 2, 4 and 5
    norm: str = 'none'  # batch, group, layer after each convolution; local: of responses, after the first two
    pool: str = 'max'  # max, average, conv, blur
    pool_window: int = 3  # at strides of 2, so that windows overlap; 2: they don't (section 3.4)
    grid: int = 6  # side of the adaptive average pool
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5  # before each hidden layer
    activation: str = 'relu'
    initializer: str = 'uniform'  # by the fan-in; normal: deviation .01, biases of one in some layers (section 5)
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        sizes = (self.grid**2 * self._widths()[-1], *self.hidden)
        self.dense = [
            nn.Dense(outputs, **self._initializers(inputs, 1.0), **types)
            for inputs, outputs in itertools.pairwise(sizes)
        ]
        self.drop = nn.Dropout(self.dropout)
        if self.num_outputs is not None:
            self.head = nn.Dense(self.num_outputs, **self._initializers(sizes[-1], 0.0), **types)

    @nn.compact
    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The map of each convolution, and of the last pool."""
        self._check(x.shape)
        types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
        conv = conv_layer('symmetric', **types)
        norm = norm_layer('none' if self.norm == 'local' else self.norm, train=train, **types)
        act = activation(self.activation)
        maps, stride = {}, 4
        for index, (width, kernel_size) in enumerate(zip(self._widths(), KERNEL_SIZES, strict=True), start=1):
            groups, bias = (self.groups, 1.0) if index in SPLIT else (1, 0.0)
            x = conv(
                width,
                kernel_size,
                stride if index == 1 else 1,
                groups=groups,
                pad=2 if index == 1 else None,
                use_bias=self.norm in ('none', 'local'),
                name=f'conv{index}',
                **self._initializers(kernel_size**2 * x.shape[-1] // groups, bias),
            )(x)
            x = act(norm(name=f'norm{index}')(x))
            if self.norm == 'local' and index <= 2:
                x = local_response_norm(x)
            maps[f'conv{index}'] = (stride, x)  # [N, H / stride, W / stride, width]
            if index in POOLED:
                x, stride = Pool(self.pool, self.pool_window, 2, conv, pad=0, name=f'pool{index}')(x), 2 * stride
        return maps | {'pool': (stride, x)}  # [N, H / 32, W / 32, width]

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        _, x = self.features(x, train=train)['pool']
        x = adaptive_average_pool(x, (self.grid, self.grid))
        x = x.reshape(len(x), -1)  # [N, grid**2 width]
        for dense in self.dense:
            x = self.drop(x, deterministic=not train)
            x = activation(self.activation)(dense(x))
        if self.num_outputs is not None:
            x = self.head(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _widths(self) -> tuple[int, ...]:
        return tuple(round(width * self.width_multiplier) for width in self.widths)

    def _initializers(self, fan_in: int, bias: float) -> dict[str, Any]:
        """Initialisers of a layer, whose bias is this where it is not random."""
        if self.initializer == 'uniform':
            return {'kernel_init': uniform(fan_in), 'bias_init': uniform(fan_in)}
        return {'kernel_init': nn.initializers.normal(0.01), 'bias_init': nn.initializers.constant(bias)}

    def _check(self, shape: tuple[int, ...]) -> None:
        for option, choices in CHOICES.items():
            if getattr(self, option) not in choices:
                raise nearest(f'{option} of alexnet', getattr(self, option), choices)
        if len(self.widths) != len(KERNEL_SIZES):
            raise InputError(f'alexnet: widths={self.widths} must be {len(KERNEL_SIZES)} numbers, one a convolution')
        if any(width % self.groups for width in self._widths()):
            raise InputError(f'alexnet: groups={self.groups} must divide the widths {self._widths()}')
        if self.dropout and not self.hidden:
            raise InputError('alexnet: dropout acts before hidden layers, of which there are none: set dropout=0')
        side = 1
        for _ in POOLED:
            side = 2 * (side - 1) + self.pool_window
        side = 4 * (side - 1) + KERNEL_SIZES[0] - 4
        if min(shape[1:3]) < side:
            raise InputError(
                f'alexnet needs images of at least {side} x {side}, not {shape[1]} x {shape[2]}: pad or resize them'
            )


IMAGENET = (224, 224, 3)
VARIANTS = {
    '': Variant(
        {},
        61_100_840,
        IMAGENET,
        1000,
        'Krizhevsky 2014, as torchvision has it',
        multiply_adds=714_188_480,
        accuracy=(56.522,),
    ),
    '2012': Variant(
        {'widths': (96, 256, 384, 384, 256), 'groups': 2, 'norm': 'local', 'initializer': 'normal'},
        60_965_224,
        IMAGENET,
        1000,
        'Krizhevsky et al. 2012, section 3.5',
    ),
}
NETWORK = AlexNet

"""LeNet-5 (LeCun et al. 1998, Gradient-Based Learning Applied to Document Recognition, section II.B)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn.errors import InputError, nearest
from cnn.layers import Conv, activation
from cnn.models import Variant
from cnn.ops.conv import conv
from cnn.ops.pool import avg_pool

Dtype = Any

# The maps of S2 that each of the 16 maps of C3 sees (table I).
CONNECTIONS: tuple[tuple[int, ...], ...] = (
    (0, 1, 2),
    (1, 2, 3),
    (2, 3, 4),
    (3, 4, 5),
    (0, 4, 5),
    (0, 1, 5),
    (0, 1, 2, 3),
    (1, 2, 3, 4),
    (2, 3, 4, 5),
    (0, 3, 4, 5),
    (0, 1, 4, 5),
    (0, 1, 2, 5),
    (0, 1, 3, 4),
    (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)

# The digits as 7x12 pictures, drawn for this file; the paper's own (figure 3) are of the same kind.
GLYPHS = """
..###.. ...#... .#####. .#####. ....##. ####### ..####. ####### .#####. .#####.
.##.##. ..##... ##...## ##...## ...###. ##..... .##.... ##...## ##...## ##...##
##...## .###... ##...## .....## ..#.##. ##..... ##..... .....## ##...## ##...##
##...## ...#... .....## .....## .##.##. ##..... ##..... ....##. ##...## ##...##
##...## ...#... .....## .....## ##..##. ##..... ##..... ....##. .##.##. ##...##
##...## ...#... ....##. ..####. ##..##. #####.. ######. ...##.. ..###.. .######
##...## ...#... ...##.. ..####. ####### ....##. ##...## ...##.. .##.##. .....##
##...## ...#... ..##... .....## ....##. .....## ##...## ..##... ##...## .....##
##...## ...#... .##.... .....## ....##. .....## ##...## ..##... ##...## .....##
##...## ...#... ##..... .....## ....##. .....## ##...## .##.... ##...## .....##
.##.##. ...#... ##..... ##...## ....##. ##..##. .##..## .##.... ##...## ....##.
..###.. .#####. ####### .#####. ....##. .####.. ..####. .##.... .#####. .####..
"""


class PartialConv(nn.Module):
    """A valid convolution whose maps see only some channels: [N, H, W, C] -> [N, H - k + 1, W - k + 1, maps].

    It has one k x k kernel for each connection. They are laid into a dense kernel, which is faster than a convolution
    for each map and has the same result.
    """

    connections: tuple[tuple[int, ...], ...]
    kernel_size: tuple[int, int]
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = np.concatenate(self.connections)
        fan_in = np.array([len(sources) for sources in self.connections])
        maps = np.repeat(np.arange(len(self.connections)), fan_in)

        def lecun_normal(key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
            deviation = 1 / np.sqrt(np.prod(self.kernel_size) * fan_in[maps])
            return jax.random.normal(key, shape, dtype) * jnp.asarray(deviation, dtype)

        kernel = self.param('kernel', lecun_normal, (*self.kernel_size, len(channels)), self.param_dtype)
        bias = self.param('bias', nn.initializers.zeros, (len(self.connections),), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        dense_shape = (*self.kernel_size, x.shape[-1], len(self.connections))
        kernel = jnp.zeros(dense_shape, kernel.dtype).at[..., channels, maps].set(kernel)
        return conv(x, kernel, padding='VALID') + bias


class Subsampling(nn.Module):
    """The sum over 2x2 positions, times one coefficient and plus one bias for each map: [N, H / 2, W / 2, C]."""

    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param('scale', nn.initializers.constant(0.25), (x.shape[-1],), self.param_dtype)
        bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        x, scale, bias = nn.dtypes.promote_dtype(x, scale, bias, dtype=self.dtype)
        return 4 * avg_pool(x, window_shape=(2, 2), strides=(2, 2)) * scale + bias


class LeNet(nn.Module):
    """Two 5x5 valid convolutions with 2x2 pools, and dense layers of 120 and 84.

    Takes images [N, H, W, C] of at least 32 x 32, the size of the paper; returns [N, num_outputs], or [N, 84]. The 1998
    form differs in four options, each of which can be had alone. Weights start from LeCun's normal distribution, where
    the paper has a uniform one within 2.4 / fan-in.

    Raises InputError for smaller images, and for other than ten outputs with radial basis functions.
    """

    num_outputs: int | None
    connections: str = 'full'  # of the second convolution: full, or partial as in table I
    pool: str = 'average'  # average, after the activation; or trained, with a coefficient, a bias and an activation
    activation: str = 'tanh'
    output: str = 'dense'  # dense; or rbf: minus the squared distance to the picture of each digit
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.param_dtype)
        self.c5 = dense(120)  # a 5x5 convolution over the 5x5 maps of S4
        self.f6 = dense(84)
        if self.num_outputs is not None and self.output == 'dense':
            self.head = dense(self.num_outputs)

    @nn.compact
    def features(self, x: jax.Array, *, train: bool) -> dict[str, tuple[int, jax.Array]]:
        """The maps C1 and C3 of the convolutions, S2 and S4 of the pools. Strides are true, borders are lost."""
        self._check(x.shape)
        conv = functools.partial(
            Conv, kernel_size=(5, 5), padding='VALID', dtype=self.dtype, param_dtype=self.param_dtype
        )
        partial_conv = functools.partial(
            PartialConv, CONNECTIONS, (5, 5), dtype=self.dtype, param_dtype=self.param_dtype
        )
        subsampling = functools.partial(Subsampling, dtype=self.dtype, param_dtype=self.param_dtype)
        act = activation(self.activation)

        def pool(x: jax.Array, name: str) -> jax.Array:
            if self.pool == 'trained':
                return act(subsampling(name=name)(x))
            return avg_pool(x, window_shape=(2, 2), strides=(2, 2))

        c1 = act(conv(6, name='c1')(x))  # [N, 28, 28, 6]
        s2 = pool(c1, 's2')  # [N, 14, 14, 6]
        c3_layer = conv(16, name='c3') if self.connections == 'full' else partial_conv(name='c3')
        c3 = act(c3_layer(s2))  # [N, 10, 10, 16]
        s4 = pool(c3, 's4')  # [N, 5, 5, 16]
        return {'c1': (1, c1), 's2': (2, s2), 'c3': (2, c3), 's4': (4, s4)}

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        act = activation(self.activation)
        _, x = self.features(x, train=train)['s4']
        x = x.reshape(len(x), -1)
        x = act(self.f6(act(self.c5(x))))  # [N, 84]
        if self.num_outputs is not None and self.output == 'dense':
            x = self.head(x)
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        if self.num_outputs is not None and self.output == 'rbf':
            x = -jnp.square(x[:, None] - jnp.asarray(digit_codes(), x.dtype)).sum(-1)
        return x

    def _check(self, shape: tuple[int, ...]) -> None:
        for option, choices in (
            ('connections', ('full', 'partial')),
            ('pool', ('average', 'trained')),
            ('output', ('dense', 'rbf')),
        ):
            if getattr(self, option) not in choices:
                raise nearest(f'{option} of lenet', getattr(self, option), choices)
        if min(shape[1:3]) < 32:
            raise InputError(f'lenet needs images of at least 32 x 32, not {shape[1]} x {shape[2]}: pad or resize them')
        if self.output == 'rbf' and self.num_outputs not in (None, 10):
            raise InputError(
                f'lenet: output rbf has a picture for each of 10 digits, so not {self.num_outputs} outputs'
            )


def digit_codes() -> np.ndarray:
    """The fixed weights of the radial basis functions [10, 84]: pictures of the digits, ink 1 and paper -1."""
    rows = [line.split() for line in GLYPHS.split('\n') if line]  # [12][10] strings of 7
    pictures = [''.join(row[digit] for row in rows) for digit in range(10)]
    return np.array([[1 if pixel == '#' else -1 for pixel in picture] for picture in pictures])


VARIANTS = {
    '': Variant({}, 61_706, (32, 32, 1), 10, 'LeCun et al. 1998 as it is built today: full connections, plain pools'),
    '1998': Variant(
        {'connections': 'partial', 'pool': 'trained', 'activation': 'scaled_tanh', 'output': 'rbf'},
        60_000,
        (32, 32, 1),
        10,
        'LeCun et al. 1998, section II.B',
    ),
}
NETWORK = LeNet

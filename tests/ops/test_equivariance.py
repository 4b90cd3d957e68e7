"""Convolutions on a torus commute with its translations: the symmetry that a convolutional network is built on."""

import itertools

import jax
import numpy as np
import pytest
from flax import linen as nn

from cnn.layers import Conv
from cnn.ops.pool import max_pool

HEIGHT, WIDTH = 8, 8
ROLLS = tuple(itertools.product(range(HEIGHT), range(WIDTH)))  # rows and columns
TOLERANCES = {'float32': 1e-6, 'float64': 1e-12}
PARAMETERS = {
    'plain': {},
    'wide': {'kernel_size': (5, 2)},
    'dilated': {'kernel_dilation': 2},
    'depthwise': {'feature_group_count': 4, 'features': 4},
}


def rolled(network, dtype):
    """What a network makes of a random map [8, 8, 4] rolled by each of ROLLS."""
    x = np.random.default_rng(0).standard_normal((HEIGHT, WIDTH, 4)).astype(dtype)
    batch = np.stack([np.roll(x, by, (0, 1)) for by in ROLLS])
    y = jax.jit(lambda x: network.init_with_output(jax.random.key(0), x)[0])(batch)
    assert y.dtype == dtype
    return dict(zip(ROLLS, np.asarray(y), strict=True))


def circular(dtype, **options):
    return Conv(**{'features': 5, 'kernel_size': (3, 3), 'padding': 'CIRCULAR', 'param_dtype': dtype, **options})


def apart(a, b):
    """The largest difference."""
    return np.abs(a - b).max()


@pytest.mark.parametrize('dtype', TOLERANCES)
@pytest.mark.parametrize('options', PARAMETERS.values(), ids=PARAMETERS)
def test_circular_convolution_commutes_with_every_roll(dtype, options):
    with jax.enable_x64(dtype == 'float64'):
        found = rolled(circular(dtype, **options), dtype)
    for by, y in found.items():
        assert apart(y, np.roll(found[0, 0], by, (0, 1))) <= TOLERANCES[dtype]


@pytest.mark.parametrize('dtype', TOLERANCES)
def test_with_a_stride_of_two_it_commutes_with_even_rolls_only(dtype):
    with jax.enable_x64(dtype == 'float64'):
        found = rolled(circular(dtype, strides=2), dtype)
    coarse = {by: np.roll(found[0, 0], by, (0, 1)) for by in itertools.product(range(HEIGHT // 2), range(WIDTH // 2))}
    for (rows, columns), y in found.items():
        if rows % 2 == columns % 2 == 0:
            assert apart(y, coarse[rows // 2, columns // 2]) <= TOLERANCES[dtype]
        else:
            assert min(apart(y, other) for other in coarse.values()) > 0.1


class Network(nn.Module):
    """Two convolutions, each with a stride or followed by a max pool where these are given, the mean over positions."""

    dtype: str
    padding: str = 'CIRCULAR'
    stride: int = 1
    pool: int = 1

    @nn.compact
    def __call__(self, x):
        for width in (6, 7):
            x = nn.relu(Conv(width, (3, 3), self.stride, self.padding, param_dtype=self.dtype)(x))
            x = max_pool(x, window_shape=(self.pool,) * 2, strides=(self.pool,) * 2, padding='SAME')
        return nn.Dense(3, param_dtype=self.dtype)(x.mean((1, 2)))


@pytest.mark.parametrize('dtype', TOLERANCES)
def test_a_network_of_circular_convolutions_and_a_global_mean_is_invariant_to_every_roll(dtype):
    with jax.enable_x64(dtype == 'float64'):
        found = rolled(Network(dtype), dtype)
    for y in found.values():
        assert apart(y, found[0, 0]) <= TOLERANCES[dtype]


@pytest.mark.parametrize('smaller', ['stride', 'pool'])
def test_strides_of_two_twice_leave_invariance_to_rolls_by_four(smaller):
    with jax.enable_x64(True):
        found = rolled(Network('float64', **{smaller: 2}), 'float64')
    for (rows, columns), y in found.items():
        expected = rows % 4 == columns % 4 == 0
        assert (apart(y, found[0, 0]) <= 1e-12) == expected


def test_zeros_at_the_border_break_the_invariance():
    with jax.enable_x64(True):
        found = rolled(Network('float64', padding='SAME'), 'float64')
    assert min(apart(y, found[0, 0]) for by, y in found.items() if by != (0, 0)) > 1e-3

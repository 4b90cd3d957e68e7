import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from jax import lax

from cnn.ops import onednn

NUMBERS = ('NHWC', 'HWIO', 'NHWC')
needs_library = pytest.mark.skipif(not onednn.available(), reason='this jaxlib is not known to carry oneDNN')


def test_only_releases_where_the_call_was_tried_make_it(monkeypatch):
    monkeypatch.setattr(jaxlib.version, '__version__', '0.99.0')
    assert not onednn.available()
    monkeypatch.setattr(jaxlib.version, '__version__', onednn.RELEASES[0])
    monkeypatch.setattr('platform.system', lambda: 'Linux')
    for machine, expected in (('x86_64', True), ('aarch64', False), ('arm64', False)):
        monkeypatch.setattr('platform.machine', lambda machine=machine: machine)
        assert onednn.available() is expected


@needs_library
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
    'padding', [((0, 0), (0, 0)), ((1, 2), (2, 0)), ((-1, 0), (1, -2)), ((9, 0), (0, 7)), ((5, 5), (-1, 9))]
)
@pytest.mark.parametrize(
    ('strides', 'dilation', 'groups'), [((1, 1), (1, 1), 1), ((2, 3), (1, 1), 2), ((1, 2), (2, 1), 4)]
)
def test_it_convolves_under_any_padding(dtype, padding, strides, dilation, groups):
    """Windows that lie in the padding altogether and negative padding, which oneDNN itself does not take."""
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(s), dtype) for s in ((2, 6, 7, 4), (3, 2, 4 // groups, 8)))
    y = onednn.convolution(x, kernel, strides, padding, dilation, groups)
    expected = lax.conv_general_dilated(
        x.astype('float32'),
        kernel.astype('float32'),
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=NUMBERS,
        feature_group_count=groups,
    )
    assert y.dtype == dtype
    bound = 2**-8 if dtype == 'bfloat16' else 1e-6
    np.testing.assert_allclose(np.asarray(y, 'float32'), expected, atol=bound * np.abs(expected).max())


def test_no_window_is_left_in_the_padding_altogether(monkeypatch):
    """What oneDNN then reads lies beyond its input, and often is right by luck: so what it is told is what counts."""
    told = []
    monkeypatch.setattr(
        onednn, '_call', lambda name, message, *rest: told.append(message['onednn_conv_config']['window'])
    )
    x, kernel = jnp.ones((2, 6, 7, 4)), jnp.ones((3, 2, 4, 8))
    onednn.convolution(x, kernel, (1, 1), ((9, 2), (-1, 3)), (2, 1), 1)
    assert told[0]['pad_left'] == [4, 0]
    assert told[0]['pad_right'] == [2, 1]


@needs_library
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_it_convolves_with_the_inputs_first(dtype):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(s), dtype) for s in ((2, 6, 7, 4), (3, 2, 4, 8)))
    numbers = ((1, 2), ((1, 0), (0, 1)), (2, 1), 1)
    expected = onednn.convolution(x, kernel, *numbers)
    got = onednn.convolution(x, kernel.transpose(2, 0, 1, 3), *numbers, inputs_first=True)
    np.testing.assert_allclose(np.asarray(got, 'float32'), np.asarray(expected, 'float32'), rtol=2**-7, atol=1e-5)


@needs_library
@pytest.mark.parametrize('shape', [(1, 1, 1), (7, 3, 5), (300, 64, 17)])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_it_multiplies(shape, dtype):
    rng = np.random.default_rng(0)
    k, m, n = shape
    a, b = (jnp.asarray(rng.standard_normal(s), dtype) for s in ((k, m), (k, n)))
    expected = np.asarray(a, 'float64').T @ np.asarray(b, 'float64')
    bound = 2**-8 if dtype == 'bfloat16' else 1e-6
    np.testing.assert_allclose(
        np.asarray(onednn.transposed_matmul(a, b), 'float64'), expected, atol=bound * np.abs(expected).max()
    )


@needs_library
def test_it_repeats_its_bits():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(s), 'float32') for s in ((8, 20, 20, 32), (3, 3, 32, 32)))
    call = jax.jit(lambda x, kernel: onednn.convolution(x, kernel, (1, 1), ((1, 1), (1, 1)), (1, 1), 1))
    first = call(x, kernel)
    for _ in range(5):
        np.testing.assert_array_equal(call(x, kernel), first)


def test_what_it_can_not_take_is_stopped_before_the_call():
    with pytest.raises(AssertionError):
        onednn.convolution(jnp.ones((1, 4, 4, 2)), jnp.ones((5, 5, 2, 3)), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)

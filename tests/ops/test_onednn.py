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
    monkeypatch.setattr(onednn, '_has_avx2', lambda: True)
    for machine, expected in (('x86_64', True), ('aarch64', False), ('arm64', False)):
        monkeypatch.setattr('platform.machine', lambda machine=machine: machine)
        assert onednn.available() is expected
    monkeypatch.setattr('platform.machine', lambda: 'x86_64')
    monkeypatch.setattr(onednn, '_has_avx2', lambda: False)
    assert not onednn.available()


@needs_library
@pytest.mark.parametrize(
    'padding', [((0, 0), (0, 0)), ((1, 2), (2, 0)), ((-1, 0), (1, -2)), ((9, 0), (0, 7)), ((5, 5), (-1, 9))]
)
@pytest.mark.parametrize(
    ('strides', 'dilation', 'groups'), [((1, 1), (1, 1), 1), ((2, 3), (1, 1), 2), ((1, 2), (2, 1), 4)]
)
def test_it_convolves_under_any_padding(padding, strides, dilation, groups):
    """Windows that lie in the padding altogether and negative padding, which oneDNN itself does not take."""
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(s), 'float32') for s in ((2, 6, 7, 4), (3, 2, 4 // groups, 8)))
    y = onednn.convolution(x, kernel, strides, padding, dilation, groups)
    expected = lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=NUMBERS,
        feature_group_count=groups,
    )
    np.testing.assert_allclose(y, expected, atol=1e-6 * np.abs(expected).max())


# What oneDNN does wrong lies beyond its arrays or beside others' work, and often is right by luck: so what it is told
# is what counts.


@pytest.fixture
def told(monkeypatch):
    """Every call's window and shapes of the operands, none of them made."""
    calls = []

    def record(name, message, result, *operands):
        calls.append((message['onednn_conv_config']['window'], *(array.shape for array in operands)))
        return jnp.zeros(result.shape)

    monkeypatch.setattr(onednn, '_call', record)
    return calls


def test_no_window_is_left_in_the_padding_altogether(told):
    onednn.convolution(jnp.ones((2, 6, 7, 4)), jnp.ones((3, 2, 4, 8)), (1, 1), ((9, 2), (-1, 3)), (2, 1), 1)
    [(window, *_)] = told
    assert window['pad_left'] == [4, 0]
    assert window['pad_right'] == [2, 1]


def test_an_axis_of_one_output_has_no_stride_and_just_one_window(told):
    onednn.convolution(jnp.ones((2, 9, 6, 1)), jnp.ones((3, 4, 1, 8)), (2, 3), ((0, 1), (0, 0)), (1, 1), 1)
    onednn.convolution(jnp.ones((2, 9, 2, 1)), jnp.ones((3, 4, 1, 8)), (2, 3), ((0, 1), (1, 3)), (1, 1), 1)
    (whole, x, _), (padded, y, _) = told
    assert (whole['strides'], whole['pad_right'], x) == ((2, 1), [1, 0], (2, 9, 4, 1))
    assert (padded['strides'], padded['pad_left'], padded['pad_right'], y) == ((2, 1), [0, 1], [1, 1], (2, 9, 2, 1))


def test_a_depthwise_kernel_is_spread_instead_of_dilated(told):
    onednn.convolution(jnp.ones((1, 9, 9, 6)), jnp.ones((3, 3, 1, 6)), (1, 1), ((0, 0), (0, 0)), (2, 3), 6)
    [(window, _, kernel)] = told
    assert (window['window_dilations'], kernel) == ((1, 1), (5, 7, 1, 6))


@needs_library
@pytest.mark.parametrize(
    ('x', 'kernel', 'strides', 'padding', 'dilation'),
    [
        ((2, 9, 6, 1), (3, 4, 1, 8), (2, 3), ((0, 1), (0, 0)), (1, 1)),
        ((2, 9, 2, 1), (3, 2, 1, 8), (2, 3), ((0, 1), (5, 0)), (1, 1)),  # the one window lies in the padding
        ((1, 9, 9, 6), (3, 3, 1, 6), (1, 1), ((2, 0), (0, 3)), (2, 3)),
    ],
    ids=['one', 'padding', 'depthwise'],
)
def test_what_is_told_in_other_words_is_the_same_convolution(x, kernel, strides, padding, dilation):
    rng = np.random.default_rng(0)
    groups = x[-1]
    x, kernel = (jnp.asarray(rng.standard_normal(shape), 'float32') for shape in (x, kernel))
    expected = lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=NUMBERS, feature_group_count=groups
    )
    np.testing.assert_allclose(
        onednn.convolution(x, kernel, strides, padding, dilation, groups), expected, rtol=1e-5, atol=1e-5
    )


@needs_library
def test_it_convolves_with_the_inputs_first():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(s), 'float32') for s in ((2, 6, 7, 4), (3, 2, 4, 8)))
    numbers = ((1, 2), ((1, 0), (0, 1)), (2, 1), 1)
    expected = onednn.convolution(x, kernel, *numbers)
    got = onednn.convolution(x, kernel.transpose(2, 0, 1, 3), *numbers, inputs_first=True)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@needs_library
@pytest.mark.parametrize('shape', [(1, 1, 1), (7, 3, 5), (300, 64, 17), (30_000, 27, 64)])
def test_it_multiplies(shape):
    rng = np.random.default_rng(0)
    k, m, n = shape
    a, b = (jnp.asarray(rng.standard_normal(s), 'float32') for s in ((m, k), (k, n)))
    expected = np.asarray(a, 'float64') @ np.asarray(b, 'float64')
    got = onednn.transposed_matmul(a.T, b)
    np.testing.assert_allclose(got, expected, atol=1e-6 * np.abs(expected).max())


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

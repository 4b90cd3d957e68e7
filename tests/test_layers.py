import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn.errors import InputError
from cnn.layers import (
    Attention,
    BatchNorm,
    CausalConv,
    Conv,
    ConvNorm,
    ConvTranspose,
    DropPath,
    Pool,
    SqueezeExcite,
    activation,
    adaptive_average_pool,
    conv_layer,
    norm_layer,
)


def reference_pool(x, output_size):
    """The definition, bin by bin, in float64."""
    x = np.asarray(x, np.float64)
    for axis, size in enumerate(output_size, start=1):
        length = x.shape[axis]
        bins = [range(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
        x = np.stack([np.take(x, list(bin), axis).mean(axis) for bin in bins], axis)
    return x


@pytest.mark.parametrize('sides', [(1, 1), (2, 2), (3, 5), (4, 4), (7, 6), (8, 8), (13, 10)])
@pytest.mark.parametrize('output_size', [(1, 1), (4, 4), (3, 5)])
def test_adaptive_average_pool_is_the_definition(sides, output_size):
    x = np.random.default_rng(0).standard_normal((2, *sides, 3), 'float32')
    pooled = adaptive_average_pool(x, output_size)
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, reference_pool(x, output_size), atol=1e-6)


def test_adaptive_average_pool_has_the_overlapping_bins_of_pytorch():
    """Values of torch.nn.functional.adaptive_avg_pool1d, by hand: bins 0-1, 1-3, 3-4 of five; and 0, 0-1, 1 of two."""
    x = jnp.array([1.0, 2.0, 4.0, 8.0, 16.0]).reshape(1, 5, 1)
    np.testing.assert_allclose(adaptive_average_pool(x, (3,)).ravel(), [1.5, 14 / 3, 12], rtol=1e-6)
    np.testing.assert_allclose(adaptive_average_pool(x[:, :2], (3,)).ravel(), [1, 1.5, 2], rtol=1e-6)


def test_adaptive_average_pool_takes_volumes():
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 4, 2), 'float32')
    np.testing.assert_allclose(adaptive_average_pool(x, (2, 3, 7)), reference_pool(x, (2, 3, 7)), atol=1e-6)


def test_adaptive_average_pool_keeps_a_constant_in_bfloat16():
    """As it would not if a third were rounded before the sum."""
    pooled = adaptive_average_pool(jnp.full((1, 9, 7, 1), 1.0, jnp.bfloat16), (3, 3))
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(pooled, np.float32), 1.0)


def test_adaptive_average_pool_in_float64_is_exact_to_float64():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).standard_normal((1, 10, 7, 1))
        np.testing.assert_allclose(adaptive_average_pool(jnp.asarray(x), (4, 4)), reference_pool(x, (4, 4)), atol=1e-15)


def test_batch_norm_has_momentum_and_epsilon_of_pytorch():
    x = jnp.array([[1.0], [3.0]])
    layer = norm_layer('batch', train=True, dtype=jnp.float32, param_dtype=jnp.float32)(name='norm')
    y, state = layer.init_with_output(jax.random.key(0), x)
    y, state = layer.apply(state, x, mutable=['batch_stats'])
    np.testing.assert_allclose(y.ravel(), [-1 / np.sqrt(1 + 1e-5), 1 / np.sqrt(1 + 1e-5)], rtol=1e-6)
    np.testing.assert_allclose(state['batch_stats']['mean'], 0.1 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(state['batch_stats']['var'], 0.9 + 0.1 * 1.0, rtol=1e-6)


@pytest.mark.parametrize(('channels', 'together'), [(16, 8), (58, 2)])
def test_group_norm_normalises_up_to_eight_channels_together(channels, together):
    x = np.random.default_rng(0).standard_normal((2, 5, channels), 'float32')
    y, _ = applied(nn.Sequential([norm_layer('group', train=True, **TYPES)()]), x)
    groups = x.reshape(2, 5, -1, together)
    expected = (groups - groups.mean((1, 3), keepdims=True)) / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-5)


def test_no_norm_is_the_identity():
    x = jnp.arange(3.0)
    assert norm_layer('none', train=True, dtype=jnp.float32, param_dtype=jnp.float32)(name='norm')(x) is x


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InputError, match="'group'"):
        norm_layer('grup', train=True, dtype=jnp.float32, param_dtype=jnp.float32)
    with pytest.raises(InputError, match="'silu'"):
        activation('sigu')


def test_scaled_tanh_goes_through_one():
    np.testing.assert_allclose(activation('scaled_tanh')(jnp.array([-1.0, 1.0, 100.0])), [-1, 1, 1.7159], atol=1e-4)


@pytest.mark.parametrize(('kernel_size', 'dilation'), [(1, 1), (2, 1), (2, 4), (3, 2), (5, 3)])
def test_causal_convolution_is_a_padded_one_and_steps_through_it(kernel_size, dilation):
    x = np.random.default_rng(0).standard_normal((2, 20, 3), 'float32')
    layer = CausalConv(4, kernel_size=kernel_size, dilation=dilation)
    variables = layer.init(jax.random.key(0), x)
    variables['params']['bias'] = jnp.arange(4.0)
    padding = [((kernel_size - 1) * dilation, 0)]
    flax = nn.Conv(4, (kernel_size,), kernel_dilation=dilation, padding=padding)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, flax.init(jax.random.key(0), x))
    whole = layer.apply(variables, x)
    np.testing.assert_allclose(whole, flax.apply(variables, x), atol=1e-6)

    def step(cache, inputs):
        y, state = layer.apply({**variables, 'cache': cache}, *inputs, mutable=['cache'])
        return state['cache'], y

    cache = layer.init(jax.random.key(0), x[:, 0], position=jnp.int32(0))['cache']
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(cache))
    _, steps = jax.lax.scan(step, cache, (x.swapaxes(0, 1), jnp.arange(20)))
    np.testing.assert_allclose(steps.swapaxes(0, 1), whole, atol=1e-6)


def test_convolution_has_the_variables_and_results_of_flax():
    x = np.random.default_rng(0).standard_normal((2, 9, 8, 4), 'float32')
    ours, flax = (kind(6, (3, 3), strides=(2, 1), feature_group_count=2) for kind in (Conv, nn.Conv))
    variables = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, variables, flax.init(jax.random.key(0), x))
    np.testing.assert_allclose(ours.apply(variables, x), flax.apply(variables, x), atol=1e-5)


@pytest.mark.parametrize('padding', ['SAME', 'VALID', ((1, 0), (2, 1))])
@pytest.mark.parametrize('use_bias', [True, False])
def test_transposed_convolution_has_the_variables_and_results_of_flax(padding, use_bias):
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 3), 'float32')
    options = {'strides': (2, 2), 'padding': padding, 'use_bias': use_bias}
    ours, flax = (kind(6, (4, 3), **options) for kind in (ConvTranspose, nn.ConvTranspose))
    variables = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, variables, flax.init(jax.random.key(0), x))
    np.testing.assert_allclose(ours.apply(variables, x), flax.apply(variables, x), atol=1e-5)


@pytest.mark.parametrize(
    ('dtype', 'param_dtype'), [('float32', 'float32'), ('bfloat16', 'float32'), ('float64', 'float64')]
)
def test_batch_normalisation_has_the_variables_and_results_of_flax(dtype, param_dtype):
    """Statistics too, which move by the biased variance; in evaluation they are what is used."""
    with jax.enable_x64(True):
        x = jnp.asarray(3 + 2 * np.random.default_rng(0).standard_normal((4, 5, 6, 3)), dtype)
        options = {'momentum': 0.9, 'epsilon': 1e-5, 'dtype': dtype, 'param_dtype': param_dtype}
        wide = {'force_float32_reductions': param_dtype != 'float64', 'use_fast_variance': False}
        ours, flax = (
            lambda train, kind=kind, more=more: kind(use_running_average=not train, **options, **more)
            for kind, more in ((BatchNorm, {}), (nn.BatchNorm, wide))
        )
        variables = ours(True).init(jax.random.key(0), x)
        jax.tree.map(np.testing.assert_array_equal, variables, flax(True).init(jax.random.key(0), x))
        (y, changed), (expected, expected_changed) = (
            module(True).apply(variables, x, mutable=['batch_stats']) for module in (ours, flax)
        )
        bound = {'float32': 1e-5, 'bfloat16': 2e-2, 'float64': 1e-12}[dtype]
        assert y.dtype == dtype

        def same(a, b):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(np.asarray(a, 'float64'), np.asarray(b, 'float64'), rtol=bound, atol=bound)

        jax.tree.map(same, (y, changed), (expected, expected_changed))
        variables = {**variables, **changed}
        same(ours(False).apply(variables, x), flax(False).apply(variables, x))


TYPES = {'dtype': jnp.float32, 'param_dtype': jnp.float32}


def applied(module, x, rngs=None, **arguments):
    variables = module.init(jax.random.key(0), x, **({'train': False} if 'train' in arguments else {}))
    return module.apply(variables, x, rngs=rngs, **arguments), variables


@pytest.mark.parametrize(('size', 'kernel'), [(8, 3), (7, 3), (8, 7), (9, 5)])
def test_symmetric_padding_is_pytorchs_and_same_is_tensorflows(size, kernel):
    """At stride 2 the first window begins k // 2 before the input, or half of what is needed, rounded down."""
    x = jnp.arange(1.0, size + 1).reshape(1, 1, size, 1) * jnp.ones((1, 32, 1, 1))
    ones = nn.initializers.ones
    total = np.pad(np.arange(1.0, size + 1), kernel)
    needed = max((-(-size // 2) - 1) * 2 + kernel - size, 0)
    for padding, before in (('symmetric', kernel // 2), ('SAME', needed // 2)):
        y, _ = applied(conv_layer(padding, kernel_init=ones, **TYPES)(1, kernel, 2), x)
        middle = np.asarray(y[0, 8, :, 0]) / kernel
        sums = [total[kernel - before + 2 * i :][:kernel].sum() for i in range(len(middle))]
        np.testing.assert_allclose(middle, sums, rtol=1e-6)


def test_conv_layer_refuses_another_padding():
    with pytest.raises(InputError, match="did you mean 'SAME'"):
        conv_layer('SAMES', **TYPES)


def test_conv_norm_is_convolution_normalisation_activation():
    x = np.random.default_rng(0).standard_normal((2, 6, 6, 4), 'float32')
    conv, norm = conv_layer('symmetric', **TYPES), norm_layer('batch', train=False, **TYPES)
    y, variables = applied(ConvNorm(4, 3, conv, norm, jax.nn.relu, stride=2, groups=2), x)
    kernel = variables['params']['conv']['kernel']
    reference = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=2
    )
    np.testing.assert_allclose(y, np.maximum(reference / np.sqrt(1 + 1e-5), 0), atol=1e-6)


def test_squeeze_excite_multiplies_channels_by_their_gates():
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 8), 'float32')
    y, variables = applied(SqueezeExcite(2, conv_layer('symmetric', **TYPES)), jnp.asarray(x))
    weights = [variables['params'][name]['kernel'][0, 0] for name in ('reduce', 'expand')]
    gate = 1 / (1 + np.exp(-np.maximum(x.mean((1, 2)) @ weights[0], 0) @ weights[1]))
    np.testing.assert_allclose(y, x * gate[:, None, None], rtol=1e-5)


def test_drop_path_leaves_out_whole_examples_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3, 1))
    y, _ = applied(DropPath(0.25), x, rngs={'dropout': jax.random.key(0)}, train=True)
    assert (y == y[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    assert abs(float(y.mean()) - 1) < 4 * np.sqrt(1 / 3 / 4000)  # four deviations of the mean
    np.testing.assert_array_equal(applied(DropPath(0.25), x, train=False)[0], x)


def test_pools_keep_a_constant():
    """Inside: at the border zeros of the padding enter the convolution and the blur."""
    conv = conv_layer('symmetric', kernel_init=nn.initializers.constant(1 / 18), **TYPES)
    x = jnp.ones((1, 8, 8, 2))
    for kind in ('max', 'average', 'conv', 'blur'):
        y, _ = applied(Pool(kind, 3, 2, conv, pad=1), x)
        assert y.shape == (1, 4, 4, 2)
        np.testing.assert_allclose(y[:, 1:, 1:], 1, rtol=1e-6)
    np.testing.assert_allclose(applied(Pool('average', 3, 2, conv, pad=1), x)[0], 1, rtol=1e-6)


def test_blur_pool_is_a_maximum_and_a_binomial_filter():
    x = np.zeros((1, 8, 8, 1), 'float32')
    x[0, 4, 4] = 16
    y, _ = applied(Pool('blur', 2, 2, conv_layer('symmetric', **TYPES), pad=0), x)
    # The maximum is at positions 3 and 4; windows of the filter are centred on 0, 2, 4 and 6.
    np.testing.assert_allclose(y[0, :, :, 0], 16 * np.outer([0, 1, 3, 0], [0, 1, 3, 0]) / 16)


def test_attention_is_a_mean_by_softmax_of_queries_with_keys():
    generator = np.random.default_rng(0)
    x, bias = generator.standard_normal((2, 3, 4)), generator.standard_normal((2, 3, 3))
    attention = Attention(6, 2, nn.Dense)
    variables = attention.init(jax.random.key(0), x, train=False)
    qkv, out = (variables['params'][name]['kernel'] for name in ('qkv', 'out'))
    expected = np.zeros((2, 3, 6))
    for n in range(2):
        for head in range(2):
            query, key, value = (x[n] @ qkv[:, part + 3 * head :][:, :3] for part in (0, 6, 12))
            weights = np.exp(query @ key.T / np.sqrt(3) + bias[head])
            expected[n, :, 3 * head :][:, :3] = weights / weights.sum(1, keepdims=True) @ value
    np.testing.assert_allclose(attention.apply(variables, x, bias, train=False), expected @ out, rtol=1e-4, atol=1e-6)


def test_attention_refuses_heads_that_do_not_divide_the_width():
    with pytest.raises(InputError, match='attention: 4 heads do not divide a width of 6'):
        Attention(6, 4, nn.Dense).init(jax.random.key(0), np.zeros((1, 2, 6)), train=False)

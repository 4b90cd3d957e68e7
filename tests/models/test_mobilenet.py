import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn import models
from cnn.errors import InputError
from cnn.layers import conv_layer, norm_layer, round_channels
from cnn.models.mobilenet import Block

IMAGE = jax.ShapeDtypeStruct((1, 64, 64, 3), 'float32')
TYPES = {'dtype': jnp.float32, 'param_dtype': jnp.float32}
X = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 6, 6, 8)), 'float32')


def params(name, **options):
    model = models.build(name, num_outputs=10, **options)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), IMAGE)['params']


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def blocks(name, **options):
    """The blocks of a network, in turn."""
    found = []

    def keep(call, args, kwargs, context):
        if isinstance(context.module, Block) and context.method_name == '__call__':
            found.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        params(name, **options)
    return found


def run(x, train=False, norm='batch', **fields):
    """The output of a block, and its parameters."""
    defaults = {
        'expansion': 2,
        'kernel_size': 3,
        'stride': 1,
        'width': 8,
        'linear': True,
        'residual': True,
        'gated': 0.0,
        'drop_path': 0.0,
        'zero_init': False,
        'conv': conv_layer('symmetric', **TYPES),
        'norm': norm_layer(norm, train=False, **TYPES),
        'activation': jax.nn.relu6,
        'gate': jax.nn.hard_sigmoid,
    }
    module = Block(**{**defaults, **fields})
    rngs = {'dropout': jax.random.key(3)}
    variables = module.init({'params': jax.random.key(0), **rngs}, x, train=train)
    return module.apply(variables, x, train=train, rngs=rngs), variables['params']


@pytest.mark.parametrize(
    ('channels', 'rounded'), [(1, 8), (12, 16), (18, 24), (33.6, 32), (88.08, 88), (43.2, 40), (8, 8), (90, 88)]
)
def test_channels_are_rounded_to_multiples_of_8_and_lose_a_tenth_at_most(channels, rounded):
    """18 to 24, as 16 would be less than nine tenths of it; 33.6 to 32: MobileNetV2 with 1.4 times the width."""
    assert round_channels(channels) == rounded


def test_separable_convolutions_of_the_first_version_have_the_sizes_of_table_1():
    tree = params('mobilenet/v1')
    rows = [(32, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), *[(512, 512)] * 5]
    for index, (inputs, outputs) in enumerate([*rows, (512, 1024), (1024, 1024)], start=1):
        block = tree[f'block{index}']
        assert block['depthwise']['conv']['kernel'].shape == (3, 3, 1, inputs)
        assert block['project']['conv']['kernel'].shape == (1, 1, inputs, outputs)
    assert set(tree) == {'stem', *(f'block{index}' for index in range(1, 14)), 'head'}


@pytest.mark.parametrize(
    ('name', 'expanded', 'kernels', 'gated', 'relu'),
    [  # Howard et al. 2019, tables 1 and 2; the first block does not expand
        (
            'mobilenet/v3_large',
            [64, 72, 72, 120, 120, 240, 200, 184, 184, 480, 672, 672, 960, 960],
            [3, 3, 3, 5, 5, 5, 3, 3, 3, 3, 3, 3, 5, 5, 5],
            [4, 5, 6, 11, 12, 13, 14, 15],
            6,
        ),
        (
            'mobilenet/v3_small',
            [72, 88, 96, 240, 240, 120, 144, 288, 576, 576],
            [3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 5],
            [1, 4, 5, 6, 7, 8, 9, 10, 11],
            3,
        ),
    ],
)
def test_blocks_of_the_third_version_are_those_of_the_tables(name, expanded, kernels, gated, relu):
    tree = params(name)
    rows = [tree[f'block{index}'] for index in range(1, len(kernels) + 1)]
    assert [row['expand']['conv']['kernel'].shape[-1] for row in rows if 'expand' in row] == expanded
    assert [row['depthwise']['conv']['kernel'].shape[0] for row in rows] == kernels
    assert [index for index, row in enumerate(rows, start=1) if 'squeeze_excite' in row] == gated
    activations = [block.activation for block in blocks(name)]
    assert activations == [jax.nn.relu] * relu + [jax.nn.hard_swish] * (len(kernels) - relu)


@pytest.mark.parametrize(
    ('name', 'strides'),
    [
        ('mobilenet/v1', {'stem': 2, 'stage1': 2, 'stage2': 4, 'stage3': 8, 'stage4': 16, 'stage5': 32}),
        (
            'mobilenet/v2',
            {'stem': 2, **{f'stage{i}': 2 ** min(i, 4) for i in range(1, 6)}, 'stage6': 32, 'stage7': 32, 'last': 32},
        ),
    ],
)
def test_strides_of_stages(name, strides):
    model = models.build(name, num_outputs=None)
    found = {}

    def run(x):
        maps, _ = model.init_with_output(jax.random.key(0), x, train=False, method='features')
        found.update({name: stride for name, (stride, _) in maps.items()})

    jax.eval_shape(run, IMAGE)
    assert found == strides


def test_linear_bottleneck_has_no_activation_and_others_have():
    y, _ = run(X, width=16)
    assert y.min() < 0
    y, _ = run(X, width=16, linear=False)
    assert y.min() == 0


def test_a_block_carries_its_input_where_neither_size_nor_width_changes():
    y, _ = run(X, zero_init=True)
    np.testing.assert_array_equal(y, X)
    carried, _ = run(X)
    plain, _ = run(X, residual=False)
    np.testing.assert_allclose(carried - plain, X, atol=1e-6)
    for fields in ({'stride': 2}, {'width': 16}):
        np.testing.assert_array_equal(run(X, **fields)[0], run(X, residual=False, **fields)[0])


def test_zero_init_leaves_blocks_alone_that_carry_nothing():
    y, _ = run(X, zero_init=True, width=16)
    assert jnp.abs(y).max() > 0.1


def test_dropped_paths_leave_the_input():
    x = jnp.ones((64, 2, 2, 8))
    y, _ = run(x, train=True, drop_path=0.5)
    left = (y == x).all((1, 2, 3))
    assert 16 < left.sum() < 48


def test_paths_are_dropped_more_often_towards_the_end():
    rates = [block.drop_path for block in blocks('mobilenet/v2', drop_path=0.16)]
    np.testing.assert_allclose(rates, np.arange(17) / 100)


def test_squeeze_and_excitation_is_where_it_is_asked_for():
    without, every, some = (
        params('mobilenet/v2', **options)
        for options in ({}, {'squeeze_excite': 0.25}, {'squeeze_excite': 0.25, 'squeeze_stages': (2, 7)})
    )
    gated = {name: layers['squeeze_excite'] for name, layers in some.items() if 'squeeze_excite' in layers}
    assert set(gated) == {'block2', 'block3', 'block17'}
    assert gated['block2']['reduce']['kernel'].shape == (1, 1, 96, 24)
    assert sum('squeeze_excite' in layers for layers in every.values()) == 17
    assert count(some) - count(gated) == count(without)


def test_gates_are_hard_or_smooth():
    hard, _ = run(X, gated=0.5)
    smooth, _ = run(X, gated=0.5, gate=jax.nn.sigmoid)
    assert jnp.abs(hard - smooth).max() > 1e-4
    assert {block.gate for block in blocks('mobilenet/v3_small', gate='sigmoid')} == {jax.nn.sigmoid}
    assert {block.gate for block in blocks('mobilenet/v3_small')} == {jax.nn.hard_sigmoid}


def test_width_multiplier_multiplies_the_last_convolution_where_it_should():
    """Sandler et al. 2018, section 4: below 1 not that of the second version; the dense layer of the third never."""

    def widths(name, multiplier):
        tree = params(name, width_multiplier=multiplier)
        kernels = (tree['stem']['conv'], tree['last']['conv'], tree.get('hidden', tree['head']))
        return tuple(layer['kernel'].shape[-1] for layer in kernels)

    assert widths('mobilenet/v2', 0.5) == (16, 1280, 10)
    assert widths('mobilenet/v2', 1.4) == (48, 1792, 10)
    assert widths('mobilenet/v3_small', 0.75) == (16, 432, 1024)
    assert widths('mobilenet/v3_small', 2.0) == (32, 1152, 1024)


def test_without_normalisation_convolutions_have_biases():
    """One number for each channel, where a normalisation has two."""
    tree = params('mobilenet/v1', norm='none')
    biases = {name: layers for name, layers in tree.items() if name != 'head'}
    one = sum(leaf.size for leaf in jax.tree.leaves(biases) if leaf.ndim == 1)
    assert one == 32 + 32 + 64 * 2 + 128 * 4 + 256 * 4 + 512 * 12 + 1024 * 3
    assert count(params('mobilenet/v1')) - count(tree) == one


def test_kernels_start_as_in_the_reference_implementations():
    """He et al. 2015 by the outputs, of depthwise convolutions nine for each of all channels; Glorot & Bengio 2010."""

    def deviations(name):
        options = {'stages': ((2, 3, 1, 96, 1),), 'stem_width': 64, 'width_multiplier': 1.0}
        model = models.build(name, num_outputs=100, **options, last_width=0)
        tree = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False))()['params']
        layers = tree['block1']['depthwise']['conv'], tree['block1']['project']['conv'], tree['head']
        return [float(layer['kernel'].std()) for layer in layers]

    he = math.sqrt(2 / (9 * 128)), math.sqrt(2 / 96), 0.01
    glorot = math.sqrt(2 / (9 * 129)), math.sqrt(2 / (128 + 96)), math.sqrt(2 / (96 + 100))
    np.testing.assert_allclose(deviations('mobilenet/v2'), he, rtol=0.1)
    np.testing.assert_allclose(deviations('mobilenet/v1'), glorot, rtol=0.1)


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('mobilenet/v2', {'kernel_init': 'hee'}, "unknown kernel_init of mobilenet 'hee'; did you mean 'he'"),
        ('mobilenet/v3_small', {'gate': 'sigmoidal'}, "did you mean 'sigmoid'"),
        ('mobilenet/v2', {'gate': 'sigmoid'}, 'gate=sigmoid needs squeeze_excite'),
        ('mobilenet/v2', {'activation': 'reluu6'}, "did you mean 'relu6'"),
        ('mobilenet/v2', {'norm': 'bath'}, "did you mean 'batch'"),
        ('mobilenet/v2', {'padding': 'same'}, "unknown padding 'same'"),
        ('mobilenet/v2', {'stages': ((1, 4, 1, 8, 1),)}, 'the kernel size odd'),
        ('mobilenet/v2', {'stages': ((1, 3, 1, 8, 0),)}, 'stage (1.0, 3, 1, 8, 0) must be'),
        ('mobilenet/v2', {'width_multiplier': 0}, 'width_multiplier=0.0 must be above 0'),
        ('mobilenet/v2', {'squeeze_excite': 0.25, 'squeeze_stages': (8,)}, 'squeeze_stages=(8,) must be among 1 to 7'),
        ('mobilenet/v2', {'relu_stages': 8}, 'relu_stages=8 must be 0 to 7'),
        ('mobilenet/v1', {'scale_last': True}, 'scale_last needs last_width'),
        ('mobilenet/v1', {'drop_path': 0.1}, 'drop_path needs residual=True'),
        ('mobilenet/v1', {'zero_init': True}, 'zero_init needs residual=True'),
        ('mobilenet/v2', {'zero_init': True, 'norm': 'none'}, 'zero_init needs a norm'),
    ],
)
def test_wrong_options_are_refused_in_one_line(name, options, message):
    with pytest.raises(InputError) as error:
        params(name, **options)
    assert message in str(error.value)
    assert '\n' not in str(error.value)

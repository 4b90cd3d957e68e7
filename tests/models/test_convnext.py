import jax
import numpy as np
import pytest

from cnn import models
from cnn.errors import InputError

TINY = {'depths': (1, 2), 'widths': (4, 8)}
X = np.random.default_rng(0).standard_normal((2, 16, 16, 3), 'float32')


def abstract(shape=(1, 32, 32, 3), **options):
    """Abstract outputs and parameters."""
    model = models.build('convnext/tiny', num_outputs=5, **(TINY | options))
    x = jax.ShapeDtypeStruct(shape, 'float32')
    outputs, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), x)
    return outputs, variables['params']


def maps(random_variables, train=False, change=lambda path, leaf: leaf, **options):
    """The feature maps of a small network with random variables, some of them changed."""
    model = models.build('convnext/tiny', num_outputs=None, **(TINY | options))
    variables = jax.tree_util.tree_map_with_path(change, random_variables(model, X))
    rngs = {'dropout': jax.random.key(0)} if train else {}
    run = jax.jit(lambda variables, x: model.apply(variables, x, train=train, rngs=rngs, method='features'))
    found = run(variables, X)
    return {name: np.asarray(map) for name, (_, map) in found.items()}


def test_options_are_sizes():
    outputs, params = abstract(kernel_size=5, expansion=2, width_multiplier=2.0)
    assert outputs.shape == (1, 5)
    block = params['stage2_block1']
    assert block['depthwise']['kernel'].shape == (5, 5, 1, 16)
    assert block['expand']['kernel'].shape == (1, 1, 16, 32)
    assert params['stem_conv']['kernel'].shape == (4, 4, 3, 8)


def test_blocks_start_as_the_identity_but_for_a_millionth():
    model = models.build('convnext/tiny', num_outputs=None, depths=(1,), widths=(4,))
    params = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(X)['params']
    np.testing.assert_array_equal(params['stage1_block0']['layer_scale'], np.full(4, 1e-6, 'float32'))
    _, without = abstract(layer_scale=0.0)
    assert 'layer_scale' not in without['stage2_block1']


def test_layer_scale_multiplies_the_branch(random_variables):
    def times(factor):
        return lambda path, leaf: leaf * factor if path[-1].key == 'layer_scale' else leaf

    one, none, three = (maps(random_variables, change=times(factor)) for factor in (1, 0, 3))
    np.testing.assert_allclose(none['stem'], none['stage1'])
    branch = one['stage1'] - one['stem']
    np.testing.assert_allclose(three['stage1'] - three['stem'], 3 * branch, rtol=1e-3, atol=1e-4)
    assert np.abs(branch).max() > 0.1


def test_stochastic_depth_leaves_out_the_last_block_and_never_the_first(random_variables):
    dropped, whole = (
        maps(random_variables, train=train, depths=(1, 1), drop_path=1.0, patch_size=2) for train in (True, False)
    )
    np.testing.assert_allclose(dropped['stage1'], whole['stage1'], rtol=1e-5, atol=1e-6)
    assert not np.allclose(dropped['stage1'], dropped['stem'], atol=0.1)
    assert not np.allclose(dropped['stage2'], whole['stage2'], atol=0.1)


@pytest.mark.parametrize('patch_size', [1, 2, 4])
def test_features_have_the_strides_of_the_patches(patch_size):
    model = models.build('convnext/tiny', num_outputs=None, patch_size=patch_size, **TINY)
    strides = {}

    def run(x):
        variables = model.init(jax.random.key(0), x, train=False)
        found = model.apply(variables, x, train=False, method='features')
        strides.update({name: stride for name, (stride, _) in found.items()})
        return {name: map for name, (_, map) in found.items()}

    shapes = jax.eval_shape(run, jax.ShapeDtypeStruct((1, 16, 24, 3), 'float32'))
    assert strides == {'stem': patch_size, 'stage1': patch_size, 'stage2': 2 * patch_size}
    assert {name: map.shape[1:3] for name, map in shapes.items()} == {
        name: (16 // stride, 24 // stride) for name, stride in strides.items()
    }


@pytest.mark.parametrize(
    ('options', 'side', 'message'),
    [
        ({'depths': (1, 2, 3)}, 32, 'convnext: 3 depths for 2 widths'),
        ({'kernel_size': 4}, 32, 'convnext: kernel_size=4 changes the size of maps'),
        ({}, 7, 'convnext: nothing is left of an image of 7x7; it needs 8 on each side'),
        ({'norm': 'lair'}, 32, "unknown norm 'lair'; did you mean 'layer'"),
    ],
)
def test_errors_are_one_line_that_names_the_input(options, side, message):
    with pytest.raises(InputError) as error:
        abstract((1, side, side, 3), **options)
    assert message in str(error.value)
    assert '\n' not in str(error.value)

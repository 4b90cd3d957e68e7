import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn import models
from cnn.errors import InputError

TINY = {'patch_size': 4, 'width': 8, 'depth': 2, 'heads': 2, 'mlp_width': 16}
X = np.random.default_rng(0).standard_normal((2, 8, 12, 3), 'float32')


def tiny(random_variables, **options):
    """A small network without a head, and its variables."""
    model = models.build('vit/b_16', num_outputs=None, **(TINY | options))
    return model, random_variables(model, X)


def run(model, variables, x=X, train=False, method='__call__'):
    """Outputs or feature maps; in training with noise, of a fixed key."""
    rngs = {'dropout': jax.random.key(0)} if train else {}
    return jax.jit(lambda variables, x: model.apply(variables, x, train=train, rngs=rngs, method=method))(variables, x)


def abstract(shape=(1, 8, 8, 3), **options):
    """Abstract outputs and parameters."""
    model = models.build('vit/b_16', num_outputs=5, **(TINY | options))
    x = jax.ShapeDtypeStruct(shape, 'float32')
    outputs, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), x)
    return outputs, variables['params']


def test_there_is_a_position_for_each_patch_and_the_token():
    for side, length in ((224, 197), (64, 17)):
        _, params = abstract((1, side, side, 3), patch_size=16)
        assert params['position_embedding'].shape == (1, length, 8)


def test_features_are_maps_of_patches(random_variables):
    model, variables = tiny(random_variables)
    maps = run(model, variables, method='features')
    assert maps.keys() == {'stem', 'block1', 'block2'}
    assert all((stride, map.shape) == (4, (2, 2, 3, 8)) for stride, map in maps.values())


def test_mean_is_of_the_normalised_positions_without_a_token(random_variables):
    model, variables = tiny(random_variables, pool='mean')
    assert 'class_token' not in variables['params']
    assert variables['params']['position_embedding'].shape == (1, 6, 8)
    _, last = run(model, variables, method='features')['block2']
    normalised = nn.LayerNorm(epsilon=1e-6).apply({'params': variables['params']['norm']}, last)
    np.testing.assert_allclose(run(model, variables), normalised.mean((1, 2)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('position_embedding', [False, True])
def test_without_positions_the_order_of_patches_does_not_matter(random_variables, position_embedding):
    model, variables = tiny(random_variables, position_embedding=position_embedding)
    assert ('position_embedding' in variables['params']) == position_embedding
    swapped = np.concatenate([X[:, 4:], X[:, :4]], axis=1)
    y, z = (run(model, variables, x) for x in (X, swapped))
    assert np.allclose(y, z, atol=1e-5) == (not position_embedding)


@pytest.mark.parametrize('option', ['dropout', 'attention_dropout', 'drop_path'])
def test_noise_is_of_training_only(random_variables, option):
    model, variables = tiny(random_variables, **{option: 0.5})
    assert not np.allclose(run(model, variables, train=True), run(model, variables), atol=1e-3)


def test_stochastic_depth_leaves_out_the_last_block_and_never_the_first(random_variables):
    model, variables = tiny(random_variables, drop_path=1.0)
    maps = run(model, variables, train=True, method='features')
    np.testing.assert_array_equal(maps['block1'][1], maps['block2'][1])
    assert not np.allclose(maps['stem'][1], maps['block1'][1], atol=0.1)


def test_starts_from_zero_outputs():
    model = models.build('vit/b_16', num_outputs=5, **TINY)
    y, _ = model.init_with_output(jax.random.key(0), jnp.asarray(X), train=False)
    np.testing.assert_array_equal(y, np.zeros((2, 5)))


@pytest.mark.parametrize(
    ('options', 'shape', 'message'),
    [
        ({'pool': 'tokens'}, (1, 8, 8, 3), "unknown pool of vit 'tokens'; did you mean 'token'"),
        ({'heads': 3}, (1, 8, 8, 3), 'attention: 3 heads do not divide a width of 8'),
        ({}, (1, 8, 10, 3), 'vit: patches of 4 do not tile an image of 8x10'),
        ({'norm': 'lair'}, (1, 8, 8, 3), "unknown norm 'lair'; did you mean 'layer'"),
    ],
)
def test_errors_are_one_line_that_names_the_input(options, shape, message):
    with pytest.raises(InputError) as error:
        abstract(shape, **options)
    assert message in str(error.value)
    assert '\n' not in str(error.value)

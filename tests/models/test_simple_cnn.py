import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import models
from cnn.errors import InputError


def shapes(size, **options):
    model = models.build('simple_cnn', num_outputs=10, **options)
    x = jax.ShapeDtypeStruct((2, size, size, 1), 'float32')
    return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), x)


@pytest.mark.parametrize('size', [4, 8, 28, 33])
def test_takes_images_of_any_size(size):
    outputs, variables = shapes(size)
    assert outputs.shape == (2, 10)
    assert variables['params']['dense']['kernel'].shape == (16 * 128, 256)


def test_images_that_the_pools_would_use_up_are_refused():
    with pytest.raises(InputError, match='at least 4 pixels a side, not 3 x 3'):
        shapes(3)


def test_batch_norm_replaces_the_bias_of_convolutions():
    _, plain = shapes(8)
    _, normalised = shapes(8, norm='batch')
    assert set(plain['params']['conv1']) == {'kernel', 'bias'}
    assert set(normalised['params']['conv1']) == {'kernel'}
    assert normalised['batch_stats']['norm3']['mean'].shape == (128,)


@pytest.mark.parametrize(
    ('pools', 'strides'),
    [((False, False, False), [1, 1, 1]), ((True, False, True), [1, 2, 2]), ((True,) * 3, [1, 2, 4])],
)
def test_pools_set_the_strides(pools, strides):
    model = models.build('simple_cnn', num_outputs=10, pools=pools, widths=(2, 2, 2), hidden=2)
    x = jnp.zeros((1, 16, 16, 1))
    variables = model.init(jax.random.key(0), x, train=False)
    maps = model.apply(variables, x, train=False, method='features')
    assert [stride for stride, _ in maps.values()] == strides
    assert [map.shape[1] for _, map in maps.values()] == [16 // stride for stride in strides]


def test_a_last_pool_is_a_pool():
    """Without a hidden layer in between, the last pool shows in what enters the adaptive pool."""
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 1))
    plain, pooled = (
        models.build('simple_cnn', num_outputs=None, widths=(2,), pools=(pool,), hidden=4) for pool in (False, True)
    )
    variables = plain.init(jax.random.key(0), x, train=False)
    _, feature_map = plain.apply(variables, x, train=False, method='features')['conv1']
    expected = feature_map.reshape(1, 4, 2, 4, 2, 2).max((2, 4)).reshape(1, -1)
    dense = variables['params']['dense']
    expected = jax.nn.relu(expected @ dense['kernel'] + dense['bias'])
    np.testing.assert_allclose(pooled.apply(variables, x, train=False), expected, atol=1e-6)
    assert not np.allclose(plain.apply(variables, x, train=False), expected, atol=1e-3)


def test_dropout_acts_in_training_only():
    model = models.build('simple_cnn', num_outputs=None, widths=(2, 2, 2), hidden=400)
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 1))
    variables = model.init(jax.random.key(0), x, train=False)
    y = model.apply(variables, x, train=False)
    dropped = model.apply(variables, x, train=True, rngs={'dropout': jax.random.key(2)})
    kept = np.asarray(dropped[y > 0] > 0)
    assert 0.35 < kept.mean() < 0.65
    np.testing.assert_allclose(dropped[y > 0][kept], 2 * y[y > 0][kept], rtol=1e-6)

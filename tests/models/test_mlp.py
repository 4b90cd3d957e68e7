import jax
import jax.numpy as jnp
import numpy as np

from cnn import models


def test_is_dense_layers_over_the_flattened_input():
    model = models.build('mlp', num_outputs=3, widths=(5, 4))
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 2))
    variables = model.init(jax.random.key(0), x, train=False)
    params = variables['params']
    y = x.reshape(2, 24)
    for name in ('dense1', 'dense2'):
        y = jnp.maximum(y @ params[name]['kernel'] + params[name]['bias'], 0)
    expected = y @ params['head']['kernel'] + params['head']['bias']
    np.testing.assert_allclose(model.apply(variables, x, train=False), expected, atol=1e-6)


def test_without_hidden_layers_it_is_linear():
    model = models.build('mlp', num_outputs=3, widths=())
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    assert jax.tree.map(jnp.shape, variables) == {'params': {'head': {'kernel': (64, 3), 'bias': (3,)}}}


def test_dropout_acts_in_training_only():
    model = models.build('mlp', num_outputs=None, widths=(400,), dropout=0.25)
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 1))
    variables = model.init(jax.random.key(0), x, train=False)
    y = model.apply(variables, x, train=False)
    dropped = model.apply(variables, x, train=True, rngs={'dropout': jax.random.key(2)})
    assert 0.6 < np.mean(dropped[y > 0] > 0) < 0.9

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import models
from cnn.errors import InputError
from cnn.models.lenet import CONNECTIONS, PartialConv, Subsampling, digit_codes

IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 1), 'float32')


def init(model, x=IMAGE):
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)


def test_connection_table_is_the_published_one():
    table = np.zeros((6, 16), int)
    for column, sources in enumerate(CONNECTIONS):
        table[list(sources), column] = 1
    assert table.sum() == 60
    assert table.sum(0).tolist() == [3] * 6 + [4] * 9 + [6]
    assert table.sum(1).tolist() == [10] * 6
    assert len(set(CONNECTIONS)) == 16
    # Table I, columns 0 to 5: three neighbours in a ring; 6 to 11: four; 12 to 14: two pairs that are opposite.
    assert [set(sources) for sources in CONNECTIONS[:6]] == [{i, (i + 1) % 6, (i + 2) % 6} for i in range(6)]
    assert [set(sources) for sources in CONNECTIONS[6:12]] == [{(i + j) % 6 for j in range(4)} for i in range(6)]
    assert [set(sources) for sources in CONNECTIONS[12:15]] == [{i % 6, i + 1, i + 3, (i + 4) % 6} for i in (0, 1, 2)]


def test_layers_of_1998_have_the_published_sizes():
    params = init(models.build('lenet/1998', num_outputs=10))['params']
    counts = {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(layer)) for name, layer in params.items()}
    assert counts == {'c1': 156, 's2': 12, 'c3': 1516, 's4': 32, 'c5': 48_120, 'f6': 10_164}


def test_each_map_of_the_partial_convolution_sees_its_sources_only():
    layer = PartialConv(CONNECTIONS, (5, 5))
    generator = np.random.default_rng(1)
    x = generator.standard_normal((2, 9, 8, 6), 'float32')
    kernel, bias = generator.standard_normal((5, 5, 60), 'float32'), np.arange(16.0, dtype='float32')
    y = jax.jit(layer.apply)({'params': {'kernel': kernel, 'bias': bias}}, x)
    assert y.shape == (2, 5, 4, 16)
    first = 0
    for column, sources in enumerate(CONNECTIONS):
        own = kernel[..., first : first + len(sources)]
        first += len(sources)
        for row, col in itertools.product(range(5), range(4)):
            expected = (x[:, row : row + 5, col : col + 5, list(sources)] * own).sum((1, 2, 3)) + bias[column]
            np.testing.assert_allclose(y[:, row, col, column], expected, atol=1e-4)


def test_partial_convolution_starts_with_outputs_of_variance_one():
    x = jax.random.normal(jax.random.key(1), (8, 36, 36, 6))
    y, _ = PartialConv(CONNECTIONS, (5, 5)).init_with_output(jax.random.key(0), x)
    assert 0.8 < y[..., :6].std() < 1.2
    assert 0.8 < y[..., 15:].std() < 1.2


def test_subsampling_is_a_coefficient_times_the_sum_of_four_plus_a_bias():
    x = jax.random.normal(jax.random.key(1), (2, 4, 6, 3))
    params = {'scale': jnp.array([1.0, 2.0, 3.0]), 'bias': jnp.array([0.5, 0.0, -1.0])}
    y = Subsampling().apply({'params': params}, x)
    total = x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]
    np.testing.assert_allclose(y, total * params['scale'] + params['bias'], atol=1e-5)


def test_codes_are_ten_different_pictures_of_7_x_12():
    codes = digit_codes()
    assert codes.shape == (10, 84)
    assert set(codes.flat) == {-1, 1}
    # Any two digits differ in at least a sixth of their pixels, but similar ones are closer than dissimilar ones.
    differing = (codes[:, None] != codes).sum(-1)
    assert differing[~np.eye(10, dtype=bool)].min() >= 14
    assert differing[0, 6] < differing[0, 1]


def test_logits_are_minus_the_squared_distance_to_the_codes(random_variables):
    x = np.random.default_rng(1).standard_normal((3, 32, 32, 1), 'float32')
    model = models.build('lenet/1998', num_outputs=10)
    variables = random_variables(model, x)
    headless = models.build('lenet/1998', num_outputs=None)
    f6, logits = (jax.jit(functools.partial(net.apply, train=False))(variables, x) for net in (headless, model))
    assert f6.shape == (3, 84)
    expected = [[-sum((f6[n] - digit_codes()[digit]) ** 2) for digit in range(10)] for n in range(3)]
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_activations_of_1998_are_bounded_by_1_7159(random_variables):
    x = 100 * np.random.default_rng(1).standard_normal((2, 32, 32, 1), 'float32')
    for name, bound in (('lenet', 1.0), ('lenet/1998', 1.7159)):
        model = models.build(name, num_outputs=None)
        maps = jax.jit(functools.partial(model.apply, train=False, method='features'))(random_variables(model, x), x)
        assert jnp.abs(maps['c1'][1]).max() == pytest.approx(bound, rel=1e-4)
        assert jnp.abs(maps['c3'][1]).max() > bound / 2


def test_small_images_are_refused():
    with pytest.raises(InputError, match='at least 32 x 32, not 28 x 28'):
        init(models.build('lenet', num_outputs=10), jax.ShapeDtypeStruct((1, 28, 28, 1), 'float32'))


def test_radial_basis_functions_are_for_ten_digits():
    with pytest.raises(InputError, match='not 7 outputs'):
        init(models.build('lenet/1998', num_outputs=7))


def test_options_of_1998_can_be_had_alone():
    assert 'scale' in init(models.build('lenet', num_outputs=7, pool='trained'))['params']['s2']
    assert init(models.build('lenet', num_outputs=7, connections='partial'))['params']['c3']['kernel'].shape == (
        5,
        5,
        60,
    )

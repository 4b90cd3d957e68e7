import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import models
from cnn.errors import InputError
from cnn.layers import center_crop


def abstract(name, sides, **options):
    """Abstract outputs and variables."""
    model = models.build(name, num_outputs=2, **options)
    x = jax.ShapeDtypeStruct((1, *sides, 1), 'float32')
    return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), x)


def test_paper_makes_388_of_572():
    outputs, variables = abstract('unet/2015', (572, 572))
    assert outputs.shape == (1, 388, 388, 2)
    assert variables['params']['encoder4']['conv2']['kernel'].shape == (3, 3, 1024, 1024)
    assert 'batch_stats' not in variables


@pytest.mark.parametrize('up', ['transposed', 'nearest'])
@pytest.mark.parametrize('norm', ['batch', 'group', 'none'])
def test_padded_form_keeps_the_size(up, norm):
    outputs, variables = abstract('unet', (32, 48), width=8, depth=3, up=up, norm=norm)
    assert outputs.shape == (1, 32, 48, 2)
    assert ('bias' in variables['params']['encoder0']['conv1']) == (norm == 'none')
    assert ('norm1' in variables['params']['encoder0']) == (norm != 'none')


@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
@pytest.mark.parametrize('depth', [1, 2, 3])
def test_output_size_is_that_of_the_network_and_other_sizes_are_refused(padding, depth):
    model = models.build('unet', num_outputs=2, width=2, depth=depth, padding=padding)
    sizes = range(1, 60) if depth == 1 else range(60, 110)
    fitting = [size for size in sizes if model.output_size(size)]
    assert len(fitting) >= 3
    for size in fitting[:3]:
        outputs, _ = abstract('unet', (size, size), width=2, depth=depth, padding=padding)
        assert outputs.shape == (1, model.output_size(size), model.output_size(size), 2)
    if padding == 'SAME':
        assert fitting == [size for size in sizes if size % 2**depth == 0]
    for size in sorted(set(sizes) - set(fitting))[:2]:
        following = min(larger for larger in range(size, 200) if model.output_size(larger))
        with pytest.raises(InputError, match=rf'does not fit .* {size} can not .* next size that can is {following}'):
            abstract('unet', (size, size), width=2, depth=depth, padding=padding)


def test_smallest_valid_size_is_where_one_less_level_of_pixels_would_vanish():
    """Depth 1: convolutions take 4, halving, 4, doubling, 4, so that 16 leaves nothing."""
    model = models.build('unet', num_outputs=2, depth=1, padding='VALID')
    assert [model.output_size(size) for size in (14, 16, 18, 20)] == [0, 0, 2, 4]


def test_crop_is_centred():
    x = jnp.arange(8.0 * 6).reshape(1, 8, 6, 1)
    np.testing.assert_array_equal(center_crop(x, (1, 4, 2, 9)), x[:, 2:6, 2:4])
    np.testing.assert_array_equal(center_crop(x, x.shape), x)


def test_valid_output_is_the_middle_of_the_padded_one(random_variables):
    """Far from borders padding does not matter, so that skips and pixels are aligned in both forms alike."""
    size = 52
    valid = models.build('unet', num_outputs=2, width=2, depth=1, padding='VALID', norm='none')
    padded = models.build('unet', num_outputs=2, width=2, depth=1, padding='SAME', norm='none')
    x = np.random.default_rng(0).standard_normal((1, size, size, 1), 'float32')
    variables = random_variables(valid, x)
    y, z = (jax.jit(lambda x, model=model: model.apply(variables, x, train=False))(x) for model in (valid, padded))
    assert y.shape == (1, size - 16, size - 16, 2)
    np.testing.assert_allclose(y[:, 8:-8, 8:-8], z[:, 16:-16, 16:-16], atol=1e-5)


def test_transposed_convolution_keeps_the_variance_at_the_start():
    """Each output of a 2x2 convolution with stride 2 sees one tap, which the initialiser must know."""
    model = models.build('unet', num_outputs=None, width=32, depth=1)
    x = np.random.default_rng(0).standard_normal((1, 16, 16, 64), 'float32')
    kernel = model.init(jax.random.key(0), x, train=False)['params']['up0']['kernel']
    y = jax.lax.conv_transpose(x, kernel, (2, 2), 'SAME')
    assert 0.85 < y.var() < 1.15


def test_features_are_the_expanding_path_from_fine_to_coarse():
    model = models.build('unet', num_outputs=2, width=8, depth=2)
    x = jax.ShapeDtypeStruct((1, 16, 16, 3), 'float32')
    strides = {}

    def run(x):
        variables = model.init(jax.random.key(0), x, train=False)
        maps = model.apply(variables, x, train=False, method='features')
        strides.update({name: stride for name, (stride, _) in maps.items()})
        return {name: array for name, (_, array) in maps.items()}

    shapes = {name: array.shape for name, array in jax.eval_shape(run, x).items()}
    assert strides == {'level0': 1, 'level1': 2, 'level2': 4}
    assert shapes == {'level0': (1, 16, 16, 8), 'level1': (1, 8, 8, 16), 'level2': (1, 4, 4, 32)}


def test_dropout_acts_in_training_at_the_end_of_the_contracting_path(random_variables):
    model = models.build('unet', num_outputs=None, width=4, depth=1, norm='none', dropout=0.5)
    x = np.random.default_rng(0).standard_normal((1, 16, 16, 1), 'float32')
    variables = random_variables(model, x)
    features = jax.jit(
        lambda x, train, key: model.apply(variables, x, train=train, method='features', rngs={'dropout': key})[
            'level1'
        ][1],
        static_argnums=1,
    )
    kept, dropped = (features(x, train, jax.random.key(1)) for train in (False, True))
    positive = np.asarray(kept > 0)
    share = np.mean(np.asarray(dropped)[positive] > 0)
    assert 0.2 < share < 0.8


def test_convolutions_start_from_hes_normal_distribution():
    """Without it the paper's form, which has no norm, would lose half of the variance in each layer (section 3)."""
    model = models.build('unet/2015', num_outputs=2, width=8, depth=1)
    params = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 20, 20, 1)), train=False))()['params']
    assert params['encoder1']['conv2']['kernel'].var() == pytest.approx(2 / (9 * 16), rel=0.15)
    assert params['decoder0']['conv1']['kernel'].var() == pytest.approx(2 / (9 * 16), rel=0.15)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import models
from cnn.errors import InputError
from cnn.models import airbench

IMAGES = np.random.default_rng(0).standard_normal((20, 9, 8, 3), 'float32').cumsum(1).cumsum(2)


def whitened(images, kernel):
    """What SciPy's correlation would give: the products of each patch with each filter, in float64."""
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(images, np.float64), kernel.shape[:2], (1, 2))
    return np.einsum('nyxchw,hwco->nyxo', windows, np.asarray(kernel, np.float64)).reshape(-1, kernel.shape[-1])


@pytest.mark.parametrize('kernel_size', [2, 3])
def test_whitening_makes_patches_uncorrelated_and_of_variance_one(kernel_size):
    kernel = airbench.whitening_kernel(IMAGES, kernel_size, epsilon=0.0)
    half = 3 * kernel_size**2
    assert kernel.shape == (kernel_size, kernel_size, 3, 2 * half)
    responses = whitened(IMAGES, kernel)
    np.testing.assert_allclose(responses[:, :half].T @ responses[:, :half] / len(responses), np.eye(half), atol=2e-3)
    np.testing.assert_array_equal(kernel[..., half:], -kernel[..., :half])


def test_epsilon_dampens_the_smallest_eigenvalues():
    plain, damped = (airbench.whitening_kernel(IMAGES, 2, epsilon) for epsilon in (0.0, 10.0))
    moments = (whitened(IMAGES, plain[..., :12]) ** 2).mean(0), (whitened(IMAGES, damped[..., :12]) ** 2).mean(0)
    np.testing.assert_allclose(moments[0], 1, atol=2e-3)
    variance = 1 / np.square(np.asarray(plain[..., :12], np.float64)).sum((0, 1, 2))  # the eigenvalues
    np.testing.assert_allclose(moments[1], variance / (variance + 10), rtol=2e-3)


def test_data_init_whitens_and_changes_nothing_else():
    model = models.build('airbench', num_outputs=10, widths=(4, 4))
    variables = model.init(jax.random.key(0), IMAGES, train=False)
    new = model.data_init(variables, jnp.asarray(IMAGES))
    kernel = new['params']['whiten']['kernel']
    np.testing.assert_array_equal(kernel, airbench.whitening_kernel(jnp.asarray(IMAGES), 2))
    assert not np.allclose(kernel, variables['params']['whiten']['kernel'])
    new['params']['whiten']['kernel'] = variables['params']['whiten']['kernel']
    jax.tree.map(np.testing.assert_array_equal, new, variables)


def test_convolutions_start_as_the_identity_of_their_first_outputs():
    variables = models.build('airbench', num_outputs=10, widths=(30, 8)).init(
        jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False
    )
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, 5, 24), 'float32'))

    def conv(kernel, x):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    wider = variables['params']['group1']['conv1']['kernel']  # 24 -> 30
    np.testing.assert_array_equal(conv(wider, x)[..., :24], x)
    assert 0.9 < np.abs(wider[..., 24:]).max() * np.sqrt(9 * 24) <= 1  # PyTorch's bound
    narrower = variables['params']['group2']['conv1']['kernel']  # 30 -> 8
    np.testing.assert_array_equal(narrower[1, 1], np.eye(30, 8))


def test_the_scale_of_the_head_cancels():
    """The head starts larger by its scale, and the outputs are as they were."""
    x = jnp.asarray(IMAGES)
    outputs = []
    for scale in (1.0, 4.0):
        model = models.build('airbench', num_outputs=500, widths=(4, 256), head_scale=scale)
        variables = model.init(jax.random.key(0), x, train=False)
        assert np.std(variables['params']['head']['kernel']) == pytest.approx(scale, rel=0.01)
        outputs.append(model.apply(variables, x, train=False))
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-6)


def test_running_statistics_keep_six_tenths():
    model = models.build('airbench', num_outputs=10, widths=(4,))
    variables = model.init(jax.random.key(0), IMAGES, train=False)
    _, state = model.apply(variables, IMAGES, train=True, mutable=['batch_stats'])
    _, again = model.apply({**variables, **state}, IMAGES, train=True, mutable=['batch_stats'])
    means = [tree['batch_stats']['group1']['norm1']['mean'] for tree in (state, again)]
    np.testing.assert_allclose(means[1], 1.6 * means[0], rtol=1e-5)  # .4 m, then .6 * .4 m + .4 m


def test_images_of_which_nothing_is_left_are_refused():
    model = models.build('airbench', num_outputs=10)
    with pytest.raises(InputError, match='nothing is left of images of 8 x 9; it needs 9 x 9'):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), jnp.zeros((1, 8, 9, 3)))

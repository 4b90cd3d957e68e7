import jax
import numpy as np
import pytest

from cnn.config import Experiment
from cnn.data import sources
from cnn.models import airbench
from cnn.training import data_init, evaluation, program, sharding


def initialized(**options):
    """The state before and after, of digits."""
    config = Experiment()
    config.model.name, config.model.options = 'airbench', {'widths': (4,), **options}
    if 'data_init_images' not in options:
        config.model.name, config.model.options = 'simple_cnn', {'widths': (4, 4, 4), 'hidden': 4}
    config.data.batch_size, config.data.mean, config.data.std = 32, (0.3,), (0.4,)
    config.ema.decay, config.mesh.data, config.augment.shift = 0.9, 2, 2
    spec = sources.spec(config.data)
    config, mesh = program.resolve(config, spec), sharding.make_mesh(config)
    train = evaluation.open_split(config, spec, 'train', mesh)
    run, numbers = program.build(config, spec, train.num_examples, mesh)
    state = run.init(numbers)
    return state, data_init.data_initialized(state, run, numbers, config, spec, train)


@pytest.mark.parametrize('count', [50, 10_000])
def test_a_network_sees_the_first_training_images_normalised_and_not_augmented(count):
    before, after = initialized(data_init_images=count)
    raw = sources.load(Experiment().data, 'train', ('image',)).arrays()['image'][:count]
    expected = airbench.whitening_kernel((raw.astype(np.float32) / 255 - 0.3) / 0.4, 2)
    kernel = after.params['whiten']['kernel']
    responses = [np.abs(np.einsum('hwco,hwcp->op', kernel, other)) for other in (expected, kernel)]
    np.testing.assert_allclose(*(response.max(1) for response in responses), rtol=1e-3)
    np.testing.assert_array_equal(after.ema['params']['whiten']['kernel'], kernel)
    assert after.ema['params']['whiten']['kernel'] is not kernel  # a step takes its state's memory
    np.testing.assert_array_equal(after.params['group1']['conv2']['kernel'], before.params['group1']['conv2']['kernel'])
    shardings = [jax.tree.map(lambda leaf: leaf.sharding, state) for state in (before, after)]
    assert shardings[0] == shardings[1]


def test_other_networks_stay_as_they_are():
    before, after = initialized()
    assert after is before

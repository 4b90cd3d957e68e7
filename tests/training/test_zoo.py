"""Every family of classifiers learns: a few steps on real digits, enlarged to what the network takes."""

import numpy as np
import pytest

from cnn import models
from cnn.config import Data, Experiment
from cnn.data import sources
from cnn.data.batches import train_indices
from cnn.training import evaluation, program, sharding
from cnn.training.state import TRAIN, stream
from tests.models.test_models import SMALL

STEPS, BATCH_SIZE = 48, 64


def losses(name, options, size, learning_rate=1e-2, steps=STEPS):
    """The loss of each step of Adam at this rate, on the device mesh of one."""
    config = Experiment()
    config.model.name, config.model.options = name, options
    config.data.image_size, config.data.batch_size = size, BATCH_SIZE
    config.optimizer.name, config.optimizer.learning_rate = 'adam', learning_rate
    config.train.duration, config.mesh.data = str(steps), 1
    spec = sources.spec(Data('digits'))
    config = program.resolve(config, spec)
    mesh = sharding.make_mesh(config)
    source = evaluation.open_split(config, spec, 'train', mesh)
    built, numbers = program.build(config, spec, source.num_examples, mesh)
    state, key, values = built.init(numbers), stream(0, TRAIN), []
    for batch in source(train_indices(source.num_examples, BATCH_SIZE, 0), 0, steps):
        state, row = built.train_step(state, batch, key, numbers)
        values.append(float(row['loss']))
    return values


def falls(values):
    return np.mean(values[-4:]) < 0.9 * np.mean(values[:4])


SMALL_AS_THEY_ARE = {'simple_cnn': (8, 8), 'mlp': (8, 8), 'lenet': (32, 32)}
CLASSIFIERS = {
    name.split('/')[0]: (name, options, shape[1:3])
    for name, options, shape in reversed(SMALL)
    if len(models.variant(name).input_shape) == 3 and name.split('/')[0] != 'unet'
}


@pytest.mark.parametrize('family', CLASSIFIERS)
def test_small_forms_learn(family):
    """Without dropout, which leaves a layer of a dozen units little."""
    if family in SMALL_AS_THEY_ARE:
        values = losses(family, {}, SMALL_AS_THEY_ARE[family], 3e-3)
    else:
        name, options, size = CLASSIFIERS[family]
        dropout = {'dropout': 0.0} if 'dropout' in models.options(name, {}) else {}
        values = losses(name, options | dropout, size)
    assert falls(values), values


@pytest.mark.slow
@pytest.mark.parametrize('family', CLASSIFIERS)
def test_smallest_published_forms_learn(family):
    names = [f'{family}/{form}'.rstrip('/') for form in models.variant_names(family)]
    name = min(names, key=lambda name: models.variant(name).parameters)
    # A ReLU after its last layer leaves SqueezeNet at even odds for 40 steps, and at higher rates for good.
    rate, steps = (3e-4, 96) if family == 'squeezenet' else (1e-3, 24)
    values = losses(name, {}, (64, 64) if models.variant(name).input_shape[0] > 32 else (32, 32), rate, steps)
    assert falls(values), values

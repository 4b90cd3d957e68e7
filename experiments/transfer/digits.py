"""Digits 5 to 9, of which a few have labels: what a network that has read 0 to 4 is worth to them.

    python launch.py --config=experiments/transfer/digits.py --config.data.examples_per_class=5

Here the network begins at its own initialisation; experiments/ablations/pretraining.py compares, and tells what we
measured. There is no validation: 200 steps, and the last state is tested.
"""

from cnn.config import Experiment
from experiments import digits


def get_config() -> Experiment:
    config = digits.get_config()
    config.data.classes = ('5', '6', '7', '8', '9')
    config.data.validation_split = None
    config.data.batch_size = 32
    config.optimizer.learning_rate = 8e-3
    config.eval.metric = None
    config.train.duration = '200'
    config.checkpoint.every = '0'
    config.log.every = '20'
    return config

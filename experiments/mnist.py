"""Handwritten digits, read by LeNet-5 in its modern form.

    python launch.py --config=experiments/mnist.py

One CPU core is enough. Not run by us: no cost, no accuracy. Published: LeCun et al. 1998 (section III.C) report a test
error of .95 % for LeNet-5, and .8 % with distorted copies of the training images; their optimizer was another.
"""

from cnn.config import Experiment


def get_config() -> Experiment:
    config = Experiment()
    config.model.name = 'lenet'
    config.data.name = 'mnist'
    config.data.train_split = 'train[:55000]'
    config.data.validation_split = 'train[55000:]'
    config.data.image_size = (32, 32)
    config.data.mean = (0.1307,)
    config.data.std = (0.3081,)
    config.augment.shift = 2
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.05
    config.schedule.name = 'one_cycle'
    config.schedule.warmup = '30%'
    config.train.duration = '20ep'
    return config

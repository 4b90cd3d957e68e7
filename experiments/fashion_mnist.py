"""Pictures of clothes in ten classes, read by LeNet-5 in its modern form.

    python launch.py --config=experiments/fashion_mnist.py

One CPU core is enough. Not run by us: no cost, no accuracy. We know of no published result of this network by this
recipe.
"""

from cnn.config import Experiment
from experiments import mnist


def get_config() -> Experiment:
    config = mnist.get_config()
    config.data.name = 'fashion_mnist'
    config.data.mean = (0.2860,)
    config.data.std = (0.3530,)
    config.augment.flip = True
    config.train.duration = '30ep'
    return config

"""Pictures of clothes in ten classes, read by LeNet-5 in its modern form.

    python launch.py --config=experiments/fashion_mnist.py

One CPU core is enough. Not run by us: no cost, no accuracy. We know of no published result of this network by this
recipe.
"""

from cnn.config import Experiment


def get_config() -> Experiment:
    config = Experiment()
    config.model.name = 'lenet'
    config.data.name = 'fashion_mnist'
    config.data.train_split = 'train[:55000]'
    config.data.validation_split = 'train[55000:]'
    config.data.image_size = (32, 32)
    config.data.mean = (0.2860,)
    config.data.std = (0.3530,)
    config.augment.flip = True
    config.augment.shift = 2
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.05
    config.schedule.name = 'one_cycle'
    config.schedule.warmup = '30%'
    config.train.duration = '30ep'
    return config

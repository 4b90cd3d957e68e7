"""CIFAR-10 by residual networks: 18; 20, 32, 44, 56 of He et al.; wide16_8, wide28_10 of Zagoruyko & Komodakis.

    python launch.py --config=experiments/cifar10_resnet.py:20

None was run by us. A run needs one GPU or TPU chip. Training costs so many multiply-adds, three times those of the
forward pass over all its images; published test errors are in per cent:

    network    multiply-adds  error  source of the recipe and of the error
    18         1.7e16         -      SGD, .1, cosine over 200 epochs, as is usual for CIFAR; no publication of its own
    20         1.0e15         8.75   He et al. 2016, section 4.2 and table 6
    32         1.7e15         7.51   the same
    44         2.4e15         7.17   the same
    56         3.1e15         6.97   the same
    wide16_8   4.6e16         4.27   Zagoruyko & Komodakis 2016 (version 4), section 3 and table 5
    wide28_10  1.6e17         4.00   the same

He et al. subtract the mean of each pixel; here it is that of each channel. All train on the whole training split and
read the test split once, from the last step. To choose anything, hold images out:
--config.data.train_split='train[:45000]' --config.data.validation_split='train[45000:]'.
"""

from cnn.config import Experiment
from cnn.errors import nearest

NAMES = ('18', '20', '32', '44', '56', 'wide16_8', 'wide28_10')


def get_config(name: str = '20') -> Experiment:
    if name not in NAMES:
        raise nearest('network of experiments/cifar10_resnet.py', name, NAMES)
    config = Experiment()
    config.model.name = f'resnet/cifar_{name}' if name.startswith('wide') else f'resnet/cifar{name}'
    config.data.name = 'cifar10'
    config.data.validation_split = None
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.augment.shift = 4
    config.augment.flip = True
    config.optimizer.name = 'sgd'
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.decay_exclude = ()
    config.train.duration = '200ep'
    config.checkpoint.every = '20ep'
    if name == '18':
        config.optimizer.weight_decay = 5e-4
        config.schedule.name = 'cosine'
    elif name.startswith('wide'):
        config.augment.shift_border = 'reflect'
        config.optimizer.nesterov = True
        config.optimizer.weight_decay = 5e-4
        config.schedule.name = 'step'
        config.schedule.boundaries = ('60ep', '120ep', '160ep')
        config.schedule.factor = 0.2
    else:
        config.optimizer.weight_decay = 1e-4
        config.schedule.name = 'step'
        config.schedule.boundaries = ('32000', '48000')
        config.train.duration = '64000'
    return config

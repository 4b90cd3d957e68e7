"""ImageNet classification by published recipes; the argument names one of them.

    python launch.py --config=experiments/imagenet.py:resnet50_classic

The data are TFDS's imagenet2012, which must be prepared, or others by --config.data.name (folder:DIR). None was run by
us. Training costs so many multiply-adds, three times those of the forward pass over all its images; top-1 on the
validation split is that which the sources publish, on the hardware that they name:

    recipe             epochs  batch  multiply-adds  top-1   hardware
    resnet50_classic   90      256    1.4e18         76.130  8 V100
    resnet50_v2        600     1024   6.0e18         80.858  torchvision's, not stated
    resnet50_a1        600     2048   9.4e18         80.4    4 V100, 4.6 days
    resnet50_a2        300     2048   4.7e18         79.8    V100
    resnet50_a3        100     2048   8.0e17         78.1    V100
    efficientnet_b0    350     4096   5.2e17         77.1    TPU
    mobilenet_v3_large 600     1024   5.0e17         74.042  8 V100
    mobilenet_v3_small 600     1024   1.3e17         67.668  8 V100
    shufflenet_v2_x1_5 600     1024   4.4e17         72.996  8 V100
    shufflenet_v2_x2_0 600     1024   8.8e17         76.230  8 V100
    convnext_tiny      300     4096   5.1e18         82.1    32 GPUs

Learning rates are for the batch named, over all devices. Each recipe says where it comes from and in what it differs.
Common to all: images are resized by bilinear interpolation, for which some used a bicubic one; decay spares biases
wherever it spares normalisation. All train on the whole training split and read the validation split once, at the end.
To choose anything, hold images out:
--config.data.train_split='train[:99%]' --config.data.validation_split='train[99%:]'.
--config.model.dtype=bfloat16 computes in half precision where a recipe does not: parameters stay float32.
"""

from cnn.config import Experiment
from cnn.errors import nearest


def get_config(recipe: str = 'resnet50_classic') -> Experiment:
    config = Experiment()
    config.data.name = 'imagenet2012'
    config.data.validation_split = None
    config.data.test_split = 'validation'
    config.data.image_size = (224, 224)
    config.data.resize = 'crop'
    config.data.resize_side = 256
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.workers = 8
    config.augment.crop_scale = (0.08, 1.0)
    config.augment.flip = True
    config.checkpoint.every = '1ep'
    config.log.every = '100'
    if recipe not in RECIPES:
        raise nearest('recipe of experiments/imagenet.py', recipe, RECIPES)
    family, _, form = recipe.partition('_')
    RECIPES[recipe](config, family, form)
    return config


def classic(config: Experiment, family: str, form: str) -> None:
    """torchvision's first weights (github.com/pytorch/vision/pull/23); Goyal et al. 2017, with a smaller batch."""
    config.model.name = 'resnet/50'
    config.data.batch_size = 256
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_exclude = ()
    config.schedule.name = 'step'
    config.schedule.boundaries = ('30ep', '60ep')
    config.train.duration = '90ep'


def torchvision(config: Experiment, family: str, form: str) -> None:
    """torchvision's second weights (github.com/pytorch/vision/issues/3995, pull requests 5201 and 5906).

    The learning rate changes with each step, there with each epoch. Their average decays by .99998 rescaled as their
    training code does.
    """
    config.model.name = 'resnet/50' if family == 'resnet50' else f'{family}/{form}'
    config.task.options = {'label_smoothing': 0.1}
    config.data.batch_size = 1024
    config.data.image_size = (176, 176)
    config.data.test_size = (224, 224)
    config.data.resize_side = 232
    config.augment.repeats = 4
    config.augment.policy = 'trivialaugment'
    config.augment.erase = 0.1
    config.augment.mixup = 0.2
    config.augment.cutmix = 1.0
    config.optimizer.learning_rate = 0.5
    config.optimizer.weight_decay = 2e-5
    config.schedule.name = 'cosine'
    config.schedule.warmup = '5ep'
    config.schedule.start = 0.01
    config.ema.every = 32
    config.ema.decay = 1 - (1 - 0.99998) * config.data.batch_size * config.ema.every / 600
    config.train.duration = '600ep'


def strikes_back(config: Experiment, family: str, form: str) -> None:
    """Wightman et al. 2021, ResNet strikes back, procedures A1 to A3, with the clipping and epsilon of timm's LAMB.

    Magnitudes of RandAugment, there out of 10, are here out of 30, with torchvision's operations and ranges.
    """
    epochs, rate, decay, smoothing, magnitude, mixup, drop_path, repeats = {
        'a1': (600, 5e-3, 0.01, 0.1, 7, 0.2, 0.05, 3),
        'a2': (300, 5e-3, 0.02, 0.0, 7, 0.1, 0.05, 3),
        'a3': (100, 8e-3, 0.02, 0.0, 6, 0.1, 0.0, 1),
    }[form]
    config.model.name = 'resnet/50'
    config.model.options = {'drop_path': drop_path}
    config.model.dtype = 'bfloat16'
    config.task.options = {'cross_entropy': 'binary', 'target_threshold': 0.2, 'label_smoothing': smoothing}
    config.data.batch_size = 2048
    config.data.resize_side = 236
    if form == 'a3':
        config.data.image_size = (160, 160)
        config.data.test_size = (224, 224)
    config.augment.repeats = repeats
    config.augment.policy = 'randaugment'
    config.augment.magnitude = 3.0 * magnitude
    config.augment.magnitude_std = 1.5
    config.augment.mixup = mixup
    config.augment.cutmix = 1.0
    config.optimizer.name = 'lamb'
    config.optimizer.learning_rate = rate
    config.optimizer.weight_decay = decay
    config.optimizer.epsilon = 1e-6
    config.optimizer.clip_norm = 1.0
    config.schedule.name = 'cosine'
    config.schedule.warmup = '5ep'
    config.train.duration = f'{epochs}ep'


def efficientnet(config: Experiment, family: str, form: str) -> None:
    """Tan & Le 2019, section 5.2, in TensorFlow's forms of padding, normalisation and RMSProp."""
    config.model.name = 'efficientnet/b0'
    config.model.options = {'padding': 'SAME', 'norm_epsilon': 1e-3, 'norm_momentum': 0.99}
    config.model.options |= {'dropout': 0.2, 'drop_path': 0.2}
    config.task.options = {'label_smoothing': 0.1}
    config.data.batch_size = 4096
    config.augment.policy = 'autoaugment_imagenet'
    rmsprop(config)
    config.optimizer.learning_rate = 0.256
    config.schedule.warmup = '5ep'
    config.schedule.every = '2.4ep'
    config.schedule.factor = 0.97
    config.ema.decay = 0.9999
    config.ema.warmup = True
    config.train.duration = '350ep'


def mobilenet(config: Experiment, family: str, form: str) -> None:
    """torchvision's first weights (github.com/pytorch/vision/pull/3354), the mean of three good checkpoints.

    Their RMSProp is PyTorch's, whose epsilon of .0316 stands outside the root; here it is TensorFlow's, which the paper
    has (Howard et al. 2019, section 6.1). Decay is on all parameters there and here.
    """
    config.model.name = f'mobilenet/{form}'
    config.data.batch_size = 1024
    config.augment.policy = 'autoaugment_imagenet'
    config.augment.erase = 0.2
    rmsprop(config)
    config.optimizer.decay_exclude = ()
    config.optimizer.learning_rate = 0.064
    config.schedule.every = '2ep'
    config.schedule.factor = 0.973
    config.train.duration = '600ep'


def rmsprop(config: Experiment) -> None:
    """The optimizer of the networks that were searched for."""
    config.optimizer.name = 'rmsprop'
    config.optimizer.momentum = 0.9
    config.optimizer.second_momentum = 0.9
    config.optimizer.epsilon = 1e-3
    config.optimizer.weight_decay = 1e-5
    config.schedule.name = 'exponential'


def convnext(config: Experiment, family: str, form: str) -> None:
    """Liu et al. 2022, table 5, and github.com/facebookresearch/ConvNeXt, TRAINING.md: 4 nodes of 8 GPUs.

    Magnitudes of RandAugment as in strikes_back; erased rectangles are grey, there noise.
    """
    config.model.name = 'convnext/tiny'
    config.model.options = {'drop_path': 0.1, 'layer_scale': 1e-6}
    config.task.options = {'label_smoothing': 0.1}
    config.data.batch_size = 4096
    config.augment.policy = 'randaugment'
    config.augment.magnitude = 27.0
    config.augment.magnitude_std = 1.5
    config.augment.erase = 0.25
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 4e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay_exclude = ('bias', 'scale', 'layer_scale')
    config.schedule.name = 'cosine'
    config.schedule.warmup = '20ep'
    config.schedule.final = 1e-6 / 4e-3
    config.ema.decay = 0.9999
    config.train.duration = '300ep'


RECIPES = {
    'resnet50_classic': classic,
    'resnet50_v2': torchvision,
    'resnet50_a1': strikes_back,
    'resnet50_a2': strikes_back,
    'resnet50_a3': strikes_back,
    'efficientnet_b0': efficientnet,
    'mobilenet_v3_large': mobilenet,
    'mobilenet_v3_small': mobilenet,
    'shufflenet_v2_x1_5': torchvision,
    'shufflenet_v2_x2_0': torchvision,
    'convnext_tiny': convnext,
}

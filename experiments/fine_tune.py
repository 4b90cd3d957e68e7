"""A template: a pretrained network on images of your own. The argument says what learns.

    python launch.py --config=experiments/fine_tune.py:all --config.data.name=folder:photos

    all        everything, the new head ten times as fast
    probe      the head alone: a linear probe
    gradual    the head, then one stage after the other from the last one on (Howard & Ruder 2018, section 3.3)
    layerwise  everything, each stage slower than the one after it (Howard & Ruder 2018, section 3.2, by .65)

photos/ holds train/CLASS/*.jpg, validation and test likewise, or CLASS/*.jpg alone. --config.init_from names other
weights: a run folder, a file or hf:OWNER/NAME; the head is new where the number of classes differs. --config.model.name
is their network; `gradual` names the stages of residual networks. A GPU, or CPU cores and patience: the cost is that of
your images. Not run by us in this form, and no result of it is published; experiments/ablations/pretraining.py tells
what we measured of others.
"""

from cnn.config import Experiment
from cnn.errors import nearest

MODES = ('all', 'probe', 'gradual', 'layerwise')


def get_config(mode: str = 'all') -> Experiment:
    if mode not in MODES:
        raise nearest('way to fine-tune', mode, MODES)
    config = Experiment()
    config.model.name = 'resnet/18'
    config.init_from = 'hf:timm/resnet18.a1_in1k'
    config.data.name = 'folder:photos'
    config.data.batch_size = 64
    config.data.image_size = (224, 224)
    config.data.resize = 'crop'
    config.data.channels = 3
    config.data.mean = (0.485, 0.456, 0.406)  # as the network saw its images before
    config.data.std = (0.229, 0.224, 0.225)
    config.augment.crop_scale = (0.5, 1.0)
    config.augment.flip = True
    config.optimizer.name = 'sgd'
    config.optimizer.nesterov = True
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 1.0
    config.schedule.name = 'cosine'
    config.schedule.warmup = '5%'
    config.train.duration = '30ep'
    config.eval.metric = 'loss'  # on a small validation split it says more than accuracy
    if mode == 'all':
        config.optimizer.rates = ('head/.*=10',)
    elif mode == 'probe':
        config.model.batch_norm = 'frozen'
        config.optimizer.frozen = ('(?!head/).*',)
        config.optimizer.learning_rate = 0.1
    elif mode == 'gradual':
        config.model.batch_norm = 'frozen'
        config.optimizer.frozen = ('(?!head/).*',)
        config.optimizer.unfreeze = ('stage4.*@20%', 'stage3.*@40%', '(stem|stage[12]).*@60%')
    else:
        config.optimizer.layer_decay = 0.65
    return config

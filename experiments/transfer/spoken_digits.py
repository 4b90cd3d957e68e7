"""Spoken digits learnt from a few labels, as pictures of spectrograms, after ImageNet or from scratch.

    python -m experiments.transfer.few_labels --experiment=experiments/transfer/spoken_digits.py --init_from=FILE

The recordings lie in data/spoken_digits (see experiments/spoken_digits.py); FILE and the arms are those of
experiments/transfer/blood_cells.py.

Test accuracy on 300 recordings over seeds 0 to 5, mean and half of its 95 % interval, and the difference from `scratch`
seed by seed:

    labels   scratch        tuned          probe          tuned - scratch    probe - scratch
    1        .102 ± .015    .186 ± .023    .163 ± .015    +.084 ± .016       +.061 ± .018
    5        .122 ± .012    .351 ± .040    .269 ± .024    +.229 ± .046       +.147 ± .025
    10       .135 ± .016    .364 ± .084    .324 ± .026    +.229 ± .084       +.189 ± .025
    50       .127 ± .024    .221 ± .126    .455 ± .038    +.093 ± .129       +.328 ± .044

A hundred steps are too few from scratch, and with 50 labels too few, or too large, for tuning all of it: the small
network of experiments/spoken_digits.py, which trains ten times as long on all labels, reaches .993.
"""

from cnn.config import Experiment
from experiments.transfer import blood_cells

ARMS = blood_cells.ARMS


def get_config(arm: str = 'tuned') -> Experiment:
    config = blood_cells.mobilenet(arm)
    config.data.name = 'folder:data/spoken_digits'
    config.data.length = 8000
    config.data.channels = 3
    config.spectrogram.bands = 64
    config.spectrogram.floor = 1e-8
    # Logarithms of power, brought to what pictures are to this network: -1 to 1.
    config.data.mean, config.data.std = (-14.5, -14.5, -14.5), (9.0, 9.0, 9.0)
    return config

"""Spoken digits learnt from a few labels, as pictures of spectrograms, after ImageNet or from scratch.

    python -m experiments.transfer.few_labels --experiment=experiments/transfer/spoken_digits.py --init_from=FILE

The recordings lie in data/spoken_digits (see experiments/spoken_digits.py); FILE and the arms are those of
experiments/transfer/blood_cells.py.
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

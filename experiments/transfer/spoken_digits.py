"""Spoken digits, of which a few have labels, learnt as pictures of spectrograms by MobileNetV1.

    python launch.py --config=experiments/transfer/spoken_digits.py --config.data.examples_per_class=5

The recordings lie in data/spoken_digits (see experiments/spoken_digits.py). experiments/ablations/pretraining.py
compares with ImageNet's weights.
"""

from cnn.config import Experiment
from experiments.transfer import blood_cells


def get_config() -> Experiment:
    config = blood_cells.mobilenet()
    config.data.name = 'folder:data/spoken_digits'
    config.data.length = 8000
    config.data.channels = 3
    config.spectrogram.bands = 64
    config.spectrogram.floor = 1e-8
    # Logarithms of power, brought to what pictures are to this network: -1 to 1.
    config.data.mean, config.data.std = (-14.5, -14.5, -14.5), (9.0, 9.0, 9.0)
    return config

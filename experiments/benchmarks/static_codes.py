"""Bits per dimension of the digits by codes that learn nothing but counts: what a sequence model must beat.

    python -m experiments.benchmarks.static_codes

Codes count on train and are measured on test, every count begun at 0.1. `order 0`: each of the 64 positions has its own
code for the 17 levels: 2.3887. `order 1`: one code for each preceding level, the same at all positions, the first value
not counted: 2.7032.
"""

import numpy as np

from cnn.config import Data
from cnn.data import sources

LEVELS, PRIOR = 17, 0.1


def levels(split: str) -> np.ndarray:
    """The digits of a split as sequences of levels, [N, 64]."""
    images = sources.load(Data('digits'), split, ('image',)).arrays()['image']
    return np.round(images.reshape(len(images), -1) * ((LEVELS - 1) / 255)).astype(int)


def order_0(train: np.ndarray, test: np.ndarray, num_levels: int = LEVELS) -> float:
    """Bits per value of a code for each position."""
    counts = np.stack([np.bincount(column, minlength=num_levels) for column in train.T]) + PRIOR  # [positions, levels]
    probability = counts / counts.sum(1, keepdims=True)
    return -float(np.log2(probability[np.arange(test.shape[1]), test]).mean())


def order_1(train: np.ndarray, test: np.ndarray, num_levels: int = LEVELS) -> float:
    """Bits per value after the first, of a code for each preceding level."""
    counts = np.full((num_levels, num_levels), PRIOR)  # [preceding, next]
    np.add.at(counts, (train[:, :-1], train[:, 1:]), 1)
    probability = counts / counts.sum(1, keepdims=True)
    return -float(np.log2(probability[test[:, :-1], test[:, 1:]]).mean())


if __name__ == '__main__':
    for code in (order_0, order_1):
        print(f'{code.__name__} {code(levels("train"), levels("test")):.4f} bits per dimension')

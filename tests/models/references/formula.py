"""Weights, inputs and cotangents as a function of their name and shape, so that no fixture needs to hold them."""

import math
import re
import zlib

import numpy as np


def uniform(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) by a hash of key and index: the same on every machine and by every version of NumPy."""
    bits = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(zlib.crc32(key.encode()))
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(multiplier)
    return (bits / 2**31 - 1).astype(np.float32).reshape(shape)


def weight(key: str, shape: tuple[int, ...], outputs: int = 0) -> np.ndarray:
    """The array of that name and shape in another framework's network, whose axis `outputs` counts the outputs.

    Kernels have the variance 1.2 / fan-in, scales and variances lie around 1, all else around 0, so that values neither
    grow nor vanish by much through the layers, with shortcuts or without.
    """
    values = uniform(key, shape)
    leaf = re.split('[./]', key)[-1]
    if leaf in ('depthwise_kernel', 'depthwise_weights'):  # [H, W, C, 1]
        outputs = 2
    if leaf == 'running_var' or (leaf == 'weight' and len(shape) == 1) or leaf in ('gamma', 'moving_variance'):
        return 1 + values / 2
    if len([side for side in shape if side > 1]) > 1:
        return values * np.float32(math.sqrt(3.6 * shape[outputs] / math.prod(shape)))
    return values / 10


def fingerprint(shapes: dict[str, tuple[int, ...]]) -> int:
    """A number for a set of names with their shapes."""
    return zlib.crc32(repr(sorted((name, tuple(shape)) for name, shape in shapes.items())).encode())


def samples(array: np.ndarray) -> list[float]:
    """What a fixture keeps of an array: its norm, its product with a formula, and 16 of its elements."""
    flat = np.asarray(array, np.float64).ravel()
    few = flat[:: max(flat.size // 16, 1)][:16]
    return [float(np.linalg.norm(flat)), float(flat @ uniform('samples', flat.shape)), *map(float, few)]


def distance(ours: np.ndarray, kept: list[float]) -> float:
    """The largest difference between what is kept of two arrays, each by the size that its kind of number has."""
    norm, product, *few = (abs(a - b) for a, b in zip(samples(ours), kept, strict=True))
    scale = kept[0]  # a product with numbers of variance 1/3 is about as large as the norm
    return max(norm / scale, product / scale, max(few) / max(map(abs, kept[2:])))

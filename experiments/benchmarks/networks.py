"""The networks whose training steps are compared: cnn.models in the forms of networks_torch.py, with its weights."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn import models, pretrained

NETWORKS: dict[str, Any] = {  # those that torchvision has are built by their names
    'simple_cnn': functools.partial(models.build, 'simple_cnn'),
    'unet': functools.partial(models.build, 'unet', width=16, depth=3),
    # As in experiments/digit_sequences.py.
    'wavenet': functools.partial(
        models.build, 'wavenet', channels=32, skip_channels=64, dilations=(1, 2, 4, 8, 16, 32), stacks=1
    ),
}


def build(name: str, num_outputs: int, dtype: str = 'float32', **options: Any) -> nn.Module:
    """The network of that name, computing in `dtype` with float32 parameters."""
    network = NETWORKS.get(name, functools.partial(models.build, name))
    return network(num_outputs=num_outputs, dtype=jnp.dtype(dtype), **options)


def with_weights(name: str, variables: Any, weights: dict[str, np.ndarray]) -> Any:
    """`variables` with the values of a PyTorch state_dict."""
    if name in NETWORKS:
        return {**variables, 'params': from_torch(variables['params'], weights)}
    return pretrained.import_weights(weights, variables, name).variables


def from_torch(params: Any, weights: dict[str, np.ndarray]) -> Any:
    """`params` with the values of a PyTorch state_dict, `weights`, whose modules have the same names.

    Kernels [features, C, *K] become [*K, C, features], those of transposed convolutions, [C, features, *K], too and
    flipped, and the dense layer after a flattened map [C, 4, 4] that of [4, 4, C].
    """

    def converted(path: Any, leaf: Any) -> jax.Array:
        *modules, kind = (key.key for key in path)
        weight = weights['.'.join([*modules, 'bias' if kind == 'bias' else 'weight'])]
        if kind == 'kernel':
            if modules == ['dense']:
                weight = weight.reshape(len(weight), -1, 4, 4)
            spatial = tuple(range(2, weight.ndim))
            if modules[-1].startswith('up'):
                weight = np.flip(weight.transpose(*spatial, 0, 1), (0, 1))
            else:
                weight = weight.transpose(*spatial, 1, 0)
        if weight.size != math.prod(leaf.shape):
            raise ValueError(f'{".".join(modules)} has {weight.shape} in PyTorch and {leaf.shape} in Flax')
        return jnp.asarray(weight.reshape(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(converted, params)

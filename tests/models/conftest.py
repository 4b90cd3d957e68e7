import math
from collections.abc import Callable

import jax
import numpy as np
import pytest


@pytest.fixture(scope='session')
def random_variables() -> Callable:
    """A function of a network and its inputs that gives random variables, biases and statistics too.

    They come from NumPy, because to compile the initialisers takes most of the time of a small test.
    """

    def make(model, x, **options):
        generator = np.random.default_rng(0)

        def fill(path, leaf):
            if path[-1].key in ('scale', 'var'):
                return generator.uniform(0.2, 0.4, leaf.shape).astype(leaf.dtype)
            deviation = 1 / math.sqrt(math.prod(leaf.shape[:-1]) or 1)
            return (generator.standard_normal(leaf.shape) * deviation).astype(leaf.dtype)

        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False, **options), x)
        return jax.tree_util.tree_map_with_path(fill, variables)

    return make

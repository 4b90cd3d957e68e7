"""What is computed: one file per family of networks, and the way from a name to a network.

`resnet/50` is the entry '50' of VARIANTS in resnet.py; a plain `resnet` is its entry ''. A network is a linen module:

    __call__(x, *, train)    outputs, float32 or wider; with num_outputs=None what would have entered the head
    features(x, *, train)    {name: (stride, array)} from fine to coarse, in the type of the computation

Importing this package imports neither JAX nor a network, so that a wrong name is refused at once.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from cnn.errors import nearest
from cnn.validation import complete_options

if TYPE_CHECKING:
    from flax import linen as nn


class Variant(NamedTuple):
    """One form of a family, and what is published about it."""

    fields: dict[str, Any]  # of the network, where they differ from its defaults
    parameters: int  # trainable numbers, at input_shape and num_outputs
    input_shape: tuple[int, ...]  # of one example
    num_outputs: int
    source: str
    input_dtype: str = 'float32'
    multiply_adds: int | None = None  # of convolutions and dense layers, padded taps included; None: not published
    accuracy: tuple[float, ...] = ()  # top-1 of published ImageNet weights, per cent: the first ones, better ones


def build(
    name: str, *, num_outputs: int | None, dtype: Any = 'float32', param_dtype: Any = 'float32', **given: Any
) -> 'nn.Module':
    """The network of that name, e.g. `resnet/50`; None outputs leave the head off.

    Raises InputError for a family, variant, option or type of option that does not exist.
    """
    import jax.numpy as jnp

    return _family(name).NETWORK(
        num_outputs=num_outputs, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(param_dtype), **options(name, given)
    )


def families() -> tuple[str, ...]:
    """Every family: the files of this package."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def variant_names(family: str) -> tuple[str, ...]:
    """The names of a family's forms, '' for the default one. Raises InputError with the nearest family."""
    return tuple(_family(family).VARIANTS)


def names() -> tuple[str, ...]:
    """Every name that `build` takes. Imports all families."""
    return tuple(f'{family}/{form}'.rstrip('/') for family in families() for form in variant_names(family))


def variant(name: str) -> Variant:
    """The entry of that name. Raises InputError with the nearest name."""
    family, _, form = name.partition('/')
    variants = _family(family).VARIANTS
    if form not in variants or name.endswith('/'):
        raise nearest('model', name, [f'{family}/{form}'.rstrip('/') for form in variants])
    return variants[form]


def options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of the network of that name: what is given, else the variant's, else the network's own.

    Raises InputError for an option that it does not have, or of another type.
    """
    return complete_options(f'model {name}', _family(name).NETWORK, variant(name).fields, given)


def _family(name: str) -> ModuleType:
    family = name.partition('/')[0]
    if family not in families():
        raise nearest('model', family, families())
    return importlib.import_module(f'cnn.models.{family}')

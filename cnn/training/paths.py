"""Which parameters learn, when and how fast, by their paths.

A path is the names from the top of the parameters down, such as `stage1_block0/conv1/kernel`. A regular expression of
the configuration means the paths that it matches as a whole, so `stage1.*` is all of stage 1 and `.*/bias` all biases.
"""

import difflib
import re
from typing import Any

import jax
import jax.numpy as jnp

from cnn import config
from cnn.config import Numbers
from cnn.errors import InputError

ALWAYS, NEVER = 'always', 'never'  # when a parameter learns; else the index of its entry in `unfreeze`
# Modules without a number before the first stage; all others, and decoders, count with the head.
FRONT = re.compile(r'stem|input|whiten|patch_embedding|position_embedding|class_token')
BACK = re.compile(r'dense_|decoder|up\d')


def name(path: Any) -> str:
    """The path of a leaf, from JAX's key path."""
    return '/'.join(key.key for key in path)


def pattern(entry: str) -> str:
    """The regular expression of 'REGEX=FACTOR' or 'REGEX@DURATION'."""
    return re.sub('[=@][^=@]*$', '', entry)


def check(optimizer: config.Optimizer, params: Any) -> None:
    """Raises InputError for a regular expression that matches no parameter, and where no parameter is left to learn."""
    names = [name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    expressions = [('frozen', expression) for expression in optimizer.frozen]
    expressions += [('unfreeze', pattern(entry)) for entry in optimizer.unfreeze]
    expressions += [('rates', pattern(entry)) for entry in optimizer.rates]
    for field, expression in expressions:
        if not any(re.fullmatch(expression, known) for known in names):
            closest = difflib.get_close_matches(expression, names, n=1, cutoff=0)[0]
            raise InputError(
                f'config.optimizer.{field}: {expression!r} matches no parameter as a whole; the nearest is {closest!r}'
            )
    if all(label == NEVER for label in jax.tree.leaves(when(optimizer, params))):
        raise InputError('config.optimizer.frozen: matches every parameter; leave one that learns')


def when(optimizer: config.Optimizer, params: Any) -> Any:
    """For each parameter ALWAYS, NEVER, or the index of the entry of `unfreeze` from whose step on it learns.

    A path in `unfreeze` is frozen until then, whether `frozen` matches it or not; the first entry that matches counts.
    """

    def label(path: Any, _: Any) -> str:
        for index, entry in enumerate(optimizer.unfreeze):
            if re.fullmatch(pattern(entry), name(path)):
                return str(index)
        return NEVER if any(re.fullmatch(entry, name(path)) for entry in optimizer.frozen) else ALWAYS

    return jax.tree_util.tree_map_with_path(label, params)


def learning(optimizer: config.Optimizer, params: Any, step: jax.Array, numbers: Numbers) -> Any:
    """The same parameters, with a gradient of zero for those that do not learn in this step.

    What never learns is a constant to the program, so that its gradient is not computed.
    """
    if not optimizer.frozen and not optimizer.unfreeze:
        return params

    def hold(leaf: jax.Array, label: str) -> jax.Array:
        if label == ALWAYS:
            return leaf
        constant = jax.lax.stop_gradient(leaf)
        return (
            constant if label == NEVER else jnp.where(step >= numbers['steps']['unfreeze'][int(label)], leaf, constant)
        )

    return jax.tree.map(hold, params, when(optimizer, params))


def decay_mask(params: Any, exclude: tuple[str, ...]) -> Any:
    """True for the parameters that decay: those whose last name is not in `exclude`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in exclude, params)


def head_mask(params: Any) -> Any:
    """True for the parameters of the head."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == 'head', params)


def filter_mask(params: Any) -> Any:
    """True for the filters of convolutions: kernels with more than two axes."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: path[-1].key == 'kernel' and leaf.ndim > 2, params)


def rates(optimizer: config.Optimizer, params: Any, values: dict[str, Any]) -> Any:
    """The factor on the learning rate of each parameter: that of the first match in `rates`, and of its depth."""
    depths = depth(params)

    def factor(path: Any, depth: int) -> Any:
        matches = (index for index, entry in enumerate(optimizer.rates) if re.fullmatch(pattern(entry), name(path)))
        index = next(matches, None)
        rate = 1.0 if index is None else values['rates'][index]
        return rate if optimizer.layer_decay is None else rate * values['layer_decay'] ** depth

    return jax.tree_util.tree_map_with_path(factor, depths)


def depth(params: Any) -> Any:
    """How many stages each parameter is below the head, as in BEiT's layer-wise decay (Bao et al. 2022).

    A stage is all modules at the top whose names have the same first number: `stage3_block0` and `stage3_norm`,
    `block7`, `conv2`. Stems, patches and embeddings are one stage before the first; all that has no number (the head,
    the last normalisation), `dense_0` and its like, and the decoder of a U-Net are at depth 0, with the head.
    """
    numbers = sorted({number for part in params if (number := _stage(part)) is not None and number >= 0})
    order = {number: len(numbers) - index for index, number in enumerate(numbers)} | {-1: len(numbers) + 1, None: 0}
    return jax.tree_util.tree_map_with_path(lambda path, _: order[_stage(path[0].key)], params)


def _stage(part: str) -> int | None:
    """The number of a module's stage; -1 before the first, None at the head."""
    if FRONT.match(part):
        return -1
    digits = re.search(r'\d+', part)
    return None if BACK.match(part) or not digits else int(digits[0])

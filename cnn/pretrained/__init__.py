"""Other people's weights: their names and layouts for our variables, one file per family of networks.

A file NAME.py of this package belongs to the family of that name in cnn/models. It holds NAMINGS, which describe how
the frameworks that publish weights of that family call and lay out what our network has:

    NAMINGS = {'torchvision': Naming(rules=((r'stem_conv', 'conv1'), ...)), ...}

Our side is a path such as `params/stage1_block0/conv1/kernel`; each rule is a regular expression and its replacement,
applied in turn to the path without its collection. Both directions follow from it: what a network misses in a file,
what a file has beyond it, and files that others can read.
"""

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from cnn.config import InputError

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
Path = tuple[str, ...]  # of one of our variables, the collection first


class Layout(NamedTuple):
    """How an array of ours becomes one of theirs: reshaped to `split`, transposed, reshaped to `shape`."""

    split: tuple[int, ...]
    permutation: tuple[int, ...]
    shape: tuple[int, ...]

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Our array in their layout."""
        return array.reshape(self.split).transpose(self.permutation).reshape(self.shape)

    def to_ours(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Their array in our layout, which has this shape."""
        array = array.reshape([self.split[axis] for axis in self.permutation])
        return array.transpose(np.argsort(self.permutation)).reshape(shape)


def torch_layout(path: str, shape: tuple[int, ...]) -> Layout:
    """PyTorch's: outputs first, then inputs, then positions."""
    if path.endswith('/kernel'):
        *positions, inputs, outputs = range(len(shape))
        permutation = (outputs, inputs, *positions)
    else:
        permutation = tuple(range(len(shape)))
    return Layout(shape, permutation, tuple(shape[axis] for axis in permutation))


def flattened(channels: Mapping[str, int], layout: Callable[..., Layout] = torch_layout) -> Callable[..., Layout]:
    """A layout in which the dense layers of these names read a flattened map of so many channels, channels first."""

    def flattening(path: str, shape: tuple[int, ...]) -> Layout:
        module, _, leaf = path.rpartition('/')
        if leaf != 'kernel' or module not in channels:
            return layout(path, shape)
        inputs, outputs = shape
        return Layout((inputs // channels[module], channels[module], outputs), (2, 1, 0), (outputs, inputs))

    return flattening


def pointwise(modules: Iterable[str], layout: Callable[..., Layout] = torch_layout) -> Callable[..., Layout]:
    """A layout in which the dense layers of these names are 1x1 convolutions."""
    names = {f'{module}/kernel' for module in modules}

    def convolutional(path: str, shape: tuple[int, ...]) -> Layout:
        inner = layout(path, shape)
        return inner._replace(shape=(*inner.shape, 1, 1)) if path in names else inner

    return convolutional


# The last rules of every naming after PyTorch.
TORCH_LEAVES: Rules = (
    (r'/kernel$', '/weight'),
    (r'/scale$', '/weight'),
    (r'/embedding$', '/weight'),
    (r'/mean$', '/running_mean'),
    (r'/var$', '/running_var'),
    (r'/', '.'),
)


class Naming(NamedTuple):
    """How a framework calls and lays out a family's variables."""

    rules: Rules  # (regular expression, replacement) on `module/.../leaf`, applied in turn
    layout: Callable[[str, tuple[int, ...]], Layout] = torch_layout  # of (our path without its collection, our shape)
    leaves: Rules = TORCH_LEAVES  # rules that come last
    outputs: int = 0  # the axis of their kernels that counts outputs
    older: Rules = ()  # rules on their names, from those of older files to those of today
    ignored: str = r'(.*\.)?num_batches_tracked'  # names that hold nothing a network needs

    def key(self, path: Path) -> str:
        """Their name of our variable."""
        name = '/'.join(path[1:])
        for pattern, replacement in (*self.rules, *self.leaves):
            name = re.sub(pattern, replacement, name)
        return name


def namings(model: str) -> dict[str, Naming]:
    """The namings known for a network, e.g. `resnet/50`. Raises InputError for a family without any."""
    family = model.partition('/')[0]
    known = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != 'files')
    if family not in known:
        raise InputError(f'model {model}: no weights of others are known for this family, only for {", ".join(known)}')
    return importlib.import_module(f'cnn.pretrained.{family}').NAMINGS


def flat(variables: Any) -> dict[Path, Any]:
    """Variables by path, parameters and batch statistics alone."""
    leaves = jax.tree_util.tree_flatten_with_path(
        {k: v for k, v in variables.items() if k in ('params', 'batch_stats')}
    )
    return {tuple(part.key for part in path): leaf for path, leaf in leaves[0]}


def export(variables: Any, naming: Naming) -> dict[str, np.ndarray]:
    """Our variables under their names and in their layout."""
    theirs = {}
    for path, array in flat(variables).items():
        layout = naming.layout('/'.join(path[1:]), array.shape)
        theirs[naming.key(path)] = layout.to_theirs(np.asarray(array))
    return theirs


def abstract_export(variables: Any, naming: Naming) -> dict[str, tuple[int, ...]]:
    """Their names and shapes of our variables, which may be abstract."""
    layouts = {path: naming.layout('/'.join(path[1:]), leaf.shape) for path, leaf in flat(variables).items()}
    return {naming.key(path): layout.shape for path, layout in layouts.items()}


class Imported(NamedTuple):
    """What `import_weights` made of a file."""

    variables: Any  # ours, with what the file had
    naming: str  # whose names the file has
    replaced: tuple[str, ...]  # names of the head, left as it was since the number of classes differs
    left: tuple[str, ...]  # names that were allowed to be missing or beyond


def import_weights(
    theirs: Mapping[str, np.ndarray], variables: Any, model: str, allow_partial: Iterable[str] = ()
) -> Imported:
    """Our variables with the values of a file, by the naming that fits it best.

    Args:
      theirs: arrays by their names.
      variables: ours, of the network `model`; what the file does not have stays as it is.
      model: e.g. `resnet/50`.
      allow_partial: regular expressions of names that may be missing in the file, beyond the network or of another
        shape. The head's may be of another number of classes without being named.

    Raises:
      InputError: no naming fits, or names are left over on either side.
    """
    candidates = namings(model)
    ours = flat(variables)

    def renamed(naming: Naming) -> dict[str, np.ndarray]:
        found = {}
        for name, array in theirs.items():
            for pattern, replacement in naming.older:
                name = re.sub(pattern, replacement, name)
            if not re.fullmatch(naming.ignored, name):
                found[name] = array
        return found

    def overlap(name: str) -> int:
        keys = {candidates[name].key(path) for path in ours}
        return len(keys & renamed(candidates[name]).keys())

    best = max(candidates, key=overlap)
    naming, arrays = candidates[best], renamed(candidates[best])
    values: dict[Path, Any] = dict(ours)
    problems, replaced, left = [], [], []
    allowed = [re.compile(pattern) for pattern in allow_partial]

    def report(name: str, problem: str) -> None:
        if any(pattern.fullmatch(name) for pattern in allowed):
            left.append(name)
        else:
            problems.append(f'{name} {problem}')

    for path, current in ours.items():
        name = naming.key(path)
        layout = naming.layout('/'.join(path[1:]), current.shape)
        if name not in arrays:
            report(name, 'is missing')
        elif arrays[name].shape == layout.shape:
            values[path] = layout.to_ours(np.asarray(arrays[name]), current.shape).astype(current.dtype)
        elif path[1] == 'head':
            replaced.append(name)
        else:
            report(name, f'has shape {arrays[name].shape}, not {layout.shape}')
    known = {naming.key(path) for path in ours}
    for name in arrays:
        if name not in known:
            report(name, 'is not in the network')
    if problems:
        raise InputError(
            f'weights for {model} as {best} names them do not fit in {len(problems)} places: {"; ".join(problems[:8])}'
            f'{"; ..." if len(problems) > 8 else ""}; --allow_partial=REGEX[,REGEX] leaves out what it names'
        )
    return Imported({**variables, **_nested(values)}, best, tuple(replaced), tuple(left))


def _nested(values: Mapping[Path, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree

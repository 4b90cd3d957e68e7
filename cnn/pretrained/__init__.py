"""Other people's weights: their names and layouts for our variables, one file per family of networks.

A file NAME.py of this package belongs to the family of that name in cnn/models. It holds NAMINGS, which describe how
the frameworks that publish weights of that family call and lay out what our network has:

    NAMINGS = {'torchvision': Naming(rules=((r'stem_conv', 'conv1'), ...)), ...}

Our side is a path such as `params/stage1_block0/conv1/kernel`; each rule is a regular expression and its replacement,
applied in turn to the path without its collection. Both directions follow from it: what a network misses in a file,
what a file has beyond it, and files that others can read. A family without such a file has our own names alone.
"""

import importlib
import pathlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from cnn.errors import InputError, nearest
from cnn.pretrained import files

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


def flattened(positions: Mapping[str, int], layout: Callable[..., Layout] = torch_layout) -> Callable[..., Layout]:
    """A layout in which the dense layers of these names read a flattened map of so many positions, channels first."""

    def flattening(path: str, shape: tuple[int, ...]) -> Layout:
        module, _, leaf = path.rpartition('/')
        if leaf != 'kernel' or module not in positions:
            return layout(path, shape)
        inputs, outputs = shape
        split = (positions[module], inputs // positions[module], outputs)
        return Layout(split, (2, 1, 0), (outputs, inputs))

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
    ignored: str = r'(.*\.)?num_batches_tracked|n_averaged'  # names that hold nothing a network needs
    variants: str = '.*'  # of the family, those that these names are of

    def key(self, path: Path) -> str:
        """Their name of our variable."""
        name = '/'.join(path[1:])
        for pattern, replacement in (*self.rules, *self.leaves):
            name = re.sub(pattern, replacement, name)
        return name


def _as_it_is(path: str, shape: tuple[int, ...]) -> Layout:
    return Layout(shape, tuple(range(len(shape))), shape)


OURS = Naming((), _as_it_is, (), outputs=-1)  # our own paths and layout, of any network


def namings(model: str) -> dict[str, Naming]:
    """The namings of a network such as `resnet/50`: those known for its family, then our own, 'ours'."""
    family = model.partition('/')[0]
    known = {module.name for module in pkgutil.iter_modules(__path__)} - {'files'}
    theirs = importlib.import_module(f'cnn.pretrained.{family}').NAMINGS if family in known else {}
    return {**theirs, 'ours': OURS}


def flat(variables: Any) -> dict[Path, Any]:
    """Variables by path, parameters and batch statistics alone."""
    leaves = jax.tree_util.tree_flatten_with_path(
        {k: v for k, v in variables.items() if k in ('params', 'batch_stats')}
    )
    return {tuple(part.key for part in path): leaf for path, leaf in leaves[0]}


def export(variables: Any, naming: Naming) -> dict[str, np.ndarray]:
    """Our variables under their names and in their layout."""
    ours = flat(variables)
    names = _names(ours, naming)
    return {names[path]: _layout(naming, path, array).to_theirs(np.asarray(array)) for path, array in ours.items()}


def abstract_export(variables: Any, naming: Naming) -> dict[str, tuple[int, ...]]:
    """Their names and shapes of our variables, which may be abstract."""
    ours = flat(variables)
    names = _names(ours, naming)
    return {names[path]: _layout(naming, path, leaf).shape for path, leaf in ours.items()}


def save(path: pathlib.Path, variables: Any, model: str, naming: str | None = None) -> str:
    """Writes our variables to a .safetensors file that others can load; returns the naming.

    Args:
      path: the file.
      variables: of the network `model`.
      model: e.g. `resnet/50`.
      naming: one of `namings(model)`; None for the first that is of this variant, torchvision's where there is one.

    Raises:
      InputError: there is no such naming.
    """
    known = namings(model)
    form = model.partition('/')[2]
    naming = naming or next(name for name, naming in known.items() if re.fullmatch(naming.variants, form))
    if naming not in known:
        raise nearest(f'naming of model {model}', naming, known)
    arrays = export(variables, known[naming])
    # PyTorch's batch normalisation has a count of batches too, without which it does not take the rest.
    counts = [name.removesuffix('running_mean') for name in arrays if name.endswith('.running_mean')]
    arrays |= {f'{name}num_batches_tracked': np.zeros((), np.int64) for name in counts}
    files.write(path, arrays, {'format': 'pt', 'model': model, 'naming': naming})
    return naming


class Imported(NamedTuple):
    """What `import_weights` made of a file."""

    variables: Any  # ours, with what the file had
    naming: str  # whose names the file has
    replaced: tuple[str, ...]  # names of the head, left as it was since the number of classes differs
    left: tuple[str, ...]  # names that were allowed to be missing or beyond
    classes: tuple[int, int] | None = None  # where they differ: in the file, in the network
    fused: bool = False  # whether batch normalisation was part of the convolutions
    origin: str = ''  # which file

    @property
    def note(self) -> str:
        """What a user should know of it, in one line."""
        parts = [f'{self.origin}, names of {self.naming}']
        if self.classes:
            parts.append(f'the head is new: {self.classes[1]} classes here, {self.classes[0]} there')
        if self.fused:
            parts.append('batch normalisation is part of the convolutions there and starts as the identity here')
        if self.left:
            parts.append(f'left out: {_abridged(self.left, ", ")}')
        return '; '.join(parts)


def import_weights(
    theirs: Mapping[str, np.ndarray],
    variables: Any,
    model: str,
    allow_partial: Iterable[str] = (),
    epsilon: float = 1e-5,
) -> Imported:
    """Our variables with the values of a file, by the naming that fits it best.

    Where the file has a bias in place of each batch normalisation, ours becomes that: scale 1, mean 0, variance
    1 - epsilon.

    Args:
      theirs: arrays by their names.
      variables: ours, of the network `model`; what the file does not have stays as it is.
      model: e.g. `resnet/50`.
      allow_partial: regular expressions of names that may be missing in the file, beyond the network or of another
        shape. The head's may be of another number of classes without being named.
      epsilon: of the network's batch normalisation.

    Raises:
      InputError: no naming fits, or names are left over on either side.
    """
    ours = flat(variables)
    best, arrays = _best_naming(theirs, ours, model)
    naming = namings(model)[best]
    names = _names(ours, naming)
    split = _split(arrays, ours, naming, epsilon)
    values: dict[Path, Any] = dict(ours)
    problems, replaced, left, classes = [], [], [], None
    allowed = [re.compile(pattern) for pattern in allow_partial]

    def report(name: str, problem: str) -> None:
        if any(pattern.fullmatch(name) for pattern in allowed):
            left.append(name)
        else:
            problems.append(f'{name} {problem}')

    for path, current in ours.items():
        name, layout = names[path], _layout(naming, path, current)
        array = split.get(name)
        axis = naming.outputs if len(layout.shape) > 1 else 0
        if array is None:
            report(name, 'is missing')
        elif array.shape == layout.shape:
            values[path] = layout.to_ours(array, current.shape).astype(current.dtype)
        elif path[1] == 'head' and _without(array.shape, axis) == _without(layout.shape, axis):
            replaced.append(name)
            classes = array.shape[axis], layout.shape[axis]
        else:
            report(name, f'has shape {array.shape}, not {layout.shape}')
    known = set(names.values())
    for name in split:
        if name not in known:
            report(name, 'is not in the network')
    if problems:
        places = 'place' if len(problems) == 1 else 'places'
        raise InputError(
            f'weights for {model} as {best} names them do not fit in {len(problems)} {places}: '
            f'{_abridged(problems, "; ")}; --allow_partial=REGEX[,REGEX] leaves out what it names'
        )
    imported = {**variables, **_nested(values)}
    return Imported(imported, best, tuple(replaced), tuple(left), classes, split is not arrays)


def _best_naming(
    theirs: Mapping[str, np.ndarray], ours: Mapping[Path, Any], model: str
) -> tuple[str, dict[str, np.ndarray]]:
    """The naming that has the most names of a file, and the file's arrays by today's names of that naming."""
    candidates = namings(model)
    keys = {name: [naming.key(path) for path in ours] for name, naming in candidates.items()}
    renamed = {name: _renamed(theirs, naming) for name, naming in candidates.items()}
    best = max(candidates, key=lambda name: len(set(keys[name]).intersection(renamed[name].values())))
    if not set(keys[best]).intersection(renamed[best].values()):
        raise InputError(
            f'these are no weights for {model}: none of their names is known, neither as {" nor as ".join(candidates)} '
            f'has them; they have {_abridged(list(theirs), ", ", 3)}, not {_abridged(keys[best], ", ", 3)}'
        )
    arrays: dict[str, np.ndarray] = {}
    for older, name in renamed[best].items():
        if name in arrays:
            raise InputError(f'weights for {model} have {name} twice, once as {older}')
        arrays[name] = theirs[older]
    return best, arrays


def _names(ours: Iterable[Path], naming: Naming) -> dict[Path, str]:
    """Their name of each of our paths. Raises ValueError where two have one."""
    paths: dict[str, Path] = {}
    for path in ours:
        other = paths.setdefault(naming.key(path), path)
        if other != path:
            raise ValueError(f'{"/".join(path)} and {"/".join(other)} are both named {naming.key(path)}')
    return {path: name for name, path in paths.items()}


def _layout(naming: Naming, path: Path, leaf: Any) -> Layout:
    return naming.layout('/'.join(path[1:]), leaf.shape)


def _renamed(theirs: Iterable[str], naming: Naming) -> dict[str, str]:
    """Today's name of each name in a file, those aside that a network does not need."""
    names = {}
    for older in theirs:
        names[older] = older
        for pattern, replacement in naming.older:
            names[older] = re.sub(pattern, replacement, names[older])
    return {older: name for older, name in names.items() if not re.fullmatch(naming.ignored, name)}


def _split(
    arrays: dict[str, np.ndarray], ours: Mapping[Path, Any], naming: Naming, epsilon: float
) -> dict[str, np.ndarray]:
    """A file's arrays, with batch normalisation beside the convolutions where the file has it as part of all of them.

    A convolution `conv` has its normalisation in `norm`. The bias is named as that of either.
    """
    norms = [path[1:-1] for path in ours if path[0] == 'batch_stats' and path[-1] == 'mean']
    split = dict(arrays)
    for norm in norms:
        scale, bias = (('params', *norm, leaf) for leaf in ('scale', 'bias'))
        mean, var = (('batch_stats', *norm, leaf) for leaf in ('mean', 'var'))
        conv = ('params', *norm[:-1], norm[-1].replace('norm', 'conv'), 'bias')
        name = naming.key(bias) if naming.key(bias) in arrays else naming.key(conv)
        known = [naming.key(path) for path in (scale, mean, var)]
        if name not in arrays or conv in ours or any(key in arrays for key in known):
            return arrays
        split[naming.key(bias)] = split.pop(name)
        for key, value in zip(known, (1, 0, 1 - epsilon), strict=True):
            split[key] = np.full(split[naming.key(bias)].shape, value)
    return split if norms else arrays


def _without(shape: tuple[int, ...], axis: int) -> list[int]:
    return np.delete(shape, axis).tolist()


def _abridged(names: list[str] | tuple[str, ...], separator: str, most: int = 8) -> str:
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return separator.join(names[:most]) + more


def _nested(values: Mapping[Path, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree

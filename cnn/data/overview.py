"""What a data set is, in words and in a sheet of examples."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cnn import config
from cnn.config import Spec
from cnn.data import prepared, sheets, sources
from cnn.data.decoding import Unreadable
from cnn.data.files import IGNORED
from cnn.data.sources import Source

MOST_OPENED = 50_000  # examples of a split; of larger splits as many, evenly spaced
_LISTED = 20  # lines of each kind; the file has them all
_INPUTS = ('image', 'signal', 'video', 'tokens')
_KINDS = {
    'folder:DIR': 'files in a folder for each class: DIR/train/CLASS/*.jpg, .png, .wav, .npy',
    'arrays:FILE.npz': 'x and y, or x_train, y_train, x_test, y_test',
    'pairs:DIR': 'pictures and masks of the same names: DIR/images, DIR/masks',
    'coco:DIR': "pictures and boxes in COCO's JSON",
}


@dataclasses.dataclass
class _Seen:
    """What was found in the examples of a split."""

    opened: int
    shapes: dict[str, set[tuple[int, ...]]]  # by field
    pixels: np.ndarray  # of each class of `semantic`
    unreadable: list[str]


def listing() -> str:
    """The data sets that can be named now, one a line."""
    names = {**prepared.names(), **_KINDS}
    return '\n'.join(f'{name:<24} {where}' for name, where in names.items())


def describe(data: config.Data, folder: pathlib.Path) -> str:
    """Prepares a data set, opens its examples; returns splits, counts, sizes and what is wrong with it, as text.

    `folder` gets a sheet of each split, SPLIT.png, and notes.txt with every file and box that was left out or changed.
    Raises InputError as `sources.load` does.
    """
    spec = sources.spec(data)
    lines = [
        f'{data.name}: '
        + ', '.join(f'{field} {spec.dtypes[field]}{list(shape)}' for field, shape in spec.shapes.items())
    ]
    notes: dict[str, Sequence[str]] = {}
    splits = dict.fromkeys(split for split in (data.train_split, data.validation_split, data.test_split) if split)
    for split in splits:
        source = sources.load(data, split, fields(spec))
        seen = _look(source)
        lines.append(f'{split}: {len(source)} examples, fingerprint {source.fingerprint[:12]}')
        if seen.opened < len(source):
            lines.append(f'  opened: {seen.opened} of them, evenly spaced')
        lines += [f'  {line}' for line in [*_counts(data, split, spec, seen), *_ranges(spec, seen)]]
        notes |= dict(source.notes) | ({f'unreadable in {split}': seen.unreadable} if seen.unreadable else {})
        shown = _shown(source)
        if shown and sheets.drawable(spec):
            path = _save(folder / f'{split}.png', sheets.examples(shown, spec))
            lines.append(f'  sheet: {path}')
    return '\n'.join(lines + _report(notes, folder))


def augmented(experiment: config.Experiment, folder: pathlib.Path) -> str:
    """Draws what the network sees of training examples, as augmented.png in `folder`; returns a line for the user.

    Raises InputError for augmentation that the data can't have, and as `sources.load` does.
    """
    import jax

    from cnn.data import augment, batches, fitting

    data, spec = experiment.data, sources.spec(experiment.data)
    source = sources.load(data, data.train_split, fields(spec))
    streamed = dataclasses.replace(data, resident=False, workers=0)
    fitted = fitting.fitted_spec(source.spec, streamed)
    prepared_spec = augment.prepared_spec(fitted, data, experiment.spectrogram)
    augment.check(experiment.augment, spec, prepared_spec, fields(spec))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('data',))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    stream = batches.Batches(source, sharding, streamed, fitting.fit(experiment, source.spec))
    order = batches.train_indices(len(source), sheets.SHOWN, experiment.seed, experiment.augment.repeats)
    structure, numbers = config.split_numbers(experiment)
    numbers['seed'] = np.uint32(experiment.seed)
    prepare = jax.jit(augment.preparation(structure, fitted))
    batch = jax.device_get(prepare(next(stream(order, 0, 1)), jax.random.key(experiment.seed), numbers))
    path = _save(folder / 'augmented.png', sheets.prepared(batch, spec, data))
    return f'augmented: {path}'


def fields(spec: Spec) -> list[str]:
    """The fields that are drawn or counted."""
    wanted = (*_INPUTS, 'label', 'semantic', 'boxes', 'box_labels')
    return [field for field in wanted if field in spec.shapes]


def _look(source: Source) -> _Seen:
    """Opens the examples, as many as MOST_OPENED, in threads."""
    indices = _spaced(len(source), MOST_OPENED)
    seen = _Seen(len(indices), collections.defaultdict(set), np.zeros(256, np.int64), [])
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for found in pool.map(functools.partial(_open, source), indices):
            if isinstance(found, str):
                seen.unreadable.append(found)
                continue
            shapes, pixels = found
            for field, shape in shapes.items():
                seen.shapes[field].add(shape)
            seen.pixels += pixels
    return seen


def _open(source: Source, index: int) -> tuple[dict[str, tuple[int, ...]], np.ndarray] | str:
    """The shapes of an example and its pixels of each class; or why it can't be read."""
    try:
        example = source[index]
    except Unreadable as error:
        return str(error)
    pixels = np.bincount(np.ravel(example.get('semantic', np.zeros(0, int))), minlength=256)
    return {field: np.shape(value) for field, value in example.items()}, pixels


def _spaced(count: int, most: int) -> list[int]:
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, most))})


def _shown(source: Source) -> list[dict[str, np.ndarray]]:
    """Examples for a sheet, evenly spaced, since many sets are sorted by class."""
    shown = []
    for index in _spaced(len(source), sheets.SHOWN):
        with contextlib.suppress(Unreadable):
            shown.append(source[index])
    return shown


def _counts(data: config.Data, split: str, spec: Spec, seen: _Seen) -> Iterator[str]:
    for field in spec.class_names.keys() & {'label', 'box_labels'}:
        values = np.ravel(sources.load(data, split, [field]).arrays()[field])
        counts = np.bincount(values[values >= 0], minlength=len(spec.class_names[field]))
        yield f'{field}: {_named(spec.class_names[field], counts)}'
    if 'semantic' in spec.class_names:
        names = spec.class_names['semantic']
        shares = seen.pixels[: len(names)] / max(seen.pixels.sum(), 1)
        yield f'semantic: {_named(names, [f"{share:.1%}" for share in shares])}, none {seen.pixels[IGNORED]} pixels'


def _named(names: Sequence[str], values: Iterable[Any]) -> str:
    return ', '.join(f'{name} {value}' for name, value in zip(names, values, strict=True))


def _ranges(spec: Spec, seen: _Seen) -> Iterator[str]:
    """From and to, along each axis, where examples differ in size."""
    for field, shapes in seen.shapes.items():
        if len(shapes) > 1:
            axes = [sorted(set(sizes)) for sizes in zip(*shapes, strict=True)]
            yield f'{field}: ' + ' x '.join(
                f'{axis[0]}..{axis[-1]}' if len(axis) > 1 else str(axis[0]) for axis in axes
            )
    if 'signal' in spec.shapes and spec.sample_rate and seen.shapes:
        lengths = [shape[0] / spec.sample_rate for shape in seen.shapes['signal']]
        yield f'length: {min(lengths):.3f} to {max(lengths):.3f} s at {spec.sample_rate} Hz'


def _report(notes: Mapping[str, Sequence[str]], folder: pathlib.Path) -> list[str]:
    """What was left out or changed: counted, the first of each kind, and all of them in a file."""
    lines = []
    for kind, entries in notes.items():
        lines.append(f'{kind}: {len(entries)}')
        lines += [f'  {entry}' for entry in entries[:_LISTED]]
        lines += [f'  and {len(entries) - _LISTED} more'] if len(entries) > _LISTED else []
    if notes:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / 'notes.txt'
        file.write_text(''.join(f'{kind}: {entry}\n' for kind, entries in notes.items() for entry in entries))
        lines.append(f'all of them: {file}')
    return lines


def _save(path: pathlib.Path, page: np.ndarray) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(page).save(path)
    return path

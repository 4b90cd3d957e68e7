"""Some of a source's classes, and a few examples of each."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cnn.config import Spec
from cnn.errors import InputError, nearest


def check(spec: Spec, classes: Sequence[str], data_name: str) -> None:
    """Raises InputError for classes that `spec` does not have or that are named twice."""
    if 'label' not in spec.class_names:
        raise InputError(f'config.data.classes, examples_per_class: data set {data_name} has no labels to choose by')
    for name in classes:
        if name not in spec.class_names['label']:
            raise nearest(f'class of data set {data_name}', name, spec.class_names['label'])
    if len(set(classes)) < len(classes):
        raise InputError(f'config.data.classes={tuple(classes)}: names a class twice')


def with_classes(spec: Spec, classes: Sequence[str]) -> Spec:
    """The spec of the examples of these classes."""
    if 'label' not in spec.class_names:
        return spec
    return dataclasses.replace(spec, class_names={**spec.class_names, 'label': tuple(classes)})


def choose(labels: np.ndarray, numbers: Sequence[int], per_class: int | None, seed: int) -> np.ndarray:
    """The indices of the examples with these labels, in order: all, or as many of each as `per_class`, drawn by `seed`.

    What is drawn for a smaller number is among what is drawn for a larger one. Raises ValueError naming a label that
    has too few.
    """
    if per_class is None:
        return np.flatnonzero(np.isin(labels, numbers))
    # NumPy promises the raw bits of Philox for ever.
    order = np.argsort(np.random.Philox(key=[seed, 0]).random_raw(len(labels)), kind='stable')
    drawn = [order[labels[order] == number][:per_class] for number in numbers]
    for number, indices in zip(numbers, drawn, strict=True):
        if len(indices) < per_class:
            raise ValueError(number)
    return np.sort(np.concatenate(drawn))


class Subset:
    """A source with just some examples, whose labels are renumbered in the order of `classes`."""

    def __init__(
        self,
        source: Any,
        labels: np.ndarray,
        names: Sequence[str],
        classes: Sequence[str],
        per_class: int | None,
        seed: int,
    ):
        """`labels` are those of the whole source, as numbers of `names`. Raises InputError for too few examples."""
        numbers = [names.index(name) for name in classes]
        try:
            self._indices = choose(labels, numbers, per_class, seed)
        except ValueError as error:
            (number,) = error.args
            raise InputError(
                f'config.data.examples_per_class={per_class}: '
                f'class {names[number]!r} has {int((labels == number).sum())} examples'
            ) from None
        self._renumbered = np.full(len(names), -1)
        self._renumbered[numbers] = np.arange(len(numbers))
        self._source, self._classes = source, list(classes)
        self.spec, self.notes = with_classes(source.spec, classes), source.notes

    @property
    def fingerprint(self) -> str:
        """Hexadecimal; of the source and of the choice."""
        chosen = [self._indices.tolist(), self._classes]
        return hashlib.sha256(f'{self._source.fingerprint} {chosen}'.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._relabelled(self._source[int(self._indices[index])])

    def read(self, index: int, decode: Callable[[bytes], Any]) -> dict[str, Any]:
        """As the source's."""
        return self._relabelled(self._source.read(int(self._indices[index]), decode))

    def where(self, index: int) -> str:
        """As the source's."""
        return self._source.where(int(self._indices[index]))

    def arrays(self) -> dict[str, np.ndarray]:
        """As the source's."""
        return self._relabelled({field: array[self._indices] for field, array in self._source.arrays().items()})

    def _relabelled(self, example: dict[str, Any]) -> dict[str, Any]:
        if 'label' not in example:
            return example
        label = example['label']
        return {**example, 'label': np.asarray(self._renumbered[label], np.asarray(label).dtype)}

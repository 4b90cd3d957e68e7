"""(seed, split, step) -> batch: a pure function, the same for data on the device and data that streams.

There is no iterator state: a run resumes at a step by asking for that step.
"""

import concurrent.futures
import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cnn.config import Data, Spec
from cnn.data import fitting
from cnn.data.ahead import Ahead
from cnn.data.decoding import Unreadable
from cnn.data.fitting import Fit
from cnn.data.sources import Source
from cnn.errors import InputError, RunFailed

RESIDENT_BYTES = 1 << 30  # a larger split streams
NAMED = 3  # unreadable examples in a message
MOST_THREADS = 16


class Rows(NamedTuple):
    """What a batch, or a part of one, is made of; row by row."""

    indices: np.ndarray  # of examples
    valid: np.ndarray  # False: padding
    epochs: np.ndarray | None = None  # in training
    positions: np.ndarray | None = None  # in the stream of training examples


Indices = Callable[[int], Rows]  # step -> the rows of the whole batch


class Resident(NamedTuple):
    """A split that lies on the devices."""

    arrays: Any  # and which examples could be read
    messages: dict[int, str]  # why the others could not

    @property
    def nbytes(self) -> int:
        """What it takes of each device."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.arrays))


_SHARED: dict[Any, Resident] = {}  # by content: the runs of a process have them in common


def _share(key: Any, resident: Resident) -> None:
    """Keeps it, and of older ones what there is room for."""
    _SHARED[key] = resident
    while len(_SHARED) > 1 and sum(shared.nbytes for shared in _SHARED.values()) > RESIDENT_BYTES:
        del _SHARED[next(iter(_SHARED))]


def train_indices(num_examples: int, batch_size: int, seed: int, repeats: int = 1) -> Indices:
    """Which examples each step trains on: epoch after epoch in new orders; a batch may span two epochs.

    With repeats (Hoffer et al. 2020) each stands that many times in a row, and an epoch has as many rows as before:
    of each order the first part is used, as by the samplers of torchvision and timm.
    """
    return functools.partial(_train_indices, num_examples, batch_size, seed, repeats)


def eval_indices(num_examples: int, batch_size: int) -> Indices:
    """Every example once, in order; the last batch is padded with example 0, not valid."""
    return functools.partial(_eval_indices, num_examples, batch_size)


def _train_indices(num_examples: int, batch_size: int, seed: int, repeats: int, step: int) -> Rows:
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = np.divmod(positions // repeats, -(-num_examples // repeats))
    orders = [_order(num_examples, seed, epoch)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
    return Rows(np.concatenate(orders), np.ones(batch_size, bool), epochs, positions)


@functools.lru_cache(maxsize=4)
def _order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    # NumPy promises the raw bits of Philox for ever, and those of its `permutation` not.
    return np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(num_examples), kind='stable')


def _eval_indices(num_examples: int, batch_size: int, step: int) -> Rows:
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    valid = positions < num_examples
    return Rows(np.where(valid, positions, 0), valid)


def num_eval_steps(num_examples: int, batch_size: int) -> int:
    """How many batches hold every example."""
    return -(-num_examples // batch_size)


class Batches:
    """Batches of a source as global arrays, divided over the mesh by their first axis.

    Resident, the whole split lies on every device and a batch is gathered there; otherwise it is read by Grain, this
    process's share only, ahead of its use. Both give the same bits. Training batches have `index` and `epoch` too.
    An example that can't be read is a row of zeros, not valid.

    Attributes:
      notes: what the source left out of its data set or changed, by kind.
      unreadable: the messages of the examples that could not be read so far, by index.

    Raises:
      InputError: examples of different sizes with no size given.
      RunFailed: while batches are made, for more than data.max_unreadable examples that can't be read.
    """

    def __init__(self, source: Source, sharding: NamedSharding, data: Data, fit: Fit = Fit()):  # noqa: B008  (frozen)
        self._source, self._sharding, self._data, self._fit = source, sharding, data, fit
        self._specs = {training: fitting.fitted_spec(source.spec, data, training) for training in (True, False)}
        for field, shape in self._specs[True].shapes.items():
            if -1 in shape:
                raise InputError(f'{field} differs in shape between examples, as only pictures and signals may')
        self._report: Callable[[str], None] = logging.getLogger(__name__).warning
        self._arrays: dict[Any, Any] = {}  # by the size of their pictures
        self._gather = jax.jit(_gather, out_shardings=sharding)
        self.num_examples, self.fingerprint, self.notes = len(source), source.fingerprint, source.notes
        self.unreadable: dict[int, str] = {}

    def resident(self, training: bool) -> bool:
        """Whether the split lies on the devices for training, or for evaluation."""
        if training and fitting.is_ragged(self._source.spec) and self._fit.crop_scale:
            return False
        if self._data.resident is not None:
            return self._data.resident
        return self.num_examples * _example_bytes(self._specs[training]) <= RESIDENT_BYTES

    def report(self, function: Callable[[str], None]) -> None:
        """Has each unreadable example told to `function`, those that were found before too."""
        self._report = function
        for message in self.unreadable.values():
            function(message)

    def __call__(self, indices: Indices, start: int, stop: int) -> Iterator[dict[str, jax.Array]]:
        """The batches of steps start..stop-1."""
        training = indices(start).positions is not None
        if self.resident(training):
            arrays = self._load(training)
            return (self._gather(arrays, *_int32(indices(step))) for step in range(start, stop))
        return Ahead(self._stream(indices, start, stop, self._specs[training]))

    def _load(self, training: bool) -> Any:
        """The whole split on every device, and which examples could be read; once for each size."""
        spec = self._specs[training]
        size = spec.shapes.get('image', ())
        if size not in self._arrays:
            key = self.fingerprint, repr(spec), self._fit, self._sharding.mesh
            if key not in _SHARED:
                _share(key, self._read_all(spec))
            self._arrays[size], messages = _SHARED[key]
            self._note(messages)
        return self._arrays[size]

    def _read_all(self, spec: Spec) -> Resident:
        rows = Rows(np.arange(self.num_examples), np.ones(self.num_examples, bool))
        arrays, valid, messages = self._stacked(spec), rows.valid, dict[int, str]()
        if arrays is None:
            with concurrent.futures.ThreadPoolExecutor() as pool:
                arrays, messages = _read_rows(self._source, spec, self._fit, rows, pool.map)
            valid = arrays.pop('valid')
        replicated = NamedSharding(self._sharding.mesh, PartitionSpec())
        return Resident(jax.device_put((arrays, valid), replicated), messages)

    def _stacked(self, spec: Spec) -> Any:
        """All examples as the source stacks them; None where they differ in size or some can't be read."""
        if spec.shapes != self._source.spec.shapes:
            return None
        try:
            return self._source.arrays()
        except Unreadable:
            return None

    def _stream(self, indices: Indices, start: int, stop: int, spec: Spec) -> Iterator[dict[str, jax.Array]]:
        import grain

        # One record of Grain's is a whole batch: its threads cost more than they give on single small examples.
        share = jax.process_index(), jax.process_count()
        read = functools.partial(_read, self._source, spec, self._fit, indices, *share)
        threads = _threads(self._source.spec, self._data.workers)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
        stream = grain.MapDataset.range(start, stop).map(read).to_iter_dataset(options)
        if self._data.workers:
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._data.workers))
        with contextlib.closing(iter(stream)) as iterator:
            for batch, messages in iterator:
                self._note(messages)
                yield jax.tree.map(functools.partial(jax.make_array_from_process_local_data, self._sharding), batch)

    def _note(self, messages: dict[int, str]) -> None:
        for index, message in sorted(messages.items()):
            if index not in self.unreadable:
                self.unreadable[index] = message
                self._report(message)
        most = self._data.max_unreadable
        if len(self.unreadable) > most:
            named = '; '.join(list(self.unreadable.values())[:NAMED])
            raise RunFailed(
                f'more examples cannot be read ({len(self.unreadable)}) than config.data.max_unreadable={most}: {named}'
                + (' ...' if len(self.unreadable) > NAMED else '')
            )


def _example_bytes(spec: Spec) -> int:
    return sum(int(np.prod(shape)) * np.dtype(spec.dtypes[field]).itemsize for field, shape in spec.shapes.items())


def _int32(rows: Rows) -> tuple[Any, ...]:
    return tuple(
        values.astype(np.int32) if values is not None and values.dtype == np.int64 else values for values in rows[:3]
    )


def _gather(resident: Any, indices: jax.Array, valid: jax.Array, epochs: jax.Array | None) -> dict[str, jax.Array]:
    arrays, readable = resident
    batch = {**jax.tree.map(lambda array: array[indices], arrays), 'valid': valid & readable[indices]}
    return batch if epochs is None else {**batch, 'index': indices, 'epoch': epochs}


def _read(
    source: Source, spec: Spec, fit: Fit, indices: Indices, process: int, num_processes: int, step: int
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """One process's share of a batch, and why the examples in it that can't be read can't."""
    share = (None if values is None else np.array_split(values, num_processes)[process] for values in indices(step))
    rows = Rows._make(share)
    batch, messages = _read_rows(source, spec, fit, rows, map)
    if rows.epochs is not None:
        batch |= {'index': rows.indices.astype(np.int32), 'epoch': rows.epochs.astype(np.int32)}
    return batch, messages


def _read_rows(
    source: Source, spec: Spec, fit: Fit, rows: Rows, apply: Callable[..., Any]
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """These rows, zeros where an example can't be read, and the reasons by index; `apply` is a `map`."""
    count = len(rows.indices)
    batch = {field: np.zeros((count, *shape), spec.dtypes[field]) for field, shape in spec.shapes.items()}
    batch['valid'] = rows.valid.copy()
    positions = [None] * count if rows.positions is None else rows.positions.tolist()

    def read(index: int, position: int | None) -> dict[str, Any] | Unreadable:
        try:
            return fitting.example(source, index, spec, fit, position)
        except Unreadable as error:
            return error

    messages = {}
    for row, found in enumerate(apply(read, rows.indices.tolist(), positions)):
        if isinstance(found, Unreadable):
            batch['valid'][row] = False
            messages[int(rows.indices[row])] = str(found)
            continue
        for field in spec.shapes:
            batch[field][row] = found[field]
    return batch, messages


def _threads(spec: Spec, workers: int) -> int:
    """That read in a process, each a batch: small examples gain nothing from more, pictures of files do."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return 1 if workers else min(cores, MOST_THREADS) if fitting.is_ragged(spec) else 2

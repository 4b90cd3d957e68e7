"""(seed, split, step) -> batch: a pure function, the same for data on the device and data that streams.

There is no iterator state: a run resumes at a step by asking for that step.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cnn.data.sources import Source

Indices = Callable[[int], tuple[np.ndarray, np.ndarray]]  # step -> (indices, valid), of the whole batch

RESIDENT_BYTES = 1 << 30  # a larger split streams


def train_indices(num_examples: int, batch_size: int, seed: int) -> Indices:
    """Which examples each step trains on: epoch after epoch in new orders; a batch may span two epochs."""
    return functools.partial(_train_indices, num_examples, batch_size, seed)


def eval_indices(num_examples: int, batch_size: int) -> Indices:
    """Every example once, in order; the last batch is padded with example 0, not valid."""
    return functools.partial(_eval_indices, num_examples, batch_size)


def _train_indices(num_examples: int, batch_size: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    epochs, positions = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_examples)
    orders = [_order(num_examples, seed, epoch)[positions[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
    return np.concatenate(orders), np.ones(batch_size, bool)


@functools.lru_cache(maxsize=4)
def _order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    # NumPy promises the raw bits of Philox for ever, and those of its `permutation` not.
    return np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(num_examples), kind='stable')


def _eval_indices(num_examples: int, batch_size: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    valid = positions < num_examples
    return np.where(valid, positions, 0), valid


def num_eval_steps(num_examples: int, batch_size: int) -> int:
    """How many batches hold every example."""
    return -(-num_examples // batch_size)


class Batches:
    """Batches of a source as global arrays, divided over the mesh by their first axis.

    Resident, the whole split lies on every device and a batch is gathered there; otherwise it is read by Grain, this
    process's share only, ahead of its use. Both give the same bits.
    """

    def __init__(self, source: Source, sharding: NamedSharding, resident: bool | None, workers: int = 0):
        self._source, self._sharding, self._workers = source, sharding, workers
        self.num_examples, self.fingerprint = len(source), source.fingerprint
        size = sum(array.nbytes for array in source[0].values()) * len(source)
        self.resident = size <= RESIDENT_BYTES if resident is None else resident
        if self.resident:
            replicated = NamedSharding(sharding.mesh, PartitionSpec())
            self._arrays = jax.device_put(source.arrays(), replicated)
            self._gather = jax.jit(_gather, out_shardings=sharding)

    def __call__(self, indices: Indices, start: int, stop: int) -> Iterator[dict[str, jax.Array]]:
        """The batches of steps start..stop-1."""
        if not self.resident:
            return self._stream(indices, start, stop)
        return (self._gather(self._arrays, *indices(step)) for step in range(start, stop))

    def _stream(self, indices: Indices, start: int, stop: int) -> Iterator[dict[str, jax.Array]]:
        import grain

        # One record of Grain's is a whole batch: its threads cost more than they give on single small examples.
        read = functools.partial(_read, self._source, indices, jax.process_index(), jax.process_count())
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        stream = grain.MapDataset.range(start, stop).map(read).to_iter_dataset(options)
        if self._workers:
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        with contextlib.closing(iter(stream)) as iterator:
            for batch in iterator:
                yield jax.tree.map(functools.partial(jax.make_array_from_process_local_data, self._sharding), batch)


def _gather(arrays: Any, indices: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
    return {**jax.tree.map(lambda array: array[indices], arrays), 'valid': valid}


def _read(source: Source, indices: Indices, process: int, num_processes: int, step: int) -> dict[str, np.ndarray]:
    """One process's share of a batch."""
    chosen, valid = (np.array_split(array, num_processes)[process] for array in indices(step))
    examples = [source[int(index)] for index in chosen]
    return {**{field: np.stack([example[field] for example in examples]) for field in examples[0]}, 'valid': valid}

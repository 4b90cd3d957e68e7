"""Checkpoints by Orbax, with what it leaves out: checksums of the content, and a way back from a damaged one."""

import contextlib
import logging
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from cnn.errors import InputError, RunFailed


class DamagedCheckpoint(RunFailed):
    """A checkpoint that can't be read, or holds other bits than were saved."""


class Checkpoints:
    """The best and the last states of a run, in `folder`/checkpoints.

    A state is saved with its `score` (more is better; None if it was not evaluated) and notes: a JSON tree that comes
    back with it. Of equal scores the earliest is the best, so that a resumed run keeps the one that it kept before.
    """

    def __init__(self, folder: epath.PathLike, keep: int = 1):
        policies = [
            preservation_policy.BestN(get_metric_fn=_rank, n=1),
            preservation_policy.LatestN(keep),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=_rank, preservation_policy=preservation_policy.AnyPreservationPolicy(policies)
        )
        handlers = {'state': ocp.StandardCheckpointHandler(), 'notes': ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(
            epath.Path(folder).resolve() / 'checkpoints', options=options, item_handlers=handlers
        )

    def save(self, step: int, state: Any, score: float | None, notes: dict[str, Any]) -> None:
        """Copies the state and writes it in the background."""
        notes = {**notes, 'checksums': checksums(state)}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes))
        metrics = {'score': -math.inf if score is None else score, 'step': step}
        with self._writing():
            self._manager.save(step, args=arguments, metrics=metrics, force=True)

    def last(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest sound state and its notes; None where nothing was saved yet.

        A damaged one is named in the log and deleted, and the one before it taken; raises DamagedCheckpoint if none is
        left.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                restored = self.restore(step, abstract_state)
            except DamagedCheckpoint as error:
                logging.getLogger('absl').warning('%s; going back to the one before it', error)
                continue
            for damaged in (newer for newer in steps if newer > step):
                self._manager.delete(damaged)
            return restored
        if steps:
            raise DamagedCheckpoint(f'no checkpoint in {self._manager.directory} is sound: {steps} are damaged')
        return None

    def best_step(self) -> int:
        """The step of the best score; the last one where none has a score. Raises InputError where there is none."""
        with self._writing():
            self._manager.wait_until_finished()
        step = self._manager.best_step()
        if step is None:
            raise InputError(f'{self._manager.directory}: holds no checkpoint yet')
        scored = self._manager.metrics(step)['score'] > -math.inf
        return step if scored else self._manager.latest_step()

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """The state of a step and its notes. Raises DamagedCheckpoint."""
        where = self._manager.directory / str(step)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), notes=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=arguments)
        except Exception as error:
            raise DamagedCheckpoint(f'checkpoint {where} cannot be read: {_reason(error)}') from error
        notes = dict(restored.notes)
        expected, found = notes.pop('checksums'), checksums(restored.state)
        for name in expected.keys() | found.keys():
            if expected.get(name) != found.get(name):
                raise DamagedCheckpoint(f'checkpoint {where} is damaged: {name} has other bits than were saved')
        return restored.state, notes

    def close(self) -> None:
        """Waits and lets go."""
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Where a full disk shows; that of a save in the background at the next call."""
        try:
            yield
        except (OSError, ValueError) as error:
            raise RunFailed(
                f'checkpoints cannot be written to {self._manager.directory} ({_reason(error)}); '
                'make room, and the same command resumes'
            ) from error


def _rank(metrics: dict[str, Any]) -> Any:
    return metrics['score'], -metrics['step']


def checksums(state: Any) -> dict[str, int]:
    """A number for the bits of each array, computed where it lies, however it is divided.

    Every element is weighted by an odd number modulo 2**32, so that a change of any single bit shows.
    """
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    return dict(zip(paths, map(int, jax.device_get(_checksums(jax.tree.leaves(state)))), strict=True))


@jax.jit
def _checksums(leaves: list[jax.Array]) -> list[jax.Array]:
    def checksum(leaf: jax.Array) -> jax.Array:
        leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
        width = min(leaf.dtype.itemsize, 4)
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f'uint{8 * width}')).astype(jnp.uint32)
        weights = 2 * jnp.arange(bits.size, dtype=jnp.uint32).reshape(bits.shape) + 1
        return (bits * weights).sum(dtype=jnp.uint32)

    return [checksum(leaf) for leaf in leaves]


def _reason(error: Exception) -> str:
    """The end of the first line, without the notes in brackets that TensorStore puts behind the system's words."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.split(r" \[\w+='", line, maxsplit=1)[0][-200:]

"""Statistics of batch normalisation taken anew once a network is trained."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cnn.config import Experiment, Numbers
from cnn.data.batches import Batches, train_indices
from cnn.training.checkpoints import Checkpoints
from cnn.training.program import Program
from cnn.training.state import RECALIBRATE, TrainState, stream

FOLDER = 'recalibrated'  # where a run folder keeps them


def recalibrate(
    program: Program,
    numbers: Numbers,
    state: TrainState,
    step: int,
    train: Batches,
    config: Experiment,
    folder: pathlib.Path,
) -> TrainState:
    """The state of a step with statistics from config.eval.recalibrate training batches, which the run folder keeps.

    They are those of all these examples together, each batch normalised by itself, with the parameters that are
    evaluated: the mean of the means, and the variance within batches and between them (PreciseBN, Wu & Johnson 2021,
    section 3). They are kept because the training data may be gone when the run is evaluated again.
    """
    stored = recalibrated(state, step, folder)
    if stored is not None:
        return stored
    order = train_indices(train.num_examples, config.data.batch_size, config.seed, config.augment.repeats)
    key = stream(config.seed, RECALIBRATE)
    sums: Any = None
    for index, batch in enumerate(train(order, 0, config.eval.recalibrate)):
        measured = program.measure_step(state.eval_variables, batch, jax.random.fold_in(key, index), numbers)
        measured = jax.tree.map(lambda leaf: leaf.astype(np.float64), jax.device_get(measured))
        moments = _by_layer(lambda mean, var: (mean, var + mean**2), measured)
        sums = moments if sums is None else jax.tree.map(np.add, sums, moments)
    means = jax.tree.map(lambda total: total / config.eval.recalibrate, sums)
    taken = _by_layer(lambda mean, square: (mean, np.maximum(square - mean**2, 0)), means)
    old = state.model_state['batch_stats']
    statistics = jax.tree.map(lambda new, old: jax.device_put(new.astype(old.dtype), old.sharding), taken, old)
    with contextlib.closing(Checkpoints(folder / FOLDER)) as checkpoints:
        checkpoints.save(step, statistics, None, {'step': step})
    return state.with_statistics(statistics)


def recalibrated(state: TrainState, step: int, folder: pathlib.Path) -> TrainState | None:
    """The state of a step with the statistics that its run folder keeps; None where it keeps none of that step."""
    if not (folder / FOLDER).exists():
        return None
    with contextlib.closing(Checkpoints(folder / FOLDER)) as checkpoints:
        statistics, notes = checkpoints.last(state.model_state['batch_stats']) or (None, {})
    return state.with_statistics(statistics) if notes.get('step') == step else None


def _by_layer(change: Callable[[Any, Any], tuple[Any, Any]], statistics: Any) -> Any:
    """Every pair of `mean` and `var` in a tree, changed."""
    if 'mean' in statistics:
        return dict(zip(('mean', 'var'), change(statistics['mean'], statistics['var']), strict=True))
    return {name: _by_layer(change, layer) for name, layer in statistics.items()}

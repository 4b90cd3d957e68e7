"""A program on a split: metrics and pictures; and the way back from a run folder to its network."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cnn import config as configuration
from cnn import tasks
from cnn.config import Experiment, InputError, Numbers, Spec
from cnn.data import sources
from cnn.data.batches import Batches, eval_indices, num_eval_steps
from cnn.tasks import Pictures
from cnn.training import program as programs
from cnn.training import sharding
from cnn.training.checkpoints import Checkpoints
from cnn.training.program import Program
from cnn.training.records import read_json
from cnn.training.state import EVALUATE, TrainState, average, stream


def open_split(config: Experiment, spec: Spec, split: str, mesh: Mesh) -> Batches:
    """The batches of a split, with the fields that the task reads."""
    task = tasks.build(config.task.name, **config.task.options)
    source = sources.load(config.data.name, split, task.fields(spec))
    return Batches(source, sharding.batch_sharding(mesh), config.data.resident, config.data.workers)


def evaluate(
    program: Program, numbers: Numbers, variables: Any, batches: Batches, batch_size: int
) -> tuple[dict[str, float], Pictures]:
    """Metrics and pictures of a whole split: every example once, however many devices share the batches."""
    key = stream(numbers['seed'], EVALUATE)
    totals: Any = None
    collected = []
    stop = num_eval_steps(batches.num_examples, batch_size)
    for step, batch in enumerate(batches(eval_indices(batches.num_examples, batch_size), 0, stop)):
        sums, kept = jax.device_get(program.eval_step(variables, batch, jax.random.fold_in(key, step), numbers))
        # Wide types: a float32 sum over a large split would lose digits, an int32 one overflow.
        sums = jax.tree.map(lambda leaf: leaf.astype(np.float64 if leaf.dtype.kind == 'f' else np.int64), sums)
        totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
        if kept is not None:
            collected.append(kept)
    return program.task.summarize(totals, collected, program.spec)


def read_config(folder: pathlib.Path) -> Experiment:
    """The resolved configuration of a run folder. Raises InputError where there is none."""
    record = read_json(folder / 'run.json')
    if record is None:
        raise InputError(f'{folder}: is no run folder (it has no run.json)')
    return configuration.from_dict(record['config'])


def load_run(folder: pathlib.Path, mesh: Mesh) -> tuple[Experiment, Program, Numbers, TrainState, int]:
    """The best checkpoint of a run folder: its configuration, program, numbers, state and step."""
    config = read_config(folder)
    program, numbers = programs.build(config, sources.spec(config.data.name), 1, mesh)
    checkpoints = Checkpoints(folder, config.checkpoint.keep)
    step = checkpoints.best_step()
    state, _ = checkpoints.restore(step, program.state)
    checkpoints.close()
    return config, program, numbers, state, step


def start_from(state: TrainState, folder: pathlib.Path, mesh: Mesh) -> TrainState:
    """A fresh state with the evaluated parameters and batch statistics of a run. Raises InputError if shapes differ."""
    loaded = load_run(folder, mesh)[3].eval_variables
    ours = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(state.variables)}
    theirs = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(loaded)}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f'config.init_from={folder}: {name} has shape {theirs.get(name, "none")} there and '
                f'{ours.get(name, "none")} here; the models must be equal'
            )
    loaded = jax.tree.map(lambda new, old: jax.device_put(new.astype(old.dtype), old.sharding), loaded, state.variables)
    params = loaded.pop('params')
    ema = None if state.ema is None else average(params, loaded)
    return dataclasses.replace(state, params=params, model_state=loaded, ema=ema)

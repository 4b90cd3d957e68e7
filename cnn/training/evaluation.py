"""A program on a split: metrics and pictures; and the way back from a run folder to its network."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cnn import pretrained, tasks, validation
from cnn.config import Experiment, Numbers, Spec
from cnn.data import fitting, sources
from cnn.data.batches import Batches, eval_indices, num_eval_steps
from cnn.errors import InputError
from cnn.pretrained import Imported, files
from cnn.tasks import Pictures
from cnn.training import program as programs
from cnn.training import sharding
from cnn.training.checkpoints import Checkpoints
from cnn.training.program import Program
from cnn.training.recalibration import recalibrated
from cnn.training.records import read_json
from cnn.training.state import EVALUATE, TrainState, average, stream


def open_split(config: Experiment, spec: Spec, split: str, mesh: Mesh) -> Batches:
    """The batches of a split, with the fields that the task reads. Raises InputError where examples differ in size."""
    task = tasks.build(config.task.name, **config.task.options)
    source = sources.load(config.data, split, task.fields(spec))
    return Batches(source, sharding.batch_sharding(mesh), config.data, fitting.fit(config, source.spec))


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


def features(
    program: Program, numbers: Numbers, variables: Any, batches: Batches, batch_size: int
) -> dict[str, np.ndarray]:
    """What the head reads of a whole split: `features` [N, ...], and `label` and `index`, the place in the split."""
    indices, stop = eval_indices(batches.num_examples, batch_size), num_eval_steps(batches.num_examples, batch_size)
    parts = []
    for step, batch in enumerate(batches(indices, 0, stop)):
        wanted = program.feature_step(variables, batch, numbers), batch['label'], batch['valid']
        outputs, label, valid = jax.device_get(wanted)
        parts.append((outputs[valid], label[valid], indices(step)[0][valid]))
    names = ('features', 'label', 'index')
    return {name: np.concatenate(column) for name, column in zip(names, zip(*parts, strict=True), strict=True)}


def write_arrays(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    """Writes an .npz file whole or not at all."""
    temporary = path.with_name(f'.{path.name}')
    np.savez(temporary, **arrays)
    temporary.rename(path)


def read_config(folder: pathlib.Path) -> Experiment:
    """The resolved configuration of a run folder. Raises InputError where there is none."""
    record = read_json(folder / 'run.json')
    if record is None:
        raise InputError(f'{folder}: is no run folder (it has no run.json)')
    return validation.from_dict(record['config'])


def load_run(folder: pathlib.Path, mesh: Mesh) -> tuple[Experiment, Program, Numbers, TrainState, int]:
    """The best checkpoint of a run folder: its configuration, program, numbers, state and step."""
    config = read_config(folder)
    program, numbers = programs.build(config, sources.spec(config.data), 1, mesh)
    checkpoints = Checkpoints(folder, config.checkpoint.keep)
    step = checkpoints.best_step()
    state, _ = checkpoints.restore(step, program.state)
    checkpoints.close()
    if config.eval.recalibrate:
        state = recalibrated(state, step, folder) or state
    return config, program, numbers, state, step


def check_source(source: str) -> None:
    """Raises InputError where config.init_from names neither a run folder nor a file of weights that can be had."""
    folder = pathlib.Path(source)
    if folder.is_dir():
        read_config(folder)
    else:
        files.locate(source)


def start_from(state: TrainState, config: Experiment, mesh: Mesh) -> tuple[TrainState, Imported]:
    """A fresh state with the weights of config.init_from: those that a run evaluates, or a file's.

    Where the number of classes differs the head stays as it is. Raises InputError where anything else does not fit.
    """
    source, options = str(config.init_from), config.model.options
    if pathlib.Path(source).is_dir():
        *_, run, step = load_run(pathlib.Path(source), mesh)
        theirs = {pretrained.OURS.key(path): leaf for path, leaf in pretrained.flat(run.eval_variables).items()}
        origin = f'step {step} of {source}'
    else:
        theirs = files.read(source)
        origin = f'{source} (sha256 {files.fingerprint(files.locate(source))})'
    try:
        imported = pretrained.import_weights(
            theirs,
            state.variables,
            config.model.name,
            [pattern for pattern in (config.allow_partial or '').split(',') if pattern],
            options.get('norm_epsilon', 1e-5),
        )
    except InputError as error:
        raise InputError(f'config.init_from={source}: {error}') from None
    # Copies, since a step takes its state's memory.
    put = functools.partial(jax.device_put, may_alias=False)
    loaded = jax.tree.map(lambda new, old: put(new, old.sharding), imported.variables, state.variables)
    params = loaded.pop('params')
    ema = None if state.ema is None else average(params, loaded)
    return dataclasses.replace(state, params=params, model_state=loaded, ema=ema), imported._replace(origin=origin)


def load_weights(
    config: Experiment, spec: Spec, mesh: Mesh, with_head: bool = True
) -> tuple[Program, Numbers, TrainState, Imported]:
    """The program of a resolved configuration, its numbers, and a state with the weights of config.init_from.

    Raises InputError where they do not fit, or, `with_head`, have a head of another number of classes.
    """
    program, numbers = programs.build(config, spec, 1, mesh)
    state, imported = start_from(program.init(numbers), config, mesh)
    if imported.classes and with_head:
        raise InputError(
            f'config.init_from={config.init_from}: its head has {imported.classes[0]} classes and '
            f'data set {config.data.name} {imported.classes[1]}; train a new one and evaluate that run, --workdir=RUN'
        )
    return program, numbers, state, imported

"""The one loop: the host's side of training, for every task."""

import contextlib
import functools
import math
from collections.abc import Generator
from typing import Any, NamedTuple

from jax.sharding import Mesh

from cnn import config as configuration
from cnn.config import Experiment, Spec
from cnn.data.batches import train_indices
from cnn.errors import InputError, RunStopped
from cnn.training import process, teachers
from cnn.training import program as programs
from cnn.training.checkpoints import Checkpoints
from cnn.training.data_init import data_initialized
from cnn.training.evaluation import evaluate, open_split, start_from
from cnn.training.program import Program
from cnn.training.recalibration import recalibrate
from cnn.training.records import Recorder, RunFolder, finite
from cnn.training.state import TRAIN, stream


class Step(NamedTuple):
    """A step that a run wants done."""

    program: Program
    arguments: tuple[Any, ...]  # of program.train_step: state, batch, key, numbers


def train_and_evaluate(
    config: Experiment, spec: Spec, mesh: Mesh, folder: RunFolder, command: list[str], profile: range | None = None
) -> dict[str, Any]:
    """A run from beginning to end: `training`, its steps done one by one as it asks for them."""
    run, done = training(config, spec, mesh, folder, command, profile), None
    try:
        while True:
            program, arguments = run.send(done)
            done = program.train_step(*arguments)
    except StopIteration as end:
        return end.value


def training(
    config: Experiment, spec: Spec, mesh: Mesh, folder: RunFolder, command: list[str], profile: range | None = None
) -> Generator[Step, Any, dict[str, Any]]:
    """Trains, or goes on where a checkpoint stands; evaluates the best one on the test split; returns DONE.json.

    It asks for its steps and is sent what program.train_step gives, so that who runs it may do those of several runs
    together (pack.py).

    Args:
      config: resolved; a finished run is not repeated.
      spec: of the data's examples.
      profile: the steps to trace with the profiler, into the run folder.

    Raises:
      InputError: the network or the folder can't take this configuration.
      RunStopped: after SIGTERM.
      RunFailed: training diverged; the message names the value and the step.
    """
    names = {
        'train': config.data.train_split,
        'validation': config.data.validation_split,
        'test': config.data.test_split,
    }
    splits = {role: open_split(config, spec, split, mesh) for role, split in names.items() if split is not None}
    train = splits['train']
    teacher = teachers.load(config, spec, mesh)
    program, numbers = programs.build(config, spec, train.num_examples, mesh, teacher)
    reads: dict[str, Any] = {**splits, 'teacher': teacher} if teacher else splits
    folder.begin(config, command, {role: part.fingerprint for role, part in reads.items()})
    if folder.done:
        return folder.done
    if teacher:
        folder.note('teacher', teacher.note)

    total = numbers['steps']['total']
    duration = functools.partial(
        configuration.steps, batch_size=config.data.batch_size, num_examples=train.num_examples, total=total
    )
    log_every, eval_every, save_every = map(duration, (config.log.every, config.eval.every, config.checkpoint.every))
    metric = config.eval.metric or next(iter(program.task.directions))
    sign = 1 if program.task.directions[metric] == 'max' else -1

    def due(every: int) -> bool:
        return step == total or (every > 0 and step % every == 0)

    checkpoints = Checkpoints(folder.path, config.checkpoint.keep)
    saved = checkpoints.last(program.state)
    if saved:
        state, notes = saved
    else:
        state, notes = program.init(numbers), {'best': -math.inf, 'seconds': 0.0}
        if config.init_from is not None:
            state, imported = start_from(state, config, mesh)
            folder.note('init_from', imported.note)
        else:
            state = data_initialized(state, program, numbers, config, spec, train)
    step, best = int(state.step), notes['best']
    if step > total:
        raise InputError(
            f'config.train.duration={config.train.duration!r}: is {total} steps; the run is at {step} already'
        )
    folder.truncate(step)
    for role, split in splits.items():
        split.report(folder.unreadable)
        folder.list_notes(role, split.notes)
    score_split = functools.partial(evaluate, program, numbers, batch_size=config.data.batch_size)
    key = stream(config.seed, TRAIN)
    recorder = Recorder(folder.path, step, total, config.data.batch_size, notes['seconds'])
    with contextlib.closing(recorder), contextlib.closing(checkpoints), process.sigterm() as stopped:
        order = train_indices(train.num_examples, config.data.batch_size, config.seed, config.augment.repeats)
        for batch in recorder.timed(train(order, step, total)):
            process.trace(profile, step, folder.path)
            state, row = yield Step(program, (state, batch, key, numbers))
            recorder.running = row
            step += 1
            score = None
            if due(log_every):
                recorder.row(step, 'train', finite(step, row))
                recorder.tick(step)
            if due(eval_every) and 'validation' in splits:
                with recorder.pause():
                    metrics, _ = score_split(state.eval_variables, splits['validation'])
                    score = sign * recorder.row(step, 'validation', metrics)[metric]
            if due(save_every) or stopped() or (score is not None and score > best):
                with recorder.pause():
                    finite(step, row)
                    best = best if score is None else max(best, score)
                    checkpoints.save(step, state, score, {'best': best, 'seconds': recorder.seconds})
            if stopped():
                raise RunStopped(f'stopped by SIGTERM at step {step} of {total} and saved; the same command resumes')

        best_step = checkpoints.best_step()
        state, _ = checkpoints.restore(best_step, program.state)
        if config.eval.recalibrate:
            state = recalibrate(program, numbers, state, best_step, train, config, folder.path)
        last_split = next(role for role in ('test', 'validation', 'train') if role in splits)
        metrics, pictures = score_split(state.eval_variables, splits[last_split])
        if last_split == 'test':
            recorder.row(best_step, 'test', metrics)
        result = {'step': total, 'best_step': best_step, 'metrics': metrics, **recorder.totals()}
    for name, draw in pictures.items():
        folder.picture(name, draw)
    return folder.finish(result, mesh)

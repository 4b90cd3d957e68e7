"""The one loop: the host's side of training, for every task."""

import contextlib
import functools
import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from cnn import config as configuration
from cnn.config import Experiment, InputError, RunStopped, Spec
from cnn.data.batches import train_indices
from cnn.training import program as programs
from cnn.training.checkpoints import Checkpoints
from cnn.training.evaluation import evaluate, open_split, start_from
from cnn.training.records import Recorder, RunFolder, finite
from cnn.training.state import TRAIN, stream


def train_and_evaluate(
    config: Experiment, spec: Spec, mesh: Mesh, folder: RunFolder, command: list[str], profile: range | None = None
) -> dict[str, Any]:
    """Trains, or goes on where a checkpoint stands; evaluates the best one on the test split; returns DONE.json.

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
    program, numbers = programs.build(config, spec, train.num_examples, mesh)
    folder.begin(config, command, {role: split.fingerprint for role, split in splits.items()})
    if folder.done:
        return folder.done

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
    step, best = int(state.step), notes['best']
    if step > total:
        raise InputError(
            f'config.train.duration={config.train.duration!r}: is {total} steps; the run is at {step} already'
        )
    folder.truncate(step)
    score_split = functools.partial(evaluate, program, numbers, batch_size=config.data.batch_size)
    key = stream(config.seed, TRAIN)
    recorder = Recorder(folder.path, step, total, config.data.batch_size, notes['seconds'])
    with contextlib.closing(recorder), contextlib.closing(checkpoints), _sigterm() as stopped:
        order = train_indices(train.num_examples, config.data.batch_size, config.seed)
        for batch in train(order, step, total):
            _trace(profile, step, folder)
            state, row = program.train_step(state, batch, key, numbers)
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
        last_split = next(role for role in ('test', 'validation', 'train') if role in splits)
        metrics, pictures = score_split(state.eval_variables, splits[last_split])
        if last_split == 'test':
            recorder.row(best_step, 'test', metrics)
        result = {'step': total, 'best_step': best_step, 'metrics': metrics, **recorder.totals()}
    for name, draw in pictures.items():
        folder.picture(name, draw())
    folder.finish(result)
    return result


def _trace(profile: range | None, step: int, folder: RunFolder) -> None:
    """Starts and stops the profiler at the ends of a range of steps."""
    if profile and step == profile.start:
        jax.profiler.start_trace(folder.path / 'profile')
    elif profile and step == profile.stop:
        jax.profiler.stop_trace()


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """A function that tells whether SIGTERM came, while inside."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)

"""One step of training and one of evaluation, for every task: pure functions, jitted by their caller."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cnn.config import Numbers
from cnn.tasks import Apply, Batch, Task, Totals, input_field
from cnn.training import views
from cnn.training.distillation import Distilled
from cnn.training.state import TrainState

Prepare = Callable[[Batch, Any, Numbers], Batch]  # raw batch, key or None in evaluation, numbers -> the model's batch
Optimizer = Callable[[Numbers], optax.GradientTransformation]
LearningRate = Callable[[Any, Numbers], jax.Array]  # step, numbers -> rate
Learning = Callable[[Any, Any, Numbers], Any]  # params, step, numbers -> params, constants where they do not learn


def apply_function(model: nn.Module) -> Apply:
    """The `apply` of the Task contract (cnn/tasks/__init__.py) for a model."""

    def apply(
        variables: Any,
        *inputs: Any,
        train: bool,
        key: Any = None,
        method: str | None = None,
        mutable: tuple[str, ...] | None = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        if mutable is None:
            mutable = tuple(name for name in variables if name != 'params') if train else ()
        outputs, changed = model.apply(
            variables,
            *inputs,
            train=train,
            method=method,
            mutable=mutable,
            rngs=None if key is None else {'dropout': key},
            **options,
        )
        kept = {name: collection for name, collection in variables.items() if name != 'params'}
        return outputs, {**kept, **changed}

    return apply


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    numbers: Numbers,
    *,
    model: nn.Module,
    task: Task,
    optimizer: Optimizer,
    learning_rate: LearningRate,
    prepare: Prepare,
    learning: Learning = lambda params, step, numbers: params,
    accumulate: int = 1,
    sam: bool = False,
    teacher: nn.Module | None = None,
    ema_every: int = 1,
    ema_warmup: bool = False,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The next state and a row of metrics, from a raw batch, the key of the run's training stream and traced numbers.

    The gradient is that of the loss summed over `accumulate` microbatches and all devices, divided by the count once.
    Sharpness-aware minimisation (Foret et al. 2021) takes it where the loss is worst within a radius, to first order,
    with the same random numbers; statistics and metrics are those of the first pass.
    """
    key = jax.random.fold_in(key, state.step)
    batch = prepare(batch, jax.random.fold_in(key, 0), numbers)
    task = dataclasses.replace(task, **numbers['task'])  # type: ignore[type-var]
    aim: Task | Distilled = task
    if teacher is not None:
        aim = Distilled(task, apply_function(teacher), numbers['teacher'], **numbers['distill'])
    gradient_at = functools.partial(
        _accumulated_gradient,
        apply_function(model),
        aim,
        lambda params: learning(params, state.step, numbers),
        state.model_state,
        batch,
        jax.random.fold_in(key, 1),
        accumulate,
    )
    gradient, (total, count, model_state, metrics) = gradient_at(state.params)
    if sam:
        radius = numbers['optimizer']['sam'] / jnp.maximum(optax.tree.norm(gradient), 1e-12)
        worst = jax.tree.map(lambda leaf, up: (leaf + radius * up).astype(leaf.dtype), state.params, gradient)
        gradient, _ = gradient_at(worst)
    gradient = jax.tree.map(lambda leaf: (leaf / jnp.maximum(count, 1)).astype(leaf.dtype), gradient)
    updates, opt_state = optimizer(numbers).update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    ema = state.ema
    if ema is not None:
        decay = numbers['ema']['decay']
        if ema_warmup:
            before = step // ema_every - 1  # updates
            decay = jnp.minimum(decay, (1 + before) / (10 + before))
        decay = jnp.where(step % ema_every == 0, decay, 1.0)
        current = {'params': params, **model_state}
        ema = optax.incremental_update({name: current[name] for name in ema}, ema, 1 - decay)
    totals: Totals = {'loss': (total, count), **metrics}
    row = {name: value / jnp.maximum(number, 1) for name, (value, number) in totals.items()}
    row['gradient_norm'] = optax.tree.norm(gradient)
    row['learning_rate'] = learning_rate(state.step, numbers)
    return TrainState(step, params, model_state, opt_state, ema), row


def _accumulated_gradient(
    apply: Apply,
    task: Task | Distilled,
    learning: Callable[[Any], Any],
    model_state: Any,
    batch: Batch,
    key: jax.Array,
    accumulate: int,
    params: Any,
) -> tuple[Any, tuple[Any, Any, Any, Totals]]:
    """Sums over microbatches: the gradient by `params`, and (loss, count, model_state, metrics)."""

    def loss(params: Any, model_state: Any, microbatch: Batch, index: Any) -> Any:
        variables = {'params': learning(params), **model_state}
        microkey = jax.random.fold_in(key, index)
        (total, count), (model_state, metrics) = task.loss(apply, variables, microbatch, microkey)
        return total, (total, count, model_state, metrics)

    gradient = jax.grad(loss, has_aux=True)
    if accumulate == 1:
        return gradient(params, model_state, batch, 0)

    # Microbatch i takes examples i, i + accumulate, ...: each device keeps the examples that it has.
    def split(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(-1, accumulate, *leaf.shape[1:]).swapaxes(0, 1)

    def body(carry: Any, slice_: Any) -> tuple[Any, None]:
        sums, model_state = carry
        microbatch, index = slice_
        gradients, (total, count, model_state, metrics) = gradient(params, model_state, microbatch, index)
        return (jax.tree.map(jnp.add, sums, (gradients, total, count, metrics)), model_state), None

    microbatches = (jax.tree.map(split, dict(batch)), jnp.arange(accumulate))
    first = jax.tree.map(lambda leaf: leaf[0], microbatches)
    shapes = jax.eval_shape(gradient, params, model_state, *first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    gradients, (total, count, _, metrics) = zeros
    carry = ((gradients, total, count, metrics), model_state)
    (sums, model_state), _ = jax.lax.scan(body, carry, microbatches)
    gradients, total, count, metrics = sums
    return gradients, (total, count, model_state, metrics)


def eval_step(
    variables: Any,
    batch: Batch,
    key: jax.Array,
    numbers: Numbers,
    *,
    model: nn.Module,
    task: Task,
    prepare: Prepare,
    view: str = 'one',
) -> tuple[Totals, Any]:
    """Sums and counts of a raw batch, and what the task collects of it; `view` is one of views.VIEWS."""
    batch = prepare(batch, None, numbers)
    task = dataclasses.replace(task, **numbers['task'])  # type: ignore[type-var]
    predictions = task.predict(views.averaged(apply_function(model), view), variables, batch, key)
    return task.metrics(predictions, batch), task.collect(predictions, batch)


def measure_step(
    variables: Any, batch: Batch, key: jax.Array, numbers: Numbers, *, model: nn.Module, task: Task, prepare: Prepare
) -> Any:
    """What a forward pass in training leaves in the running statistics, from a raw training batch."""
    batch = prepare(batch, jax.random.fold_in(key, 0), numbers)
    task = dataclasses.replace(task, **numbers['task'])  # type: ignore[type-var]
    _, (model_state, _) = task.loss(apply_function(model), variables, batch, jax.random.fold_in(key, 1))
    return model_state.get('batch_stats')


def feature_step(variables: Any, batch: Batch, numbers: Numbers, *, model: nn.Module, prepare: Prepare) -> Any:
    """The outputs of a model in evaluation, from a raw batch."""
    batch = prepare(batch, None, numbers)
    return model.apply(variables, batch[input_field(batch, 'features')], train=False)

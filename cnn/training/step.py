"""One step of training and one of evaluation, for every task: pure functions, jitted by their caller."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cnn.config import Numbers
from cnn.tasks import Apply, Batch, Task, Totals
from cnn.training.state import TrainState

Prepare = Callable[[Batch, Any, Numbers], Batch]  # raw batch, key or None in evaluation, numbers -> the model's batch
Optimizer = Callable[[Numbers], optax.GradientTransformation]
LearningRate = Callable[[Any, Numbers], jax.Array]  # step, numbers -> rate


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
    accumulate: int = 1,
    ema_every: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The next state and a row of metrics, from a raw batch, the key of the run's training stream and traced numbers.

    The gradient is that of the loss summed over `accumulate` microbatches and all devices, divided by the count once.
    """
    key = jax.random.fold_in(key, state.step)
    batch = prepare(batch, jax.random.fold_in(key, 0), numbers)
    task = dataclasses.replace(task, **numbers['task'])  # type: ignore[type-var]
    gradient, (total, count, model_state, metrics) = _accumulated_gradient(
        apply_function(model), task, state, batch, jax.random.fold_in(key, 1), accumulate
    )
    gradient = jax.tree.map(lambda leaf: (leaf / jnp.maximum(count, 1)).astype(leaf.dtype), gradient)
    updates, opt_state = optimizer(numbers).update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    ema = state.ema
    if ema is not None:
        decay = jnp.where(step % ema_every == 0, numbers['ema']['decay'], 1.0)
        current = {'params': params, **model_state}
        ema = optax.incremental_update({name: current[name] for name in ema}, ema, 1 - decay)
    totals: Totals = {'loss': (total, count), **metrics}
    row = {name: value / jnp.maximum(number, 1) for name, (value, number) in totals.items()}
    row['gradient_norm'] = optax.tree.norm(gradient)
    row['learning_rate'] = learning_rate(state.step, numbers)
    return TrainState(step, params, model_state, opt_state, ema), row


def _accumulated_gradient(
    apply: Apply, task: Task, state: TrainState, batch: Batch, key: jax.Array, accumulate: int
) -> tuple[Any, tuple[Any, Any, Any, Totals]]:
    """Sums over microbatches: the gradient, and (loss, count, model_state, metrics)."""

    def loss(params: Any, model_state: Any, microbatch: Batch, index: Any) -> Any:
        variables = {'params': params, **model_state}
        microkey = jax.random.fold_in(key, index)
        (total, count), (model_state, metrics) = task.loss(apply, variables, microbatch, microkey)
        return total, (total, count, model_state, metrics)

    gradient = jax.grad(loss, has_aux=True)
    if accumulate == 1:
        return gradient(state.params, state.model_state, batch, 0)

    # Microbatch i takes examples i, i + accumulate, ...: each device keeps the examples that it has.
    def split(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(-1, accumulate, *leaf.shape[1:]).swapaxes(0, 1)

    def body(carry: Any, slice_: Any) -> tuple[Any, None]:
        sums, model_state = carry
        microbatch, index = slice_
        gradients, (total, count, model_state, metrics) = gradient(state.params, model_state, microbatch, index)
        return (jax.tree.map(jnp.add, sums, (gradients, total, count, metrics)), model_state), None

    microbatches = (jax.tree.map(split, dict(batch)), jnp.arange(accumulate))
    first = jax.tree.map(lambda leaf: leaf[0], microbatches)
    shapes = jax.eval_shape(gradient, state.params, state.model_state, *first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    gradients, (total, count, _, metrics) = zeros
    carry = ((gradients, total, count, metrics), state.model_state)
    (sums, model_state), _ = jax.lax.scan(body, carry, microbatches)
    gradients, total, count, metrics = sums
    return gradients, (total, count, model_state, metrics)


def eval_step(
    variables: Any, batch: Batch, key: jax.Array, numbers: Numbers, *, model: nn.Module, task: Task, prepare: Prepare
) -> tuple[Totals, Any]:
    """Sums and counts of a raw batch, and what the task collects of it."""
    batch = prepare(batch, None, numbers)
    task = dataclasses.replace(task, **numbers['task'])  # type: ignore[type-var]
    predictions = task.predict(apply_function(model), variables, batch, key)
    return task.metrics(predictions, batch), task.collect(predictions, batch)

"""The state of a run: arrays only."""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cnn.config import Spec
from cnn.tasks import Task

# Each use of randomness has its own stream of keys, fold_in(key(seed), STREAM); a step takes fold_in(stream, step).
INIT, TRAIN, EVALUATE, RECALIBRATE = 0, 1, 2, 3


@flax.struct.dataclass
class TrainState:
    """What a step changes. `step` counts finished steps; `ema` is None where no average is kept."""

    step: jax.Array
    params: Any
    model_state: Any  # collections other than parameters, such as batch_stats
    opt_state: Any
    ema: Any  # {'params': ..., 'batch_stats': ...}

    @property
    def variables(self) -> Any:
        """What training runs the model with."""
        return {'params': self.params, **self.model_state}

    @property
    def eval_variables(self) -> Any:
        """What evaluation and prediction run the model with: the average where there is one."""
        return {**self.variables, **(self.ema or {})}

    def with_statistics(self, batch_stats: Any) -> 'TrainState':
        """The state with these statistics of batch normalisation, in the average too where there is one."""
        ema = self.ema and {**self.ema, 'batch_stats': batch_stats}
        return dataclasses.replace(self, model_state={**self.model_state, 'batch_stats': batch_stats}, ema=ema)


def stream(seed: Any, name: int) -> jax.Array:
    """The key of a stream of randomness."""
    return jax.random.fold_in(jax.random.key(seed), name)


def average(params: Any, model_state: Any) -> Any:
    """The beginning of an average over parameters and batch statistics: copies, since a state holds no buffer twice."""
    averaged = {name: collection for name, collection in model_state.items() if name == 'batch_stats'}
    return jax.tree.map(jnp.copy, {'params': params, **averaged})


def create_train_state(
    model: nn.Module, task: Task, spec: Spec, optimizer: optax.GradientTransformation, seed: Any, use_ema: bool
) -> TrainState:
    """The state before the first step."""
    params_key, dropout_key = jax.random.split(stream(seed, INIT))
    inputs = [jnp.zeros(array.shape, array.dtype) for array in task.inputs(spec)]
    variables = dict(model.init({'params': params_key, 'dropout': dropout_key}, *inputs, train=False))
    params = variables.pop('params')
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=variables,
        opt_state=optimizer.init(params),
        ema=average(params, variables) if use_ema else None,
    )

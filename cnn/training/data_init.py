"""Initialisation that depends on the data, for networks that have it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cnn.config import Experiment, Numbers, Spec
from cnn.data import augment
from cnn.data.batches import Batches, eval_indices, num_eval_steps
from cnn.training.program import Program
from cnn.training.state import TrainState, average


def data_initialized(
    state: TrainState, program: Program, numbers: Numbers, config: Experiment, spec: Spec, train: Batches
) -> TrainState:
    """A fresh state after the network has seen the first training images, prepared as in evaluation.

    A network takes part by a pure method `data_init(variables, images) -> variables` and a field `data_init_images`,
    how many it wants; of others the state stays as it is. `spec` is that of raw examples.
    """
    model = program.model
    if not hasattr(model, 'data_init'):
        return state
    prepare = augment.preparation(config, spec)
    count, batch_size = min(model.data_init_images, train.num_examples), config.data.batch_size
    batches = list(train(eval_indices(count, batch_size), 0, num_eval_steps(count, batch_size)))

    def initialized(variables: Any, batches: list[Any]) -> Any:
        images = jnp.concatenate([prepare(batch, None, numbers)['image'] for batch in batches])
        return model.data_init(variables, images[:count])

    shardings = jax.tree.map(lambda leaf: leaf.sharding, state.variables)
    variables = jax.jit(initialized, out_shardings=shardings)(state.variables, batches)
    params = variables.pop('params')
    ema = None if state.ema is None else average(params, variables)
    return dataclasses.replace(state, params=params, model_state=variables, ema=ema)

"""Optimizers and schedules as optax chains whose numbers may be traced.

What a number decides (learning rate, momentum, decay, steps of the schedule) comes in `numbers`, so that runs which
differ in numbers share one compilation; what changes the program (the kind of optimizer, clipping or none) comes from
the configuration.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from cnn import config
from cnn.config import Numbers


def build(optimizer: config.Optimizer, schedule: config.Schedule, numbers: Numbers) -> optax.GradientTransformation:
    """The chain clip -> decay and moments -> learning rate.

    Decay is added to the gradient for `sgd` and `adam` (PyTorch's L2 form); for `adamw` (Loshchilov & Hutter 2019) it
    stands beside it, scaled by the learning rate.
    """
    values = numbers['optimizer']
    decay = optax.add_decayed_weights(
        values['weight_decay'], lambda params: decay_mask(params, optimizer.decay_exclude)
    )
    adam = optax.scale_by_adam(
        values['momentum'], values['second_momentum'], values['epsilon'], nesterov=optimizer.nesterov
    )
    chains = {
        'sgd': (decay, optax.trace(values['momentum'], optimizer.nesterov)),
        'adam': (decay, adam),
        'adamw': (adam, decay),
    }
    clip = () if optimizer.clip_norm is None else (optax.clip_by_global_norm(values['clip_norm']),)
    rate = optax.scale_by_learning_rate(lambda step: learning_rate(schedule, step, numbers))
    return optax.chain(*clip, *chains[optimizer.name], rate)


def decay_mask(params: Any, exclude: tuple[str, ...]) -> Any:
    """True for the parameters that decay: those whose last name is not in `exclude`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in exclude, params)


def learning_rate(schedule: config.Schedule, step: jax.Array, numbers: Numbers) -> jax.Array:
    """The learning rate of a step, counted from 0; traced in all but the kind of schedule.

    one_cycle (Smith & Topin 2018) is two half cosines: from 1/25 up over the warm-up, then down to `final`. The others
    rise linearly over the warm-up, so that its last step has the full rate.
    """
    step = jnp.asarray(step, jax.dtypes.canonicalize_dtype(jnp.float64))  # as wide as the machine's setting allows
    total, warmup = numbers['steps']['total'], numbers['steps']['warmup']
    final = numbers['schedule']['final']
    progress = jnp.clip((step - warmup) / jnp.maximum(total - warmup, 1), 0, 1)
    cosine = final + (1 - final) * (1 + jnp.cos(jnp.pi * progress)) / 2
    rise = jnp.clip((step + 1) / jnp.maximum(warmup, 1), 0, 1)
    if schedule.name == 'one_cycle':
        start = 1 / 25
        rising = start + (1 - start) * (1 - jnp.cos(jnp.pi * step / jnp.maximum(warmup, 1))) / 2
        factor = jnp.where(step < warmup, rising, cosine)
    elif schedule.name == 'cosine':
        factor = jnp.where(step < warmup, rise, cosine)
    elif schedule.name == 'step':
        drops = sum(jnp.where(step >= boundary, 1, 0) for boundary in numbers['steps']['boundaries'])
        factor = rise * numbers['schedule']['factor'] ** drops
    else:
        factor = rise
    return numbers['optimizer']['learning_rate'] * factor

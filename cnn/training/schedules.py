"""The learning rate of each step; traced in all but the kind of schedule."""

import jax
import jax.numpy as jnp

from cnn import config
from cnn.config import Numbers


def learning_rate(schedule: config.Schedule, step: jax.Array, numbers: Numbers) -> jax.Array:
    """The learning rate of a step, counted from 0.

    Over the warm-up it rises linearly from `start`, so that the warm-up's last step has the full rate. Then, with
    `progress` from 0 at the end of the warm-up to 1 at the end of the run, as a factor on the full rate:

        constant      1
        linear        from 1 to `final`
        polynomial    final + (1 - final) (1 - progress) ** power
        cosine        from 1 to `final` in half a cosine (Loshchilov & Hutter 2017)
        inverse_sqrt  (warmup / (step + 1)) ** .5 (Vaswani et al. 2017)
        step          `factor` for each boundary that is past, in the warm-up too
        exponential   factor ** (step // every), in stairs; every is counted from step 0, warm-up included, and the
                      warm-up rises to the full rate, as in the training code of EfficientNet (Tan & Le 2019)
        one_cycle     two half cosines: from 1/25 up over the warm-up, then down to `final` (Smith & Topin 2018)
    """
    step = jnp.asarray(step, jax.dtypes.canonicalize_dtype(jnp.float64))  # as wide as the machine's setting allows
    total, warmup = numbers['steps']['total'], numbers['steps']['warmup']
    start, final, power = (numbers['schedule'][name] for name in ('start', 'final', 'power'))
    progress = jnp.clip((step - warmup) / jnp.maximum(total - warmup, 1), 0, 1)
    rise = start + (1 - start) * jnp.clip((step + 1) / jnp.maximum(warmup, 1), 0, 1)

    def half_cosine(first: jax.Array | float, last: jax.Array | float, share: jax.Array) -> jax.Array:
        return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2

    match schedule.name:
        case 'step':
            drops = sum(jnp.where(step >= boundary, 1, 0) for boundary in numbers['steps']['boundaries'])
            factor = rise * numbers['schedule']['factor'] ** drops
        case 'exponential':
            decayed = numbers['schedule']['factor'] ** (step // jnp.maximum(numbers['steps']['every'], 1))
            factor = jnp.where(step < warmup, rise, decayed)
        case 'one_cycle':
            rise = half_cosine(1 / 25, 1.0, step / jnp.maximum(warmup, 1))
            factor = jnp.where(step < warmup, rise, half_cosine(1.0, final, progress))
        case 'cosine':
            factor = jnp.where(step < warmup, rise, half_cosine(1.0, final, progress))
        case 'linear':
            factor = jnp.where(step < warmup, rise, 1 + (final - 1) * progress)
        case 'polynomial':
            factor = jnp.where(step < warmup, rise, final + (1 - final) * (1 - progress) ** power)
        case 'inverse_sqrt':
            factor = jnp.where(step < warmup, rise, jnp.sqrt(jnp.maximum(warmup, 1) / (step + 1)))
        case _:
            factor = rise
    return numbers['optimizer']['learning_rate'] * factor

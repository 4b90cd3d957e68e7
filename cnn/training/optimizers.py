"""Optimizers as optax chains whose numbers may be traced.

What a number decides (learning rate, momentum, decay, steps of the schedule) comes in `numbers`, so that runs which
differ in numbers share one compilation; what changes the program (the kind of optimizer, clipping or none, which paths
are frozen) comes from the configuration.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cnn import config
from cnn.config import Numbers
from cnn.training import muon, paths, schedules

Transformations = tuple[optax.GradientTransformation, ...]


def build(optimizer: config.Optimizer, schedule: config.Schedule, numbers: Numbers) -> optax.GradientTransformation:
    """The chain clip -> moments, decay and learning rate, each parameter's only while it learns.

    Adaptive clipping comes before that by the global norm. What is frozen has no state.
    """
    values = numbers['optimizer']
    clips: Transformations = ()
    if optimizer.clip_adaptive is not None:
        clips += (_clip_adaptive(values['clip_adaptive']),)
    if optimizer.clip_norm is not None:
        clips += (optax.clip_by_global_norm(values['clip_norm']),)
    if not optimizer.frozen and not optimizer.unfreeze:
        return optax.chain(*clips, *_updates(optimizer, schedule, numbers))
    by_time = {
        paths.NEVER: optax.set_to_zero(),
        paths.ALWAYS: optax.chain(*_updates(optimizer, schedule, numbers)),
    }
    for index, begin in enumerate(numbers['steps']['unfreeze']):
        by_time[str(index)] = _from_step(begin, optax.chain(*_updates(optimizer, schedule, numbers, begin)))
    return optax.chain(*clips, optax.partition(by_time, functools.partial(paths.when, optimizer)))


def counts(config: config.Experiment, count: Callable[[str], int]) -> dict[str, Any]:
    """The `steps` among the numbers: every duration of schedule and optimizer, by a function that counts its steps."""
    return {
        'total': count(config.train.duration),
        'warmup': count(config.schedule.warmup),
        'every': count(config.schedule.every),
        'boundaries': [count(boundary) for boundary in config.schedule.boundaries],
        'unfreeze': [count(entry.rpartition('@')[2]) for entry in config.optimizer.unfreeze],
    }


def _updates(
    optimizer: config.Optimizer, schedule: config.Schedule, numbers: Numbers, begin: Any = 0
) -> Transformations:
    """From clipped gradients to updates, for parameters that learn from step `begin` on."""
    values = numbers['optimizer']
    rate: Transformations = (
        optax.scale_by_learning_rate(lambda count: schedules.learning_rate(schedule, begin + count, numbers)),
    )
    if optimizer.rates or optimizer.layer_decay is not None:
        rate += (_scale_by(lambda params: paths.rates(optimizer, params, values)),)
    chain = functools.partial(_chain, optimizer, values, rate)
    if optimizer.name != 'muon':
        return chain(optimizer.name, values['momentum'], optimizer.nesterov)
    orthogonalized = muon.orthogonalized(optimizer.newton_schulz, scaled=not optimizer.unit_filters)
    filters: Transformations = optax.trace(values['momentum'], optimizer.nesterov), orthogonalized
    filters += (*rate, muon.unit_filters()) if optimizer.unit_filters else (_decay(optimizer, values), *rate)
    others = chain(optimizer.other, values['other_momentum'], optimizer.nesterov and optimizer.other == 'sgd')
    kinds = {True: optax.chain(*filters), False: optax.chain(*others)}
    return (optax.partition(kinds, paths.filter_mask),)


def _chain(
    optimizer: config.Optimizer, values: dict[str, Any], rate: Transformations, name: str, momentum: Any, nesterov: bool
) -> Transformations:
    """The update of each optimizer, as published.

    sgd      decay is added to the gradient (PyTorch's L2 form), momentum is not dampened (Sutskever et al. 2013)
    adam     Kingma & Ba 2015, decay as in sgd; with `nesterov` Dozat's NAdam
    adamw    decay stands beside the moments, scaled by the learning rate (Loshchilov & Hutter 2019)
    lamb     adamw whose update has the norm of the parameter (You et al. 2020), unless that is excluded from decay
    lars     sgd whose gradient is scaled by trust_coefficient |p| / (|g| + decay |p|), unless the parameter is excluded
             from decay; the learning rate stands inside the momentum (You et al. 2017, algorithm 1)
    rmsprop  TensorFlow's: the second moment begins at 1, epsilon stands inside the root, the learning rate inside the
             momentum; decay as in sgd
    lion     the sign of an interpolation of momentum and gradient (Chen et al. 2023), decay as in adamw

    muon (Jordan et al. 2024) stands in `_updates`: filters of convolutions get orthogonalised momentum, with decay as
    in adamw; or, with `unit_filters`, no decay and no scale for their shape, as airbench does it.
    """
    decay, trace = _decay(optimizer, values), optax.trace(momentum, nesterov)
    adam = optax.scale_by_adam(momentum, values['second_momentum'], values['epsilon'], nesterov=nesterov)
    decays = functools.partial(paths.decay_mask, exclude=optimizer.decay_exclude)
    match name:
        case 'sgd':
            return decay, trace, *rate
        case 'adam':
            return decay, adam, *rate
        case 'adamw':
            return adam, decay, *rate
        case 'lamb':
            return adam, decay, optax.masked(optax.scale_by_trust_ratio(), decays), *rate
        case 'lars':
            return optax.masked(_layer_adaptation(values), decays), *rate, trace
        case 'rmsprop':
            rms = optax.scale_by_rms(values['second_momentum'], values['epsilon'], initial_scale=1.0)
            return decay, rms, *rate, trace
        case _:
            return optax.scale_by_lion(momentum, values['second_momentum']), decay, *rate


def _decay(optimizer: config.Optimizer, values: dict[str, Any]) -> optax.GradientTransformation:
    return optax.add_decayed_weights(
        values['weight_decay'], functools.partial(paths.decay_mask, exclude=optimizer.decay_exclude)
    )


def _layer_adaptation(values: dict[str, Any]) -> optax.GradientTransformation:
    """The gradient with decay, scaled for each parameter as LARS does; by one where a norm is zero."""

    def adapt(gradient: jax.Array, parameter: jax.Array) -> jax.Array:
        norm, length = jnp.linalg.norm(parameter.ravel()), jnp.linalg.norm(gradient.ravel())
        decay = values['weight_decay']
        ratio = values['trust_coefficient'] * norm / (length + decay * norm + values['epsilon'])
        ratio = jnp.where((norm > 0) & (length > 0), ratio, 1.0)
        return (ratio * (gradient + decay * parameter)).astype(gradient.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(adapt, updates, params))


def _clip_adaptive(factor: Any) -> optax.GradientTransformation:
    """Each unit's gradient is at most `factor` times as long as its weights (Brock et al. 2021), but for the head.

    A unit is what makes one output: all axes of a kernel but the last. A vector is one unit. Weights count as no
    shorter than 1e-3.
    """

    def clip(gradient: jax.Array, parameter: jax.Array, in_head: bool) -> jax.Array:
        if in_head:
            return gradient
        most = factor * jnp.maximum(_unit_norm(parameter), 1e-3)
        length = _unit_norm(gradient)
        return (gradient * jnp.where(length < most, 1.0, most / length)).astype(gradient.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates, params, paths.head_mask(params)))


def _unit_norm(leaf: jax.Array) -> jax.Array:
    axes = tuple(range(leaf.ndim - 1)) if leaf.ndim > 1 else None
    return jnp.sqrt(jnp.sum(leaf**2, axes, keepdims=True))


def _scale_by(factors: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Each update times a factor of its own."""

    def scale(update: jax.Array, factor: Any) -> jax.Array:
        return (update * factor).astype(update.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(scale, updates, factors(params)))


class FromStep(NamedTuple):
    """How many steps there were, and the state of what has begun or not."""

    steps: jax.Array
    inner: Any


def _from_step(begin: Any, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` from step `begin` on; until then updates are zero and its state, its own count too, stays new."""

    def init(params: Any) -> FromStep:
        return FromStep(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates: Any, state: FromStep, params: Any = None) -> tuple[Any, FromStep]:
        begun = state.steps >= begin
        after, inner_after = inner.update(updates, state.inner, params)
        after = jax.tree.map(lambda leaf: jnp.where(begun, leaf, jnp.zeros_like(leaf)), after)
        kept = jax.tree.map(lambda new, old: jnp.where(begun, new, old), inner_after, state.inner)
        return after, FromStep(state.steps + 1, kept)

    return optax.GradientTransformation(init, update)

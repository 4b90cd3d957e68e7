"""The moving average and sharpness-aware minimisation inside the one step."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from cnn.training.state import create_train_state
from cnn.training.step import train_step

AVERAGE = json.loads((pathlib.Path(__file__).parent / 'references' / 'optimizers.json').read_text())['average']
CURVATURE = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]])
BATCH = {'x': np.array([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])}


class Point(nn.Module):
    """A vector, and the mean of the positions where it was seen."""

    @nn.compact
    def __call__(self, x, *, train):
        kernel = self.param('kernel', lambda key: jnp.array([1.0, -2.0, 0.5]))
        seen = self.variable('batch_stats', 'seen', lambda: jnp.zeros(3))
        if train:
            seen.value = seen.value + kernel
        return kernel - x


@dataclasses.dataclass(frozen=True)
class Bowl:
    """Half a quadratic around each example, so that the mean gradient is CURVATURE (p - mean)."""

    def inputs(self, spec):
        return (jax.ShapeDtypeStruct((1, 3), jnp.float64),)

    def loss(self, apply, variables, batch, key):
        away, state = apply(variables, batch['x'], train=True)
        return ((away @ CURVATURE * away).sum() / 2, len(away)), (state, {})


def run(num_steps, numbers, batch=BATCH, **settings):
    """The states after each step of plain descent with rate .1, in double precision."""
    with jax.enable_x64(True):
        optimizer = optax.sgd(0.1)
        state = create_train_state(Point(), Bowl(), None, optimizer, 0, True)
        fixed = {'model': Point(), 'task': Bowl(), 'prepare': lambda batch, key, numbers: batch}
        fixed |= {'optimizer': lambda numbers: optimizer, 'learning_rate': lambda step, numbers: 0.1, **settings}
        step = jax.jit(functools.partial(train_step, **fixed))
        states, rows = [state], []
        for _ in range(num_steps):
            state, row = step(state, batch, jax.random.key(0), {'task': {}, 'ema': {'decay': 0.9}, **numbers})
            states.append(state)
            rows.append(row)
        return jax.device_get((states, rows))


@pytest.mark.parametrize('accumulate', [1, 2])
def test_sam_descends_by_the_gradient_where_the_loss_is_worst(accumulate):
    # Foret et al. 2021, equations 2 and 3, on a quadratic: w - rate * g(w + radius * g(w) / |g(w)|).
    states, rows = run(6, {'optimizer': {'sam': 0.3}}, sam=True, accumulate=accumulate)
    weight, mean, seen = np.array([1.0, -2.0, 0.5]), BATCH['x'].mean(0), np.zeros(3)
    for state, row in zip(states[1:], rows, strict=True):
        away = weight - BATCH['x']
        np.testing.assert_allclose(row['loss'], (away @ CURVATURE * away).sum() / 2 / 4, rtol=1e-12)
        seen = seen + accumulate * weight  # of the first pass alone
        ascent = CURVATURE @ (weight - mean)
        weight = weight - 0.1 * CURVATURE @ (weight + 0.3 * ascent / np.linalg.norm(ascent) - mean)
        np.testing.assert_allclose(state.params['kernel'], weight, rtol=1e-12)
        np.testing.assert_allclose(state.model_state['batch_stats']['seen'], seen, rtol=1e-12)


def test_sam_stays_where_the_gradient_is_zero():
    bottom = {'x': np.array([[1.0, -2.0, 0.5]] * 4)}
    states, _ = run(1, {'optimizer': {'sam': 0.3}}, bottom, sam=True)
    np.testing.assert_array_equal(states[1].params['kernel'], states[0].params['kernel'])


def averages(num_steps, decay, **settings):
    states, _ = run(num_steps, {'ema': {'decay': decay}}, **settings)
    return [(state.params['kernel'], state.ema['params']['kernel']) for state in states]


def test_average_with_warmup_and_stride_is_timms():
    # timm's ModelEmaV3 made the weights of an average that is updated at every third step; by linearity the average of
    # our weights is made with the same factors.
    values = np.array([0.0, *AVERAGE['values']])
    squares = np.arange(13.0) ** 2
    visited = averages(12, AVERAGE['decay'], ema_warmup=True, ema_every=AVERAGE['every'])
    for step in range(1, 13):
        before, after = visited[step - 1][1], visited[step][1]
        if step % AVERAGE['every']:
            np.testing.assert_array_equal(after, before)
        else:
            keep = (squares[step] - values[step]) / (squares[step] - values[step - 1])
            np.testing.assert_allclose(after, keep * before + (1 - keep) * visited[step][0], rtol=1e-7)


def test_average_without_warmup_has_its_decay_from_the_first_update():
    visited = averages(4, 0.9, ema_every=2)
    expected = visited[0][1]
    for step in (1, 2, 3, 4):
        expected = expected if step % 2 else 0.9 * expected + 0.1 * visited[step][0]
        np.testing.assert_allclose(visited[step][1], expected, rtol=1e-7)

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from cnn import models, pictures, tasks
from cnn.config import Spec
from cnn.errors import InputError
from cnn.ops.conv import forced
from cnn.tasks.autoregression import Autoregression, shifted
from cnn.training.step import apply_function

LEVELS = 5
SPEC = Spec({'tokens': (12,)}, {'tokens': 'int64'}, {}, {})
TASK = Autoregression(levels=LEVELS, num_samples=3)


@functools.cache
def network():
    """A WaveNet of 17 inputs' reach as `apply` of the contract, and variables with outputs far from uniform."""
    options = {'levels': LEVELS, 'channels': 8, 'skip_channels': 16, 'dilations': (1, 2, 4), 'stacks': 2}
    model = models.build('wavenet', num_outputs=LEVELS, **options)
    variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 9), jnp.int32), train=False))()
    params = variables['params']
    head = jax.tree.map(lambda leaf: 6 * leaf, params['head'])
    return apply_function(model), {'params': {**params, 'head': head}}


def generated(key, num, length):
    apply, variables = network()
    return np.asarray(jax.jit(lambda: TASK.generate(apply, variables, key, num, length))())


def with_logits(variables, inputs, *, train, key=None):
    """A network whose outputs are its variables."""
    return variables['logits'], {}


def example(count, padding):
    generator = np.random.default_rng(0)
    total = count + padding
    batch = {'tokens': generator.integers(0, LEVELS, (total, 12)), 'valid': np.arange(total) < count}
    return {'logits': generator.normal(size=(total, 12, LEVELS)).astype(np.float32)}, batch


def test_each_value_is_told_those_before_it_and_no_other():
    np.testing.assert_array_equal(shifted(jnp.array([[3, 1, 4], [1, 5, 9]])), [[-1, 3, 1], [-1, 1, 5]])
    apply, variables = network()
    tokens = np.random.default_rng(1).integers(0, LEVELS, 12)
    changed = (tokens + np.eye(12, dtype=int)) % LEVELS  # row i differs at position i
    outputs = jax.jit(lambda tokens: apply(variables, shifted(tokens), train=False)[0])(np.vstack([tokens, changed]))
    moved = np.abs(outputs[1:] - outputs[0]).max(-1) > 0
    np.testing.assert_array_equal(moved, np.arange(12) > np.arange(12)[:, None])


def test_values_of_digits_come_back_from_their_pixels():
    ink = load_digits().images[:50]
    image = np.rint(ink * 255 / 16).astype(np.uint8).astype(np.float32)[..., None] / 255
    tokens = Autoregression(levels=17).tokens({'image': image})
    assert tokens.dtype == jnp.int32
    np.testing.assert_array_equal(tokens, ink.reshape(50, 64))


def test_a_uniform_model_needs_the_logarithm_of_the_levels():
    _, batch = example(3, 2)
    logits = {'logits': jnp.full((5, 12, LEVELS), 0.3)}
    (total, count), (_, metrics) = TASK.loss(with_logits, logits, batch, None)
    assert float(total / count) == pytest.approx(np.log(LEVELS))
    metrics |= {'evaluated': TASK.metrics(logits, batch)['bits_per_dim']}
    for name in ('bits_per_dim', 'evaluated'):
        assert float(metrics[name][0] / metrics[name][1]) == pytest.approx(np.log2(LEVELS))


def test_padding_is_not_counted():
    variables, batch = example(4, 3)
    task = dataclasses.replace(TASK, num_samples=0)
    log_probability = np.asarray(jax.nn.log_softmax(variables['logits'][:4]))
    bits = -np.take_along_axis(log_probability, batch['tokens'][:4, :, None], -1).sum() / np.log(2)
    hits = (variables['logits'][:4].argmax(-1) == batch['tokens'][:4]).sum()
    totals = task.metrics(task.predict(with_logits, variables, batch, None), batch)
    assert totals == {'bits_per_dim': (pytest.approx(bits, rel=1e-5), 48), 'accuracy': (hits, 48)}
    metrics, _ = task.summarize(jax.device_get(totals), [], SPEC)
    assert metrics == {'bits_per_dim': pytest.approx(bits / 48, rel=1e-5), 'accuracy': pytest.approx(hits / 48)}
    assert metrics.keys() == task.directions.keys()

    (total, count), (_, in_training) = task.loss(with_logits, variables, batch, None)
    assert (float(total), count) == (pytest.approx(bits * np.log(2), rel=1e-5), 48)
    assert in_training == {'bits_per_dim': (pytest.approx(bits, rel=1e-5), 48)}
    gradient = jax.grad(lambda variables: task.loss(with_logits, variables, batch, None)[0][0])(variables)['logits']
    assert (np.abs(gradient[:4]).max((1, 2)) > 0).all()
    np.testing.assert_array_equal(gradient[4:], 0)


def test_samples_are_those_of_a_whole_forward_pass_for_each_value():
    key, num, length = jax.random.key(2), 3, 24  # longer than the reach, so that the ring buffers go round
    apply, variables = network()
    samples = generated(key, num, length)

    @jax.jit
    def one_more(tokens, position):
        logits = apply(variables, shifted(tokens), train=False)[0][:, position]
        return tokens.at[:, position].set(jax.random.categorical(jax.random.fold_in(key, position), logits))

    tokens = jnp.zeros((num, length), jnp.int32)
    for position in range(length):
        tokens = one_more(tokens, position)
    np.testing.assert_array_equal(samples, tokens)
    assert len(np.unique(samples, axis=0)) == num
    assert len(np.unique(samples)) == LEVELS
    assert (generated(jax.random.key(3), num, length) != samples).any()


def test_samples_are_as_frequent_as_the_model_has_them():
    apply, variables = network()
    num = 4000
    first, second = generated(jax.random.key(4), num, 2).T
    pairs = np.stack(np.meshgrid(np.arange(LEVELS), np.arange(LEVELS), indexing='ij'), -1).reshape(-1, 2)
    logits = jax.jit(lambda pairs: apply(variables, shifted(pairs), train=False)[0])(pairs)
    probability = np.take_along_axis(jax.nn.softmax(logits), pairs[..., None], -1).prod((1, 2))
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    assert probability.max() > 3 / LEVELS**2
    frequency = np.bincount(first * LEVELS + second, minlength=LEVELS**2) / num
    deviation = np.sqrt(probability * (1 - probability) / num)
    assert (np.abs(frequency - probability) < 4 * deviation + 1 / num).all()


def test_generation_costs_as_much_for_each_value_however_long_the_sequence():
    apply, variables = network()

    def flops(function, *inputs):
        return jax.jit(function).lower(*inputs).compile().cost_analysis()['flops']

    def work(length):
        """Of the loop, whose body XLA would count once, and of a pass over the whole sequence."""
        traced = jax.make_jaxpr(lambda variables, key: TASK.generate(apply, variables, key, 3, length))
        equations = traced(variables, jax.random.key(0)).jaxpr.eqns
        (loop,) = (equation for equation in equations if equation.primitive.name == 'scan')
        body = loop.params['jaxpr']
        once = flops(jax.extend.core.jaxpr_as_fun(body), *(variable.aval for variable in body.jaxpr.invars))
        tokens = jax.ShapeDtypeStruct((3, length), jnp.int32)
        whole = flops(lambda tokens: apply(variables, tokens, train=False)[0], tokens)
        return loop.params['length'] * once, once, whole

    with forced('plain'):  # XLA does not count what oneDNN computes
        short, long = work(32), work(64)
    assert long[0] == 2 * short[0]
    assert long[2] > 1.9 * short[2]
    assert short[1] < short[2] / 16  # a step is nowhere near a pass over everything


def test_picture_shows_samples_and_true_images_without_padding(monkeypatch):
    task = dataclasses.replace(TASK, num_samples=4)
    image = np.random.default_rng(0).integers(0, LEVELS, (5, 3, 4, 1)).astype(np.float32) / (LEVELS - 1)
    batch = {'image': image, 'valid': np.arange(5) < 3}
    apply, variables = network()
    spec = Spec({'image': (3, 4, 1)}, {'image': 'float32'}, {}, {})

    @functools.partial(jax.jit, static_argnums=0)
    def collected(task):
        return task.collect(task.predict(apply, variables, batch, jax.random.key(5)), batch)

    _, drawings = task.summarize({}, [jax.device_get(collected(task))] * 2, spec)
    picture = drawings['samples']()
    assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)
    shown = []
    monkeypatch.setattr(pictures, 'grid', lambda *arguments: shown.append(arguments))
    drawings['samples']()
    ((images, captions),) = shown
    assert captions == ['generated'] * 4 + ['true'] * 3
    samples = generated(jax.random.key(5), 4, 12).reshape(4, 3, 4, 1)
    np.testing.assert_allclose(images, np.concatenate([samples / (LEVELS - 1), image[:3]]), rtol=1e-6)

    none = dataclasses.replace(task, num_samples=0)
    assert collected(none) is None
    assert none.summarize({}, [], spec) == ({}, {})


def test_reads_tokens_or_pixels_and_refuses_normalized_ones():
    task = tasks.build('autoregression', levels=LEVELS)
    image = Spec({'image': (8, 6, 1), 'label': ()}, {'image': 'float32'}, {}, {})
    for spec, field, length in ((SPEC, 'tokens', 12), (image, 'image', 48)):
        assert (task.fields(spec), task.num_outputs(spec)) == ((field,), LEVELS)
        assert task.inputs(spec) == (jax.ShapeDtypeStruct((1, length), jnp.int32),)
    with pytest.raises(InputError, match=r'leave config.data.mean and std empty'):
        task.inputs(dataclasses.replace(image, normalized=True))
    with pytest.raises(InputError, match=r'needs tokens or image; the data has signal'):
        task.inputs(Spec({'signal': (9, 1)}, {'signal': 'float32'}, {}, {}))

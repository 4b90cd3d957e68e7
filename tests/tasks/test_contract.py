"""The Task contract against what it is meant to carry: toy models and tasks through the real steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from cnn.config import Spec
from cnn.tasks.segmentation import Segmentation
from cnn.training.state import create_train_state
from cnn.training.step import eval_step, train_step

KEY = jax.random.key(7)


@dataclasses.dataclass(frozen=True)
class Toy:
    """A task whose model reads one array of this shape; subclasses give the loss."""

    shape: tuple = (3,)

    def inputs(self, spec):
        return (jax.ShapeDtypeStruct((1, *self.shape), jnp.float32),)

    def metrics(self, predictions, batch):
        return {}

    def collect(self, predictions, batch):
        return predictions


def new_state(model, task, optimizer, ema=False, spec=None):
    return create_train_state(model, task, spec, optimizer, 0, ema)


def unprepared(batch, key, numbers):
    return batch


def jitted_step(model, task, optimizer, **settings):
    fixed = {'model': model, 'task': task, 'prepare': unprepared, **settings}
    fixed |= {'optimizer': lambda numbers: optimizer, 'learning_rate': lambda step, numbers: 0.0}
    step = jax.jit(functools.partial(train_step, **fixed))
    return lambda state, batch, key=KEY: step(state, batch, key, {'task': {}, 'ema': {'decay': 0.9}})


def evaluated(model, task, variables, batch):
    step = jax.jit(functools.partial(eval_step, model=model, task=task, prepare=unprepared))
    return jax.device_get(step(variables, batch, KEY, {'task': {}}))


def assert_close(tree, reference, tolerance=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), tree, reference)


def distance(tree, reference):
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, tree, reference)))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Detector(nn.Module):
    """Each cell of 4 x 4 pixels is an anchor, the best two are proposals, and their boxes enter the second call."""

    def setup(self):
        self.objectness, self.head = nn.Dense(1), nn.Dense(1)

    def __call__(self, image, *, train):
        boxes = jnp.zeros((len(image), 2, 4))
        return self.heads(self.features(image, train=train), boxes, train=train)

    def features(self, image, *, train):
        count, height, width = image.shape
        return self.objectness(image.reshape(count, height // 4, 4, width // 4, 4).mean((2, 4))[..., None])

    def heads(self, features, boxes, *, train):
        column, row = (boxes[..., axis].astype(jnp.int32) // 4 for axis in (0, 1))
        pooled = features[jnp.arange(len(features))[:, None], row, column]  # [N, 2, 1]
        return self.head(pooled)[..., 0]


def proposals(features):
    count, _, width, _ = features.shape
    best = jax.lax.top_k(features.reshape(count, -1), 2)[1]
    corner = jnp.stack([best % width * 4, best // width * 4], -1)
    return jax.lax.stop_gradient(jnp.concatenate([corner, corner + 4], -1).astype(jnp.float32))


def box_iou(a, b):
    top_left, bottom_right = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    overlap = np.prod(np.clip(bottom_right - top_left, 0, None), -1)
    return overlap / (np.prod(a[..., 2:] - a[..., :2], -1) + np.prod(b[..., 2:] - b[..., :2], -1) - overlap)


@dataclasses.dataclass(frozen=True)
class Detection(Toy):
    shape: tuple = (8, 8)

    def loss(self, apply, variables, batch, key):
        features, _ = apply(variables, batch['image'], train=True, method='features')
        scores, state = apply(variables, features, proposals(features), train=True, method='heads')
        first = optax.sigmoid_binary_cross_entropy(features[..., 0], batch['objects']).sum()
        second = optax.sigmoid_binary_cross_entropy(scores, 1.0).sum()
        return (first + second, len(scores)), (state, {})

    def predict(self, apply, variables, batch, key):
        features, _ = apply(variables, batch['image'], train=False, method='features')
        boxes = proposals(features)
        return boxes, apply(variables, features, boxes, train=False, method='heads')[0]

    def collect(self, predictions, batch):
        return *predictions, batch['boxes'], batch['valid']

    def summarize(self, totals, collected, spec):
        """Average precision at IoU .5 with all-point interpolation."""
        boxes, scores, truth, valid = (np.concatenate(parts) for parts in zip(*collected, strict=True))
        boxes, scores, truth = boxes[valid], scores[valid], truth[valid]
        free = truth[..., 2] > truth[..., 0]
        objects, hits = free.sum(), []
        for index in np.argsort(-scores, axis=None):
            image, box = np.unravel_index(index, scores.shape)
            overlap = np.where(free[image], box_iou(truth[image], boxes[image, box]), 0)
            hits.append(overlap.max() >= 0.5)
            free[image, overlap.argmax()] &= not hits[-1]
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
        return {'ap50': float((best_from_here * hits).sum() / objects)}, {}


def scene(*objects):
    """An image of 8 x 8 pixels whose cells (row, column) have that brightness."""
    image = np.zeros((8, 8), np.float32)
    for row, column, brightness in objects:
        image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = brightness
    return image


def test_two_stage_detector_is_scored_by_an_average_precision_that_is_no_mean_over_batches():
    model, task = Detector(), Detection()
    nothing = [0, 0, 0, 0]
    batches = [
        {
            # .9 hits although a pixel off (IoU 12 / 20); .5 finds nothing. The other image is padding.
            'image': np.stack([scene((0, 0, 0.9), (1, 1, 0.5)), scene((0, 0, 0.95), (1, 0, 0.94))]),
            'boxes': np.array([[[1, 0, 5, 4], nothing], [[4, 4, 8, 8], nothing]], np.float32),
            'valid': np.array([True, False]),
        },
        {
            # .8 is two pixels off (IoU 8 / 24), .7 hits, and no proposal is near the third object.
            'image': np.stack([scene((0, 1, 0.8), (1, 0, 0.7)), scene((0, 0, 0.1), (0, 1, 0.2))]),
            'boxes': np.array([[[2, 0, 6, 4], [0, 4, 4, 8]], [nothing, nothing]], np.float32),
            'valid': np.array([True, True]),
        },
    ]
    identity = {'kernel': jnp.ones((1, 1)), 'bias': jnp.zeros(1)}
    variables = {'params': {'objectness': identity, 'head': identity}}
    collected = [evaluated(model, task, variables, batch)[1] for batch in batches]
    assert [[leaf.shape for leaf in kept] for kept in collected] == [[(2, 2, 4), (2, 2), (2, 2, 4), (2,)]] * 2
    # By score: hit .9, miss .8, hit .7, misses; 3 objects. Precision 1 at recall 1/3 and 2/3 at recall 2/3.
    whole = task.summarize({}, collected, None)[0]['ap50']
    assert whole == pytest.approx((1 + 2 / 3) / 3)
    parts = [task.summarize({}, [kept], None)[0]['ap50'] for kept in collected]
    assert parts == pytest.approx([1, 1 / 4])
    assert abs(np.mean(parts) - whole) > 0.05


def test_two_stage_detector_learns_from_both_stages():
    model, task, optimizer = Detector(), Detection(), optax.sgd(1.0)
    batch = {'image': normal(0, 4, 8, 8), 'objects': (normal(1, 4, 2, 2) > 0).astype(np.float32)}
    state = new_state(model, task, optimizer)
    after, _ = jitted_step(model, task, optimizer)(state, batch)

    def straight(params):
        cells = batch['image'].reshape(4, 2, 4, 2, 4).mean((2, 4))
        logits = cells * params['objectness']['kernel'][0, 0] + params['objectness']['bias'][0]
        best = jnp.sort(logits.reshape(4, -1), 1)[:, 2:]
        second = best * params['head']['kernel'][0, 0] + params['head']['bias'][0]
        signs = 1 - 2 * batch['objects']
        return (jnp.log1p(jnp.exp(signs * logits)).sum() + jnp.log1p(jnp.exp(-second)).sum()) / 4

    gradient = jax.grad(straight)(state.params)
    assert min(np.abs(leaf).min() for leaf in jax.tree.leaves(gradient)) > 1e-3
    assert_close(jax.tree.map(jnp.subtract, state.params, after.params), gradient)


class Gan(nn.Module):
    def setup(self):
        self.generator, self.discriminator = nn.Dense(3), nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(1)])

    def __call__(self, noise, *, train):
        return self.discriminate(self.generate(noise, train=train), train=train)

    def generate(self, noise, *, train):
        return self.generator(noise)

    def discriminate(self, image, *, train):
        return self.discriminator(image)[:, 0]


@dataclasses.dataclass(frozen=True)
class Adversarial(Toy):
    shape: tuple = (2,)

    def loss(self, apply, variables, batch, key):
        params = variables['params']
        frozen = jax.lax.stop_gradient(params)
        without_critic = {**variables, 'params': {**params, 'discriminator': frozen['discriminator']}}
        without_generator = {**variables, 'params': {**params, 'generator': frozen['generator']}}
        fake, _ = apply(without_critic, batch['noise'], train=True, method='generate')
        fooled, _ = apply(without_critic, fake, train=True, method='discriminate')
        fake, _ = apply(without_generator, batch['noise'], train=True, method='generate')
        real, _ = apply(without_generator, batch['image'], train=True, method='discriminate')
        caught, state = apply(without_generator, fake, train=True, method='discriminate')
        total = (nn.softplus(-fooled) + nn.softplus(-real) + nn.softplus(caught)).sum()
        return (total, len(fake)), (state, {})


def test_gan_trains_its_halves_in_one_step_each_with_its_own_gradient_and_learning_rate():
    model, task = Gan(), Adversarial()
    rates = {'generator': 0.5, 'discriminator': 0.125}
    optimizers = {half: optax.sgd(rate) for half, rate in rates.items()}
    optimizer = optax.multi_transform(
        optimizers, lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, params)
    )
    batch = {'image': normal(0, 5, 3), 'noise': normal(1, 5, 2)}
    state = new_state(model, task, optimizer)
    after, _ = jitted_step(model, task, optimizer)(state, batch)

    def critic(params, image):
        layers = params['layers_0'], params['layers_2']
        hidden = jnp.tanh(image @ layers[0]['kernel'] + layers[0]['bias'])
        return jax.nn.sigmoid(hidden @ layers[1]['kernel'] + layers[1]['bias'])

    def generator_loss(params):
        fake = batch['noise'] @ params['kernel'] + params['bias']
        return -jnp.log(critic(state.params['discriminator'], fake)).mean()

    def discriminator_loss(params):
        fake = batch['noise'] @ state.params['generator']['kernel'] + state.params['generator']['bias']
        return -(jnp.log(critic(params, batch['image'])) + jnp.log(1 - critic(params, fake))).mean()

    for half, loss in (('generator', generator_loss), ('discriminator', discriminator_loss)):
        gradient = jax.grad(loss)(state.params[half])
        expected = jax.tree.map(lambda p, g, rate=rates[half]: p - rate * g, state.params[half], gradient)
        assert distance(expected, state.params[half]) > 1e-2
        assert_close(after.params[half], expected)


class Denoiser(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, time=0.0):
        return nn.Dense(x.shape[-1])(x) * (1 + time)


@dataclasses.dataclass(frozen=True)
class Diffusion(Toy):
    steps: int = 4

    def loss(self, apply, variables, batch, key):
        time_key, noise_key = jax.random.split(key)
        time = jax.random.uniform(time_key, (len(batch['x']), 1))
        noise = jax.random.normal(noise_key, batch['x'].shape)
        noisy = (1 - time) * batch['x'] + time * noise
        predicted, state = apply(variables, noisy, train=True, time=time)
        return (((predicted - noise) ** 2).sum(), noise.size), (state, {'time': (time.sum(), len(time))})

    def predict(self, apply, variables, batch, key):
        x = jax.random.normal(key, batch['x'].shape)
        for step in range(self.steps, 0, -1):
            x -= apply(variables, x, train=False, time=step / self.steps)[0] / self.steps
        return x


def test_diffusion_draws_times_and_noise_from_the_key():
    model, task, optimizer = Denoiser(), Diffusion(), optax.sgd(0.1)
    step, batch, state = (
        jitted_step(model, task, optimizer),
        {'x': normal(0, 512, 3)},
        new_state(model, task, optimizer),
    )
    silent = dataclasses.replace(state, params=jax.tree.map(jnp.zeros_like, state.params))
    first, again, other = (jax.device_get(step(silent, batch, jax.random.key(seed))[1]) for seed in (1, 1, 2))
    later = step(dataclasses.replace(silent, step=state.step + 1), batch, jax.random.key(1))[1]
    assert first == again
    for row in (other, later):
        assert row['loss'] != first['loss']
        assert row['time'] != first['time']
    assert first['time'] == pytest.approx(1 / 2, abs=0.05)
    assert first['loss'] == pytest.approx(1, abs=0.1)  # the variance of the noise, because nothing is predicted


def test_diffusion_samples_from_the_averaged_weights():
    model, task, optimizer = Denoiser(), Diffusion(), optax.sgd(0.5)
    batch, state = {'x': normal(0, 6, 3)}, new_state(model, task, optimizer, ema=True)
    history = [state.params]
    step = jitted_step(model, task, optimizer)
    for _ in range(2):
        state, _ = step(state, batch)
        history.append(state.params)
    _, samples = evaluated(model, task, state.eval_variables, batch)
    _, raw = evaluated(model, task, state.variables, batch)

    def by_hand(params):
        x = np.asarray(jax.random.normal(KEY, (6, 3)))
        for time in (1, 3 / 4, 1 / 2, 1 / 4):
            x = x - (x @ params['Dense_0']['kernel'] + params['Dense_0']['bias']) * (1 + time) / 4
        return x

    average = jax.tree.map(lambda p0, p1, p2: 0.81 * p0 + 0.09 * p1 + 0.1 * p2, *history)
    np.testing.assert_allclose(samples, by_hand(average), atol=1e-5)
    np.testing.assert_allclose(raw, by_hand(state.params), atol=1e-5)
    assert np.abs(samples - raw).max() > 1e-2


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)


@dataclasses.dataclass(frozen=True)
class Twice(Toy):
    def loss(self, apply, variables, batch, key):
        a, state = apply(variables, batch['a'], train=True)
        b, state = apply({**variables, **state}, batch['b'], train=True)
        return ((a * b).sum(), a.size), (state, {})


@pytest.mark.parametrize('accumulate', [1, 2])
def test_batch_statistics_thread_through_both_calls_and_all_microbatches(accumulate):
    model, task, optimizer = Normalized(), Twice(), optax.sgd(0.1)
    batch = {'a': 5 + normal(0, 8, 3), 'b': -2 + 3 * normal(1, 8, 3)}
    after, _ = jitted_step(model, task, optimizer, accumulate=accumulate)(new_state(model, task, optimizer), batch)
    mean, var = np.zeros(3), np.ones(3)
    for microbatch in range(accumulate):
        for field in 'ab':
            x = batch[field][microbatch::accumulate]
            mean, var = 0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0)
    assert_close(after.model_state, {'batch_stats': {'BatchNorm_0': {'mean': mean, 'var': var}}}, 1e-5)


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        scale = self.param('scale', nn.initializers.ones, ())
        return nn.Dropout(0.5, deterministic=not train)(x * scale)


@dataclasses.dataclass(frozen=True)
class Masks(Toy):
    """A metric that keeps what dropout did to each example, by its place in the batch."""

    def loss(self, apply, variables, batch, key):
        outputs, state = apply(variables, jnp.ones((len(batch['place']), 64)), train=True, key=key)
        return (outputs.sum(), outputs.size), (state, {'masks': (batch['place'].T @ outputs, 0)})


def test_dropout_differs_between_microbatches_and_steps_and_repeats_itself():
    model, task, optimizer = Dropped(), Masks(), optax.sgd(0.0)
    state, step = new_state(model, task, optimizer), jitted_step(model, task, optimizer, accumulate=4)
    batch = {'place': np.eye(4, dtype=np.float32)}
    masks, repeated = (np.asarray(step(state, batch)[1]['masks']) for _ in range(2))
    later = np.asarray(step(step(state, batch)[0], batch)[1]['masks'])
    assert set(np.unique(masks)) == {0, 2}
    np.testing.assert_array_equal(masks, repeated)
    assert len(np.unique(np.concatenate([masks, later]), axis=0)) == 8


class Student(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))


class Teacher(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.tanh(nn.Dense(16)(x)))


@dataclasses.dataclass(frozen=True)
class Distillation(Toy):
    def loss(self, apply, variables, batch, key):
        logits, state = apply(variables, batch['x'], train=True)
        targets = nn.softmax(Teacher().apply({'params': variables['teacher']}, batch['x']))
        return (optax.softmax_cross_entropy(logits, targets).sum(), len(logits)), (state, {})


@pytest.mark.parametrize('ema', [False, True])
def test_teacher_passes_through_the_step_bit_for_bit_while_the_student_learns_from_it(ema):
    model, task, optimizer = Student(), Distillation(), optax.adam(0.05)
    batch, state = {'x': normal(0, 16, 3)}, new_state(model, task, optimizer, ema)
    teacher = jax.jit(Teacher().init)(jax.random.key(3), batch['x'])['params']
    state = dataclasses.replace(state, model_state={**state.model_state, 'teacher': teacher})
    if ema:
        state = dataclasses.replace(state, ema={**state.ema, 'teacher': teacher})
    step, start = jitted_step(model, task, optimizer, accumulate=2), state
    rows = []
    for _ in range(40):
        state, row = step(state, batch)
        rows.append(float(row['loss']))
    targets = jax.nn.softmax(Teacher().apply({'params': teacher}, batch['x']))
    entropy = float(-(targets * jnp.log(targets)).sum(-1).mean())  # the least that the loss can be
    assert entropy < rows[-1] < entropy + (rows[0] - entropy) / 4
    assert jax.tree.structure(state) == jax.tree.structure(start)
    for collections in (state.variables, state.eval_variables):
        jax.tree.map(np.testing.assert_array_equal, collections['teacher'], teacher)
    assert len(jax.tree.leaves(state.opt_state)) == 2 * len(jax.tree.leaves(state.params)) + 1


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1)(nn.tanh(nn.Dense(8)(x)))[:, 0]


@dataclasses.dataclass(frozen=True)
class SharpnessAware(Toy):
    radius: float = 0.5

    def loss(self, apply, variables, batch, key):
        def plain(params):
            outputs, state = apply({**variables, 'params': params}, batch['x'], train=True)
            return ((outputs - batch['y']) ** 2).sum(), state

        params = variables['params']
        ascent = jax.lax.stop_gradient(jax.grad(plain, has_aux=True)(params)[0])
        scale = self.radius / optax.tree.norm(ascent)
        total, state = plain(jax.tree.map(lambda p, g: p + scale * g, params, ascent))
        return (total, len(batch['x'])), (state, {})


def test_sharpness_aware_minimisation_takes_the_gradient_at_the_worst_point_nearby():
    model, task, optimizer = Classifier(), SharpnessAware(), optax.sgd(0.1)
    batch, state = {'x': normal(0, 8, 3), 'y': normal(1, 8)}, new_state(model, task, optimizer)
    after, _ = jitted_step(model, task, optimizer)(state, batch)

    @jax.grad
    def gradient(params):
        return ((model.apply({'params': params}, batch['x'], train=True) - batch['y']) ** 2).mean()

    first = gradient(state.params)
    length = np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in jax.tree.leaves(first)))
    second = gradient(jax.tree.map(lambda p, g: p + 0.5 * g / length, state.params, first))
    assert_close(after.params, jax.tree.map(lambda p, g: p - 0.1 * g, state.params, second))
    assert distance(first, second) > 0.1


class Pixels(nn.Module):
    dtype: str

    @nn.compact
    def __call__(self, x, *, train):
        types = {'dtype': self.dtype, 'param_dtype': self.dtype}
        return nn.Dense(3, **types)(nn.tanh(nn.Conv(4, (3, 3), **types)(x)))


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-6), ('float64', 1e-12)])
def test_accumulation_equals_the_large_batch_however_uneven_the_ignored_labels(dtype, tolerance):
    with jax.enable_x64(dtype == 'float64'):
        semantic = np.random.default_rng(1).integers(0, 3, (8, 6, 6))
        semantic[0::4] = 255  # the first microbatch has no label
        semantic[1::4, 1:] = 255
        semantic[2::4, :, 4:] = 255
        batch = {'image': normal(0, 8, 6, 6, 1).astype(dtype), 'semantic': semantic, 'valid': np.ones(8, bool)}
        spec = Spec({'image': (6, 6, 1)}, {'image': dtype}, {'semantic': ('a', 'b', 'c')}, {})
        model, task, optimizer = Pixels(dtype), Segmentation(dice_weight=0.5), optax.sgd(1.0)
        state = new_state(model, task, optimizer, spec=spec)
        step = jitted_step(model, task, optimizer)
        large, large_row = step(state, batch)
        small, small_row = jitted_step(model, task, optimizer, accumulate=4)(state, batch)
        assert jax.tree.leaves(small.params)[0].dtype == dtype
        assert_close(small.params, large.params, tolerance)
        assert_close(small_row, large_row, tolerance)

        microbatches = [jax.tree.map(lambda leaf, i=i: leaf[i::4], batch) for i in range(4)]
        alone = [step(state, microbatch)[0].params for microbatch in microbatches]
        mean_of_means = jax.tree.map(lambda *leaves: sum(leaves) / 4, *alone)
        assert distance(mean_of_means, large.params) > 0.1 * distance(large.params, state.params)

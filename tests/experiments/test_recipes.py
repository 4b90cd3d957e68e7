"""The recipes of experiments/: what they configure against what is published, and that they run.

schedules.json holds learning rates by PyTorch's schedulers, airbench.json losses by the original code; both were made
by make_references.py.
"""

import functools
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
from cnn import config as configuration
from cnn import models, pretrained, validation
from cnn.config import Spec
from cnn.errors import InputError
from cnn.inspection import describe
from cnn.training import optimizers, program, schedules, sharding
from cnn.training.state import TRAIN, stream
from tests.models.references import formula

EXPERIMENTS = launch.ROOT / 'experiments'
ARGUMENTS = {
    'mnist': ('',),
    'fashion_mnist': ('',),
    'cifar10_resnet': ('18', '20', '32', '44', '56', 'wide16_8', 'wide28_10'),
    'cifar10_airbench': ('',),
    'imagenet': (
        'resnet50_classic',
        'resnet50_v2',
        'resnet50_a1',
        'resnet50_a2',
        'resnet50_a3',
        'efficientnet_b0',
        'mobilenet_v3_large',
        'mobilenet_v3_small',
        'shufflenet_v2_x1_5',
        'shufflenet_v2_x2_0',
        'convnext_tiny',
    ),
    'fine_tune': ('all', 'probe', 'gradual', 'layerwise'),
}
RECIPES = [f'{file}:{argument}'.rstrip(':') for file, arguments in ARGUMENTS.items() for argument in arguments]
DEFAULTS = {'cifar10_resnet': '20', 'imagenet': 'resnet50_classic', 'fine_tune': 'all'}
IMAGENET = 1_281_167
FOLDER = pathlib.Path(__file__).parent
PUBLISHED = json.loads((FOLDER / 'schedules.json').read_text())


def load(recipe):
    file, _, argument = recipe.partition(':')
    return launch.load_experiment(f'{EXPERIMENTS / file}.py' + (f':{argument}' if argument else ''))


def spec_of(recipe, side=None, classes=None):
    """The data's, or with images of that size and so many classes."""
    shape, number, examples = {
        'mnist': ((28, 28, 1), 10, {'train': 60_000, 'test': 10_000}),
        'fashion_mnist': ((28, 28, 1), 10, {'train': 60_000, 'test': 10_000}),
        'cifar10_resnet': ((32, 32, 3), 10, {'train': 50_000, 'test': 10_000}),
        'cifar10_airbench': ((32, 32, 3), 10, {'train': 50_000, 'test': 10_000}),
        'imagenet': ((-1, -1, 3), 1000, {'train': IMAGENET, 'validation': 50_000}),
        'fine_tune': ((-1, -1, 3), 7, {'train': 700, 'validation': 100, 'test': 100}),
    }[recipe.partition(':')[0]]
    shape = shape if side is None else (side, side, shape[-1])
    names = {'label': tuple(map(str, range(classes or number)))}
    return Spec({'image': shape, 'label': ()}, {'image': 'uint8', 'label': 'int32'}, names, examples)


def examples_of(config, spec):
    """How many an epoch has."""
    part = re.search(r'\[:(\d+)\]', config.data.train_split)
    return int(part[1]) if part else spec.num_examples['train']


def numbers_of(recipe):
    """The numbers that the compiled functions take, and the steps of an epoch, of the run as it is published."""
    config, spec = load(recipe), spec_of(recipe)
    count = functools.partial(
        configuration.steps, batch_size=config.data.batch_size, num_examples=examples_of(config, spec)
    )
    _, numbers = configuration.split_numbers(config)
    numbers['steps'] = optimizers.counts(config, functools.partial(count, total=count(config.train.duration, total=0)))
    return config, numbers, examples_of(config, spec) / config.data.batch_size


def rate(recipe, epoch):
    """The learning rate of the first step of an epoch."""
    config, numbers, length = numbers_of(recipe)
    with jax.enable_x64(True):
        return float(schedules.learning_rate(config.schedule, math.ceil(epoch * length), numbers))


def table(file):
    """The rows of the docstring's table: name -> columns."""
    docstring = (EXPERIMENTS / f'{file}.py').read_text().split('"""')[1]
    rows = [line.split() for line in docstring.splitlines() if re.match(r'    \w+ +\d', line)]
    return {name: columns for name, *columns in rows}


@pytest.mark.parametrize('recipe', RECIPES)
def test_every_name_and_option_exists(recipe):
    config, spec = load(recipe), spec_of(recipe)
    validation.validate(config)
    resolved = program.resolve(config, spec)
    assert resolved.model.options.items() >= config.model.options.items()
    assert validation.from_dict(configuration.to_dict(resolved)) == resolved


@pytest.mark.parametrize('file', [file for file, arguments in ARGUMENTS.items() if len(arguments) > 1])
def test_an_argument_that_does_not_exist_is_refused(file):
    first, *_ = ARGUMENTS[file]
    with pytest.raises(InputError, match=f"'{first}x'; did you mean '"):
        load(f'{file}:{first}x')
    assert load(file) == load(f'{file}:{DEFAULTS[file]}')


def slack(recipe, epoch):
    """What two steps of a warm-up make, later a part of one step."""
    config, numbers, length = numbers_of(recipe)
    return config.optimizer.learning_rate * (2e-3 if epoch * length < numbers['steps']['warmup'] else 5e-5)


@pytest.mark.parametrize('recipe', PUBLISHED)
def test_learning_rates_are_those_of_the_published_schedule(recipe):
    """Theirs change once an epoch, ours each step, and in a warm-up after the first step already."""
    for epoch, expected in PUBLISHED[recipe].items():
        assert rate(recipe, int(epoch)) == pytest.approx(expected, rel=1e-5, abs=slack(recipe, int(epoch))), epoch


def efficientnet(epoch):
    return 0.256 * (epoch / 5 if epoch < 5 else 0.97 ** math.floor(epoch / 2.4))


def convnext(epoch):
    return 4e-3 * epoch / 20 if epoch < 20 else 1e-6 + (4e-3 - 1e-6) * (1 + math.cos(math.pi * (epoch - 20) / 280)) / 2


def cifar(epoch):
    step = math.ceil(epoch * 50_000 / 128)
    return 0.1 * 0.1 ** ((step >= 32_000) + (step >= 48_000))


@pytest.mark.parametrize(
    ('recipe', 'expected', 'epochs'),
    [
        ('imagenet:efficientnet_b0', efficientnet, (0, 1, 4, 5, 6, 7, 8, 100, 349)),
        ('imagenet:convnext_tiny', convnext, (0, 1, 10, 19, 20, 21, 160, 299)),
        ('cifar10_airbench', lambda epoch: 0.24 * (1 - epoch / 8), range(8)),
        *((f'cifar10_resnet:{depth}', cifar, (0, 81, 82, 122, 123, 163)) for depth in ('20', '32', '44', '56')),
    ],
)
def test_learning_rates_are_those_of_the_published_formula(recipe, expected, epochs):
    for epoch in epochs:
        assert rate(recipe, epoch) == pytest.approx(expected(epoch), rel=1e-5, abs=slack(recipe, epoch)), epoch


@pytest.mark.parametrize(
    ('recipe', 'steps'),
    [
        ('imagenet:resnet50_classic', 450_410),  # 90 x 5004.56
        ('imagenet:resnet50_a3', 62_557),
        ('cifar10_resnet:20', 64_000),
        ('cifar10_resnet:18', 78_125),
        ('cifar10_airbench', 200),
    ],
)
def test_runs_are_as_long_as_published(recipe, steps):
    assert numbers_of(recipe)[1]['steps']['total'] == steps


def test_the_average_of_torchvisions_weights_decays_as_it_does_there():
    """Figures of its training code: --model-ema-decay .99998 and 32 steps, at 600 epochs of batches of 1024."""
    for recipe in ('imagenet:resnet50_v2', 'imagenet:shufflenet_v2_x1_5'):
        assert load(recipe).ema.decay == pytest.approx(0.99891, abs=5e-6)
        assert load(recipe).ema.every == 32


def test_airbench_takes_the_steps_of_the_original():
    """Its learning rates of biases and head are .053 and .67 for losses that are added, its decay 2e-6 an image.

    A head that is c times as large takes the same steps with c squared of the learning rate, and decays by as much.
    """
    optimizer, scale = load('cifar10_airbench').optimizer, load('cifar10_airbench').model.options['head_scale']
    (entry,) = optimizer.rates
    pattern, _, factor = entry.rpartition('=')
    assert all(re.fullmatch(pattern, name) for name in ('head/kernel', 'whiten/bias', 'group3/norm2/bias'))
    assert not re.fullmatch(pattern, 'group1/conv1/kernel')
    learning_rate = optimizer.learning_rate * float(factor)
    assert learning_rate / 2000 == pytest.approx(0.053)
    assert learning_rate / 2000 / scale**2 == pytest.approx(0.67)
    assert learning_rate * optimizer.weight_decay == pytest.approx(2e-6 * 2000)


@pytest.mark.slow
def test_airbench_has_the_losses_of_the_original():
    """From the same weights, on the same batches, in float64."""
    expected = json.loads((FOLDER / 'airbench.json').read_text())['losses']
    images = formula.uniform('images', (len(expected), 16, 32, 32, 3)).astype(np.float64)
    config, spec = load('cifar10_airbench'), spec_of('cifar10_airbench')
    config.model.dtype = config.model.param_dtype = 'float64'
    config.augment = configuration.Augment()
    config.data.mean, config.data.std, config.data.batch_size = (), (), 16
    losses = []
    with jax.enable_x64(True):
        config, run, numbers = built('cifar10_airbench', config, spec)
        numbers['steps']['total'] = 200
        naming, state = pretrained.namings('airbench')['airbench'], run.init(numbers)
        theirs = pretrained.abstract_export(state.variables, naming)
        weights = {name: formula.weight(name, shape).astype(np.float64) for name, shape in theirs.items()}
        weights['head.weight'] *= config.model.options['head_scale']
        variables = pretrained.import_weights(weights, state.variables, 'airbench').variables
        variables = jax.tree.map(jnp.array, variables)
        state = state.replace(params=variables.pop('params'), model_state=variables)
        for image in images:
            # `prepare` divides by 255, whatever the range.
            batch = batch_of(config, spec, 16) | {'image': jnp.asarray(image) * 255, 'label': jnp.arange(16) % 10}
            state, row = run.train_step(state, batch, stream(0, TRAIN), numbers)
            losses.append(float(row['loss']))
    np.testing.assert_allclose(losses, expected, rtol=1e-7)


def batch_of(config, spec, size):
    """Made-up examples, as training reads them."""
    generator = np.random.default_rng(0)
    shape = (size, *(config.data.image_size if -1 in spec.shapes['image'] else spec.shapes['image'][:2]))
    return {
        'image': jnp.asarray(generator.integers(0, 256, (*shape, spec.shapes['image'][-1])), 'uint8'),
        'label': jnp.asarray(generator.integers(0, len(spec.class_names['label']), size), 'int32'),
        'valid': jnp.ones(size, bool),
        'index': jnp.arange(size, dtype='int32'),
        'epoch': jnp.zeros(size, 'int32'),
    }


def built(recipe, config, spec):
    config.mesh.data, config.data.workers, config.init_from = 1, 0, None
    config = program.resolve(config, spec)
    return config, *program.build(config, spec, examples_of(config, spec), sharding.make_mesh(config))


# One of each network and kind of step by default.
QUICK = ('mnist', 'cifar10_airbench', 'cifar10_resnet:20', 'fine_tune:gradual')


@pytest.mark.parametrize(
    'recipe', [pytest.param(recipe, marks=[] if recipe in QUICK else pytest.mark.slow) for recipe in RECIPES]
)
def test_the_real_configuration_traces(recipe):
    """The whole step at its real batch and network, without computing anything."""
    config, run, numbers = built(recipe, load(recipe), spec_of(recipe))
    batch = jax.eval_shape(lambda: batch_of(config, spec_of(recipe), config.data.batch_size))
    state, row = jax.eval_shape(run.train_step, run.state, batch, stream(0, TRAIN), numbers)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, run.state)
    assert {'loss', 'accuracy', 'learning_rate'} <= row.keys()
    variant = models.variant(config.model.name)
    if recipe.startswith(('cifar10', 'imagenet', 'mnist')):
        assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == variant.parameters


THIN = {
    'lenet': {},
    'airbench': {'widths': (8, 8)},
    'resnet': {'depths': (1,), 'width': 8},
    'efficientnet': {
        'stages': (('mbconv', 2, 3, 2, 8, 1),),
        'stem_width': 8,
        'last_width': 8,
    },
    'mobilenet': {'stages': ((2, 5, 2, 8, 1),), 'stem_width': 8, 'last_width': 8, 'hidden_width': 8},
    'shufflenet': {'depths': (2,), 'widths': (16,), 'stem_width': 8, 'last_width': 8},
    'convnext': {'depths': (1,), 'widths': (8,)},
}


def thin(recipe):
    """The recipe with a small network on few small images; optimizer, schedule and augmentation stay."""
    config = load(recipe)
    family = config.model.name.partition('/')[0]
    options = dict(THIN[family])
    if config.model.name == 'resnet/cifar_wide28_10':
        options |= {'width_multiplier': 1.0, 'stem_width': 8}
    if family == 'resnet' and recipe.startswith('fine_tune'):
        options = {'depths': (1, 1, 1, 1), 'width': 4}
    if family == 'mobilenet':
        options |= {'squeeze_stages': (1,), 'relu_stages': 0}
    config.model.options = config.model.options | options
    config.model.dtype = 'float32'  # which CPUs compile faster
    side = 32 if family == 'lenet' else 16
    if config.data.image_size is not None:
        config.data.image_size = config.data.test_size = (side, side)
    config.data.resize_side = None
    config.data.batch_size = 8
    return config, spec_of(recipe, None if family == 'lenet' else side, classes=10)


# Muon is tested above; of the others' optimizers, losses and policies each kind by default.
RUN = ('mnist', 'imagenet:efficientnet_b0')


@pytest.mark.parametrize(
    'recipe', [pytest.param(recipe, marks=[] if recipe in RUN else pytest.mark.slow) for recipe in RECIPES]
)
def test_a_few_steps_change_what_learns_and_nothing_else(recipe):
    config, spec = thin(recipe)
    config, run, numbers = built(recipe, config, spec)
    numbers['steps']['warmup'] = 1  # its first rates are too small to change a float32 that is 1
    state, batch, key = run.init(numbers), batch_of(config, spec, 8), stream(0, TRAIN)
    before = jax.tree.map(np.asarray, state.params)
    step = run.train_step.lower(state, batch, key, numbers).compile({'xla_backend_optimization_level': 1})
    for _ in range(2):
        state, row = step(state, batch, key, numbers)
        assert all(np.isfinite(value).all() for value in row.values())
    still = config.optimizer.frozen + tuple(entry.rpartition('@')[0] for entry in config.optimizer.unfreeze)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        name = '/'.join(key.key for key in path)
        old = functools.reduce(lambda tree, key: tree[key.key], path, before)
        frozen = any(re.fullmatch(pattern, name) for pattern in still)
        assert np.array_equal(leaf, old) == frozen, name


@pytest.mark.parametrize('recipe', [recipe for recipe in RECIPES if recipe.startswith('imagenet')])
def test_the_table_of_imagenet_is_true(recipe):
    config = load(recipe)
    epochs, batch, _, accuracy, *_ = table('imagenet')[recipe.partition(':')[2]]
    assert (f'{epochs}ep', int(batch)) == (config.train.duration, config.data.batch_size)
    published = models.variant(config.model.name).accuracy
    if float(accuracy) not in published:  # not torchvision's
        assert recipe.endswith(('_a1', '_a2', '_a3', 'efficientnet_b0', 'convnext_tiny'))


@pytest.mark.slow
@pytest.mark.parametrize('recipe', [recipe for recipe in RECIPES if recipe.startswith(('imagenet', 'cifar10_resnet'))])
def test_the_cost_in_the_tables_is_true(recipe):
    config, spec = load(recipe), spec_of(recipe)
    file, _, name = recipe.partition(':')
    side = config.data.image_size[0] if config.data.image_size else 32
    model = models.build(config.model.name, num_outputs=len(spec.class_names['label']), **config.model.options)
    forward = describe.describe(model, jax.ShapeDtypeStruct((1, side, side, 3), 'float32'), train=False)
    images = numbers_of(recipe)[1]['steps']['total'] * config.data.batch_size
    stated = float(table(file)[name][2 if file == 'imagenet' else 0])
    assert 3 * forward['multiply_adds'] * images == pytest.approx(stated, rel=0.06)

"""What every network keeps to. All of cnn/models is found by name; sizes are checked without allocating anything."""

import ast
import functools
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnn import models
from cnn.errors import InputError

NAMES = models.names()

# Networks that are small enough to be run: name, options, shape of the inputs.
SMALL = [
    ('simple_cnn', {'widths': (4, 4, 8), 'hidden': 8}, (4, 8, 8, 1)),
    ('simple_cnn', {'widths': (4, 4, 8), 'hidden': 8, 'norm': 'batch'}, (4, 8, 8, 1)),
    ('lenet', {}, (2, 32, 32, 1)),
    ('lenet/1998', {}, (2, 32, 32, 1)),
    ('mlp', {'widths': (8, 8)}, (4, 4, 4, 3)),
    ('airbench', {'widths': (8, 16)}, (4, 8, 8, 3)),
    ('plain', {'widths': (8, 8, 8), 'pool': 'blur', 'summary': 'flatten', 'hidden': (16,)}, (4, 8, 8, 3)),
    ('plain', {'widths': (8, 8), 'layers': ('local', 'dense'), 'pool': 'conv', 'norm': 'group'}, (4, 8, 8, 1)),
    ('plain', {'widths': (8, 8), 'layers': ('separable',) * 2, 'pool': 'stride', 'depth': 2}, (4, 8, 8, 3)),
    ('resnet/cifar_wide16_8', {'depths': (1, 1), 'width_multiplier': 0.5, 'stem_width': 4}, (4, 8, 8, 3)),
    ('unet', {'width': 4, 'depth': 1}, (2, 8, 8, 3)),
    ('unet', {'width': 8, 'depth': 1, 'norm': 'group', 'up': 'nearest'}, (2, 8, 8, 3)),
    ('unet/2015', {'width': 4, 'depth': 1, 'dropout': 0.0}, (1, 20, 20, 1)),
    ('resnet/cifar20', {'depths': (1, 1), 'width': 8}, (4, 8, 8, 3)),
    (
        'resnet/50',
        {'depths': (1, 1), 'width': 8, 'group_width': 32, 'groups': 4, 'stem': 'deep', 'squeeze_excite': 0.25},
        (2, 32, 32, 3),
    ),
    ('resnet/v2_50', {'depths': (1, 1), 'width': 8, 'norm': 'group', 'shortcut': 'average'}, (2, 32, 32, 3)),
    (  # in an order in which no bias is read by pointwise convolutions with batch statistics alone, which remove it
        'efficientnet/b0',
        {
            'stages': (('mbconv', 4, 3, 2, 8, 1), ('mbconv', 1, 5, 1, 8, 1), ('fused', 1, 3, 1, 8, 1)),
            'stem_width': 8,
            'last_width': 16,
        },
        (4, 16, 16, 3),
    ),
    (
        'efficientnet/v2_s',
        {
            'stages': (('fused', 1, 3, 1, 8, 1), ('fused', 2, 3, 2, 16, 1), ('mbconv', 2, 3, 1, 16, 1)),
            'stem_width': 8,
            'last_width': 16,
            'norm': 'group',
        },
        (2, 16, 16, 3),
    ),
    (  # likewise
        'mobilenet/v2',
        {'stages': ((3, 3, 2, 8, 1), (1, 3, 1, 8, 1)), 'stem_width': 8, 'last_width': 0},
        (4, 16, 16, 3),
    ),
    (
        'mobilenet/v3_small',
        {
            'stages': ((1, 3, 2, 8, 1), (3, 5, 1, 8, 2)),
            'stem_width': 8,
            'last_width': 16,
            'hidden_width': 16,
            'squeeze_stages': (2,),
            'relu_stages': 1,
            'norm': 'group',
        },
        (2, 16, 16, 3),
    ),
    ('alexnet', {'widths': (8,) * 5, 'grid': 2, 'hidden': (16, 16), 'norm': 'batch'}, (4, 72, 72, 3)),
    ('alexnet/2012', {'widths': (8,) * 5, 'grid': 2, 'hidden': (16,)}, (2, 72, 72, 3)),
    (
        'vgg/11_bn',
        {'depths': (1, 1), 'widths': (8, 8), 'use_bias': False, 'grid': 1, 'hidden': (), 'dropout': 0.0},
        (4, 8, 8, 3),
    ),
    ('vgg/11', {'depths': (1, 2), 'widths': (8, 16), 'grid': 2, 'hidden': (16, 16)}, (2, 9, 9, 3)),
    (
        'squeezenet/1_0',
        {
            'widths': (16, 32),
            'stem_width': 8,
            'pool_after': (1, 2),
            'squeeze_ratio': 0.25,
            'activation': 'leaky_relu',  # a rectified output of so few maps may be zero for good
        },
        (2, 16, 19, 3),
    ),
    (
        'squeezenet/1_1',
        {'widths': (16, 16), 'stem_width': 8, 'pool_after': (1,), 'norm': 'batch', 'bypass': 'complex'},
        (4, 16, 16, 3),
    ),
    ('densenet/121', {'depths': (2, 1), 'growth_rate': 8, 'stem_width': 8}, (4, 32, 32, 3)),
    (
        'densenet/cifar40_k12',
        {'depths': (1, 1), 'growth_rate': 8, 'norm': 'group', 'memory_efficient': True},
        (2, 8, 8, 3),
    ),
    # Batch normalisation would take away the bias of the depthwise convolution's, with no activation between them.
    ('shufflenet/v1_g2', {'depths': (2,), 'widths': (32,), 'stem_width': 8, 'norm': 'layer'}, (2, 16, 16, 3)),
    (
        'shufflenet/v2_x0_5',
        {'depths': (2,), 'widths': (16,), 'stem_width': 8, 'last_width': 16, 'norm': 'layer', 'squeeze_excite': 0.25},
        (2, 16, 16, 3),
    ),
    ('convnext/tiny', {'depths': (1, 1), 'widths': (8, 16), 'drop_path': 0.0}, (2, 16, 16, 3)),
    ('vit/b_16', {'patch_size': 4, 'width': 16, 'depth': 2, 'heads': 2, 'mlp_width': 32}, (2, 8, 8, 3)),
    (
        'coatnet/0',
        {'stages': 'TT', 'depths': (1, 1), 'widths': (8, 16), 'stem_width': 8, 'head_width': 8},
        (2, 16, 16, 3),
    ),
    (  # batch normalisation would take away the bias of the one before it, with a convolution alone between them
        'coatnet/0',
        {'stages': 'CT', 'depths': (1, 1), 'widths': (8, 16), 'stem_width': 8, 'head_width': 8, 'norm': 'layer'},
        (2, 16, 16, 3),
    ),
    ('wavenet', {'dilations': (1, 2), 'stacks': 2, 'channels': 4, 'skip_channels': 8, 'levels': 5}, (2, 12)),
    ('gru', {'width': 8, 'bidirectional': True}, (4, 4, 4, 3)),
    ('gru', {'width': 8, 'depth': 2, 'reads': 'pixels', 'summary': 'mean', 'dropout': 0.2}, (4, 3, 3, 1)),
]
# What takes several traces of a network is checked of all forms of a family where it has few, else of the smallest one.
FEW = 3
LEAST = {
    name
    for family in models.families()
    for forms in [[name for name in NAMES if name.partition('/')[0] == family]]
    for name in (forms if len(forms) <= FEW else [min(forms, key=lambda name: models.variant(name).parameters)])
}
forms = pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if name in LEAST else pytest.mark.slow) for name in NAMES]
)
small = pytest.mark.parametrize(('name', 'options', 'shape'), SMALL, ids=lambda value: str(value))


def test_every_family_has_a_small_form_for_the_tests_that_compute():
    assert {name.split('/')[0] for name, _, _ in SMALL} == set(models.families())


@functools.cache
def abstract(name, larger=0, **fields):
    """Abstract variables, outputs and feature maps, and strides, of a published form on sides enlarged by `larger`."""
    entry = models.variant(name)
    tokens = {'levels': entry.num_outputs} if entry.input_dtype == 'int32' else {}
    model = models.build(name, **{'num_outputs': entry.num_outputs, **tokens, **fields})
    sides = len(entry.input_shape) - (entry.input_dtype != 'int32')  # tokens have no channels
    shape = tuple(size + larger * (axis < sides) for axis, size in enumerate(entry.input_shape))
    dtype = fields.get('dtype', 'float32') if entry.input_dtype == 'float32' else entry.input_dtype

    strides = {}

    def run(x):
        outputs, variables = model.init_with_output(jax.random.key(0), x, train=False)
        maps = model.apply(variables, x, train=False, method='features')
        strides.update({key: stride for key, (stride, _) in maps.items()})
        return variables, outputs, {key: array for key, (_, array) in maps.items()}

    return *jax.eval_shape(run, jax.ShapeDtypeStruct((2, *shape), dtype)), strides


def example(name, options, shape):
    """A network and random inputs."""
    generator = np.random.default_rng(0)
    if models.variant(name).input_dtype == 'int32':
        x = generator.integers(0, options['levels'], shape, 'int32')
    else:
        x = generator.standard_normal(shape, 'float32')
    return models.build(name, num_outputs=10, **options), x


def forward(model, variables, x):
    return np.asarray(jax.jit(lambda variables, x: model.apply(variables, x, train=False))(variables, x), np.float64)


def distance(y, reference):
    return np.linalg.norm(np.asarray(y, np.float64) - reference) / np.linalg.norm(reference)


@pytest.mark.parametrize('name', NAMES)
def test_parameters_are_as_many_as_published(name):
    variables, *_ = abstract(name)
    assert (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params'])) == models.variant(name).parameters
    )


@forms
def test_strides_are_true(name):
    """An input that is larger by a multiple of the stride gives a map that is larger by so many positions."""
    _, _, maps, strides = abstract(name)
    assert list(strides.values()) == sorted(strides.values())
    assert all(type(stride) is int for stride in strides.values())
    more = 2 * max(strides.values())
    _, _, larger, _ = abstract(name, larger=more)
    for key, stride in strides.items():
        if set(maps[key].shape[1:-1]) == {1}:  # one position for the whole image, however large it is
            assert stride == models.variant(name).input_shape[0]
        else:
            growth = np.subtract(larger[key].shape[1:-1], maps[key].shape[1:-1])
            whole = np.equal(larger[key].shape[1:-1], 1)  # axes of one position, as where rows are read as a whole
            np.testing.assert_array_equal(growth * stride, np.where(whole, 0, more))


@forms
def test_without_outputs_there_is_no_head(name):
    variables, features, *_ = abstract(name, num_outputs=None)
    complete, outputs, *_ = abstract(name)
    assert features.ndim == outputs.ndim
    assert features.dtype == jnp.float32
    assert outputs.shape[-1] == models.variant(name).num_outputs
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
    assert paths <= {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(complete)}
    assert 'head' not in variables['params']


@forms
def test_bfloat16_computes_in_bfloat16_and_returns_float32(name):
    variables, outputs, maps, _ = abstract(name, dtype='bfloat16')
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    assert outputs.dtype == jnp.float32
    assert {map.dtype for map in maps.values()} == {jnp.dtype('bfloat16')}


@forms
def test_float64_stays_float64(name):
    with jax.enable_x64(True):
        variables, outputs, maps, _ = abstract(name, dtype='float64', param_dtype='float64')
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, outputs, maps))} == {jnp.dtype('float64')}


@pytest.mark.parametrize('name', NAMES)
def test_options_are_literals(name):
    options = models.options(name, {})
    assert ast.literal_eval(repr(options)) == options
    assert models.build(name, num_outputs=None, **options) == models.build(name, num_outputs=None)


@small
def test_gradient_reaches_every_parameter(random_variables, name, options, shape):
    model, x = example(name, options, shape)
    variables = random_variables(model, x)
    state = {key: value for key, value in variables.items() if key != 'params'}

    def loss(params):
        y, _ = model.apply(
            {'params': params, **state}, x, train=True, rngs={'dropout': jax.random.key(2)}, mutable=list(state)
        )
        return (y * np.random.default_rng(1).standard_normal(y.shape, 'float32')).sum()

    gradient = jax.jit(jax.grad(loss))(variables['params'])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.isfinite(leaf).all(), path
        # More than rounding: a bias that the normalisation takes away again would have a gradient of 1e-7.
        assert jnp.abs(leaf).max() > 1e-5, path


@pytest.mark.parametrize(
    ('name', 'options', 'shape'),
    {name.split('/')[0]: (name, options, shape) for name, options, shape in reversed(SMALL)}.values(),
    ids=lambda value: str(value),
)
def test_one_batch_can_be_overfitted(random_variables, name, options, shape):
    """In training mode, without dropout: after 200 steps of Adam at most a twentieth of the loss is left."""
    random = {option: 0.0 for option in ('dropout', 'drop_path') if option in models.options(name, {})}
    model, x = example(name, options | random, shape)
    variables = random_variables(model, x)
    state = {key: value for key, value in variables.items() if key != 'params'}
    optimizer = optax.adam(1e-2)
    labels = np.random.default_rng(1).integers(
        0, 10, jax.eval_shape(functools.partial(model.apply, train=False), variables, x).shape[:-1]
    )

    def loss(params, state):
        y, state = model.apply({'params': params, **state}, x, train=True, mutable=list(state))
        return optax.softmax_cross_entropy_with_integer_labels(y, labels).mean(), state

    def step(carry, _):
        params, state, optimizer_state = carry
        (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(params, state)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return (optax.apply_updates(params, updates), state, optimizer_state), value

    start = (variables['params'], state, optimizer.init(variables['params']))
    _, losses = jax.jit(lambda start: jax.lax.scan(step, start, length=200))(start)
    assert losses[-1] < 0.05 * losses[0], losses[::20]


@small
def test_precisions_agree(random_variables, name, options, shape):
    """Measured, relative to float64: float32 at most 1.2e-7, bfloat16 .0016 to .0046."""
    model, x = example(name, options, shape)
    variables = random_variables(model, x)
    y = forward(model, variables, x)
    half = forward(models.build(name, num_outputs=10, dtype='bfloat16', **options), variables, x)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype('float64'), variables)
        double = models.build(name, num_outputs=10, dtype='float64', param_dtype='float64', **options)
        reference = forward(double, wide, x if x.dtype == 'int32' else x.astype('float64'))
    assert 1e-12 < distance(y, reference) < 1e-6
    assert 1e-4 < distance(half, reference) < 0.01


@small
def test_batch_statistics_change_in_training_only(random_variables, name, options, shape):
    model, x = example(name, options, shape)
    variables = random_variables(model, x)

    def state(train, variables, x):
        rngs = {'dropout': jax.random.key(2)} if train else {}
        return model.apply(variables, x, train=train, rngs=rngs, mutable=True)[1].get('batch_stats', {})

    normalised = (models.options(name, options)).get('norm') == 'batch'
    assert ('batch_stats' in variables) == normalised
    if not normalised:
        assert jax.eval_shape(functools.partial(state, True), variables, x) == {}
        return
    before = variables['batch_stats']
    trained, evaluated = (jax.jit(functools.partial(state, train))(variables, x) for train in (True, False))
    jax.tree.map(np.testing.assert_array_equal, evaluated, before)
    assert not any(jax.tree.leaves(jax.tree.map(np.array_equal, trained, before)))


def test_batch_statistics_of_a_float64_network_stay_float64():
    with jax.enable_x64(True):
        model = models.build('simple_cnn', num_outputs=2, dtype='float64', param_dtype='float64', norm='batch')
        x = jax.ShapeDtypeStruct((2, 8, 8, 1), 'float64')
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
        rngs = {'dropout': jax.random.key(1)}
        _, state = jax.eval_shape(
            lambda variables, x: model.apply(variables, x, train=True, rngs=rngs, mutable=['batch_stats']), variables, x
        )
    assert state['batch_stats'] == variables['batch_stats']


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('simple_cn', {}, "unknown model 'simple_cn'; did you mean 'simple_cnn'"),
        ('lenet/1989', {}, "unknown model 'lenet/1989'; did you mean 'lenet/1998'"),
        ('simple_cnn/', {}, "unknown model 'simple_cnn/'; did you mean 'simple_cnn'"),
        ('os', {}, "unknown model 'os'"),
        ('simple_cnn', {'width': (8,)}, "'width'; did you mean 'widths'"),
        ('simple_cnn', {'widths': 8}, 'widths'),
        ('simple_cnn', {'widths': (8, 8.5)}, 'widths'),
        ('simple_cnn', {'dropout': True}, 'dropout'),
        ('simple_cnn', {'norm': 'bath'}, "unknown norm 'bath'; did you mean 'batch'"),
        ('simple_cnn', {'activation': 'rely'}, "unknown activation 'rely'; did you mean 'relu'"),
        ('simple_cnn', {'pools': (True,)}, 'pools'),
        ('lenet', {'pool': 'max'}, "pool of lenet 'max'"),
        ('unet', {'up': 'transpose'}, "did you mean 'transposed'"),
    ],
)
def test_errors_are_one_line_that_names_the_input(name, options, message):
    def init():
        model = models.build(name, num_outputs=10, **options)
        return model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)), train=False)

    with pytest.raises(InputError) as error:
        jax.eval_shape(init)
    assert message in str(error.value)
    assert '\n' not in str(error.value)


def test_whole_numbers_become_floats():
    assert models.build('simple_cnn', num_outputs=10, dropout=0).dropout == 0.0


def test_variants_change_the_defaults():
    assert models.options('unet', {})['padding'] == 'SAME'
    assert models.options('unet/2015', {})['padding'] == 'VALID'
    assert models.build('unet/2015', num_outputs=2, padding='SAME').padding == 'SAME'


def test_names_are_files_and_variants():
    assert {'simple_cnn', 'lenet', 'lenet/1998'} <= set(NAMES)
    assert set(models.families()) == {name.partition('/')[0] for name in NAMES}
    assert models.variant_names('lenet') == ('', '1998')


def test_importing_the_package_imports_no_jax():
    code = 'import sys, cnn.models as m; m.families(); print([x for x in ("jax", "flax", "numpy") if x in sys.modules])'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'

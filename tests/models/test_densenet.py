import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import models, pretrained
from cnn.errors import InputError
from cnn.inspection import cost

TINY = {'depths': (2, 3), 'growth_rate': 4, 'stem_width': 6, 'stem': '3x3'}
X = np.random.default_rng(0).standard_normal((2, 8, 8, 3), 'float32')


def abstract(name='densenet/121', side=64, **options):
    """Abstract variables, strides and maps."""
    model = models.build(name, num_outputs=10, **options)
    strides = {}

    def run(x):
        variables = model.init(jax.random.key(0), x, train=False)
        maps = model.apply(variables, x, train=False, method='features')
        strides.update({key: stride for key, (stride, _) in maps.items()})
        return variables, {key: array for key, (_, array) in maps.items()}

    variables, maps = jax.eval_shape(run, jax.ShapeDtypeStruct((2, side, side, 3), 'float32'))
    return variables, strides, {key: array.shape for key, array in maps.items()}


def kernels(variables):
    return {name: entry['kernel'].shape for name, entry in variables['params'].items() if 'kernel' in entry}


def test_each_layer_reads_all_before_it_and_transitions_compress():
    variables, strides, maps = abstract(stem_width=10, growth_rate=4, bottleneck=3, depths=(2, 3), compression=0.7)
    params = variables['params']
    widths = {key: entry['conv1']['kernel'].shape[2] for key, entry in params.items() if 'layer' in key}
    assert list(widths.values()) == [10, 14, 12, 16, 20]  # (10 + 2 * 4) * .7 = 12.6
    assert params['block1_layer1']['conv1']['kernel'].shape == (1, 1, 10, 12)
    assert params['block1_layer1']['conv2']['kernel'].shape == (3, 3, 12, 4)
    assert kernels(variables)['transition1_conv'] == (1, 1, 18, 12)
    assert strides == {'stem': 2, 'block1': 4, 'block2': 8}
    assert maps == {'stem': (2, 32, 32, 10), 'block1': (2, 16, 16, 18), 'block2': (2, 8, 8, 24)}


def test_stem_for_small_images_is_a_convolution_alone():
    variables, strides, _ = abstract(**TINY)
    assert kernels(variables)['stem_conv'] == (3, 3, 3, 6)
    assert 'stem_norm' not in variables['params']
    assert strides == {'stem': 1, 'block1': 1, 'block2': 2}


def test_without_bottleneck_a_layer_is_one_convolution():
    params = abstract(**{**TINY, 'bottleneck': 0})[0]['params']
    assert params['block1_layer2'].keys() == {'norm1', 'conv1'}
    assert params['block1_layer2']['conv1']['kernel'].shape == (3, 3, 10, 4)


@pytest.mark.parametrize(('name', 'millions'), [('cifar40_k12', 1.0), ('cifar_bc100_k12', 0.8)])
def test_networks_for_small_images_have_the_size_and_depth_of_table_2(name, millions):
    entry = models.variant(f'densenet/{name}')
    assert round(entry.parameters / 1e6, 1) == millions
    options = models.options(f'densenet/{name}', {})
    layers = sum(options['depths']) * (2 if options['bottleneck'] else 1) + len(options['depths']) + 1
    assert f'{layers}_' in name  # the stem, the transitions and the dense layer too


@pytest.mark.parametrize(
    ('name', 'published'),  # in units of 1e9, as torchvision gives them with its weights
    [
        ('121', 2.834),
        pytest.param('161', 7.728, marks=pytest.mark.slow),
        pytest.param('169', 3.36, marks=pytest.mark.slow),
        pytest.param('201', 4.291, marks=pytest.mark.slow),
    ],
)
def test_multiply_adds_are_those_published(name, published):
    entry = models.variant(f'densenet/{name}')
    model = models.build(f'densenet/{name}', num_outputs=1000)
    x = jax.ShapeDtypeStruct((1, *entry.input_shape), 'float32')
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    counted = cost.multiply_adds(jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, x).jaxpr)
    assert round(counted / 1e9, 3) == published
    assert counted == (entry.multiply_adds or counted)


def training(depth, memory_efficient):
    """A network of one block, and a function of its variables and images that training takes the gradient of."""
    options = {**TINY, 'depths': (depth,), 'memory_efficient': memory_efficient, 'dropout': 0.2}
    model = models.build('densenet/121', num_outputs=10, **options)

    def loss(variables, x):
        rngs = {'dropout': jax.random.key(1)}
        y, state = model.apply(variables, x, train=True, rngs=rngs, mutable=['batch_stats'])
        return (y**2).sum(), state

    return model, loss


def test_memory_efficient_form_computes_the_same(random_variables):
    (model, plain), (_, efficient) = training(2, False), training(2, True)
    variables = random_variables(model, X)
    results = [jax.jit(jax.value_and_grad(loss, has_aux=True))(variables, X) for loss in (plain, efficient)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *results)


def test_memory_efficient_form_keeps_less_for_the_gradient():
    """The maps alone, not what each layer makes of all before it."""

    def kept(memory_efficient):
        model, loss = training(8, memory_efficient)
        x = jax.ShapeDtypeStruct((2, 32, 32, 3), 'float32')
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
        vjp = jax.eval_shape(lambda variables, x: jax.vjp(loss, variables, x, has_aux=True)[1], variables, x)
        return sum(leaf.size for leaf in jax.tree.leaves(vjp))

    assert kept(True) < kept(False) / 5


def test_dropout_takes_from_what_layers_add_in_training_only(random_variables):
    model = models.build('densenet/121', num_outputs=10, norm='none', dropout=1.0, **TINY)
    variables = random_variables(model, X)

    @functools.partial(jax.jit, static_argnums=0)
    def block(train):
        rngs = {'dropout': jax.random.key(0)}
        return model.apply(variables, X, train=train, method='features', rngs=rngs)['block1'][1]

    kept, dropped = block(False), block(True)
    np.testing.assert_array_equal(kept[..., :6], dropped[..., :6])
    assert (kept[..., 6:] > 0).any()
    assert (dropped[..., 6:] == 0).all()


def test_transition_averages_after_the_convolution(random_variables):
    """With one layer that adds nothing, the second block's first channels are those of the transition."""
    options = {**TINY, 'depths': (1, 1), 'norm': 'none'}
    model = models.build('densenet/121', num_outputs=10, **options)
    variables = random_variables(model, X)
    maps = jax.jit(functools.partial(model.apply, train=False, method='features'))(variables, X)
    kernel = variables['params']['transition1_conv']['kernel'][0, 0]
    expected = (np.asarray(maps['block1'][1]) @ kernel).reshape(2, 4, 2, 4, 2, 5).mean((2, 4))
    np.testing.assert_allclose(maps['block2'][1][..., :5], np.maximum(expected, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', ['max', 'average', 'conv', 'blur'])
@pytest.mark.parametrize('padding', ['symmetric', 'SAME'])
def test_every_kind_of_pool_halves(kind, padding):
    variables, strides, maps = abstract(
        depths=(1, 1), growth_rate=4, stem_width=6, pool=kind, transition_pool=kind, padding=padding
    )
    assert strides == {'stem': 2, 'block1': 4, 'block2': 8}
    assert {key: shape[1] for key, shape in maps.items()} == {'stem': 32, 'block1': 16, 'block2': 8}
    assert ('stem_pool' in variables['params']) == ('transition1_pool' in variables['params']) == (kind == 'conv')


def test_names_of_older_files_are_understood(random_variables):
    model = models.build('densenet/121', num_outputs=10, **TINY)
    variables = random_variables(model, X)
    naming = pretrained.namings('densenet')['torchvision']
    theirs = pretrained.export(variables, naming)
    older = {}
    for key, array in theirs.items():
        for name in ('norm1', 'conv1', 'norm2', 'conv2'):
            key = key.replace(f'.{name}.', f'.{name[:-1]}.{name[-1]}.')
        older[key] = array
    assert 'features.denseblock2.denselayer3.conv.2.weight' in older
    zeros = jax.tree.map(np.zeros_like, variables)
    imported = pretrained.import_weights(older, zeros, 'densenet/121')
    jax.tree.map(np.testing.assert_array_equal, imported.variables, variables)


def test_smallest_image_leaves_one_position():
    options = {'depths': (1, 1, 1, 1), 'growth_rate': 4}
    assert abstract(side=29, **options)[2]['block4'][1:3] == (1, 1)
    assert abstract(side=8, stem='3x3', **options)[2]['block4'][1:3] == (1, 1)
    assert abstract(side=8, padding='SAME', **options)[2]['block4'][1:3] == (1, 1)


def test_convolutions_start_from_hes_normal_distribution():
    model = models.build('densenet/121', num_outputs=2, depths=(1,), growth_rate=64, stem_width=64)
    params = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))()['params']
    assert params['block1_layer1']['conv2']['kernel'].var() == pytest.approx(2 / (9 * 256), rel=0.05)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'stem': '5x5'}, "stem of densenet '5x5'"),
        ({'pool': 'mean'}, "pool of densenet 'mean'"),
        ({'transition_pool': 'avg'}, "did you mean 'average'"),
        ({'stem': '3x3', 'pool': 'average'}, 'pool=average needs stem=7x7'),
        ({'compression': 0.0}, 'compression=0.0 must be above 0 and at most 1'),
        ({'compression': 1.5}, 'compression=1.5'),
        ({'side': 28}, 'at least 29 pixels a side, not 28 x 28'),
        ({'side': 7, 'stem': '3x3'}, 'at least 8 pixels a side, not 7 x 7'),
        ({'padding': 'VALID'}, "padding 'VALID'"),
    ],
)
def test_errors_are_one_line(options, message):
    with pytest.raises(InputError) as error:
        abstract(**options)
    assert message in str(error.value)
    assert '\n' not in str(error.value)

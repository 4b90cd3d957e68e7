import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import models, pretrained
from cnn.errors import InputError
from cnn.models.alexnet import local_response_norm

TINY = {'widths': (4, 4, 4, 4, 4), 'grid': 1, 'hidden': (8,)}


def abstract(size=224, name='alexnet', train=False, **options):
    """Abstract variables, and feature maps with their strides."""
    model = models.build(name, num_outputs=10, **options)
    strides = {}

    def run(x):
        rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
        _, variables = model.init_with_output(rngs, x, train=train)
        maps = model.apply(variables, x, train=False, method='features')
        strides.update({key: stride for key, (stride, _) in maps.items()})
        return variables, {key: map for key, (_, map) in maps.items()}

    return *jax.eval_shape(run, jax.ShapeDtypeStruct((1, size, size, 3), 'float32')), strides


@pytest.mark.parametrize('size', [1, 3, 5])
def test_local_response_norm_is_the_formula_of_section_3_3(size):
    a = np.random.default_rng(0).standard_normal((2, 3, 2, 7))
    expected = np.empty_like(a)
    for channel in range(7):
        near = a[..., max(0, channel - size // 2) : channel + size // 2 + 1]
        expected[..., channel] = a[..., channel] / (2 + 0.3 * np.square(near).sum(-1)) ** 0.75
    with jax.enable_x64(True):
        np.testing.assert_allclose(local_response_norm(jnp.asarray(a), size, alpha=0.3), expected, rtol=1e-12)


def test_local_response_norm_of_bfloat16_rounds_once():
    x = jnp.asarray(np.random.default_rng(0).normal(0, 50, (1, 4, 4, 16)), 'bfloat16')
    y = local_response_norm(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, local_response_norm(x.astype('float32')).astype('bfloat16'))


@pytest.mark.parametrize('name', ['alexnet', 'alexnet/2012'])
@pytest.mark.parametrize('pool', ['max', 'average', 'conv', 'blur'])
@pytest.mark.parametrize('pool_window', [2, 3])
def test_maps_have_the_sizes_of_figure_2(name, pool, pool_window):
    variables, maps, strides = abstract(name=name, pool=pool, pool_window=pool_window)
    assert list(strides) == ['conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'pool']
    assert list(strides.values()) == [4, 8, 16, 16, 16, 32]
    assert [map.shape[1] for map in maps.values()] == [55, 27, 13, 13, 13, 6]
    assert ('pool2' in variables['params']) == (pool == 'conv')


def test_windows_of_two_do_not_overlap(random_variables):
    model = models.build('alexnet', num_outputs=None, pool='average', pool_window=2, activation='relu6', **TINY)
    x = np.random.default_rng(0).standard_normal((1, 67, 67, 3), 'float32')
    variables = random_variables(model, x)
    maps = model.apply(variables, x, train=False, method='features')
    before, after = np.asarray(maps['conv5'][1]), np.asarray(maps['pool'][1])
    assert before.shape[1:3] == (4, 4)
    np.testing.assert_allclose(after, before.reshape(1, 2, 2, 2, 2, 4).mean((2, 4)), rtol=1e-6)


def test_groups_divide_convolutions_2_4_and_5():
    variables, *_ = abstract(name='alexnet/2012')
    inputs = [variables['params'][f'conv{index}']['kernel'].shape[2] for index in range(1, 6)]
    assert inputs == [3, 48, 256, 192, 192]


def test_width_multiplier_is_of_the_convolutions():
    variables, *_ = abstract(width_multiplier=0.5)
    widths = [variables['params'][f'conv{index}']['bias'].shape[0] for index in range(1, 6)]
    assert widths == [32, 96, 192, 128, 128]
    assert variables['params']['dense_0']['kernel'].shape == (36 * 128, 4096)


def test_normalisation_takes_the_place_of_biases():
    for norm, biased in {'none': True, 'local': True, 'batch': False, 'group': False, 'layer': False}.items():
        variables, *_ = abstract(name='alexnet/2012', norm=norm)
        assert ('bias' in variables['params']['conv1']) == biased
        assert ('norm5' in variables['params']) != biased


def initial(name, **options):
    model = models.build(name, num_outputs=100, grid=1, **options)
    return jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 63, 63, 3)), train=False)['params'])()


def test_weights_of_2012_start_as_in_section_5():
    params = initial('alexnet/2012', widths=(64,) * 5, hidden=(64, 64))
    biases = {name: set(np.asarray(layer['bias']).tolist()) for name, layer in params.items()}
    ones = {'conv2', 'conv4', 'conv5', 'dense_0', 'dense_1'}
    assert biases == {name: {1.0 if name in ones else 0.0} for name in params}
    assert np.std(params['conv2']['kernel']) == pytest.approx(0.01, rel=0.02)
    assert np.std(params['head']['kernel']) == pytest.approx(0.01, rel=0.05)


def test_weights_start_as_pytorch_s():
    """Uniformly within the root of the fan-in, that of a group where there are groups."""
    params = initial('alexnet', groups=2, widths=(32,) * 5, hidden=(50,))
    for name, fan_in in {'conv1': 363, 'conv2': 16 * 25, 'conv5': 16 * 9, 'dense_0': 32, 'head': 50}.items():
        for leaf in params[name].values():
            assert 0.85 < np.abs(leaf).max() * fan_in**0.5 <= 1


def test_dropout_acts_before_hidden_layers_in_training_only(random_variables):
    model = models.build('alexnet', num_outputs=None, activation='gelu', dropout=0.75, **{**TINY, 'hidden': (8, 8)})
    x = jax.random.normal(jax.random.key(1), (1, 63, 63, 3))
    variables = random_variables(model, x)
    # Only what the dropout lets through of hidden units of one reaches the last ones.
    params = variables['params']
    for layer in (params['dense_0'], params['dense_1']):
        layer['kernel'] = jnp.zeros((len(layer['kernel']), 8))
    params['dense_0']['bias'] = jnp.full(8, 10.0)
    params['dense_1'] = {'kernel': jnp.eye(8), 'bias': jnp.full(8, 7.0)}
    y = model.apply(variables, x, train=False)
    np.testing.assert_allclose(y, 17, rtol=1e-6)
    dropped = np.unique(model.apply(variables, x, train=True, rngs={'dropout': jax.random.key(3)}))
    np.testing.assert_allclose(dropped, [7, 47], rtol=1e-6)


def test_dense_layer_reads_channels_first_at_any_width(random_variables):
    model = models.build('alexnet', num_outputs=2, widths=(4, 4, 4, 4, 6), width_multiplier=0.5, hidden=(5,))
    variables = random_variables(model, jnp.zeros((1, 63, 63, 3)))
    theirs = pretrained.export(variables, pretrained.namings('alexnet')['torchvision'])
    ours = np.asarray(variables['params']['dense_0']['kernel']).reshape(6, 6, 3, 5)
    np.testing.assert_array_equal(theirs['classifier.1.weight'].reshape(5, 3, 6, 6), ours.transpose(3, 2, 0, 1))


@pytest.mark.parametrize(
    ('size', 'options', 'message'),
    [
        (62, {}, 'alexnet needs images of at least 63 x 63, not 62 x 62'),
        (34, {'pool_window': 2}, 'at least 35 x 35, not 34 x 34'),
        (63, {'norm': 'locl'}, "unknown norm of alexnet 'locl'; did you mean 'local'"),
        (63, {'initializer': 'norml'}, "unknown initializer of alexnet 'norml'; did you mean 'normal'"),
        (63, {'pool': 'mox'}, "unknown pool 'mox'; did you mean 'max'"),
        (63, {'activation': 'rely'}, "did you mean 'relu'"),
        (63, {'widths': (8, 8)}, 'widths=(8, 8) must be 5 numbers'),
        (63, {'groups': 3}, 'groups=3 must divide the widths (64, 192, 384, 256, 256)'),
        (63, {'hidden': ()}, 'set dropout=0'),
    ],
)
def test_errors_are_one_line(size, options, message):
    with pytest.raises(InputError) as error:
        abstract(size, **options)
    assert message in str(error.value)
    assert '\n' not in str(error.value)


def test_smallest_images():
    for size, pool_window in ((63, 3), (35, 2)):
        _, maps, _ = abstract(size, pool_window=pool_window)
        assert maps['pool'].shape == (1, 1, 1, 256)

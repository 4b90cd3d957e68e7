import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import models, pretrained
from cnn.errors import InputError


def abstract(size=224, name='vgg/16', **options):
    """Abstract variables, and feature maps with their strides."""
    model = models.build(name, **{'num_outputs': 10, **options})
    strides = {}

    def run(x):
        variables = model.init(jax.random.key(0), x, train=False)
        maps = model.apply(variables, x, train=False, method='features')
        strides.update({key: stride for key, (stride, _) in maps.items()})
        return variables, {key: map for key, (_, map) in maps.items()}

    return *jax.eval_shape(run, jax.ShapeDtypeStruct((1, size, size, 3), 'float32')), strides


def count(name='vgg/16', size=32, **options):
    variables, *_ = abstract(size, name, **options)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))


@pytest.mark.parametrize('pool', ['max', 'average', 'conv', 'blur'])
def test_maps_are_halved_by_each_pool(pool):
    variables, maps, strides = abstract(pool=pool)
    assert list(strides) == ['stage1', 'stage2', 'stage3', 'stage4', 'stage5', 'pool']
    assert list(strides.values()) == [1, 2, 4, 8, 16, 32]
    assert [maps[key].shape[1:] for key in strides] == [
        (224, 224, 64),
        (112, 112, 128),
        (56, 56, 256),
        (28, 28, 512),
        (14, 14, 512),
        (7, 7, 512),
    ]
    assert ('stage5_pool' in variables['params']) == (pool == 'conv')


@pytest.mark.parametrize('pool', ['max', 'average', 'conv', 'blur'])
def test_pools_leave_out_an_odd_last_position(pool):
    _, maps, strides = abstract(95, pool=pool)
    assert [maps[key].shape[1] for key in strides] == [95, 47, 23, 11, 5, 2]


def test_form_for_cifar_has_one_dense_layer_over_means():
    """14,728,266 parameters is the count of https://github.com/kuangliu/pytorch-cifar's VGG16."""
    assert count('vgg/16_bn', grid=1, hidden=(), dropout=0.0) == 14_728_266


def test_options_count():
    base = count()
    widths = (64,) * 2 + (128,) * 2 + (256,) * 3 + (512,) * 6
    assert count(use_bias=False) == base - sum(widths)
    assert count(norm='group') == base + 2 * sum(widths)
    assert count(norm='layer', use_bias=False) == base + sum(widths)
    assert count(squeeze_excite=0.125) == base + sum(2 * width * width // 8 + width // 8 + width for width in widths)
    assert count(grid=1) == base - 48 * 512 * 4096
    variables, *_ = abstract(32, width_multiplier=0.25)
    assert variables['params']['stage5_conv3']['kernel'].shape == (3, 3, 128, 128)
    assert variables['params']['dense_0']['kernel'].shape == (49 * 128, 4096)


def test_squeeze_excite_gates_what_the_activation_gives(random_variables):
    options = {'depths': (1,), 'widths': (8,), 'grid': 1, 'hidden': (), 'dropout': 0.0}
    plain = models.build('vgg/11', num_outputs=None, **options)
    gated = models.build('vgg/11', num_outputs=None, squeeze_excite=0.5, **options)
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 3))
    variables = random_variables(gated, x)
    variables['params']['stage1_squeeze_excite1']['expand']['bias'] = jnp.full(8, -50.0)
    assert jnp.abs(gated.apply(variables, x, train=False)).max() < 1e-12
    del variables['params']['stage1_squeeze_excite1']
    assert plain.apply(variables, x, train=False).max() > 0.1


def test_dropout_acts_after_hidden_layers_in_training_only(random_variables):
    model = models.build('vgg/11', num_outputs=None, depths=(1,), widths=(2,), hidden=(400,), activation='gelu')
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    variables = random_variables(model, x)
    y = np.asarray(model.apply(variables, x, train=False))
    dropped = np.asarray(model.apply(variables, x, train=True, rngs={'dropout': jax.random.key(2)}))
    assert (y != 0).all()
    kept = dropped != 0
    assert 0.35 < kept.mean() < 0.65
    np.testing.assert_allclose(dropped[kept], 2 * y[kept], rtol=1e-6)


def test_weights_start_as_torchvision_s():
    model = models.build('vgg/11', num_outputs=10, depths=(1, 1), widths=(64, 64), grid=1, hidden=(200,))
    params = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False)['params'])()
    assert np.std(params['stage2_conv1']['kernel']) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert np.std(params['dense_0']['kernel']) == pytest.approx(0.01, rel=0.05)
    assert not any(np.any(layer['bias']) for layer in params.values())


def test_dense_layer_reads_channels_first_at_any_width(random_variables):
    model = models.build('vgg/11', num_outputs=2, widths=(2, 2, 2, 2, 6), width_multiplier=0.5, hidden=(5,))
    variables = random_variables(model, jnp.zeros((1, 32, 32, 3)))
    theirs = pretrained.export(variables, pretrained.namings('vgg')['torchvision_11'])
    ours = np.asarray(variables['params']['dense_0']['kernel']).reshape(7, 7, 3, 5)
    np.testing.assert_array_equal(theirs['classifier.0.weight'].reshape(5, 3, 7, 7), ours.transpose(3, 2, 0, 1))


@pytest.mark.parametrize(
    ('size', 'options', 'message'),
    [
        (31, {}, 'vgg: 5 pools need images of at least 32 x 32, not 31 x 31'),
        (32, {'depths': (1, 1)}, 'depths=(1, 1) must be as many as widths=(64, 128, 256, 512, 512)'),
        (32, {'hidden': ()}, 'set dropout=0'),
        (32, {'norm': 'bach'}, "unknown norm 'bach'; did you mean 'batch'"),
        (32, {'pool': 'mox'}, "unknown pool 'mox'; did you mean 'max'"),
        (32, {'activation': 'rely'}, "did you mean 'relu'"),
    ],
)
def test_errors_are_one_line(size, options, message):
    with pytest.raises(InputError) as error:
        abstract(size, **options)
    assert message in str(error.value)
    assert '\n' not in str(error.value)

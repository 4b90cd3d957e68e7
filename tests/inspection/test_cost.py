import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from cnn import models
from cnn.inspection import cost
from cnn.inspection.cost import ACTIVATION, CONSTANT, INPUT, LAYER, OTHER, PARAMETER
from cnn.inspection.describe import describe
from cnn.layers import adaptive_average_pool

# Traced in a second or less; the others are slow.
QUICK = ('alexnet', 'vgg/11', 'resnet/18', 'vit/b_16')


def count(function, *shapes):
    """Multiply-adds of a function of float32 arrays."""
    return cost.multiply_adds(jax.make_jaxpr(function)(*map(array, shapes)).jaxpr)


def array(shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def conv(x, kernel, **options):
    options = {'window_strides': (1, 1), 'padding': 'SAME', **options}
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **options)


@pytest.mark.parametrize(
    ('function', 'shapes', 'expected'),
    [
        (lambda x, w: x @ w + 1, [(5, 7), (7, 3)], 5 * 7 * 3),
        (lambda x, y: jnp.einsum('bqhd,bkhd->bhqk', x, y), [(2, 5, 3, 4), (2, 6, 3, 4)], 2 * 3 * 5 * 6 * 4),
        (lambda x: x * x + x.sum(), [(5, 7)], 0),
    ],
)
def test_matmuls_count_their_products(function, shapes, expected):
    assert count(function, *shapes) == expected


@pytest.mark.parametrize(
    ('options', 'channels', 'outputs', 'positions'),
    [
        ({}, 6, 4, 10 * 12),
        ({'padding': 'VALID'}, 6, 4, 8 * 10),
        ({'window_strides': (2, 3)}, 6, 4, 5 * 4),
        ({'rhs_dilation': (2, 4), 'padding': 'VALID'}, 6, 4, 6 * 4),
        ({'feature_group_count': 2}, 3, 4, 10 * 12),
        ({'feature_group_count': 6}, 1, 12, 10 * 12),
    ],
    ids=str,
)
def test_convolutions_count_each_tap_of_each_output(options, channels, outputs, positions):
    shapes = (2, 10, 12, 6), (3, 3, channels, outputs)
    assert count(lambda x, kernel: conv(x, kernel, **options), *shapes) == 2 * positions * outputs * 9 * channels


@pytest.mark.parametrize('groups', [1, 2])
def test_transposed_convolutions_count_each_tap_of_each_input(groups):
    def transposed(x, kernel):
        return conv(x, kernel, lhs_dilation=(2, 2), padding=((1, 2), (1, 2)), feature_group_count=groups)

    assert count(transposed, (2, 5, 6, 8), (4, 4, 8 // groups, 4)) == 2 * 5 * 6 * 8 * 16 * 4 // groups


@jax.custom_vjp
def square_matrix(x):
    return x @ x


square_matrix.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))


@jax.custom_jvp
def cube_matrix(x):
    return x @ x @ x


cube_matrix.defjvp(lambda primals, tangents: (cube_matrix(*primals), tangents[0]))


@pytest.mark.parametrize(
    ('function', 'matmuls'),
    [
        (jax.jit(lambda x: x @ x), 1),
        (jax.checkpoint(lambda x: jnp.sin(x @ x)), 1),
        (square_matrix, 1),
        (cube_matrix, 2),
        (lambda x: jax.lax.scan(lambda carry, _: (carry @ x, None), x, length=7)[0], 7),
        (lambda x: jax.lax.scan(lambda a, _: jax.lax.scan(lambda b, _: (b @ x, b), a, None, 3), x, None, 5)[0], 15),
        (lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x), 2),
        (lambda x: jax.lax.fori_loop(0, 4, lambda _, carry: carry @ x, x), 4),
        (lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 1, lambda y: y @ x, x), 1),
        (jax.vmap(lambda row: row @ jnp.ones((5, 5))), 1),
    ],
)
def test_what_is_called_counts_as_often_as_it_runs(function, matmuls):
    assert count(function, (5, 5)) == matmuls * 125


def kinds(function, sources, *shapes):
    """Multiply-adds by kind."""
    return dict(cost.count(jax.make_jaxpr(function)(*map(array, shapes)).jaxpr, sources))


def test_a_product_counts_for_what_its_operands_depend_on():
    square = (5, 5)
    two = [square, square]
    assert kinds(lambda x, w: x @ w, [INPUT, PARAMETER], *two) == {('', LAYER): 125}
    assert kinds(lambda x, w: (w * 2) @ jnp.tanh(x), [INPUT, PARAMETER], *two) == {('', LAYER): 125}
    assert kinds(lambda x, y: x @ y, [INPUT, INPUT], *two) == {('', ACTIVATION): 125}
    assert kinds(lambda x, w: x @ (w + x), [INPUT, PARAMETER], *two) == {('', ACTIVATION): 125}
    assert kinds(lambda x: x @ jnp.ones(square), [INPUT], square) == {('', OTHER): 125}
    assert kinds(lambda x, c: x @ c, [INPUT, CONSTANT], *two) == {('', OTHER): 125}
    assert kinds(lambda w, v: w @ v, [PARAMETER, PARAMETER], *two) == {('', OTHER): 125}


def test_what_a_loop_carries_is_known_from_its_last_turn():
    def scan(x, w):  # the first turn multiplies parameters, the later ones what came of the input
        return jax.lax.scan(lambda carry, _: (carry @ w + x, None), w, length=3)[0]

    assert kinds(scan, [INPUT, PARAMETER], (5, 5), (5, 5)) == {('', LAYER): 375}

    def loop(x, w):
        return jax.lax.while_loop(lambda pair: pair[0][0, 0] < 1, lambda pair: (pair[0] @ pair[1], pair[1]), (x, w))

    assert kinds(loop, [INPUT, PARAMETER], (5, 5), (5, 5)) == {('', LAYER): 125}


def test_an_adaptive_pool_is_no_layer():
    pool = 128 * (4 * 2 * 2 + 4 * 4 * 2)  # averages of rows, then of columns
    assert kinds(lambda x: adaptive_average_pool(x, (4, 4)), [INPUT], (1, 2, 2, 128)) == {('', OTHER): pool}


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(6, name='dense')(x)), None


class Handwritten(nn.Module):
    """What a user may write with Flax's own layers."""

    def setup(self):
        self.shared = nn.Dense(6)

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), strides=2, padding=1, name='conv')(x)  # [N, 8, 8, 6]
        x = nn.ConvTranspose(6, (2, 2), strides=(2, 2), name='up')(x)
        x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(len(x), 64, 6)
        x = self.shared(nn.relu(self.shared(x)))
        weights = nn.softmax(jnp.einsum('nqc,nkc->nqk', x, x))
        x += jnp.einsum('nqk,nkc->nqc', weights, x)
        layers = nn.scan(Layer, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)
        x, _ = layers(name='layers')(x, None)
        x = nn.remat(nn.Dense)(5, name='again')(x)
        return nn.jit(nn.Dense)(10, name='head')(x.mean(1))


def test_a_module_that_a_user_writes_counts_its_layers_one_by_one():
    figures = describe(Handwritten(), array((1, 16, 16, 3)))
    rows = {row['name']: row for row in figures['layers']}
    expected = {
        'conv': 8 * 8 * 9 * 3 * 6,
        'up': 8 * 8 * 4 * 6 * 6,
        'shared': 2 * 64 * 6 * 6,
        'layers/dense': 3 * 64 * 6 * 6,
        'again': 64 * 6 * 5,
        'head': 5 * 10,
    }
    assert {name: row['multiply_adds'] for name, row in rows.items() if name != 'Handwritten'} == expected
    assert figures['multiply_adds'] == sum(expected.values())
    assert rows['Handwritten']['activation_multiply_adds'] == figures['activation_multiply_adds'] == 2 * 64 * 64 * 6
    assert {name: row['parameters'] for name, row in rows.items()} == {
        'Handwritten': 0,
        'conv': 9 * 3 * 6 + 6,
        'up': 4 * 6 * 6 + 6,
        'shared': 42,
        'layers/dense': 3 * 42,
        'again': 35,
        'head': 60,
    }
    assert {name: row['calls'] for name, row in rows.items() if row['calls'] > 1} == {'shared': 2}


def test_small_networks_count_what_is_published():
    def counted(name, shape):
        model = models.build(name, num_outputs=models.variant(name).num_outputs)
        return describe(model, array((1, *shape)), train=False)['multiply_adds']

    assert counted('lenet', (32, 32, 1)) == 416_520
    assert counted('unet/2015', (572, 572, 1)) == 150_428_424_448
    convolutions = 64 * 9 * 32 + 16 * 9 * 32 * 64 + 4 * 9 * 64 * 128
    assert counted('simple_cnn', (8, 8, 1)) == convolutions + 16 * 128 * 256 + 256 * 10


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in models.names()
        if models.variant(name).multiply_adds is not None
    ],
)
def test_networks_count_what_is_published(name):
    variant = models.variant(name)
    x = jax.ShapeDtypeStruct((1, *variant.input_shape), variant.input_dtype)
    figures = describe(models.build(name, num_outputs=variant.num_outputs), x, train=False)
    assert (figures['multiply_adds'], figures['parameters']) == (variant.multiply_adds, variant.parameters)
    for column in ('multiply_adds', 'activation_multiply_adds', 'parameters'):
        assert sum(layer[column] for layer in figures['layers']) == figures[column]

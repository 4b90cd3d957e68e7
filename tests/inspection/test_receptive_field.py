import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn import models
from cnn.inspection import receptive_field
from cnn.inspection.receptive_field import Field
from cnn.layers import Pool, SqueezeExcite, adaptive_average_pool, conv_layer
from cnn.ops.conv import conv, conv_transpose, forced
from cnn.ops.pool import avg_pool, max_pool

# The coarsest map of networks, and its field and stride as they are published.
PUBLISHED = {
    'alexnet': (195, 32),
    'vgg/16': (212, 32),
    'resnet/18': (435, 32),
    'resnet/50': (427, 32),
    'mobilenet/v1': (315, 32),
    'lenet': (16, 4),
    'unet': (140, 16),
    'unet/2015': (140, 16),
}


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def model(name, *shape, **options):
    """A network, its abstract variables and an abstract input."""
    variant = models.variant(name)
    network = models.build(name, num_outputs=variant.num_outputs, **options)
    shape = shape or variant.input_shape
    x = jax.ShapeDtypeStruct((1, *shape), variant.input_dtype if len(shape) == 1 else 'float32')
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), x)
    return functools.partial(network.apply, train=False), variables, x


def whole(name, *shape, **options):
    """The largest field of a network with positions still told apart, and its stride."""
    apply, variables, x = model(name, *shape, **options)
    program = jax.make_jaxpr(lambda x, variables: apply(variables, x))(x, variables)
    _, trace = receptive_field.trace(program, 0)
    return receptive_field.field(trace.whole, receptive_field.spatial_rank(x.shape))


def fields(function, *shape):
    return receptive_field.fields(function, array(*shape))


def conv_of(x, size, **options):
    """A convolution whose weights are all one."""
    kernel = jnp.ones((*(size,) * (x.ndim - 2), x.shape[-1] // options.get('groups', 1), x.shape[-1]))
    return conv(x, kernel, **options)


def flax_conv(x, size, stride, spread):
    """The same through lax, with spaces in the input."""
    rank = x.ndim - 2
    kernel = jnp.ones((*(size,) * rank, x.shape[-1], x.shape[-1]))
    numbers = (f'N{"DHW"[-rank:]}C', f'{"DHW"[-rank:]}IO', f'N{"DHW"[-rank:]}C')
    pads, spreads = [(size, size)] * rank, (spread,) * rank
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * rank, pads, spreads, dimension_numbers=numbers)


@pytest.mark.parametrize('name', PUBLISHED)
def test_fields_of_networks_are_the_published_ones(name):
    field = whole(name)
    if name.startswith('unet'):  # that of the bottleneck
        apply, variables, x = model(name)
        maps = receptive_field.fields(lambda x, variables: apply(variables, x, method='features'), x, variables)
        field = maps['level4'][1]
    size, stride = PUBLISHED[name]
    assert field == Field((size, size), (stride, stride), False)


def test_the_adaptive_pool_of_a_small_network_widens_its_field_with_the_input():
    assert whole('simple_cnn', 32, 32, 3) == Field((22, 22), (8, 8), False)
    assert whole('simple_cnn', 64, 64, 3) == Field((30, 30), (16, 16), False)
    apply, variables, x = model('simple_cnn')
    maps = receptive_field.fields(lambda x, variables: apply(variables, x, method='features'), x, variables)
    assert [maps[f'conv{index}'][1].size[0] for index in (1, 2, 3)] == [3, 8, 18]
    assert maps['conv3'][1].stride == (4, 4)


@pytest.mark.parametrize(
    'options',
    [{}, {'initial_kernel': 2}, {'kernel_size': 3, 'dilations': (1, 3, 9), 'stacks': 2}, {'dilations': (5,)}],
    ids=str,
)
@pytest.mark.parametrize('shape', [(4096,), (4096, 2)], ids=['tokens', 'signal'])
def test_wavenets_see_as_far_as_their_dilations_add_up(options, shape):
    apply, variables, x = model('wavenet', *shape, **options)
    field = receptive_field.fields(lambda x, variables: apply(variables, x), x, variables)
    network = models.build('wavenet', num_outputs=256, **options)
    taps = network.stacks * (network.kernel_size - 1) * sum(network.dilations)
    assert field == Field((network.initial_kernel + taps,), (1,), False)


def random_layer(generator, x):
    """A layer of random kind, kernel, stride, dilation and padding; all weights are positive."""
    size, stride, dilation = (int(number) for number in generator.integers(1, (5, 3, 3)))
    pads = [tuple(map(int, generator.integers(0, 3, 2))) for _ in range(x.ndim - 2)]
    strides = (stride,) * (x.ndim - 2)
    kernel = jnp.ones((*(size,) * (x.ndim - 2), x.shape[-1], x.shape[-1]))
    first = (slice(None), slice(1, None))
    kinds = {
        'conv': lambda: conv(x, kernel, strides, pads, (dilation,) * len(strides)),
        'grouped': lambda: conv_of(x, size, strides=strides, padding=pads, groups=2),
        'transposed': lambda: conv_transpose(x, kernel, (min(size, stride),) * len(strides), dilation=strides),
        'lax': lambda: flax_conv(x, size, stride, min(size, dilation)),
        'pool': lambda: avg_pool(x, (size,) * len(strides), strides, pads),
        'flax pool': lambda: nn.avg_pool(x, (size,) * len(strides), strides, pads),
        'upsampled': lambda: conv_of(x.repeat(2, 1), size),
        'resized': lambda: jax.image.resize(x, (1, x.shape[1] * 3 // 2, *x.shape[2:]), 'linear'),
        'nearest': lambda: jax.image.resize(x, (1, 2 * x.shape[1], *x.shape[2:]), 'nearest'),
        'residual': lambda: x + conv_of(x, 3),
        'joined': lambda: jnp.concatenate([x[..., :1], conv_of(x, 3)[..., 1:]], -1)[..., ::-1],
        'turned': lambda: x.swapaxes(1, -2) * 2,
        'cut': lambda: jnp.flip(x[first], 1)[:, ::stride],
        'means': lambda: x[:, : x.shape[1] // 2 * 2].reshape(1, -1, 2, *x.shape[2:]).mean(2),
        'scanned': lambda: jax.lax.scan(lambda carry, _: (conv_of(carry, 3), None), x, length=2)[0],
    }
    return kinds[str(generator.choice(list(kinds)))]()


def _nearest_middle(mask):
    """Where a mask is set, from the middle outwards."""
    places = np.argwhere(mask)
    return places[np.argsort(((places - np.array(mask.shape) / 2) ** 2).sum(1), kind='stable')]


@pytest.mark.parametrize('seed', range(18))
def test_fields_are_the_extent_of_the_gradient_by_the_input(seed):
    rank = 1 + seed % 3
    side, depth = {1: (64, 4), 2: (40, 3), 3: (24, 2)}[rank]

    def network(x):
        generator = np.random.default_rng(seed)
        for _ in range(depth):
            x = random_layer(generator, x)
        return x

    x = jnp.ones((1, *(side,) * rank, 2))
    program = jax.make_jaxpr(network)(x)
    (value,), _ = receptive_field.trace(program, 0)
    shape = program.out_avals[0].shape
    bounds = [np.broadcast_to(side, shape) for extent in value.extents.values() for side in extent.sides]
    nothing = np.isinf(bounds).any(0)  # an element that sees nothing along one axis sees nothing
    bounds = np.where(nothing, np.nan, bounds)  # [2 rank, *shape]
    inside = ((bounds >= 0) & (bounds < side)).all(0)
    places = np.concatenate([_nearest_middle(inside)[:2], _nearest_middle(nothing)[:1]])
    assert len(places)  # one network in these picks what lies between the inputs of a transposed convolution

    with forced('plain'):
        gradients = jax.jit(lambda x: [jax.grad(lambda x, at=tuple(at): network(x)[at])(x) for at in places])(x)
    for place, gradient in zip(places, gradients, strict=True):
        seen = np.argwhere(gradient[0].any(-1))  # [positions, rank]
        expected = np.stack([seen.min(0), seen.max(0)], -1).ravel() if len(seen) else np.full(2 * rank, np.nan)
        np.testing.assert_array_equal(bounds[(slice(None), *place)], expected)


def test_a_max_pool_sees_its_whole_window():
    function = functools.partial(max_pool, window_shape=(3, 2), strides=(2, 1), padding=((1, 1), (0, 0)))
    assert fields(function, 1, 12, 12, 4) == Field((3, 2), (2, 1), False)
    large = functools.partial(max_pool, window_shape=(7, 7), strides=(2, 2), padding='SAME')
    assert fields(large, 1, 12, 12, 4) == Field((7, 7), (2, 2), False)
    assert fields(lambda x: nn.max_pool(x, (3, 3), (2, 2), 'SAME'), 1, 12, 12, 4) == Field((3, 3), (2, 2), False)


def test_padding_and_small_inputs_do_not_clip_a_field():
    for side in (4, 5, 64):
        maps = fields(lambda x: conv_of(max_pool(conv_of(x, 7), (2, 2), (2, 2)), 3, strides=(2, 2)), 1, side, side, 1)
        assert maps == Field((12, 12), (4, 4), False)
    assert fields(lambda x: conv_of(jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0))), 5), 1, 4, 4, 1).size == (5, 5)
    reflected = fields(lambda x: conv_of(jnp.pad(x, ((0, 0), (2, 2), (0, 0)), mode='reflect'), 5), 1, 32, 1)
    assert reflected == Field((5,), (1,), False)


def test_a_mean_over_positions_sees_all_and_a_gate_keeps_the_position():
    assert fields(lambda x: x.mean((1, 2)), 1, 8, 8, 3) == Field((None, None), (None, None), False)
    assert fields(lambda x: conv_of(x, 3).mean(1), 1, 8, 8, 3) == Field((None, 3), (None, 1), False)
    assert fields(lambda x: x.reshape(1, -1) @ jnp.ones((192, 5)), 1, 8, 8, 3) == Field((None,) * 2, (None,) * 2, False)
    assert fields(lambda x: adaptive_average_pool(x, (1, 1)), 1, 8, 8, 3).size == (None, None)
    assert fields(lambda x: x - x.mean((1, 2), keepdims=True), 1, 8, 8, 3) == Field((1, 1), (1, 1), True)
    block = SqueezeExcite(2, conv_layer('symmetric', dtype=jnp.float32, param_dtype=jnp.float32))
    x = array(1, 8, 8, 4)
    variables = jax.eval_shape(lambda x: block.init(jax.random.key(0), x), x)
    gated = receptive_field.fields(lambda x, variables: block.apply(variables, conv_of(x, 3)), x, variables)
    assert gated == Field((3, 3), (1, 1), True)


def test_attention_sees_all_and_that_in_windows_its_window():
    def attend(x):
        return nn.softmax(jnp.einsum('...qc,...kc->...qk', x, x)) @ x

    assert fields(attend, 1, 16, 4) == Field((None,), (None,), False)
    assert fields(lambda x: x + attend(x), 1, 16, 4) == Field((1,), (1,), True)
    windows = fields(lambda x: attend(x.reshape(1, 4, 4, 4)).reshape(1, 16, 4), 1, 16, 4)
    assert windows.size == (4,)
    assert not windows.everywhere


def test_one_position_that_is_picked_keeps_its_field():
    assert fields(lambda x: conv_of(x, 5)[:, -1], 1, 16, 4) == Field((5,), (None,), False)
    assert fields(lambda x: conv_of(x, 5)[:, -1] @ jnp.ones((4, 3)), 1, 16, 4).size == (5,)
    assert fields(lambda x: jnp.concatenate([jnp.ones((1, 1, 4)), x], 1), 1, 16, 4).size == (1,)
    assert fields(lambda x: jnp.ones((1, 3)), 1, 16, 4) == Field((0,), (None,), False)


def test_tokens_are_seen_through_an_embedding():
    tokens = jax.ShapeDtypeStruct((1, 32), jnp.int32)
    for embed in (lambda tokens, table: table[tokens], lambda tokens, table: jax.nn.one_hot(tokens, 9) @ table):
        field = receptive_field.fields(
            lambda tokens, table, embed=embed: conv_of(embed(tokens, table), 3), tokens, array(9, 4)
        )
        assert field == Field((3,), (1,), False)


def test_a_recurrence_sees_what_came_before_and_an_unknown_loop_all():
    def recur(x):
        return jax.lax.scan(lambda carry, step: (carry + step, carry), jnp.zeros((1, 4)), x.swapaxes(0, 1))[1]

    program = jax.make_jaxpr(recur)(array(1, 16, 4))
    (value,), _ = receptive_field.trace(program, 0)
    assert value.extents[1].last.ravel().tolist() == [-math.inf, *range(15)]
    assert value.extents[1].first.ravel().tolist() == [math.inf, *[0] * 15]
    grown = jax.make_jaxpr(lambda x: jax.lax.while_loop(lambda x: x[0, 0, 0] < 9, lambda x: conv_of(x, 3), x))
    (value,), _ = receptive_field.trace(grown(array(1, 16, 4)), 0)
    assert receptive_field.field(value, 1).size == (None,)
    halves = jax.make_jaxpr(lambda x: jax.lax.cond(x[0, 0, 0] > 0, lambda x: conv_of(x, 3), lambda x: conv_of(x, 5), x))
    (value,), _ = receptive_field.trace(halves(array(1, 16, 4)), 0)
    assert receptive_field.field(value, 1) == Field((5,), (1,), True)  # the condition sees one position


def test_what_is_not_known_sees_all():
    assert fields(lambda x: jnp.fft.fft(x, axis=1).real, 1, 16, 4) == Field((None,), (None,), False)
    assert fields(lambda x: jnp.sort(x, 1), 1, 16, 4).size == (None,)
    assert fields(lambda x: jnp.sort(x, -1), 1, 16, 4) == Field((1,), (1,), False)
    assert fields(lambda x: jnp.cumsum(x, 1), 1, 16, 4).size == (None,)


@pytest.mark.parametrize('kind', ['max', 'average', 'conv', 'blur'])
def test_pools_of_every_kind_have_a_field(kind):
    pool = Pool(kind, 3, 2, conv_layer('symmetric', dtype=jnp.float32, param_dtype=jnp.float32), 1)
    x = array(1, 16, 16, 4)
    variables = jax.eval_shape(lambda x: pool.init(jax.random.key(0), x), x)
    field = receptive_field.fields(lambda x, variables: pool.apply(variables, x), x, variables)
    assert field == Field((5, 5) if kind == 'blur' else (3, 3), (2, 2), False)

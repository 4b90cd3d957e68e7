import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from cnn.errors import InputError
from cnn.ops import conv as ops
from cnn.ops import conv_forms, conv_input_forms, conv_weight_forms, native_conv, onednn
from cnn.ops.conv import conv, conv_general_dilated, conv_transpose, forced

FORMS = ('auto', 'portable', 'plain')


def reference(x, kernel, strides, padding, dilation, groups):
    """XLA's convolution."""
    spatial = 'DHW'[-(x.ndim - 2) :]
    numbers = (f'N{spatial}C', f'{spatial}IO', f'N{spatial}C')
    return lax.conv_general_dilated(
        x, kernel, strides, padding, None, dilation, dimension_numbers=numbers, feature_group_count=groups
    )


def draw(seed):
    """A random convolution: x and kernel in float64, strides, padding, dilation and groups."""
    rng = np.random.default_rng(seed)
    while True:
        rank = rng.integers(1, 4)
        size = rng.integers(1, 12 if rank < 3 else 7, rank)
        kernel_size = rng.integers(1, 5, rank) if rng.random() < 0.85 else np.ones(rank, int)
        strides, dilation = rng.integers(1, 4, rank), rng.choice([1, 1, 2, 3], rank)
        padding = rng.integers(-1, 4, (rank, 2)) if rng.random() < 0.7 else np.zeros((rank, 2), int)
        groups, inner, outer = rng.choice([1, 1, 2, 3, 8, 40]), rng.integers(1, 5), rng.integers(1, 5)
        if rng.random() < 0.3:
            inner, outer = 1, 1
        padded = size + padding.sum(1)
        outputs = (padded - (kernel_size - 1) * dilation - 1) // strides + 1
        if (padded > 0).all() and (outputs > 0).all():
            break
    x = rng.standard_normal((rng.integers(1, 4), *size, groups * inner))
    kernel = rng.standard_normal((*kernel_size, inner, groups * outer))
    pairs = tuple((int(low), int(high)) for low, high in padding)
    return x, kernel, (tuple(map(int, strides)), pairs, tuple(map(int, dilation)), int(groups))


def value_and_gradients(function, x, kernel, cotangent):
    y, pull = jax.vjp(function, x, kernel)
    return y, *pull(cotangent)


def errors(form, dtype, seed):
    """Of output and both gradients, the largest error against float64, as a share of the largest value."""
    x, kernel, numbers = draw(seed)
    x, kernel = (jnp.asarray(array, dtype) for array in (x, kernel))
    shape = jax.eval_shape(lambda x, kernel: reference(x, kernel, *numbers), x, kernel).shape
    cotangent = jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)

    def run(function, *arrays):
        return jax.jit(lambda *arrays: value_and_gradients(lambda x, k: function(x, k, *numbers), *arrays))(*arrays)

    with forced(form):
        got = run(conv, x, kernel, cotangent)
    exact = run(reference, *(array.astype('float64') for array in (x, kernel, cotangent)))
    for array, expected in zip(got, exact, strict=True):
        assert array.dtype == dtype
        assert array.shape == expected.shape
    return [
        float(np.abs(np.asarray(array, 'float64') - expected).max() / max(np.abs(expected).max(), 1e-30))
        for array, expected in zip(got, exact, strict=True)
    ]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(
    ('dtype', 'bound', 'seeds'), [('float32', 2e-6, 24), ('bfloat16', 2**-8, 8), ('float64', 1e-13, 8)]
)
def test_every_form_is_the_plain_one_in_float64(form, dtype, bound, seeds):
    """Output and both gradients, over random ranks, shapes, strides, paddings, dilations and groups."""
    with jax.enable_x64(True):
        worst = {seed: max(errors(form, dtype, seed)) for seed in range(seeds)}
    assert max(worst.values()) <= bound, worst


@pytest.mark.parametrize('form', FORMS[:2])
@pytest.mark.parametrize('seed', [200, 1533])  # the second crops more than there is, beside zeros that stay
def test_negative_padding_reads_nothing_beyond_the_input(form, seed):
    with jax.enable_x64(True):
        assert max(errors(form, 'float32', seed)) <= 2e-6


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('start', range(24, 624, 100))
def test_every_form_over_many_more(start, dtype):
    bound = {'float32': 2e-6, 'bfloat16': 2**-8}[dtype]
    with jax.enable_x64(True):
        for seed in range(start, start + 100):
            for form in ('auto', 'portable'):
                assert max(errors(form, dtype, seed)) <= bound, (form, seed)


NESTING = """
import test_conv
for seed in (50, 80, 286, 636):
    for dtype, bound in (('float32', 2e-6), ('bfloat16', 2**-8)):
        with test_conv.jax.enable_x64(True):
            assert max(test_conv.errors('auto', dtype, seed)) <= bound, (dtype, seed)
print('END')
"""


@pytest.mark.skipif(not onednn.available(), reason='this jaxlib is not known to carry oneDNN')
@pytest.mark.parametrize('instructions', ['AVX2', 'DEFAULT'])
def test_onednn_takes_no_code_whose_parallel_loops_nest(instructions):
    """That of its convolutions by gemm, at which XLA's thread pool hangs or corrupts memory, one time in five or so."""
    folder = Path(__file__).parent
    variables = {'PYTHONPATH': f'{folder}{os.pathsep}{folder.parents[1]}', 'JAX_PLATFORMS': 'cpu'}
    variables |= {'ONEDNN_VERBOSE': '1', 'ONEDNN_MAX_CPU_ISA': instructions}
    command = [sys.executable, '-c', NESTING]
    result = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=300)
    assert result.stdout.endswith('END\n'), result.stderr
    taken = re.findall(r'exec,cpu,convolution,([^,]*)', result.stdout)
    assert taken
    assert not [name for name in taken if 'gemm' in name]


TABLE = [  # kernel [*K, C / groups, O], strides, dilation, groups; forms where oneDNN is; forms elsewhere
    ((3, 3, 8, 6), 1, 1, 1, 'library_forward library_weight', 'plain_forward transposed_weight'),
    ((3, 3, 3, 32), 1, 1, 1, 'native_forward library_forward native_weight', 'plain_forward transposed_weight'),
    ((3, 3, 8, 6), 2, 1, 1, 'library_forward library_weight', 'plain_forward transposed_weight'),
    ((3, 3, 8, 6), 1, 2, 1, 'library_forward transposed_weight', 'plain_forward transposed_weight'),
    ((3, 3, 24, 8), 1, 2, 1, 'library_forward native_weight', 'plain_forward transposed_weight'),
    ((3, 3, 24, 6), 2, 1, 1, 'library_forward native_input library_weight', 'plain_forward transposed_weight'),
    ((3, 3, 3, 6), 1, 1, 1, 'library_forward transposed_weight', 'plain_forward transposed_weight'),
    ((1, 1, 4, 6), 1, 1, 1, 'library_forward library_dot_weight', 'dot_forward dot_weight'),
    ((3, 3, 1, 8), 1, 1, 8, 'native_forward native_input native_weight', 'shifted_forward shifted_weight'),
    ((3, 3, 2, 12), 2, 2, 6, 'native_forward native_input native_weight', 'blocks_forward blocks_weight'),
    ((3, 2, 16), 1, 1, 4, 'native_forward native_weight', 'blocks_forward blocks_weight'),
    ((3, 3, 3, 1, 8), 1, 1, 8, 'library_forward planes_weight native_weight', 'shifted_forward planes_weight'),
    ((3, 3, 1, 6), 1, 1, 6, 'library_forward shifted_weight', 'shifted_forward shifted_weight'),
    (
        (3, 3, 1, 6),
        2,
        1,
        6,
        'library_forward depthwise_input strided_depthwise_weight',
        'shifted_forward depthwise_input strided_depthwise_weight',
    ),
    ((8, 8, 1, 6), 2, 1, 6, 'library_forward shifted_weight', 'shifted_forward shifted_weight'),
    ((3, 3, 1, 6), 1, 2, 6, 'shifted_forward shifted_weight', 'shifted_forward shifted_weight'),
    ((3, 3, 2, 6), 1, 1, 3, 'library_forward blocks_weight', 'blocks_forward blocks_weight'),
    ((3, 3, 1, 18), 1, 1, 6, 'shifted_forward blocks_weight', 'shifted_forward blocks_weight'),
    ((3, 3, 2, 6), 1, 2, 3, 'library_forward blocks_weight', 'blocks_forward blocks_weight'),
    ((3, 3, 3, 4, 6), 1, 1, 1, 'library_forward planes_weight', 'planes_forward planes_weight'),
    ((5, 8, 6), 1, 1, 1, 'library_forward library_weight', 'plain_forward transposed_weight'),
]


@pytest.mark.parametrize(('kernel_shape', 'stride', 'dilation', 'groups', 'library', 'portable'), TABLE)
@pytest.mark.parametrize('form', ['auto', 'portable'])
def test_each_form_is_taken_where_the_table_says(
    monkeypatch, form, kernel_shape, stride, dilation, groups, library, portable
):
    taken = set()
    for module in (conv_input_forms, conv_weight_forms):
        monkeypatch.setattr(module, 'LARGE', 0)
    monkeypatch.setattr(native_conv, 'LARGE_STEM', 0)
    for module in (conv_forms, conv_input_forms, conv_weight_forms):
        for name, function in list(vars(module).items()):
            if name.endswith(('_forward', '_input', '_weight')):

                def watch(*arguments, name=name, function=function, **options):
                    taken.add(name)
                    return function(*arguments, **options)

                monkeypatch.setattr(module, name, watch)
    rank = len(kernel_shape) - 2
    x = jax.ShapeDtypeStruct((2, *(9,) * rank, kernel_shape[-2] * groups), 'float32')
    kernel = jax.ShapeDtypeStruct(kernel_shape, 'float32')

    def loss(x, kernel):
        return conv(x, kernel, (stride,) * rank, dilation=(dilation,) * rank, groups=groups).sum()

    with forced(form):
        lowered = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(x, kernel).as_text()
    expected = library if form == 'auto' and onednn.available() else portable
    assert taken >= set(expected.split())
    assert 'onednn' not in lowered or form == 'auto'
    assert 'onednn' in lowered or 'library' not in expected


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_gradient_of_a_large_kernel_is_that_of_all_its_pieces(monkeypatch, dtype):
    calls = []
    exchanged = conv_weight_forms.library_exchanged_weight

    def watch(*arguments):
        calls.append(arguments)
        return exchanged(*arguments)

    monkeypatch.setattr(conv_weight_forms, 'library_exchanged_weight', watch)
    monkeypatch.setattr(conv_weight_forms, 'LARGE', 0)
    rng = np.random.default_rng(0)
    numbers = ((2, 1), ((1, 1), (0, 3)), (1, 1), 1)

    def gradient(function, *arrays):
        return jax.jit(lambda *arrays: value_and_gradients(lambda x, k: function(x, k, *numbers), *arrays)[-1])(*arrays)

    with jax.enable_x64(True):
        shapes = (19, 9, 8, 16), (3, 3, 16, 12), (19, 5, 9, 12)
        arrays = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
        got = np.asarray(gradient(conv, *arrays), 'float64')
        exact = np.asarray(gradient(reference, *(array.astype('float64') for array in arrays)))
    if onednn.available():
        assert len(calls) == 2  # one trace of a loop and one of what is left
    bound = {'float32': 2e-6, 'bfloat16': 2**-8}[dtype]
    assert np.abs(got - exact).max() <= bound * np.abs(exact).max()


def test_plain_form_is_the_program_that_jax_makes():
    arrays = [jax.ShapeDtypeStruct(shape, 'float32') for shape in ((2, 9, 9, 4), (3, 3, 2, 6))]
    programs = []
    for function in (conv, reference):
        with forced('plain'):
            loss = jax.grad(lambda x, k, f=function: f(x, k, (2, 2), ((1, 1), (0, 2)), (1, 1), 2).sum(), (0, 1))
            programs.append(jax.jit(loss).lower(*arrays).compile().cost_analysis()['flops'])
    assert programs[0] == programs[1]


GEOMETRIES = [
    ((1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((2, 1), ((1, 2), (0, 1)), (1, 2), 2),
    ((2, 2), ((1, 1),) * 2, (1, 1), 4),
]


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)

    def make(groups, *leading):
        shapes = (2, 7, 8, 4), (3, 3, 4 // groups, 8)
        return [jnp.asarray(rng.standard_normal((*leading, *shape)), 'float32') for shape in shapes]

    return make


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_derivatives_of_second_order_and_forward_mode(arrays, form, geometry):
    x, kernel = arrays(geometry[-1])

    def derivatives(function):
        def energy(x, kernel):
            return jnp.sum(jnp.sin(function(x, kernel, *geometry)))

        def norm(x, kernel):
            return sum(jnp.sum(leaf**2) for leaf in jax.grad(energy, (0, 1))(x, kernel))

        forward = jax.jvp(lambda *pair: function(*pair, *geometry), (x, kernel), (jnp.cos(x), jnp.sin(kernel)))
        mixed = jax.jvp(jax.grad(energy, (0, 1)), (x, kernel), (jnp.cos(x), jnp.sin(kernel)))
        return jax.grad(norm, (0, 1))(x, kernel), forward, mixed

    with forced(form):
        got = jax.jit(lambda: derivatives(conv))()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()),
        got,
        jax.jit(lambda: derivatives(reference))(),
    )


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize('seeds', [3, 9])  # unrolled, and as a loop
def test_a_pack_of_seeds_has_the_results_of_each_alone(arrays, form, geometry, seeds):
    x, kernel = arrays(geometry[-1], seeds)

    def step(x, kernel):
        return jax.value_and_grad(lambda *pair: jnp.sum(conv(*pair, *geometry) ** 2), (0, 1))(x, kernel)

    with forced(form):
        packed, alone = (
            jax.jit(jax.vmap(step))(x, kernel),
            [jax.jit(step)(*pair) for pair in zip(x, kernel, strict=True)],
        )
        one_kernel = jax.jit(jax.vmap(lambda x: conv(x, kernel[0], *geometry)))(x)
        one_image = jax.jit(jax.vmap(lambda kernel: conv(x[0], kernel, *geometry)))(kernel)
        twice = jax.jit(jax.vmap(jax.vmap(lambda x, k: conv(x, k, *geometry)), (None, 0)))(
            x, jnp.stack([kernel, -kernel])
        )
        each = jnp.stack([conv(*pair, *geometry) for pair in zip(x, kernel, strict=True)])
    tolerance = {'rtol': 1e-5, 'atol': 1e-4}
    jax.tree.map(lambda a, *b: np.testing.assert_allclose(a, np.stack(b), **tolerance), packed, *alone)
    np.testing.assert_allclose(one_kernel, [reference(image, kernel[0], *geometry) for image in x], **tolerance)
    np.testing.assert_allclose(one_image, [reference(x[0], each, *geometry) for each in kernel], **tolerance)
    np.testing.assert_allclose(twice, jnp.stack([each, -each]), **tolerance)


@pytest.mark.parametrize('form', FORMS)
def test_loops_and_branches_have_the_results_of_straight_code(arrays, form):
    (x, kernel), geometry = arrays(2), GEOMETRIES[1]

    def step(kernel, x):
        gradient = jax.grad(lambda kernel: jnp.sum(conv(x, kernel, *geometry) ** 2))(kernel)
        return kernel - 1e-3 * gradient, gradient

    images = jnp.stack([x, 2 * x, -x])
    with forced(form):
        final, gradients = jax.jit(lambda: lax.scan(step, kernel, images))()
        expected = kernel
        for image, gradient in zip(images, gradients, strict=True):
            expected, alone = jax.jit(step)(expected, image)
            np.testing.assert_allclose(gradient, alone, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(final, expected, rtol=1e-5, atol=1e-5)
        mapped = jax.jit(lambda: lax.map(lambda image: conv(image, kernel, *geometry), images))()
        np.testing.assert_allclose(mapped[2], reference(-x, kernel, *geometry), rtol=1e-5, atol=1e-4)
        chosen = jax.jit(lambda p: lax.cond(p, lambda: conv(x, kernel, *geometry), lambda: conv(-x, kernel, *geometry)))
        np.testing.assert_allclose(chosen(False), mapped[2], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('form', ['auto', 'portable'])
@pytest.mark.parametrize(
    ('size', 'stride', 'dilation', 'padding'),
    [
        (2, 2, 1, 'SAME'),
        (4, 2, 1, 'SAME'),
        (3, 2, 1, 'SAME'),
        (1, 2, 1, 'SAME'),
        (1, 2, 1, 'VALID'),
        (5, 2, 1, 'VALID'),
        (3, 1, 1, ((2, 1), (0, 3))),
        (3, 3, 2, ((-1, 0), (4, 4))),
        (4, 3, 1, ((2, 1), (0, 3))),
    ],
)
def test_transposed_convolution_is_that_of_lax(form, size, stride, dilation, padding):
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(shape, 'float32') for shape in ((2, 4, 5, 3), (size, size, 3, 2)))
    options = {'strides': (stride, stride), 'padding': padding}
    numbers = ('NHWC', 'HWIO', 'NHWC')

    def lax_form(x, kernel):
        return lax.conv_transpose(x, kernel, rhs_dilation=(dilation,) * 2, dimension_numbers=numbers, **options)

    expected = lax_form(x, kernel)
    cotangent = jnp.asarray(rng.standard_normal(expected.shape), 'float32')
    with forced(form):
        got = value_and_gradients(
            lambda x, kernel: conv_transpose(x, kernel, dilation=(dilation,) * 2, **options), x, kernel, cotangent
        )
    for a, b in zip(got, value_and_gradients(lax_form, x, kernel, cotangent), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize('form', FORMS)
def test_groups_of_a_transposed_convolution_are_convolutions_of_their_own(form):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape), 'float32') for shape in ((2, 4, 5, 6), (4, 4, 2, 9)))
    with forced(form):
        y = conv_transpose(x, kernel, (2, 2), groups=3)
        parts = zip(jnp.split(x, 3, -1), jnp.split(kernel, 3, -1), strict=True)
        np.testing.assert_allclose(
            y, jnp.concatenate([conv_transpose(*part, (2, 2)) for part in parts], -1), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize('rank', [1, 2, 3])
@pytest.mark.parametrize(
    'options',
    [
        {'padding': 'SAME', 'strides': 2},
        {'padding': 'VALID', 'kernel_dilation': 2},
        {'padding': 'CIRCULAR', 'strides': 2},
        {'padding': 1, 'feature_group_count': 2, 'use_bias': False},
        {'padding': 2, 'input_dilation': 2},
        {'padding': 'SAME', 'dtype': 'bfloat16'},
    ],
)
def test_linen_convolutions_keep_their_results(rank, options):
    x = np.random.default_rng(0).standard_normal((2, *(9, 6, 7)[:rank], 4), 'float32')
    plain = nn.Conv(6, (3,) * rank, **options)
    variables = plain.init(jax.random.key(0), x)
    ours = nn.Conv(6, (3,) * rank, conv_general_dilated=conv_general_dilated, **options)
    y, expected = ours.apply(variables, x), plain.apply(variables, x)
    assert y.dtype == expected.dtype
    bound = 2e-2 if 'dtype' in options else 1e-5
    np.testing.assert_allclose(np.asarray(y, 'float32'), np.asarray(expected, 'float32'), rtol=bound, atol=bound)


def test_a_batch_on_several_devices_stays_divided(arrays):
    """No device computes what another does: the program has no gathering of images, and none of the undivided call."""
    x, kernel = arrays(1)
    x = jnp.concatenate([x] * 4)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    divided = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
    everywhere = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
    step = jax.jit(jax.value_and_grad(lambda kernel, x: jnp.sum(conv(x, kernel) ** 2)))
    program = step.lower(everywhere, divided).compile().as_text()
    assert 'all-gather' not in program
    assert 'onednn' not in program
    for a, b in zip(step(everywhere, divided), jax.jit(step)(kernel, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_exported_programs_hold_nothing_that_other_machines_lack(arrays):
    x, kernel = arrays(1)
    exported = jax.export.export(jax.jit(lambda x: conv(x, kernel)), platforms=['cpu', 'cuda', 'tpu'])(x)
    assert 'onednn' not in exported.mlir_module()
    np.testing.assert_allclose(exported.call(x), conv(x, kernel), rtol=1e-5, atol=1e-5)


def test_on_accelerators_the_plain_form_stays(arrays):
    x, kernel = arrays(4)
    for platform in ('cuda', 'tpu'):
        texts = [
            jax.export.export(jax.jit(lambda x, k, f=function: f(x, k, *GEOMETRIES[2])), platforms=[platform])(
                x, kernel
            ).mlir_module()
            for function in (conv, reference)
        ]
        assert [text.count('stablehlo.convolution') for text in texts] == [1, 1]
        assert texts[0].count('stablehlo.') == texts[1].count('stablehlo.')


def test_the_environment_chooses_the_form(arrays, monkeypatch):
    x, kernel = arrays(1)
    monkeypatch.setenv('CNN_CONV', 'plain')
    assert 'onednn' not in jax.jit(lambda x: conv(x, kernel)).lower(x).as_text()
    with forced('portable'):
        assert 'portable' in str(jax.make_jaxpr(conv)(x, kernel))
    monkeypatch.setenv('CNN_CONV', 'plane')
    with pytest.raises(InputError, match=r"unknown form of convolution \(CNN_CONV\) 'plane'; did you mean 'plain'"):
        conv(x, kernel)


def test_multiply_adds_are_those_of_the_convolution(arrays):
    x, kernel = arrays(2)
    geometry = GEOMETRIES[1]
    y = conv(x, kernel, *geometry)
    expected = y.size * 3 * 3 * 2
    jaxpr = jax.make_jaxpr(lambda x, k: jax.vjp(lambda x, k: conv(x, k, *geometry), x, k)[1](y))(x, kernel)
    counts = {
        equation.primitive.name: ops.multiply_adds(equation)
        for equation in jaxpr.jaxpr.eqns
        if equation.primitive.name.startswith('conv')
    }
    assert counts == {'conv': expected, 'conv_input': expected, 'conv_weight': expected}
    packed = jax.make_jaxpr(jax.vmap(lambda k: conv(x, k, *geometry)))(jnp.stack([kernel] * 5))
    assert [ops.multiply_adds(e) for e in packed.jaxpr.eqns if e.primitive.name == 'conv'] == [5 * expected]


@pytest.mark.parametrize('form', ['auto', 'portable'])
@pytest.mark.parametrize('padding', [((1, 1), (1, 1)), ((0, 1), (2, 0))])
def test_phases_of_a_grouped_input_gradient_are_in_their_places(form, padding):
    """One convolution has the channels of every phase, whose kernels are of different sizes."""
    generator = np.random.default_rng(0)
    x, kernel = generator.standard_normal((2, 9, 8, 8)), generator.standard_normal((3, 4, 2, 12))

    def total(x, kernel, function):
        y = function(x, kernel)
        return (y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).sum()

    def ours(x, kernel):
        with forced(form):
            return conv(x, kernel, (2, 3), padding, groups=4)

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 3), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=4
        )

    with jax.enable_x64(True):
        expected = jax.grad(total)(x, kernel, plain)
    gradient = jax.jit(jax.grad(total), static_argnums=2)(x.astype('float32'), kernel.astype('float32'), ours)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)

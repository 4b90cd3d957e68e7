import ctypes
import functools
import mmap

import jax
import jax.numpy as jnp
import llvmlite.binding as llvm
import numpy as np
import pytest
from jax import lax

from cnn.ops import native, native_conv, native_weight, onednn
from cnn.ops.conv_forms import swapped
from cnn.ops.geometry import Geometry
from cnn.ops.native_conv import divided, suited, vector_length

pytestmark = pytest.mark.skipif(not onednn.available(), reason='the loops are for where oneDNN is: x86 with AVX2')

LANES = [lanes for lanes in (8, 16) if lanes <= native.lanes()]


def draw(seed):
    """A random convolution, most of them in groups: its geometry, and x, kernel and g in float32."""
    rng = np.random.default_rng(seed)
    while True:
        size = rng.integers(1, 24, 2) if rng.random() < 0.8 else np.array([1, rng.integers(100, 400)])
        kernel_size = np.minimum(rng.integers(1, 8, 2), size + 3)
        if rng.random() < 0.1:
            kernel_size[1] = rng.integers(8, 33)
        strides, dilation = rng.choice([1, 1, 2, 3], 2), rng.choice([1, 1, 2, 5], 2)
        padding = rng.integers(-1, 6, (2, 2)) if rng.random() < 0.7 else np.zeros((2, 2), int)
        groups = int(rng.choice([1, 2, 3, 4, 8, 16, 32, 48]))
        inner, outer = (int(rng.choice([1, 2, 3, 4, 8, 12, 16, 20, 32, 48])) for _ in range(2))
        if rng.random() < 0.3:
            inner, outer = 1, 1
        elif rng.random() < 0.3:
            groups, inner, outer = 1, int(rng.integers(1, 40)), 64
        padded = size + padding.sum(1)
        if (padded > (kernel_size - 1) * dilation).all() and groups * max(inner, outer) <= 200:
            break
    pairs = tuple((int(low), int(high)) for low, high in padding)
    geometry = Geometry(tuple(map(int, strides)), pairs, tuple(map(int, dilation)), groups)
    x = rng.standard_normal((rng.integers(1, 5), *size, groups * inner)).astype('float32')
    kernel = rng.standard_normal((*kernel_size, inner, groups * outer)).astype('float32')
    g_shape = (len(x), *geometry.output_size(x.shape[1:3], kernel.shape[:2]), groups * outer)
    return geometry, x, kernel, rng.standard_normal(g_shape).astype('float32')


def exact(geometry, x, kernel, g):
    """Output and both gradients in float64."""

    def forward(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            geometry.strides,
            geometry.padding,
            rhs_dilation=geometry.dilation,
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=geometry.groups,
        )

    with jax.enable_x64(True):
        y, pull = jax.vjp(jax.jit(forward), x.astype('float64'), kernel.astype('float64'))
        return [np.asarray(array) for array in (y, *pull(g.astype('float64')))]


def ours(geometry, x, kernel, g):
    def all_three(x, kernel, g):
        return (
            native_conv.native_forward(x, kernel, geometry),
            native_conv.native_input(g, swapped(kernel, geometry.groups), geometry, x.shape[1:3]),
            native_weight.native_weight(x, g, geometry, kernel.shape[:2]),
        )

    return jax.jit(all_three)(x, kernel, g)


def check(seed):
    problem = draw(seed)
    for name, got, expected in zip(('y', 'x', 'kernel'), ours(*problem), exact(*problem), strict=True):
        error = np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-30)
        assert error <= 2e-6, (seed, name, error)


@pytest.mark.parametrize('lanes', LANES)
@pytest.mark.parametrize('start', range(0, 16, 8))
def test_output_and_gradients_are_those_of_xla_in_float64(monkeypatch, lanes, start):
    monkeypatch.setattr(native, 'lanes', lambda: lanes)
    for seed in range(start, start + 8):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize('lanes', LANES)
@pytest.mark.parametrize('start', range(100, 1100, 100))
def test_output_and_gradients_over_many_more(monkeypatch, lanes, start):
    monkeypatch.setattr(native, 'lanes', lambda: lanes)
    for seed in range(start, start + 100):
        check(seed)


class Guarded:
    """An array that ends, or begins, where memory ends that may be touched: one access beyond ends the process."""

    def __init__(self, array, *, at_end):
        page = mmap.PAGESIZE
        room = -(-array.nbytes // page) * page
        self.memory = mmap.mmap(-1, room + 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for place in (start, start + page + room):
            assert protect(ctypes.c_void_p(place), ctypes.c_size_t(page), 0) == 0
        offset = page + (room - array.nbytes if at_end else 0)
        self.address = start + offset
        self.array = np.frombuffer(self.memory, array.dtype, array.size, offset).reshape(array.shape)
        self.array[...] = array


def run_guarded(write, problem, num_pieces, result, operands, *, at_end):
    """The pieces one after another, in this thread."""
    module = llvm.parse_assembly(str(native._module(write, problem, num_pieces, 1 + len(operands))))
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), jit=True
    )
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    arrays = [Guarded(array, at_end=at_end) for array in (np.full(result, np.nan, 'float32'), *operands)]
    piece = ctypes.CFUNCTYPE(None, ctypes.c_int64, *[ctypes.c_void_p] * len(arrays))(
        engine.get_function_address('piece')
    )
    for index in range(num_pieces):
        piece(index, *(array.address for array in arrays))
    return arrays[0].array


@pytest.mark.parametrize('at_end', [False, True])
@pytest.mark.parametrize('lanes', LANES)
def test_nothing_is_touched_beyond_the_arrays(lanes, at_end):
    """And every element of the results is written: none is left as it was, not a number."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for seed in range(1000, 1006):
        geometry, x, kernel, g = draw(seed)
        y, x_gradient, kernel_gradient = exact(geometry, x, kernel, g)
        turned = np.asarray(swapped(jnp.asarray(kernel), geometry.groups))
        run = functools.partial(run_guarded, at_end=at_end)
        forward = native_conv.Problem(x.shape, kernel.shape, geometry, g.shape[1:3], False, lanes)
        backward = native_conv.Problem(g.shape, turned.shape, geometry, x.shape[1:3], True, lanes)
        weight = native_weight.Problem(x.shape, g.shape, geometry, kernel.shape[:2], lanes)
        parts = (weight.division.num_parts, *kernel.shape)
        results = [
            (run(native_conv._write, forward, forward.division.num_pieces, g.shape, (x, kernel)), y),
            (run(native_conv._write, backward, backward.division.num_pieces, x.shape, (g, turned)), x_gradient),
            (run(native_weight._write, weight, weight.division.num_pieces, parts, (x, g)).sum(0), kernel_gradient),
        ]
        for got, expected in results:
            assert np.abs(got - expected).max() <= 2e-6 * np.abs(expected).max(), seed


@pytest.mark.parametrize(
    ('num_outputs', 'groups', 'length'),
    [(128, 32, 16), (64, 1, 16), (24, 24, 8), (24, 1, 8), (12, 12, 4), (60, 1, 4), (60, 3, 4), (18, 3, 2), (7, 7, 1)],
)
def test_vectors_hold_whole_groups_or_lie_in_one(num_outputs, groups, length):
    assert vector_length(num_outputs, groups, 16) == length


@pytest.mark.parametrize(
    ('vectors', 'kernel_bytes', 'rows'), [(8, 2304, 448), (32, 9216, 112), (4, 10**6, 1), (1, 64, 3)]
)
def test_pieces_hold_every_vector_and_row_once(vectors, kernel_bytes, rows):
    division = divided(vectors, kernel_bytes, rows)
    assert division.num_steps * division.num_blocks == vectors
    assert division.num_steps == 1 or division.num_steps * kernel_bytes <= 2**15
    assert division.num_pieces >= min(16, vectors * rows) or division.num_parts == rows
    assert 1 <= division.num_parts <= rows


@pytest.mark.parametrize(
    ('channels', 'y', 'groups', 'kernel_size', 'chosen'),
    [
        (128, (8, 56, 56, 128), 32, (3, 3), True),
        (6, (8, 56, 56, 6), 6, (3, 3), False),  # vectors of 2
        (120, (8, 28, 28, 120), 2, (3, 3), False),  # of 4, with 60 channels a group
        (120, (8, 28, 28, 120), 30, (3, 3), True),
        (3, (64, 32, 32, 64), 1, (3, 3), True),
        (3, (8, 32, 32, 64), 1, (3, 3), False),
        (64, (64, 32, 32, 64), 1, (3, 3), False),
        (64, (8, 4, 4, 64), 64, (3, 65), False),
        (64, (8, 1, 99, 64), 8, (1, 9), False),
        (64, (8, 1, 99, 64), 64, (1, 31), True),
        (64, (8, 4, 4, 4, 64), 64, (3, 3, 3), False),
    ],
)
def test_groups_and_large_stems_are_suited(channels, y, groups, kernel_size, chosen):
    assert suited(channels, y, groups, kernel_size) == chosen

import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnn.ops import native, onednn

pytestmark = pytest.mark.skipif(not onednn.available(), reason='the loops are for where oneDNN is: x86 with AVX2')


def write_row(width, builder, piece, pointers):
    """Code for a row of y = a * b + y0, y0 being the number of the row."""
    y, a, b = pointers
    row = builder.uitofp(piece, native.FLOAT)
    start = native.zeros(8)
    for lane in range(8):
        start = builder.insert_element(start, row, native.ir.Constant(native.ir.IntType(32), lane))
    with native.loop(builder, native.word(0), native.word(width // 8)) as (step, _):
        vectors = [native.load(builder, native.at(builder, x, [(piece, width), (step, 8)]), 8) for x in (a, b)]
        total = native.multiply_add(builder, *vectors, start)
        native.store(builder, total, native.at(builder, y, [(piece, width), (step, 8)]))


def product(a, b):
    return native.call('product', write_row, a.shape[1], len(a), jax.ShapeDtypeStruct(a.shape, a.dtype), a, b)


def expected(a, b):
    return a * b + np.arange(len(a), dtype='float32')[:, None]


@pytest.mark.parametrize('rows', [1, 2, 3, 1000])
def test_each_piece_is_computed(rows):
    a, b = np.random.default_rng(rows).standard_normal((2, rows, 64)).astype('float32')
    for _ in range(20):
        np.testing.assert_allclose(jax.jit(product)(a, b), expected(a, b), rtol=1e-5, atol=1e-6)


def test_a_loop_without_rounds_keeps_its_values():
    def write(rounds, builder, piece, pointers):
        del piece
        with native.loop(builder, native.word(0), native.word(rounds), [native.zeros(8)]) as (_, values):
            ones = native.load(builder, pointers[1], 8)
            values[0] = builder.fadd(values[0], ones)
        native.store(builder, values[0], pointers[0])

    for rounds in (0, 1, 5):
        result = jax.ShapeDtypeStruct((8,), 'float32')
        assert native.call('rounds', write, rounds, 1, result, jnp.ones(8)).tolist() == [rounds] * 8


def test_what_follows_waits_for_the_last_piece():
    """The sums of products that threads compute at the same time, in loops and beside each other."""
    a, b = (jnp.asarray(x) for x in np.random.default_rng(0).standard_normal((2, 16, 4096)).astype('float32'))

    @jax.jit
    def sums(a, b):
        _, each = lax.scan(lambda a, _: (a + 1, product(a, b).sum(1)), a, length=8)
        return each, [product(a + step, b).sum(1) for step in range(8)]

    exact = [expected(np.asarray(a, 'float64') + step, np.asarray(b, 'float64')).sum(1) for step in range(8)]
    for _ in range(50):
        for got in sums(a, b):
            np.testing.assert_allclose(np.stack(got), exact, rtol=1e-4, atol=1e-2)


def test_threads_may_ask_for_the_same_program_at_once():
    a, b = np.random.default_rng(0).standard_normal((2, 5, 72)).astype('float32')  # a shape of no other test
    found = []
    threads = [threading.Thread(target=lambda: found.append(jax.jit(lambda: product(a, b))())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for got in found:
        np.testing.assert_allclose(got, expected(a, b), rtol=1e-5, atol=1e-6)


PROGRAM = """
import jax, numpy, sys
jax.config.update('jax_compilation_cache_dir', sys.argv[1])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.monitoring.register_event_listener(lambda name, **_: print(name) if name.endswith('cache_hits') else None)
from tests.ops.test_native import product
a = numpy.ones((4, 64), 'float32')
print(jax.jit(lambda a: product(a, 3 * a).sum())(a))
"""


def test_a_program_from_the_compile_cache_finds_its_loops(tmp_path):
    outputs = [
        subprocess.run(
            [sys.executable, '-c', PROGRAM, tmp_path], env=os.environ, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert outputs == ['1152.0\n', '/jax/compilation_cache/cache_hits\n1152.0\n']

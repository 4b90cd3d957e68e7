import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import launch
from cnn import models
from cnn.config import Experiment, InputError, Spec
from cnn.data import sources
from cnn.inspection import benchmark
from cnn.training import program, sharding

ROWS = (
    'model',
    'task',
    'batch size',
    'input',
    'dtype',
    'parameters',
    'devices',
    'versions',
    'trace',
    'compile',
    'step',
    'examples',
    'model FLOPs',
    'share of matmul',
    'share of roofline',
    'peak memory',
    'step needs',
)


def count(function, *shapes):
    """Multiply-adds of a function of float32 arrays."""
    return benchmark.multiply_adds(jax.make_jaxpr(function)(*map(array, shapes)).jaxpr)


def array(shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def conv(x, kernel, **options):
    options = {'window_strides': (1, 1), 'padding': 'SAME', **options}
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **options)


def forward(name, shape, **options):
    """Multiply-adds of a network on one example."""
    model = models.build(name, num_outputs=models.variant(name).num_outputs, **options)
    x = array((1, *shape))
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    run = jax.make_jaxpr(lambda variables, x: model.apply(variables, x, train=False))
    return benchmark.multiply_adds(run(variables, x).jaxpr)


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


def test_networks_count_what_is_published():
    assert forward('lenet', (32, 32, 1)) == 416_520
    assert forward('unet/2015', (572, 572, 1)) == 150_428_424_448


def test_a_classifier_counts_its_layers_and_its_pool():
    layers = 64 * 9 * 32 + 16 * 9 * 32 * 64 + 4 * 9 * 64 * 128 + 16 * 128 * 256 + 256 * 10
    pool = 128 * (4 * 2 * 2 + 4 * 4 * 2)  # a matmul in this program: averages of rows, then of columns
    assert forward('simple_cnn', (8, 8, 1)) == layers + pool


def test_made_up_examples_are_like_those_of_the_data():
    spec = Spec(
        shapes={'image': (9, 17, 3), 'label': (), 'tokens': (40,), 'signal': (6, 2), 'boxes': (5, 4), 'mask': (4,)},
        dtypes={'image': 'uint8', 'label': 'int64', 'tokens': 'int32', 'signal': 'float32', 'boxes': 'float32'}
        | {'mask': 'bool'},
        class_names={'label': ('a', 'b', 'c')},
        num_examples={},
    )
    batch = benchmark.made_up_batch(spec, spec.shapes, 64, levels=17)
    assert {field: (values.shape, values.dtype.name) for field, values in batch.items()} == {
        'valid': ((64,), 'bool'),
        **{field: ((64, *shape), spec.dtypes[field]) for field, shape in spec.shapes.items()},
    }
    assert batch['valid'].all()
    ranges = {'image': (0, 255), 'label': (0, 2), 'tokens': (0, 16), 'mask': (0, 1)}
    assert {field: (batch[field].min(), batch[field].max()) for field in ranges} == ranges
    assert 0 <= batch['signal'].min() < batch['signal'].max() < 1
    low, high = batch['boxes'][..., :2], batch['boxes'][..., 2:]
    assert (low >= 0).all()
    assert (low < high).all()
    assert (high <= (17, 9)).all()


def test_examples_of_no_one_shape_are_refused():
    spec = Spec({'image': (-1, 8, 1)}, {'image': 'uint8'}, {}, {})
    with pytest.raises(InputError, match=r'one shape; `image` of the data is \(-1, 8, 1\)'):
        benchmark.made_up_batch(spec, ['image'], 2, levels=2)


def test_the_figures_of_a_divided_step_agree(monkeypatch):
    monkeypatch.setattr(benchmark, 'matmul_rate', lambda mesh, dtype: {'float32': 1e9, 'bfloat16': 2e9}[dtype])
    monkeypatch.setattr(benchmark, 'bandwidth', lambda mesh: 1e9)
    config, spec = Experiment(), sources.spec('digits')
    config.model.options = {'widths': (4, 4, 8), 'hidden': 8, 'norm': 'batch'}
    config.model.dtype = 'bfloat16'
    config.data.batch_size, config.optimizer.accumulate, config.mesh.fsdp = 32, 2, 2
    config = program.resolve(config, spec)
    figures = benchmark.measure(config, spec, sharding.make_mesh(config), steps=3)
    forward_pass = forward('simple_cnn', (8, 8, 1), **config.model.options)
    median = figures['step_seconds']['median']
    assert figures['model_flops'] == 6 * 32 * forward_pass
    assert figures['model_flops_per_second'] == pytest.approx(figures['model_flops'] / median)
    assert figures['matmul_share'] == pytest.approx(figures['model_flops'] / median / 2e9)
    assert figures['roofline_seconds'] == max(figures['model_flops'] / 2e9, figures['bytes_accessed'] / 1e9)
    assert figures['roofline_binds'] == 'memory'
    assert (figures['steps'], len(figures['devices'])) == (3, 8)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """What `benchmark` printed of the default experiment, what it wrote, and what it left in the cache."""
    folder, cache = (tmp_path_factory.mktemp(name) for name in ('run', 'cache'))
    environment = {**os.environ, 'XLA_FLAGS': '', 'JAX_COMPILATION_CACHE_DIR': str(cache)}
    arguments = ['benchmark', '--config.data.batch_size=8', '--steps=2', f'--workdir={folder}']
    command = [sys.executable, 'launch.py', *arguments]
    result = subprocess.run(command, cwd=launch.ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (0, '')
    assert [path.name for path in folder.glob('*.json')] == ['benchmark.json']
    assert list(cache.iterdir()) == []
    return result.stdout.splitlines(), json.loads((folder / 'benchmark.json').read_text())


def test_the_table_has_a_line_for_each_figure(run):
    lines, figures = run
    width = max(map(len, ROWS)) + 2
    table = {line[:width].strip(): line[width:] for line in lines}
    assert tuple(table) == ROWS
    assert table['model'] == 'simple_cnn'
    assert table['task'].startswith('classification of digits')
    assert (table['batch size'], table['input']) == ('8', '8 x 8 x 1')
    assert table['parameters'] == f'{figures["parameters"]:,}' == '620,010'
    assert table['devices'] == '1 x cpu: cpu'
    assert f'jaxlib {figures["versions"]["jaxlib"]}' in table['versions']
    assert 'median of 2 ' in table['step']
    assert f'bound by {figures["roofline_binds"]} ' in table['share of roofline']
    assert table['peak memory'].endswith(' MiB of the process')


def test_the_figures_agree_with_each_other(run):
    _, figures = run
    step = figures['step_seconds']
    assert figures['examples_per_second'] == pytest.approx(8 / step['median'])
    assert 0 < step['p10'] <= step['median'] <= step['p90']
    assert figures['steps'] == 2
    assert figures['model_flops'] == 6 * 8 * forward('simple_cnn', (8, 8, 1))
    bounds = {
        'matmul': figures['model_flops'] / figures['matmul_flops_per_second']['float32'],
        'memory': figures['bytes_accessed'] / figures['bytes_per_second'],
    }
    assert figures['roofline_seconds'] == pytest.approx(bounds[figures['roofline_binds']])
    assert figures['roofline_seconds'] == pytest.approx(max(bounds.values()))
    assert figures['roofline_share'] == pytest.approx(figures['roofline_seconds'] / step['median'])
    assert min(figures['trace_seconds'], figures['compile_seconds'], figures['peak_memory_bytes']) > 0
    # Parameters and the two moments of AdamW go in, and come out in the same place.
    assert figures['step_memory_bytes']['arguments'] > 3 * 4 * figures['parameters']
    assert figures['step_memory_bytes']['outputs'] < 2**16
    assert figures['command'][1] == 'benchmark'
    assert all(math.isfinite(value) for value in figures.values() if isinstance(value, float))

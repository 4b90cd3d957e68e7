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
from cnn.config import Data, Experiment, Spec
from cnn.data import sources
from cnn.errors import InputError
from cnn.inspection import benchmark, describe
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


def forward(name, shape, **options):
    """Multiply-adds of a network on one example, with those of fixed averages."""
    model = models.build(name, num_outputs=models.variant(name).num_outputs, **options)
    figures = describe.describe(model, jax.ShapeDtypeStruct((1, *shape), jnp.float32), train=False)
    return figures['multiply_adds'] + figures['other_multiply_adds']


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
        'index': ((64,), 'int32'),
        'epoch': ((64,), 'int32'),
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
    config, spec = Experiment(), sources.spec(Data('digits'))
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

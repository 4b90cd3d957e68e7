"""How fast the compiled train step of an experiment runs, and how fast these devices would let it run.

The step is the one that training runs, on made-up batches that lie on the devices before the clock starts: neither
reading nor copying data counts. Training waits for the devices only where it logs, so it hides the host's share of a
step, which counts here. Two ceilings are measured beside it, on all devices of the mesh at once and in the precision
that JAX multiplies in by default: square matmuls, and a triad a + 2 b over arrays that no cache holds.

Model FLOPs are 2 x 3 x the multiply-adds of the forward pass: the gradients by inputs and by parameters cost as much as
it does, each, and nothing else counts, whatever the compiled step does besides or does again.

The roofline (Williams et al. 2009) lets no step end before its FLOPs at the rate of matmuls, nor before its bytes at
the bandwidth of the triad. The bytes are XLA's estimate, 'bytes accessed': what goes in and out of each operation,
cached or not, a loop's body once; on some backends counted before operations are fused. A share above 1 says that
caches served bytes that were counted, or that the step computes in a form that is faster than that matmul.
"""

import functools
import importlib.metadata
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cnn.config import Experiment, Spec
from cnn.data import augment, fitting
from cnn.errors import InputError
from cnn.inspection import cost
from cnn.training import program as programs
from cnn.training import sharding, teachers
from cnn.training.program import Program
from cnn.training.state import TRAIN, stream
from cnn.training.step import apply_function

WARM_UP = 2  # steps before the timed ones
BUDGET = 5.0  # seconds of timed steps where no number is asked for,
LEAST, MOST = 5, 200  # within these numbers of them


def measure(config: Experiment, spec: Spec, mesh: Mesh, steps: int | None = None) -> dict[str, Any]:
    """What the table shows, as plain values in seconds, bytes and FLOP/s; see `table`.

    Args:
      config: resolved.
      spec: of the data's examples.
      steps: how many are timed; None for as many as `BUDGET` holds.

    Compile time is that of a compilation only where JAX's persistent cache is off.

    Raises:
      InputError: the network can't take the data's shapes, or these differ between examples.
    """
    # The length of an epoch is a number among the step's arguments: any will do.
    teacher = teachers.load(config, spec, mesh)
    program, numbers = programs.build(config, spec, config.data.batch_size, mesh, teacher)
    levels = config.model.options.get('levels') or program.task.num_outputs(program.spec) or 2
    fitted = fitting.fitted_spec(spec, config.data)
    host_batch = made_up_batch(fitted, program.task.fields(spec), config.data.batch_size, levels)
    flops = 6 * _forward_multiply_adds(program, config, spec, host_batch, numbers)
    batch = jax.device_put(host_batch, sharding.batch_sharding(mesh))
    arguments = jax.block_until_ready((program.init(numbers), batch, stream(config.seed, TRAIN), numbers))

    train_step: Any = program.train_step
    began = time.perf_counter()
    lowered = train_step.lower(*arguments)
    traced = time.perf_counter()
    step: Any = lowered.compile()
    compiled = time.perf_counter()
    seconds = _time_steps(step, *arguments, steps=steps)
    peak, peak_of = sharding.peak_memory(mesh)  # before the measurements below, which need memory too

    tenth, median, ninetieth = np.percentile(seconds, (10, 50, 90)).tolist()
    rates = {dtype: matmul_rate(mesh, dtype) for dtype in dict.fromkeys(('float32', config.model.dtype))}
    rate, bytes_per_second = rates[config.model.dtype], bandwidth(mesh)
    bytes_accessed = step.cost_analysis()['bytes accessed'] * mesh.size  # XLA counts what one device does
    bounds = {'matmul': flops / rate, 'memory': bytes_accessed / bytes_per_second}
    binding = max(bounds, key=lambda side: bounds[side])
    memory = step.memory_analysis()
    return {
        'model': config.model.name,
        'task': config.task.name,
        'data': config.data.name,
        'batch_size': config.data.batch_size,
        'inputs': [list(array.shape[1:]) for array in program.task.inputs(program.spec)],
        'dtype': config.model.dtype,
        'param_dtype': config.model.param_dtype,
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(program.state.params)),
        'devices': [f'{device.platform}: {device.device_kind}' for device in mesh.devices.flat],
        'versions': {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib')},
        'trace_seconds': traced - began,
        'compile_seconds': compiled - traced,
        'steps': len(seconds),
        'step_seconds': {'p10': tenth, 'median': median, 'p90': ninetieth},
        'examples_per_second': config.data.batch_size / median,
        'model_flops': flops,
        'model_flops_per_second': flops / median,
        'matmul_flops_per_second': rates,
        'matmul_share': flops / median / rate,
        'bytes_accessed': bytes_accessed,
        'bytes_per_second': bytes_per_second,
        'roofline_seconds': bounds[binding],
        'roofline_binds': binding,
        'roofline_share': bounds[binding] / median,
        'peak_memory_bytes': peak,
        'peak_memory_of': peak_of,
        'step_memory_bytes': {
            'arguments': memory.argument_size_in_bytes,
            'outputs': memory.output_size_in_bytes - memory.alias_size_in_bytes,
            'temporary': memory.temp_size_in_bytes,
        },
    }


def table(figures: Mapping[str, Any]) -> str:
    """What `measure` returned, a line for each figure."""
    kinds = {kind: figures['devices'].count(kind) for kind in figures['devices']}
    step, rates, needs = figures['step_seconds'], figures['matmul_flops_per_second'], figures['step_memory_bytes']
    intensity = figures['model_flops'] / figures['bytes_accessed']
    rows = {
        'model': figures['model'],
        'task': f'{figures["task"]} of {figures["data"]}, made-up batches',
        'batch size': figures['batch_size'],
        'input': ', '.join(' x '.join(map(str, shape)) for shape in figures['inputs']),
        'dtype': f'{figures["dtype"]}, parameters {figures["param_dtype"]}',
        'parameters': f'{figures["parameters"]:,}',
        'devices': ', '.join(f'{count} x {kind}' for kind, count in kinds.items()),
        'versions': ', '.join(f'{name} {version}' for name, version in figures['versions'].items()),
        'trace': f'{figures["trace_seconds"]:.2f} s',
        'compile': f'{figures["compile_seconds"]:.2f} s, without a cache',
        'step': f'{_ms(step["median"])} ms, median of {figures["steps"]} '
        f'(10th to 90th percentile {_ms(step["p10"])} to {_ms(step["p90"])})',
        'examples': f'{figures["examples_per_second"]:,.1f} /s',
        'model FLOPs': f'{figures["model_flops"] / 1e9:,.4g} GFLOP a step, '
        f'{figures["model_flops_per_second"] / 1e9:,.4g} GFLOP/s',
        'share of matmul': f'{figures["matmul_share"]:.1%} of {figures["dtype"]} ('
        + ', '.join(f'{dtype} {rate / 1e9:,.1f} GFLOP/s' for dtype, rate in rates.items())
        + ')',
        'share of roofline': f'{figures["roofline_share"]:.1%} of {_ms(figures["roofline_seconds"])} ms, '
        f'bound by {figures["roofline_binds"]} ({figures["bytes_accessed"] / 1e9:,.4g} GB a step at '
        f'{figures["bytes_per_second"] / 1e9:,.1f} GB/s, {intensity:,.1f} FLOP/byte)',
        'peak memory': f'{_mib(figures["peak_memory_bytes"])} MiB of the {figures["peak_memory_of"]}',
        'step needs': f'{_mib(sum(needs.values()))} MiB a device ('
        + ', '.join(f'{name} {_mib(size)}' for name, size in needs.items())
        + ')',
    }
    width = max(map(len, rows))
    return '\n'.join(f'{name:<{width}}  {value}' for name, value in rows.items())


def made_up_batch(spec: Spec, fields: Iterable[str], batch_size: int, levels: int) -> dict[str, np.ndarray]:
    """Random examples of a data set, each field [batch_size, ...] of its dtype, all valid.

    Classes are below their number, other bytes below 256 and other integers below `levels`; floats are in 0..1, and
    boxes have their corners inside the image, in order. They are the first ones of the first epoch.
    Raises InputError for a shape that differs between examples.
    """
    generator = np.random.default_rng(0)
    batch: dict[str, np.ndarray] = {
        'valid': np.ones(batch_size, bool),
        'index': np.arange(batch_size, dtype=np.int32),
        'epoch': np.zeros(batch_size, np.int32),
    }
    for field in fields:
        shape, dtype = (batch_size, *spec.shapes[field]), np.dtype(spec.dtypes[field])
        if -1 in shape:
            raise InputError(f'benchmark needs examples of one shape; `{field}` of the data is {spec.shapes[field]}')
        if field == 'boxes':
            height, width = spec.shapes['image'][:2]
            corners = np.sort(generator.random((*shape[:-1], 2, 2)), axis=-2) * (width, height)
            batch[field] = corners.reshape(shape).astype(dtype)
        elif dtype.kind == 'f':
            batch[field] = generator.random(shape).astype(dtype)
        else:
            classes = spec.class_names.get(field)
            high = len(classes) if classes else 256 if dtype == np.uint8 else levels
            batch[field] = generator.integers(0, high, shape).astype(dtype)
    return batch


def _forward_multiply_adds(program: Program, config: Experiment, spec: Spec, batch: Any, numbers: Any) -> int:
    """Those of the loss of a raw batch, augmentation left out."""
    prepare = augment.preparation(config, spec)
    prepared = jax.eval_shape(lambda batch: prepare(batch, None, numbers), batch)
    loss = functools.partial(program.task.loss, apply_function(program.model))
    key = jax.eval_shape(lambda: stream(0, TRAIN))
    return cost.multiply_adds(jax.make_jaxpr(loss)(program.state.variables, prepared, key).jaxpr)


def _time_steps(step: Callable, state: Any, *rest: Any, steps: int | None) -> list[float]:
    """Seconds of each timed step, each waited for; the state is donated to the first."""
    seconds: list[float] = []
    for _ in range(WARM_UP + (steps or MOST)):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, *rest))
        seconds.append(time.perf_counter() - began)
        if steps is None and len(seconds) >= WARM_UP + LEAST and sum(seconds[WARM_UP:]) >= BUDGET:
            break
    return seconds[WARM_UP:]


def matmul_rate(mesh: Mesh, dtype: str) -> float:
    """FLOP/s of all devices together, each multiplying square matrices: the best of several runs."""
    size = 2048 if mesh.devices.flat[0].platform == 'cpu' else 8192
    where = sharding.batch_sharding(mesh)
    shape = (mesh.size, size, size)
    normal = jax.jit(lambda key: jax.random.normal(key, shape, dtype), out_shardings=where)
    a, b = map(normal, jax.random.split(jax.random.key(0)))
    matmul = jax.jit(jnp.matmul, out_shardings=where)
    return 2 * math.prod(shape) * size / _best_seconds(lambda: jax.block_until_ready(matmul(a, b)))


def bandwidth(mesh: Mesh) -> float:
    """Bytes a second that all devices together read and write in a triad: the best of several runs."""
    is_host = mesh.devices.flat[0].platform == 'cpu'
    size = 2**26 // mesh.size if is_host else 2**30  # bytes of an array on each device; those of the host share it
    where = sharding.batch_sharding(mesh)
    ones = jax.jit(lambda: jnp.ones((mesh.size, size // 4), jnp.float32), out_shardings=where)
    # In place: the host would hand out fresh pages for each result, which takes far longer than to write them.
    triad = jax.jit(lambda a, b: a + 2 * b, donate_argnums=0, out_shardings=where)
    a, b = ones(), ones()

    def run() -> None:
        nonlocal a
        a = jax.block_until_ready(triad(a, b))

    return 3 * b.nbytes / _best_seconds(run)


def _best_seconds(run: Callable[[], Any]) -> float:
    """The shortest of at least five calls over half a second, after one that compiles."""
    run()
    seconds: list[float] = []
    while len(seconds) < 5 or sum(seconds) < 0.5:
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _ms(seconds: float) -> str:
    return f'{seconds * 1e3:,.4g}'


def _mib(size: float) -> str:
    return f'{size / 2**20:,.1f}'

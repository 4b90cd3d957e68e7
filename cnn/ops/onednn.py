"""oneDNN's convolution and matmul, which jaxlib carries on x86, called by the names that XLA's own rewriter uses.

XLA for the CPU compiles convolutions by other means, one to two orders of magnitude slower for several kinds. The call
is no public interface: the messages below are those of `RELEASES`, where they were tried, and one that oneDNN refuses
ends the process. So nothing is given to it that it could refuse, or that random search found it to do wrong; float32
only, for in bfloat16 the code for AMX is wrong where few columns are left (oneDNN 3.7.3).
"""

import functools
import json
import platform
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
from jax import lax

RELEASES = ('0.10.2', '0.11.0', '0.11.1', '0.11.2')


def available() -> bool:
    """Whether this machine's jaxlib is one that is known to carry it, and the processor has AVX2."""
    known = jaxlib.version.__version__ in RELEASES
    return known and platform.machine() == 'x86_64' and platform.system() == 'Linux' and _has_avx2()


@functools.cache
def _has_avx2() -> bool:
    return 'avx2' in Path('/proc/cpuinfo').read_text().split()


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
    *,
    inputs_first: bool = False,
) -> jax.Array:
    """The convolution [N, *S, C] * [*K, C / groups, O] -> [N, *S', O] of rank 1 to 3, in float32.

    With `inputs_first` the kernel is [C / groups, *K, O]. No array may be empty. Padding may be negative.
    """
    rank = x.ndim - 2
    if 1 < groups == x.shape[-1] == kernel.shape[-1] and max(dilation) > 1:
        # oneDNN's code for it runs parallel loops inside others, at which XLA's thread pool hangs or corrupts memory.
        zeros = [(0, 0, spread - 1) for spread in dilation]
        kernel = lax.pad(kernel, jnp.zeros((), kernel.dtype), [*zeros, (0, 0, 0), (0, 0, 0)])
        dilation = (1,) * rank
    kernel_size = kernel.shape[inputs_first : rank + inputs_first]
    windows = [(taps - 1) * spread + 1 for taps, spread in zip(kernel_size, dilation, strict=True)]
    sizes = [
        (size + low + high - window) // stride + 1
        for size, (low, high), window, stride in zip(x.shape[1:-1], padding, windows, strides, strict=True)
    ]
    # It reads what nobody wrote where an axis with a stride has one output: without stride, and cut to one window.
    single = [outputs == 1 and stride > 1 for outputs, stride in zip(sizes, strides, strict=True)]
    strides = tuple(1 if one else stride for one, stride in zip(single, strides, strict=True))
    padding = tuple(
        (low, window - size - low if one else high)
        for one, (low, high), window, size in zip(single, padding, windows, x.shape[1:-1], strict=True)
    )
    # It reads beyond its input where a whole window lies in the padding, and knows no negative one.
    given = [tuple(min(max(end, 0), window - 1) for end in pair) for pair, window in zip(padding, windows, strict=True)]
    rest = [
        (low - given_low, high - given_high, 0)
        for (low, high), (given_low, given_high) in zip(padding, given, strict=True)
    ]
    if any(low or high for low, high, _ in rest):
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *rest, (0, 0, 0)])
    result = jax.ShapeDtypeStruct((len(x), *sizes, kernel.shape[-1]), x.dtype)
    assert min(*x.shape, *kernel.shape, *result.shape) > 0
    assert x.dtype == jnp.float32
    data = {'batch_dim': 0, 'feature_dim': rank + 1, 'spatial_dims': list(range(1, rank + 1))}
    filters = {
        'input_feature_dim': 0 if inputs_first else rank,
        'output_feature_dim': rank + 1,
        'spatial_dims': list(range(inputs_first, rank + inputs_first)),
    }
    message = {
        'dims': rank + 2,
        'input': {'data': data},
        'kernel': {'filter': filters},
        'output': {'data': data},
        'window': {
            'strides': strides,
            'pad_left': [low for low, _ in given],
            'pad_right': [high for _, high in given],
            'window_dilations': dilation,
        },
        'feature_groups': groups,
    }
    return _call('convolution', {'onednn_conv_config': message}, result, x, kernel)


def transposed_matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product of a [K, M], transposed, and b [K, N], in float32: [M, N]. None may be empty."""
    assert a.dtype == jnp.float32
    assert min(*a.shape, *b.shape) > 0
    result = jax.ShapeDtypeStruct((a.shape[1], b.shape[1]), a.dtype)
    return _call('matmul', {'onednn_matmul_config': {'transpose_a': True}}, result, a, b)


def _call(name: str, message: dict[str, Any], result: jax.ShapeDtypeStruct, *operands: jax.Array) -> jax.Array:
    call = jax.ffi.ffi_call(
        f'__onednn${name}', result, custom_call_api_version=2, legacy_backend_config=json.dumps(message)
    )
    return call(*operands)

"""oneDNN's convolution and matmul, which jaxlib carries on x86, called by the names that XLA's own rewriter uses.

XLA for the CPU compiles convolutions by other means, one to two orders of magnitude slower for several kinds. The call
is no public interface: the messages below are those of `RELEASES`, where they were tried, and one that oneDNN refuses
ends the process. So nothing is given to it that it could refuse.
"""

import json
import platform
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
from jax import lax

RELEASES = ('0.10.2', '0.11.0', '0.11.1', '0.11.2')
DTYPES = (jnp.float32, jnp.bfloat16)


def available() -> bool:
    """Whether this machine's jaxlib is one that is known to carry it."""
    known = jaxlib.version.__version__ in RELEASES
    return known and platform.machine() == 'x86_64' and platform.system() == 'Linux'


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
    """The convolution [N, *S, C] * [*K, C / groups, O] -> [N, *S', O] of rank 1 to 3, in float32 or bfloat16.

    With `inputs_first` the kernel is [C / groups, *K, O]. No array may be empty. Padding may be negative.
    """
    rank = x.ndim - 2
    kernel_size = kernel.shape[inputs_first : rank + inputs_first]
    windows = [(taps - 1) * spread + 1 for taps, spread in zip(kernel_size, dilation, strict=True)]
    # oneDNN reads beyond its input where a whole window lies in the padding, and knows no negative one.
    given = [tuple(min(max(end, 0), window - 1) for end in pair) for pair, window in zip(padding, windows, strict=True)]
    rest = [
        (low - given_low, high - given_high, 0)
        for (low, high), (given_low, given_high) in zip(padding, given, strict=True)
    ]
    if any(low or high for low, high, _ in rest):
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *rest, (0, 0, 0)])
    sizes = (
        (size + sum(pair) - window) // stride + 1
        for size, window, stride, pair in zip(x.shape[1:-1], windows, strides, given, strict=True)
    )
    result = jax.ShapeDtypeStruct((len(x), *sizes, kernel.shape[-1]), x.dtype)
    assert min(*x.shape, *kernel.shape, *result.shape) > 0
    assert x.dtype in DTYPES
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
    """The product of the transpose of a [K, M] and b [K, N], in float32 or bfloat16: [M, N]. None may be empty."""
    assert a.dtype in DTYPES
    assert min(*a.shape, *b.shape) > 0
    result = jax.ShapeDtypeStruct((a.shape[1], b.shape[1]), a.dtype)
    return _call('matmul', {'onednn_matmul_config': {'transpose_a': True}}, result, a, b)


def _call(name: str, message: dict[str, Any], result: jax.ShapeDtypeStruct, *operands: jax.Array) -> jax.Array:
    call = jax.ffi.ffi_call(
        f'__onednn${name}', result, custom_call_api_version=2, legacy_backend_config=json.dumps(message)
    )
    return call(*operands)

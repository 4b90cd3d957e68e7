"""Convolution of rank 1 to 3, in the form that is fastest where it runs.

The three functions of a convolution (output, gradient of the input, gradient of the kernel) are JAX primitives, each
bilinear and each the derivative of the others, so that derivatives of any order and mode, `vmap`, `scan` and `cond`
keep the fast forms. The form is chosen where the program is lowered, when platform and shapes are known:

    GPU, TPU                                        XLA's own convolution ('plain')
    CPU, jaxlib with oneDNN, one device             'library': cnn/ops/onednn.py, the kernel's gradient too; or,
                                                    where they are faster, our loops: native_conv.py
    CPU, any other                                  'portable': shifts, matmuls and XLA
    float64 and other types                         as on any other CPU

The environment variable CNN_CONV (auto, portable, plain) and `forced` override it.
"""

import contextlib
import contextvars
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cnn.errors import nearest
from cnn.ops import conv_forms, conv_input_forms, conv_weight_forms, onednn
from cnn.ops.geometry import Geometry

FORMS = ('auto', 'portable', 'plain')
_forced = contextvars.ContextVar('forced', default='auto')

Padding = str | Sequence[tuple[int, int]]


def chosen_form(form: str) -> str:
    """The form asked for, or CNN_CONV where that is 'auto'. Raises InputError for another name."""
    if form == 'auto':
        form = os.environ.get('CNN_CONV', 'auto')
    if form not in FORMS:
        raise nearest('form of convolution (CNN_CONV)', form, FORMS)
    return form


@contextlib.contextmanager
def forced(form: str) -> Iterator[None]:
    """Convolutions traced inside take this form; 'auto' leaves it to CNN_CONV and the table above."""
    token = _forced.set(form)
    try:
        yield
    finally:
        _forced.reset(token)


def conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int] | None = None,
    padding: Padding = 'SAME',
    dilation: Sequence[int] | None = None,
    groups: int = 1,
    precision: Any = None,
) -> jax.Array:
    """Convolves [N, *S, C] with [*K, C / groups, O], without flipping: [N, *S', O]. As many channels a group in as out.

    `padding` is SAME, VALID, or zeros (before, after) on each axis; negative ones crop. As lax.conv_general_dilated.
    """
    rank = x.ndim - 2
    strides, dilation = tuple(strides or (1,) * rank), tuple(dilation or (1,) * rank)
    if isinstance(padding, str):
        window = [(taps - 1) * spread + 1 for taps, spread in zip(kernel.shape, dilation, strict=False)]
        padding = lax.padtype_to_pads(x.shape[1:-1], window, strides, padding)
    return _bind(_forward_p, x, kernel, _geometry(strides, padding, dilation, groups, precision), size=None)


def conv_transpose(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Padding = 'SAME',
    dilation: Sequence[int] | None = None,
    groups: int = 1,
    precision: Any = None,
) -> jax.Array:
    """Convolves [N, *S, C], with strides - 1 zeros between positions, with [*K, C / groups, O]: [N, *S', O].

    `padding` is SAME (S' = S strides), VALID, or zeros (before, after) around the spread positions. As
    lax.conv_transpose: the kernel is not flipped. In other words the gradient of a convolution's input.
    """
    rank = x.ndim - 2
    dilation = tuple(dilation or (1,) * rank)
    windows = [(k - 1) * d + 1 for k, d in zip(kernel.shape[:rank], dilation, strict=True)]
    if isinstance(padding, str):
        padding = [_transposed_padding(window, s, padding) for window, s in zip(windows, strides, strict=True)]
    numbers = list(zip(x.shape[1:-1], windows, strides, padding, strict=True))
    size = tuple((n - 1) * s + 1 + low + high - window + 1 for n, window, s, (low, high) in numbers)
    opposite = [(window - 1 - low, window - 1 - high) for _, window, _, (low, high) in numbers]
    kernel = jnp.flip(conv_forms.swapped(kernel, groups), range(rank))
    return _bind(_input_p, x, kernel, _geometry(strides, opposite, dilation, groups, precision), size=size)


def _transposed_padding(window: int, stride: int, padding: str) -> tuple[int, int]:
    """What lax.conv_transpose pads on one axis: SAME multiplies the size by the stride, VALID keeps every product."""
    if padding.upper() == 'VALID':
        return window - 1, window - 1 + max(stride - window, 0)
    total = window + stride - 2
    low = window - 1 if stride > window - 1 else -(-total // 2)
    return low, total - low


def conv_general_dilated(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    **_: Any,
) -> jax.Array:
    """`conv` with the arguments that flax.linen.Conv gives, whose arrays have their channels last."""
    if lhs_dilation and math.prod(lhs_dilation) > 1:
        zeros = [(0, 0, 0), *((0, 0, spread - 1) for spread in lhs_dilation), (0, 0, 0)]
        x = lax.pad(x, jnp.zeros((), x.dtype), zeros)
    return conv(x, kernel, window_strides, padding, rhs_dilation, feature_group_count, precision)


def multiply_adds(equation: Any) -> int:
    """Of an equation of this file's primitives: those of the convolution it belongs to, padded taps included."""
    first, second, output = (variable.aval.shape for variable in (*equation.invars, *equation.outvars))
    kernel, outputs = {
        'conv': (second, output),
        'conv_input': (second, first),
        'conv_weight': (output, second),
    }[equation.primitive.name]
    return math.prod(outputs) * math.prod(kernel[equation.params['pack'] is not None : -1])


def _geometry(strides: Any, padding: Any, dilation: Any, groups: int, precision: Any) -> Geometry:
    pairs = tuple((int(low), int(high)) for low, high in padding)
    return Geometry(tuple(strides), pairs, tuple(dilation), groups, precision)


def _bind(primitive: Primitive, a: jax.Array, b: jax.Array, geometry: Geometry, size: Any) -> jax.Array:
    return primitive.bind(a, b, geometry=geometry, size=size, pack=None, form=chosen_form(_forced.get()))


# The primitives. `size` is the spatial shape of the result where the operands leave it open; with `pack` both operands
# have one more axis of that length in front, of independent convolutions.


def _forward(x: jax.Array, kernel: jax.Array, geometry: Geometry, size: None, *, library: bool) -> jax.Array:
    return conv_forms.forward(x, kernel, geometry, library=library)


def _plain_forward(x: jax.Array, kernel: jax.Array, geometry: Geometry, size: None) -> jax.Array:
    return conv_forms.plain_forward(x, kernel, geometry)


Shape = tuple[int, ...]


def _forward_shape(x: Shape, kernel: Shape, geometry: Geometry, size: None) -> Shape:
    if len(x) != len(kernel) or x[-1] != kernel[-2] * geometry.groups or kernel[-1] % geometry.groups:
        raise TypeError(f'a kernel {kernel} in {geometry.groups} groups does not fit an input {x}')
    sizes = geometry.output_size(x[1:-1], kernel[:-2])
    return (x[0], *(max(length, 0) for length in sizes), kernel[-1])


def _input_shape(g: Shape, kernel: Shape, geometry: Geometry, size: Shape) -> Shape:
    return (g[0], *size, kernel[-2] * geometry.groups)


def _weight_shape(x: Shape, g: Shape, geometry: Geometry, size: Shape) -> Shape:
    return (*size, x[-1] // geometry.groups, g[-1])


def _primitive(
    name: str, shape: Callable[..., Shape], plain: Callable[..., Any], fast: Callable[..., Any]
) -> Primitive:
    """A primitive whose value is plain(a, b, geometry, size) or, on CPUs, fast(a, b, geometry, size, library=...).

    `shape` is that of the result for those of a and b.
    """
    primitive = Primitive(name)

    def plainly(a: Any, b: Any, *, geometry: Geometry, size: Any, pack: int | None, form: str) -> jax.Array:
        def function(a: jax.Array, b: jax.Array) -> jax.Array:
            return plain(a, b, geometry, size)

        return jax.vmap(function)(a, b) if pack else function(a, b)

    def fastly(a: Any, b: Any, *, library: bool, geometry: Geometry, size: Any, pack: int | None) -> jax.Array:
        def function(a: jax.Array, b: jax.Array) -> jax.Array:
            wide = jnp.promote_types(a.dtype, jnp.float32)  # sums are never of 16 bits
            return fast(a.astype(wide), b.astype(wide), geometry, size, library=library).astype(a.dtype)

        if pack and pack <= 8:
            return jnp.stack([function(a[index], b[index]) for index in range(pack)])
        return lax.map(lambda pair: function(*pair), (a, b)) if pack else function(a, b)

    def lower_on_cpu(context: mlir.LoweringRuleContext, a: Any, b: Any, *, form: str, **params: Any) -> Any:
        if form == 'plain':
            return mlir.lower_fun(plainly, multiple_results=False)(context, a, b, form=form, **params)
        library = form == 'auto' and _has_library(context)
        fast_form = functools.partial(fastly, library=library)
        return mlir.lower_fun(fast_form, multiple_results=False)(context, a, b, **params)

    def abstract(a: Any, b: Any, *, geometry: Geometry, size: Any, pack: int | None, form: str) -> jax.core.ShapedArray:
        packs, shapes = a.shape[: pack is not None], [x.shape[pack is not None :] for x in (a, b)]
        return jax.core.ShapedArray((*packs, *shape(*shapes, geometry, size)), a.dtype)

    def batch(operands: Any, axes: Any, *, pack: int | None, **params: Any) -> Any:
        a, b = operands
        length = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
        if pack is None and axes[1] is None and name != 'conv_weight':
            a = jnp.moveaxis(a, axes[0], 0)  # more images
            result = primitive.bind(a.reshape(-1, *a.shape[2:]), b, pack=None, **params)
            return result.reshape(length, -1, *result.shape[1:]), 0
        a, b = (
            jnp.broadcast_to(x, (length, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(operands, axes, strict=True)
        )
        if pack is None:
            return primitive.bind(a, b, pack=length, **params), 0
        a, b = (x.reshape(-1, *x.shape[2:]) for x in (a, b))
        result = primitive.bind(a, b, pack=length * pack, **params)
        return result.reshape(length, pack, *result.shape[1:]), 0

    def evaluate(a: Any, b: Any, **params: Any) -> jax.Array:
        return _jitted(primitive, tuple(sorted(params.items())))(a, b)

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(evaluate)
    mlir.register_lowering(primitive, mlir.lower_fun(plainly, multiple_results=False))
    mlir.register_lowering(primitive, lower_on_cpu, platform='cpu')
    batching.primitive_batchers[primitive] = batch
    return primitive


@functools.cache
def _jitted(primitive: Primitive, params: tuple[tuple[str, Any], ...]) -> Callable[..., jax.Array]:
    return jax.jit(lambda a, b: primitive.bind(a, b, **dict(params)))


def _has_library(context: mlir.LoweringRuleContext) -> bool:
    """Whether oneDNN can be called here: in float32, by a program of one device that is not exported.

    XLA does not know how to divide the call among devices; every one would compute all of it.
    """
    module = context.module_context
    num_devices = getattr(module.axis_context, 'num_devices', None)
    exported = module.lowering_parameters.for_export
    typed = jnp.promote_types(context.avals_in[0].dtype, jnp.float32) == jnp.float32  # type: ignore[attr-defined]
    return typed and num_devices == 1 and not exported and onednn.available()


_forward_p = _primitive('conv', _forward_shape, _plain_forward, _forward)
_input_p = _primitive('conv_input', _input_shape, conv_input_forms.plain_input, conv_input_forms.input)
_weight_p = _primitive('conv_weight', _weight_shape, conv_weight_forms.plain_weight, conv_weight_forms.weight)


def _spatial(x: Any, pack: int | None) -> tuple[int, ...]:
    """The spatial shape of x [N, *S, C]."""
    return x.aval.shape[1 + (pack is not None) : -1]


def _kernel_size(kernel: Any, pack: int | None) -> tuple[int, ...]:
    return kernel.aval.shape[pack is not None : -2]


def _input_of(g: Any, x: Any, kernel: Any, *, size: Any, **params: Any) -> Any:
    return _input_p.bind(g, kernel, size=_spatial(x, params['pack']), **params)


def _weight_of(g: Any, x: Any, kernel: Any, *, size: Any, **params: Any) -> Any:
    return _weight_p.bind(x, g, size=_kernel_size(kernel, params['pack']), **params)


ad.defbilinear(_forward_p, _input_of, _weight_of)
ad.defbilinear(
    _input_p,  # of g and kernel, to x
    lambda x, g, kernel, *, size, **params: _forward_p.bind(x, kernel, size=None, **params),
    lambda x, g, kernel, *, size, **params: _weight_p.bind(x, g, size=_kernel_size(kernel, params['pack']), **params),
)
ad.defbilinear(
    _weight_p,  # of x and g, to the kernel
    lambda kernel, x, g, *, size, **params: _input_p.bind(g, kernel, size=_spatial(x, params['pack']), **params),
    lambda kernel, x, g, *, size, **params: _forward_p.bind(x, kernel, size=None, **params),
)

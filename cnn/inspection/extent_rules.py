"""What the results of each operation of a program see of the input, given what its operands do: see extents.py."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from cnn.inspection.extents import (
    IRREGULAR,
    MOST_ELEMENTS,
    Extent,
    Step,
    Value,
    lost,
    mixed_over,
    nothing,
    rearranged,
    through_window,
    union,
)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _conv(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """Of cnn.ops.conv: forward, or the gradient of the input."""
    x, kernel = values
    if kernel.depends or eqn.primitive.name == 'conv_weight':
        return [lost(x, kernel)]
    geometry, first = eqn.params['geometry'], 1 + (eqn.params['pack'] is not None)
    shape, kernel_shape, output = (_shape(variable) for variable in (*eqn.invars, *eqn.outvars))

    def convolve(extent: Extent) -> Extent | None:
        for index, (stride, spread) in enumerate(zip(geometry.strides, geometry.dilation, strict=True)):
            axis, low = first + index, geometry.padding[index][0]
            taps, options = [tap * spread for tap in range(kernel_shape[axis - 1])], {'stride': stride, 'low': low}
            if eqn.primitive.name == 'conv_input':
                taps, options = [-tap for tap in taps], {'spread': stride, 'low': -low}
            extent = through_window(extent, axis, shape[axis], output[axis], taps, **options)
        return _mixed(extent, len(shape) - 1, geometry.groups, output[-1])

    return [x.apply(convolve)]


def _lax_conv(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    x, kernel = values
    parameters, numbers = eqn.params, eqn.params['dimension_numbers']
    if kernel.depends or parameters['batch_group_count'] > 1:
        return [lost(x, kernel)]
    shape, kernel_shape, output = (_shape(variable) for variable in (*eqn.invars, *eqn.outvars))

    def convolve(extent: Extent) -> Extent | None:
        axes = zip(*(spec[2:] for spec in numbers), strict=True)
        for index, (axis, kernel_axis, new) in enumerate(axes):
            extent = through_window(
                extent,
                axis,
                shape[axis],
                output[new],
                [tap * parameters['rhs_dilation'][index] for tap in range(kernel_shape[kernel_axis])],
                stride=parameters['window_strides'][index],
                low=parameters['padding'][index][0],
                spread=parameters['lhs_dilation'][index],
            )
        groups, features = parameters['feature_group_count'], output[numbers.out_spec[1]]
        mixed = _mixed(extent, numbers.lhs_spec[1], groups, features)
        return mixed and rearranged(
            mixed, [old for _, old in sorted(zip(numbers.out_spec, numbers.lhs_spec, strict=True))]
        )

    return [x.apply(convolve)]


def _mixed(extent: Extent, axis: int, groups: int, outputs: int) -> Extent | None:
    """Channels mixed within each of the groups."""
    if groups == 1 or extent.steps[axis] or extent.is_constant(axis):
        return mixed_over(extent, [axis])

    def mix(x: np.ndarray, reduce: Callable[..., Any]) -> np.ndarray:
        x = np.moveaxis(x, axis, -1)
        grouped = np.broadcast_to(x, (*x.shape[:-1], max(groups, x.shape[-1]))).reshape(*x.shape[:-1], groups, -1)
        return np.moveaxis(np.repeat(reduce(grouped, axis=-1), outputs // groups, -1), -1, axis)

    return Extent(mix(extent.first, np.min), mix(extent.last, np.max), extent.steps)


def _reduce_window(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    parameters, shape, output = eqn.params, _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    ones = (1,) * len(shape)
    spreads, dilations = (parameters.get(name) or ones for name in ('base_dilation', 'window_dilation'))

    def pool(extent: Extent) -> Extent:
        for axis, window in enumerate(parameters['window_dimensions']):
            taps = range(0, window * dilations[axis], dilations[axis])
            stride, low = parameters['window_strides'][axis], parameters['padding'][axis][0]
            extent = through_window(
                extent, axis, shape[axis], output[axis], taps, stride=stride, low=low, spread=spreads[axis]
            )
        return extent

    return [union(values[: len(eqn.outvars)], len(shape)).apply(pool)] * len(eqn.outvars)


def _pad(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    lows, _, interiors = zip(*eqn.params['padding_config'], strict=True)
    return [_picked(eqn, values[0], 0, [-low for low in lows], spreads=[interior + 1 for interior in interiors])]


def _slice(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    return [_picked(eqn, values[0], 0, eqn.params['start_indices'], strides=eqn.params['strides'])]


def _split(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    axis, results, start = eqn.params['axis'], [], 0
    for number, variable in enumerate(eqn.outvars):
        starts = [start if index == axis else 0 for index in range(len(_shape(variable)))]
        results.append(_picked(eqn, values[0], number, starts))
        start += _shape(variable)[axis]
    return results


def _picked(
    eqn: JaxprEqn,
    value: Value,
    number: int,
    starts: Sequence[int],
    strides: Sequence[int] | None = None,
    spreads: Sequence[int] | None = None,
) -> Value:
    """Result `number` of what takes elements from the first operand, from `starts` on."""
    shape, output = _shape(eqn.invars[0]), _shape(eqn.outvars[number])
    ones = (1,) * len(shape)

    def pick(extent: Extent) -> Extent:
        for axis, (start, stride, spread) in enumerate(zip(starts, strides or ones, spreads or ones, strict=True)):
            if start or shape[axis] != output[axis]:
                extent = through_window(
                    extent, axis, shape[axis], output[axis], [0], stride=stride, low=-start, spread=spread
                )
        return extent

    return value.apply(pick)


def _concatenate(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    joint, rank = eqn.params['dimension'], len(_shape(eqn.outvars[0]))
    lengths = [_shape(variable)[joint] for variable in eqn.invars]
    extents = {}
    for axis in sorted({axis for value in values for axis in value.extents}):
        parts = [value.extents.get(axis, nothing(rank)) for value in values]
        steps: list[Step | None] = [None] * rank
        for _, part in sorted(zip(lengths, parts, strict=True), key=lambda pair: -pair[0]):
            # The longest part goes first: what is put around a map has the steps of the map.
            steps = [mine or other for mine, other in zip(steps, part.steps, strict=True)]
        if all(part.is_constant(joint) and part.equals(parts[0]) for part in parts):
            extents[axis] = parts[0]._replace(steps=tuple(steps))
        else:
            first, last = (
                _concatenated(side, lengths, joint) for side in zip(*(part.sides for part in parts), strict=True)
            )
            extents[axis] = Extent(first, last, tuple(steps))
    return [Value(extents, frozenset().union(*(value.everywhere for value in values)))]


def _concatenated(arrays: Sequence[np.ndarray], lengths: Sequence[int], joint: int) -> np.ndarray:
    shape = list(np.broadcast_shapes(*(np.delete(array.shape, joint) for array in arrays)))
    parts = [
        np.broadcast_to(array, [*shape[:joint], length, *shape[joint:]])
        for array, length in zip(arrays, lengths, strict=True)
    ]
    return np.concatenate(parts, joint)


def _reshape(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    shape, output = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    if eqn.params['dimensions'] is not None:
        return [lost(values[0])]

    def reshape(extent: Extent) -> Extent:
        wide, narrow = [1] * len(shape), [1] * len(output)
        steps: list[Step | None] = [None] * len(output)
        for old, new in _runs(shape, output):
            if all(extent.is_constant(axis) for axis in old):
                continue
            merged = _merged_step([(shape[axis], extent.steps[axis]) for axis in old])
            length = 1
            for axis in old:
                wide[axis] = shape[axis]
            for axis in reversed(new):
                narrow[axis], steps[axis] = output[axis], _wider_step(merged, length)
                length *= output[axis]
        return extent.apply(lambda x: np.broadcast_to(x, wide).reshape(narrow), steps)

    return [values[0].apply(reshape)]


def _runs(shape: Sequence[int], output: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The axes of both shapes that are longer than 1, in runs, as short as can be, that hold the same elements."""
    old, new = ([axis for axis, size in enumerate(sizes) if size > 1] for sizes in (shape, output))
    while old:
        first, second = [old.pop(0)], [new.pop(0)]
        while more := math.prod(shape[axis] for axis in first) - math.prod(output[axis] for axis in second):
            if more > 0:
                second.append(new.pop(0))
            else:
                first.append(old.pop(0))
        yield first, second


def _merged_step(axes: Sequence[tuple[int, Step | None]]) -> Step | None:
    """The step of axes (length, step) that become one."""
    merged, length = axes[-1][1], axes[-1][0]
    for size, step in reversed(axes[:-1]):
        if merged is None:
            merged = Step(step.step, step.period * length) if step else None
        elif step is None or _wider_step(merged, length) != step:
            merged = IRREGULAR
        length *= size
    return merged


def _wider_step(step: Step | None, length: int) -> Step | None:
    """That of every `length`-th element."""
    if not (step and step.period):
        return step
    period = step.period // math.gcd(step.period, length)
    return Step(step.step * length * period // step.period, period)


def _transpose(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    return [values[0].apply(lambda extent: rearranged(extent, eqn.params['permutation']))]


def _squeeze(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    kept = [axis for axis in range(len(_shape(eqn.invars[0]))) if axis not in eqn.params['dimensions']]
    return [values[0].apply(lambda extent: rearranged(extent, kept))]


def _broadcast(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    shape, output = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    places = {new: old for old, new in enumerate(eqn.params['broadcast_dimensions'])}
    repeated = [axis in places and shape[places[axis]] != output[axis] for axis in range(len(output))]

    def broadcast(extent: Extent) -> Extent:
        moved = rearranged(extent, [places.get(axis) for axis in range(len(output))])
        steps = (None if again else step for step, again in zip(moved.steps, repeated, strict=True))
        return moved._replace(steps=tuple(steps))

    return [values[0].apply(broadcast)]


def _reverse(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    axes = eqn.params['dimensions']

    def reverse(extent: Extent) -> Extent:
        turned = (step and axis in axes and Step(-step.step, step.period) for axis, step in enumerate(extent.steps))
        return extent.apply(
            lambda x: np.flip(x, axes), [new or old for new, old in zip(turned, extent.steps, strict=True)]
        )

    return [values[0].apply(reverse)]


def _reduce(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    axes = eqn.params['dimensions' if eqn.primitive.name == 'reduce' else 'axes']
    rank = len(_shape(eqn.invars[0]))
    kept = [axis for axis in range(rank) if axis not in axes]

    def reduce(extent: Extent) -> Extent | None:
        reduced = mixed_over(extent, axes)
        return reduced and rearranged(reduced, kept)

    return [union(values, rank).apply(reduce)] * len(eqn.outvars)


def _along(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """Sorting and running sums: any element along the axis."""
    rank = len(_shape(eqn.invars[0]))
    axis = eqn.params.get('dimension', eqn.params.get('axis', rank - 1))
    return [union(values, rank).apply(lambda extent: mixed_over(extent, [axis]))] * len(eqn.outvars)


def _dot(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    contracted, batch = eqn.params['dimension_numbers']
    free = [
        [axis for axis in range(len(_shape(variable))) if axis not in (*contracted[side], *batch[side])]
        for side, variable in enumerate(eqn.invars)
    ]
    results = []
    for side, other in ((0, 1), (1, 0)):
        theirs = [None] * len(free[other])
        order = [*batch[side], *([*free[side], *theirs] if side == 0 else [*theirs, *free[side]])]
        constant, mixes = values[other].constant, None
        if constant and values[side].extents and len(contracted[0]) == len(free[other]) == 1 and not batch[0]:
            matrix = constant() != 0
            mixes = matrix if contracted[other][0] == 0 else matrix.T
        results.append(values[side].apply(functools.partial(_contracted, contracted[side], order, mixes)))
    return [union(results, len(_shape(eqn.outvars[0])))]


def _contracted(
    axes: Sequence[int], order: Sequence[int | None], mixes: np.ndarray | None, extent: Extent
) -> Extent | None:
    """One side of a product, in the axes of the result; those of the other side are None in `order`.

    `mixes` [contracted, new] is where the other side, a constant of one new axis, is not zero.
    """
    if mixes is None or mixes.all() or extent.is_constant(axes[0]):
        reduced = mixed_over(extent, axes)
        return reduced and rearranged(reduced, order)
    (axis,), (old, new), step = axes, mixes.shape, extent.steps[axes[0]]

    def mix(x: np.ndarray, nothing: float, reduce: Callable[..., Any]) -> np.ndarray:
        last = np.moveaxis(x, axis, -1)[..., None]
        return np.moveaxis(reduce(np.where(mixes, last, nothing), axis=-2), -1, axis)

    if step and step.period:
        common = math.gcd(old, new)
        step = Step(step.step * (old // common), step.period * (new // common))
    steps = (*extent.steps[:axis], step, *extent.steps[axis + 1 :])
    mixed = Extent(mix(extent.first, np.inf, np.min), mix(extent.last, -np.inf, np.max), steps)
    return rearranged(mixed, [axis if place is None else place for place in order])


def _gather(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """Places that are constants; or a table of parameters at places that come from the input (an embedding)."""
    if values[0].depends or not values[1].extents:
        return _looked_up(eqn, values)
    rank, numbers = len(_shape(eqn.outvars[0])), eqn.params['dimension_numbers']
    axes = iter(range(len(_shape(eqn.invars[1])) - 1))
    order = [None if axis in numbers.offset_dims else next(axes) for axis in range(rank)]

    def place(extent: Extent) -> Extent | None:
        reduced = mixed_over(extent, [len(extent.steps) - 1])
        return reduced and rearranged(reduced, order)

    return [values[1].apply(place)]


def _looked_up(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """What only moves the elements of its first operand, to places that are constants: run on what they see."""
    shape, rest = _shape(eqn.invars[0]), [value.constant for value in values[1:]]
    if math.prod(shape) > MOST_ELEMENTS or None in rest:
        return [lost(*values)]
    others = [jnp.asarray(constant()) for constant in rest if constant]

    def look(x: np.ndarray, nothing: float) -> np.ndarray:
        seen = eqn.primitive.bind(jnp.asarray(np.broadcast_to(x, shape), jnp.float32), *others, **eqn.params)
        seen = np.nan_to_num(np.asarray(seen, float), nan=nothing, posinf=np.inf, neginf=-np.inf)
        for axis in range(seen.ndim):
            if (seen == seen.take([0], axis)).all():
                seen = seen.take([0], axis)
        return seen

    def move(extent: Extent) -> Extent:
        first, last = look(extent.first, np.inf), look(extent.last, -np.inf)
        return Extent(first, last, tuple(_measured_step(first, last, axis) for axis in range(first.ndim)))

    return [values[0].apply(move)]


def _measured_step(first: np.ndarray, last: np.ndarray, axis: int) -> Step | None:
    """The shortest period after which what is seen has moved by a constant."""
    sides = [np.moveaxis(side, axis, 0) for side in np.broadcast_arrays(first, last)]
    length = len(sides[0])
    for period in range(1, length // 2 + 1):
        moved = np.unique([side[period:] - side[:-period] for side in sides])
        if len(moved) == 1 and np.isfinite(moved[0]) and moved[0]:
            return Step(int(moved[0]), period)
    return IRREGULAR if length > 1 else None


RULES: dict[str, Callable[[JaxprEqn, list[Value]], list[Value]]] = {
    **dict.fromkeys(('conv', 'conv_input', 'conv_weight'), _conv),
    'conv_general_dilated': _lax_conv,
    'dot_general': _dot,
    **dict.fromkeys((f'reduce_window{kind}' for kind in ('', '_max', '_min', '_sum')), _reduce_window),
    **dict.fromkeys(
        (f'reduce{kind}' for kind in ('', '_max', '_min', '_sum', '_prod', '_and', '_or', '_xor')), _reduce
    ),
    **dict.fromkeys(('argmax', 'argmin'), _reduce),
    **dict.fromkeys(('cumsum', 'cumprod', 'cummax', 'cummin', 'cumlogsumexp', 'sort', 'top_k'), _along),
    'pad': _pad,
    'slice': _slice,
    'split': _split,
    'concatenate': _concatenate,
    'reshape': _reshape,
    'transpose': _transpose,
    'squeeze': _squeeze,
    'broadcast_in_dim': _broadcast,
    'rev': _reverse,
    'gather': _gather,
    'dynamic_slice': _looked_up,
    'dynamic_update_slice': _looked_up,
}
_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil clamp
clz complex conj convert_element_type copy copy_p cos cosh device_put digamma div eq erf erf_inv erfc exp exp2 expm1
floor ge gt igamma igammac imag integer_pow is_finite le lgamma log log1p logistic lt max min mul mulhi ne neg
nextafter not or polygamma population_count pow real reduce_precision regularized_incomplete_beta rem round rsqrt
select_n shift_left shift_right_arithmetic shift_right_logical sharding_constraint sign sin sinh sqrt square
stop_gradient sub tan tanh xor zeta
"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())

"""The gradient of a kernel, as loops of our own: see native.py and native_conv.py."""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from llvmlite import ir

from cnn.ops import native
from cnn.ops.geometry import Geometry
from cnn.ops.native import at, load, loop, multiply_add, shuffled, store, word, zeros
from cnn.ops.native_conv import Division, divided, vector_length

SPAN = 128  # columns of a row, which the processor's memory holds while one block of outputs after the other uses them


class Problem(NamedTuple):
    """The shapes of the gradient of a kernel of rank 2."""

    x: tuple[int, ...]
    g: tuple[int, ...]
    geometry: Geometry
    kernel_size: tuple[int, ...]
    lanes: int

    @property
    def inner(self) -> int:
        """The input channels of a group."""
        return self.x[-1] // self.geometry.groups

    @property
    def outer(self) -> int:
        """The output channels of a group."""
        return self.g[-1] // self.geometry.groups

    @property
    def length(self) -> int:
        """Of the vectors, whose elements are outputs beside each other."""
        return vector_length(self.g[-1], self.geometry.groups, self.lanes)

    @property
    def num_inputs(self) -> int:
        """Of a group, whose products are summed at once."""
        return next(number for number in (4, 3, 2, 1) if self.inner % number == 0)

    @property
    def num_taps(self) -> int:
        """Of a row, whose products are summed at once: so many sums, at most, find a place in registers."""
        return min(self.kernel_size[1], (24 if self.lanes == 16 else 12) // self.num_inputs)

    @property
    def num_vectors(self) -> int:
        """Of outputs, whose products are summed at once: where those of one would leave the processor waiting."""
        few = self.outer < self.length
        most = 12 // (self.num_taps * self.num_inputs) if few else min(self.lanes // 8, self.outer // self.length)
        return next(number for number in range(max(most, 1), 0, -1) if self.g[-1] // self.length % number == 0)

    @property
    def division(self) -> Division:
        """The pieces."""
        size = self.length * self.num_vectors
        kernel_bytes = 4 * math.prod(self.kernel_size) * self.inner * size
        return divided(self.g[-1] // size, kernel_bytes, self.g[0] * self.g[1])

    def stretches(self, taps: range) -> Iterator[tuple[int, int, int, dict[int, int]]]:
        """The columns of x by which taps see them: phase, start, stop, and shifts by taps.

        A position from start until stop, times the stride, plus the phase is the column; the position plus the shift
        is the column of g that sees it through the tap.
        """
        columns, outputs, stride = self.x[2], self.g[2], self.geometry.strides[1]
        left, dilation = self.geometry.padding[1][0], self.geometry.dilation[1]
        for phase in range(stride):
            end = math.ceil((columns - phase) / stride)
            distances = {tap: phase + left - tap * dilation for tap in taps}
            shifts = {tap: distance // stride for tap, distance in distances.items() if distance % stride == 0}
            limits = {tap: (max(0, -shift), min(end, outputs - shift)) for tap, shift in shifts.items()}
            edges = sorted({edge for low, high in limits.values() if low < high for edge in (low, high)})
            for start, stop in itertools.pairwise(edges):
                live = {tap: shifts[tap] for tap, (low, high) in limits.items() if low <= start and stop <= high}
                if live:
                    yield phase, start, stop, live


def native_weight(x: jax.Array, g: jax.Array, geometry: Geometry, kernel_size: tuple[int, ...]) -> jax.Array:
    """The gradient of the kernel [*kernel_size, C / groups, O] for x [N, *S, C] and g [N, *S', O].

    Products are summed over a row at a time, rows over a part of them all, and parts at last: little is lost to
    rounding.
    """
    problem = Problem(x.shape, g.shape, geometry._replace(precision=None), kernel_size, native.lanes())
    shape = (problem.division.num_parts, *kernel_size, problem.inner, g.shape[-1])
    parts = native.call(
        'conv_weight', _write, problem, problem.division.num_pieces, jax.ShapeDtypeStruct(shape, x.dtype), x, g
    )
    return functools.reduce(jnp.add, parts)


def _write(problem: Problem, builder: ir.IRBuilder, piece: ir.Value, pointers: list[ir.Value]) -> None:
    """Code for one block of outputs in one part of the rows."""
    (_, height, width, _), (images, num_rows, _, outputs) = problem.x, problem.g
    (stride, column_stride), (dilation, _) = problem.geometry.strides, problem.geometry.dilation
    size, num_steps = problem.length * problem.num_vectors, problem.division.num_steps
    row_taps = problem.kernel_size[1] * problem.inner
    taps = problem.kernel_size[0] * row_taps
    kernel, x, g = pointers
    block, part, rows = problem.division.place(builder, piece, images * num_rows)
    first_output = builder.mul(block, word(num_steps * size))
    with native.scratch(builder, num_steps * taps * size) as sums:  # the kernel's rows lie far apart
        with loop(builder, word(0), word(num_steps * taps)) as (tap, _):
            store(builder, zeros(size), at(builder, sums, [(tap, size)]))
        with (
            loop(builder, *rows) as (row, _),
            loop(builder, word(0), word(math.ceil(width / column_stride / SPAN))) as (span, _),
            loop(builder, word(0), word(num_steps)) as (step, _),
            loop(builder, word(0), word(problem.kernel_size[0])) as (tap, _),
        ):
            image, row_of_image = builder.udiv(row, word(num_rows)), builder.urem(row, word(num_rows))
            seen = builder.add(builder.mul(row_of_image, word(stride)), builder.mul(tap, word(dilation)))
            seen = builder.sub(seen, word(problem.geometry.padding[0][0]))
            with builder.if_then(builder.icmp_unsigned('<', seen, word(height))):  # a negative one is large
                output = builder.add(first_output, builder.mul(step, word(size)))
                x_row = at(builder, x, [(image, math.prod(problem.x[1:])), (seen, math.prod(problem.x[2:]))])
                g_row = at(builder, g, [(row, math.prod(problem.g[2:])), (output, 1)])
                sums_row = at(builder, sums, [(step, taps * size), (tap, row_taps * size)])
                for first_tap in range(0, problem.kernel_size[1], problem.num_taps):
                    some = range(first_tap, min(first_tap + problem.num_taps, problem.kernel_size[1]))
                    if problem.outer < problem.length:
                        for first in range(0, problem.inner, problem.num_inputs):
                            inputs = range(first, first + problem.num_inputs)
                            _write_row(problem, builder, sums_row, x_row, g_row, output, span, some, inputs)
                        continue
                    with loop(builder, word(0), word(problem.inner // problem.num_inputs)) as (few, _):
                        first_input = builder.mul(few, word(problem.num_inputs))
                        x_few, sums_few = (
                            at(builder, x_row, [(first_input, 1)]),
                            at(builder, sums_row, [(first_input, size)]),
                        )
                        inputs = range(problem.num_inputs)
                        _write_row(problem, builder, sums_few, x_few, g_row, output, span, some, inputs)
        kernel = at(builder, kernel, [(part, taps * outputs), (first_output, 1)])
        with (
            loop(builder, word(0), word(taps)) as (tap, _),
            loop(builder, word(0), word(num_steps)) as (step, _),
        ):
            total = load(builder, at(builder, sums, [(step, taps * size), (tap, size)]), size)
            store(builder, total, at(builder, kernel, [(tap, outputs), (step, size)]))


def _write_row(
    problem: Problem,
    builder: ir.IRBuilder,
    sums: ir.Value,
    x: ir.Value,
    g: ir.Value,
    output: ir.Value,
    span: ir.Value,
    taps: range,
    inputs: range,
) -> None:
    """Code that adds the products of a span of a row of x [W, C] and of g [W', O] to the sums of taps and inputs."""
    length, inner, outputs = problem.length, problem.inner, problem.g[-1]
    vectors = range(problem.num_vectors)
    apart = length if problem.outer % (length * problem.num_vectors) else 0  # else vectors are of the same group
    firsts = [builder.add(output, word(vector * apart)) for vector in vectors]
    x_of = [at(builder, x, [(builder.udiv(first, word(problem.outer)), inner)]) for first in firsts]
    totals: dict[Any, ir.Value] = dict.fromkeys(itertools.product(taps, inputs, vectors), zeros(length))
    for phase, start, stop, shifts in problem.stretches(taps):
        keys = [key for key in totals if key[0] in shifts]
        low, high = (builder.mul(builder.add(span, word(end)), word(SPAN)) for end in (0, 1))
        low = builder.select(builder.icmp_signed('<', low, word(start)), word(start), low)
        high = builder.select(builder.icmp_signed('<', word(stop), high), word(stop), high)
        with loop(builder, low, high, [totals[key] for key in keys]) as (position, values):
            seeing = {}
            for (tap, shift), vector in itertools.product(shifts.items(), vectors):
                place = at(builder, g, [(position, outputs), (word(shift), outputs), (word(vector), length)])
                seeing[tap, vector] = load(builder, place, length)
            factors: dict[Any, ir.Value] = {}
            for vector in vectors:
                stride = problem.geometry.strides[1] * problem.x[-1]
                column = at(builder, x_of[vector], [(position, stride), (word(phase), problem.x[-1])])
                found = _factors(problem, builder, column, inputs)
                factors |= {(number, vector): factor for number, factor in zip(inputs, found, strict=True)}
            for index, (tap, number, vector) in enumerate(keys):
                values[index] = multiply_add(builder, factors[number, vector], seeing[tap, vector], values[index])
        totals.update(zip(keys, values, strict=True))
    for (tap, number, vector), total in totals.items():
        place = at(builder, sums, [(word((tap * inner + number) * len(vectors) + vector), length)])
        store(builder, builder.fadd(load(builder, place, length), total), place)


def _factors(problem: Problem, builder: ir.IRBuilder, x: ir.Value, inputs: range) -> list[ir.Value]:
    """For each of the inputs of a group: for each output of a vector, its group's input in x."""
    length, inner, outer = problem.length, problem.inner, problem.outer
    if outer < length:
        channels = load(builder, x, length // outer * inner)
        return [
            shuffled(builder, channels, [lane // outer * inner + number for lane in range(length)]) for number in inputs
        ]
    scalars = [load(builder, at(builder, x, [(word(number), 1)]), 1) for number in inputs]
    return [shuffled(builder, scalar, [0] * length) for scalar in scalars]

"""A convolution, and the gradient of its input, as loops of our own: see native.py.

Both are y[i] = sum over t of x[j] kernel[t]: the convolution where j = i stride - padding + t dilation, the gradient,
of which x is the gradient of the output, where i = j stride - padding + t dilation.
"""

import itertools
import math
from typing import NamedTuple

import jax
from llvmlite import ir

from cnn.ops import native
from cnn.ops.geometry import Geometry
from cnn.ops.native import at, load, loop, multiply_add, shuffled, store, word, zeros

LARGE_STEM = 2**21  # outputs; with fewer, dense convolutions gain less than a millisecond
Uses = tuple[tuple[int, int, int], ...]  # column of x, column of y, tap


def suited(channels: int, y: tuple[int, ...], groups: int, kernel_size: tuple[int, ...]) -> bool:
    """Whether this is the fastest form for y [N, H, W, O] of so many channels: in groups, or as a stem of large images.

    Not where vectors would be filled by a quarter only, or a row of taps be more code than is worth compiling.
    """
    inner, length = channels // groups, vector_length(y[-1], groups, native.lanes())
    few = groups > 1 or (channels <= 16 and math.prod(y) > LARGE_STEM)
    filled = length >= (8 if inner > 8 else 4)
    short = len(kernel_size) == 2 and kernel_size[1] * (inner if y[-1] // groups < length else 1) <= 64
    return few and filled and short


def vector_length(num_outputs: int, groups: int, lanes: int) -> int:
    """How many outputs, at most `lanes`, are computed at once: of whole groups, or of one."""
    outer, length = num_outputs // groups, lanes
    while num_outputs % length or (length % outer and outer % length):
        length //= 2
    return length


class Division(NamedTuple):
    """How a problem is cut into pieces: the same on every machine, or sums would differ."""

    num_steps: int  # the vectors of a block, one after the other; the processor's nearest memory holds its kernel
    num_blocks: int  # of outputs
    num_parts: int  # of all rows of all images

    @property
    def num_pieces(self) -> int:
        """As many threads could share the work."""
        return self.num_blocks * self.num_parts

    def place(self, builder: ir.IRBuilder, piece: ir.Value, num_rows: int) -> tuple[ir.Value, ir.Value, list[ir.Value]]:
        """Code for the block and part of a piece, and the part's first row and that after its last."""
        block, part = builder.urem(piece, word(self.num_blocks)), builder.udiv(piece, word(self.num_blocks))
        ends = [builder.mul(builder.add(part, word(end)), word(num_rows)) for end in (0, 1)]
        return block, part, [builder.udiv(end, word(self.num_parts)) for end in ends]


def divided(num_vectors: int, kernel_bytes: int, num_rows: int) -> Division:
    """Vectors of outputs, each with a kernel of so many bytes, and rows, in 16 pieces or more where they suffice."""
    most = max(1, min(num_vectors, 2**15 // kernel_bytes, num_vectors * num_rows // 16))
    num_steps = next(steps for steps in range(most, 0, -1) if num_vectors % steps == 0)
    num_blocks = num_vectors // num_steps
    return Division(num_steps, num_blocks, min(num_rows, math.ceil(16 / num_blocks)))


class Problem(NamedTuple):
    """The shapes of a convolution of rank 2, or of the gradient of its input."""

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    geometry: Geometry
    size: tuple[int, ...]
    of_input: bool
    lanes: int

    @property
    def length(self) -> int:
        """Of the vectors, whose elements are outputs beside each other."""
        return vector_length(self.kernel[-1], self.geometry.groups, self.lanes)

    @property
    def division(self) -> Division:
        """The pieces."""
        kernel_bytes = 4 * math.prod(self.kernel[:-1]) * self.length
        return divided(self.kernel[-1] // self.length, kernel_bytes, self.x[0] * self.size[0])

    @property
    def tile(self) -> int:
        """How many columns of y are computed at once: as many as there are registers for."""
        most, multiple = self.lanes, self.geometry.strides[1] if self.of_input else 1
        width = math.ceil(self.size[1] / math.ceil(self.size[1] / most))
        return math.ceil(width / multiple) * multiple

    @property
    def tile_of_x(self) -> int:
        """How many columns of x lie between what tiles see."""
        stride = self.geometry.strides[1]
        return self.tile // stride if self.of_input else self.tile * stride

    def uses(self, tile: int) -> tuple[int, Uses]:
        """How many columns of y a tile has, and what they see where, counted from the tile's begin in y and x."""
        stride, low, dilation = self.geometry.strides[1], self.geometry.padding[1][0], self.geometry.dilation[1]
        first, width = tile * self.tile, min(self.tile, self.size[1] - tile * self.tile)
        found = []
        for output, tap in itertools.product(range(width), range(self.kernel[1])):
            if self.of_input:
                column, rest = divmod(first + output + low - tap * dilation, stride)
            else:
                column, rest = (first + output) * stride - low + tap * dilation, 0
            if rest == 0 and 0 <= column < self.x[2]:
                found.append((column - tile * self.tile_of_x, output, tap))
        return width, tuple(sorted(found))


def native_forward(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """y for x and kernel, of rank 2."""
    size = geometry.output_size(x.shape[1:-1], kernel.shape[:-2])
    return _called('conv', x, kernel, geometry, size, of_input=False)


def native_input(g: jax.Array, kernel: jax.Array, geometry: Geometry, size: tuple[int, ...]) -> jax.Array:
    """The gradient of x [N, *size, C] for g and the kernel with its channels exchanged [*K, O / groups, C]."""
    return _called('conv_input', g, kernel, geometry, size, of_input=True)


def _called(
    title: str, x: jax.Array, kernel: jax.Array, geometry: Geometry, size: tuple[int, ...], *, of_input: bool
) -> jax.Array:
    problem = Problem(x.shape, kernel.shape, geometry._replace(precision=None), size, of_input, native.lanes())
    y = jax.ShapeDtypeStruct((len(x), *size, kernel.shape[-1]), x.dtype)
    return native.call(title, _write, problem, problem.division.num_pieces, y, x, kernel)


def _write(problem: Problem, builder: ir.IRBuilder, piece: ir.Value, pointers: list[ir.Value]) -> None:
    """Code for one block of outputs in one part of the rows."""
    (num_rows, columns), length, num_steps = problem.size, problem.length, problem.division.num_steps
    taps, inner, outputs = math.prod(problem.kernel[:-1]), *problem.kernel[2:]
    y, x, kernel = pointers
    block, _, rows = problem.division.place(builder, piece, problem.x[0] * num_rows)
    first_output = builder.mul(block, word(num_steps * length))
    with native.scratch(builder, num_steps * taps * length) as packed:  # the kernel's rows lie far apart
        with (
            loop(builder, word(0), word(taps)) as (tap, _),
            loop(builder, word(0), word(num_steps)) as (step, _),
        ):
            vector = load(builder, at(builder, kernel, [(tap, outputs), (first_output, 1), (step, length)]), length)
            store(builder, vector, at(builder, packed, [(step, taps * length), (tap, length)]))
        with loop(builder, *rows) as (row, _):
            image, row_of_image = builder.udiv(row, word(num_rows)), builder.urem(row, word(num_rows))
            x_image = at(builder, x, [(image, math.prod(problem.x[1:]))])
            y_row = at(builder, y, [(row, columns * outputs), (first_output, 1)])
            for (width, uses), alike in itertools.groupby(range(math.ceil(columns / problem.tile)), problem.uses):
                tiles = list(alike)
                with (
                    loop(builder, word(tiles[0]), word(tiles[-1] + 1)) as (tile, _),
                    loop(builder, word(0), word(num_steps)) as (step, _),
                ):
                    output = builder.add(first_output, builder.mul(step, word(length)))
                    group = builder.udiv(output, word(outputs // problem.geometry.groups))
                    x_tile = at(builder, x_image, [(tile, problem.tile_of_x * problem.x[-1]), (group, inner)])
                    kernel_of_step = at(builder, packed, [(step, taps * length)])
                    sums = [zeros(length)] * width
                    with loop(builder, word(0), word(problem.kernel[0]), sums) as (tap, sums):
                        row_of_x, inside = _seen(problem, builder, row_of_image, tap)
                        with loop(builder, word(0), inside, sums) as (_, totals):
                            x_row = at(builder, x_tile, [(row_of_x, math.prod(problem.x[2:]))])
                            kernel_row = at(builder, kernel_of_step, [(tap, taps // problem.kernel[0] * length)])
                            _write_row(problem, builder, kernel_row, x_row, uses, totals)
                        sums[:] = totals
                    y_tile = at(builder, y_row, [(tile, problem.tile * outputs), (step, length)])
                    for column, total in enumerate(sums):
                        store(builder, total, at(builder, y_tile, [(word(column), outputs)]))


def _seen(problem: Problem, builder: ir.IRBuilder, row: ir.Value, tap: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Code for which row of x one of y sees through a row of taps, and 1 if there is one, else 0."""
    stride, low = problem.geometry.strides[0], problem.geometry.padding[0][0]
    reach = builder.mul(tap, word(problem.geometry.dilation[0]))
    if problem.of_input:
        place = builder.sub(builder.add(row, word(low)), reach)  # a negative one is large without its sign
        seen, rest = builder.udiv(place, word(stride)), builder.urem(place, word(stride))
    else:
        seen, rest = builder.sub(builder.add(builder.mul(row, word(stride)), reach), word(low)), word(0)
    inside = builder.icmp_unsigned('<', seen, word(problem.x[1]))
    met = builder.icmp_unsigned('==', rest, word(0))
    return seen, builder.zext(builder.and_(inside, met), native.WORD)


def _write_row(
    problem: Problem, builder: ir.IRBuilder, kernel: ir.Value, x: ir.Value, uses: Uses, sums: list[ir.Value]
) -> None:
    """Code that adds to the sums, of a tile's columns, what they see of a row of x through a row of taps."""
    length, inner, channels = problem.length, problem.kernel[2], problem.x[-1]
    outer = problem.kernel[-1] // problem.geometry.groups
    columns = [(column, list(seeing)) for column, seeing in itertools.groupby(uses, lambda use: use[0])]

    def add(factor: ir.Value, number: ir.Value, seeing: list[tuple[int, int, int]], sums: list[ir.Value]) -> None:
        for _, output, tap in seeing:
            weights = load(builder, at(builder, kernel, [(word(tap * inner), length), (number, length)]), length)
            sums[output] = multiply_add(builder, factor, weights, sums[output])

    if outer < length:
        for column, seeing in columns:
            found = load(builder, at(builder, x, [(word(column), channels)]), length // outer * inner)
            for number in range(inner):
                factor = shuffled(builder, found, [lane // outer * inner + number for lane in range(length)])
                add(factor, word(number), seeing, sums)
        return
    with loop(builder, word(0), word(inner), sums) as (number, totals):
        for column, seeing in columns:
            factor = load(builder, at(builder, x, [(word(column), channels), (number, 1)]), 1)
            add(shuffled(builder, factor, [0] * length), number, seeing, totals)
    sums[:] = totals

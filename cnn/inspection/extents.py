"""What each position of an array sees of the input, and how the operations of a program change that.

For each spatial axis of the input an `Extent` has the first and the last position that each element sees. Where a
window reaches beyond an edge, the positions are those that would lie there if the array went on as it does inside.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, Optional

import numpy as np

MOST_ELEMENTS = 2**25  # of an array whose elements are looked up one by one


class Step(NamedTuple):
    """Elements `period` apart along an axis see what lies `step` apart in the input; a period of 0 is no such rule."""

    step: int
    period: int

    @property
    def stride(self) -> Fraction | None:
        """Between neighbours, on the average."""
        return abs(Fraction(self.step, self.period)) if self.period else None


IRREGULAR = Step(0, 0)
Steps = Sequence[Step | None]


class Extent(NamedTuple):
    """Of one spatial axis of the input, the first and the last position that each element sees.

    The arrays have the axes of the described one, of length 1 where the place along an axis makes no difference;
    (inf, -inf) is an element that sees nothing. Axes along which the position in the input moves have a step.
    """

    first: np.ndarray
    last: np.ndarray
    steps: tuple[Step | None, ...]

    @property
    def size(self) -> int:
        """Of the largest field."""
        return int(max((self.last - self.first).max() + 1, 0))

    @property
    def stride(self) -> Fraction | None:
        """None where no axis is a position, or one is without a rule."""
        strides = [step.stride for step in self.steps if step]
        return None if None in strides else min(strides, default=None)  # type: ignore[type-var]

    @property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Both arrays."""
        return self.first, self.last

    def apply(self, function: Callable[[np.ndarray], np.ndarray], steps: Steps) -> 'Extent':
        """Both arrays through a function, with the steps of the result."""
        return Extent(function(self.first), function(self.last), tuple(steps))

    def is_constant(self, axis: int) -> bool:
        """Whether the place along an axis makes no difference."""
        return self.steps[axis] is None and self.first.shape[axis] == self.last.shape[axis] == 1

    def equals(self, other: 'Extent') -> bool:
        """Whether the same is seen."""
        return all(np.array_equal(mine, theirs) for mine, theirs in zip(self.sides, other.sides, strict=True))


@dataclasses.dataclass(frozen=True)
class Value:
    """What an array sees: extents by spatial axis of the input, and the axes of which it sees all.

    Both, for an axis, is a value that still knows its position and sees the rest besides.
    """

    extents: dict[int, Extent] = dataclasses.field(default_factory=dict)
    everywhere: frozenset[int] = frozenset()
    constant: Optional[Callable[[], np.ndarray]] = None  # the array itself, where it depends on no argument

    @property
    def depends(self) -> bool:
        """On the input at all."""
        return bool(self.extents or self.everywhere)

    def equals(self, other: 'Value') -> bool:
        """Whether the same is seen."""
        return (
            self.everywhere == other.everywhere
            and self.extents.keys() == other.extents.keys()
            and all(extent.equals(other.extents[axis]) for axis, extent in self.extents.items())
        )

    def apply(self, function: Callable[[Extent], Extent | None]) -> 'Value':
        """The extents through a function; axes for which it gives None are seen whole."""
        extents = {axis: result for axis, extent in self.extents.items() if (result := function(extent)) is not None}
        return Value(extents, self.everywhere | (self.extents.keys() - extents.keys()))


def lost(*values: Value) -> Value:
    """All of what they see, with no position left."""
    return Value({}, frozenset().union(*(value.everywhere | value.extents.keys() for value in values)))


def union(values: Sequence[Value], rank: int) -> Value:
    """An array each element of which sees what the elements at its place in all of these see; scalars are at each."""

    def join(parts: Sequence[Extent]) -> Extent:
        return functools.reduce(_join, (_expanded(part, rank) for part in parts))

    return _gathered(values, join)


def stack(values: Sequence[Value], steps: dict[int, Step]) -> Value:
    """Arrays along a new first axis, whose steps are these, by axis of the input."""
    rank = max((len(extent.steps) for value in values for extent in value.extents.values()), default=0)
    extents = {}
    for axis in sorted({axis for value in values for axis in value.extents}):
        parts = [value.extents.get(axis, nothing(rank)) for value in values]
        first, last = (
            np.stack(np.broadcast_arrays(*side)) for side in zip(*(part.sides for part in parts), strict=True)
        )
        extents[axis] = Extent(first, last, (steps.get(axis), *parts[-1].steps))
    return Value(extents, frozenset().union(*(value.everywhere for value in values)))


def element(value: Value, index: int) -> Value:
    """value[index]."""
    return value.apply(lambda extent: extent.apply(lambda x: x[index if len(x) > 1 else 0], extent.steps[1:]))


def _gathered(values: Sequence[Value], join: Callable[[Sequence[Extent]], Extent]) -> Value:
    axes = sorted({axis for value in values for axis in value.extents})
    extents = {axis: join([value.extents[axis] for value in values if axis in value.extents]) for axis in axes}
    return Value(extents, frozenset().union(*(value.everywhere for value in values)))


def nothing(rank: int) -> Extent:
    """Of elements that see nothing."""
    return Extent(np.full((1,) * rank, np.inf), np.full((1,) * rank, -np.inf), (None,) * rank)


def _expanded(extent: Extent, rank: int) -> Extent:
    missing = rank - len(extent.steps)
    return extent.apply(lambda x: x.reshape((1,) * missing + x.shape), (None,) * missing + extent.steps)


def _join(a: Extent, b: Extent) -> Extent:
    steps = (_joined_step(*pair) for pair in zip(a.steps, b.steps, strict=True))
    return Extent(np.minimum(a.first, b.first), np.maximum(a.last, b.last), tuple(steps))


def _joined_step(a: Step | None, b: Step | None) -> Step | None:
    if a == b or a is None or b is None:
        return a or b
    if a.period and b.period and Fraction(*a) == Fraction(*b):
        period = math.lcm(a.period, b.period)
        return Step(a.step * period // a.period, period)
    return IRREGULAR


def through_window(
    extent: Extent,
    axis: int,
    size: int,
    length: int,
    taps: Sequence[int],
    *,
    stride: int = 1,
    low: int = 0,
    spread: int = 1,
) -> Extent:
    """Windows along an axis of `size`: element i of the `length` of the result sees (i stride - low + tap) / spread.

    That is, of an axis whose elements lie `spread` apart with `low` before them; what is between them is nothing.
    """
    step = extent.steps[axis]
    if step is None and extent.is_constant(axis):
        return extent
    place, between = np.divmod(np.arange(length)[:, None] * stride - low + np.asarray(taps), spread)  # [length, taps]
    hole, shift = between > 0, np.zeros(place.shape)
    if step and step.period:
        # Beyond the ends: as many periods further in, and what that is away in the input.
        outside = np.where(
            place < 0, -(place // step.period), np.where(place < size, 0, (size - 1 - place) // step.period)
        )
        place, shift = place + outside * step.period, -outside * float(step.step)
        period = step.period * spread // math.gcd(step.period * spread, stride)
        step = Step(step.step * period * stride // (step.period * spread), period)
    else:
        hole |= (place < 0) | (place >= size)
    place = np.clip(place, 0, size - 1)
    around = [1] * axis + list(place.shape) + [1] * (extent.first.ndim - axis - 1)

    def look(x: np.ndarray, nothing: float, reduce: Callable[..., Any]) -> np.ndarray:
        shape = [size if index == axis else n for index, n in enumerate(x.shape)]
        seen = np.take(np.broadcast_to(x, shape), place, axis) + shift.reshape(around)
        return reduce(np.where(hole.reshape(around), nothing, seen), axis=axis + 1)

    steps = (*extent.steps[:axis], step, *extent.steps[axis + 1 :])
    return Extent(look(extent.first, np.inf, np.min), look(extent.last, -np.inf, np.max), steps)


def mixed_over(extent: Extent, axes: Sequence[int]) -> Extent | None:
    """Over these axes, which stay with length 1. None where no position is left, and so all is seen."""
    axes = tuple(axes)
    first, last = extent.first.min(axes, keepdims=True), extent.last.max(axes, keepdims=True)
    steps = tuple(None if axis in axes else step for axis, step in enumerate(extent.steps))
    if any(extent.steps[axis] for axis in axes):
        left = [axis for axis, step in enumerate(steps) if step]
        long = tuple(axis for axis in left if max(first.shape[axis], last.shape[axis]) > 1)
        still = all((x == x.min(long, keepdims=True)).all() for x in (first, last))  # along each position that is left
        if not left or (long and still):
            return None
    return Extent(first, last, steps)


def rearranged(extent: Extent, axes: Sequence[int | None]) -> Extent:
    """With other axes: each is an old one, or None for a new one of length 1. Old ones left out have length 1."""
    old = [axis for axis in axes if axis is not None]
    rest = [axis for axis in range(len(extent.steps)) if axis not in old]

    def move(x: np.ndarray) -> np.ndarray:
        return x.transpose(*old, *rest).reshape([1 if axis is None else x.shape[axis] for axis in axes])

    return extent.apply(move, [None if axis is None else extent.steps[axis] for axis in axes])

"""What a convolution is, besides its arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Geometry(NamedTuple):
    """The numbers of a convolution, one of each kind for each spatial axis, and the number of groups of channels."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    precision: Any = None  # as lax takes it

    def output_size(self, size: Sequence[int], kernel_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial shape of y for those of x and kernel."""
        numbers = zip(size, kernel_size, self.strides, self.padding, self.dilation, strict=True)
        return tuple((n + low + high - (k - 1) * d - 1) // s + 1 for n, k, s, (low, high), d in numbers)

    def after_first(self) -> 'Geometry':
        """Without the first axis."""
        return self._replace(strides=self.strides[1:], padding=self.padding[1:], dilation=self.dilation[1:])

    def before_first(self) -> 'Geometry':
        """With one more axis before the first, of length 1."""
        return self._replace(strides=(1, *self.strides), padding=((0, 0), *self.padding), dilation=(1, *self.dilation))

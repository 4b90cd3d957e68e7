"""Receptive fields, read from the traced program: which positions of the input each position of an array depends on.

Fields are the theoretical ones, which padding and the size of the input do not clip: beyond the edges a map goes on as
it does inside (cnn/inspection/extents.py). The size of a field is that of the largest one among an array's elements.

What a mean over all positions, a dense layer over a flattened map or attention mixes depends on everything. Where such
a value meets one that still knows its position (the gate of squeeze-and-excitation, the residual stream around
attention), the field is that of the position, and `everywhere` says that the rest is seen too. An operation that is not
known here counts as mixing everything; elementwise ones are known.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from cnn.inspection import extent_rules, extents
from cnn.inspection.cost import inner_jaxprs
from cnn.inspection.extents import Extent, Step, Value, lost, union

MOST_TURNS = 256  # of a scan; a longer one, or a loop that keeps on growing, depends on everything
SHORT_LOOP = 4  # turns after which a loop of unknown length that still grows is one that does


class Field(NamedTuple):
    """The receptive field of an array by spatial axis of the input, None for all of it, and the stride between fields.

    `everywhere`: it sees the rest too, in ways that forget positions. An array that sees nothing has fields of 0, one
    without positions, or with positions in no regular order, no stride.
    """

    size: tuple[int | None, ...]
    stride: tuple[Fraction | None, ...]
    everywhere: bool


def field(value: Value, rank: int) -> Field:
    """Of an array, for an input of `rank` spatial axes."""
    axes = range(1, rank + 1)
    seen = {axis: extent for axis, extent in value.extents.items() if extent.size or axis not in value.everywhere}
    regular = all(extent.stride or not any(extent.steps) for extent in seen.values())
    return Field(
        tuple(seen[axis].size if axis in seen else None if axis in value.everywhere else 0 for axis in axes),
        tuple(seen[axis].stride if axis in seen and regular else None for axis in axes),
        any(axis in value.everywhere for axis in seen),
    )


def spatial_rank(shape: Sequence[int]) -> int:
    """Of an input [N, *spatial, C], or of a sequence of tokens [N, T]."""
    return max(len(shape) - 2, 1)


def fields(function: Callable[..., Any], x: Any, *others: Any) -> Any:
    """The receptive field of each array that a function returns, in its first argument, an array."""
    run, shapes = jax.make_jaxpr(function, return_shape=True)(x, *others)
    results, _ = trace(run, 0)
    return jax.tree.unflatten(jax.tree.structure(shapes), [field(value, spatial_rank(x.shape)) for value in results])


def trace(program: ClosedJaxpr, source: int) -> tuple[list[Value], 'Trace']:
    """What the results of a program see of its argument number `source`, and what was met on the way."""
    trace = Trace()
    shape = program.in_avals[source].shape
    arguments = [Value()] * len(program.in_avals)
    arguments[source] = Value({axis: _positions(shape, axis) for axis in range(1, spatial_rank(shape) + 1)})
    results = trace.run(program, arguments)
    trace.note(results)
    return results, trace


def _positions(shape: Sequence[int], axis: int) -> Extent:
    """Each element sees where it is."""
    place = np.arange(shape[axis], dtype=float).reshape([-1 if index == axis else 1 for index in range(len(shape))])
    return Extent(place, place, tuple(Step(1, 1) if index == axis else None for index in range(len(shape))))


class Trace:
    """One walk through a program.

    named: by name, the last array that was given it by `jax.ad_checkpoint.checkpoint_name`.
    whole: of the arrays with regular positions that end, or lose them, the one with the largest fields.
    """

    def __init__(self) -> None:
        self.named: dict[str, Value] = {}
        self.whole = Value()

    def note(self, values: Sequence[Value]) -> None:
        """Keeps the one with the largest fields."""

        def size(value: Value) -> int:
            return math.prod(extent.size for extent in value.extents.values()) if value.extents else 0

        regular = (value for value in values if all(extent.stride for extent in value.extents.values()))
        self.whole = max(self.whole, *regular, Value(), key=size)

    def run(self, program: ClosedJaxpr, arguments: Sequence[Value]) -> list[Value]:
        """The results of a program for these arguments."""
        jaxpr = program.jaxpr
        known: dict[Any, Value] = dict(zip(jaxpr.invars, arguments, strict=True))
        known |= {name: _constant(value) for name, value in zip(jaxpr.constvars, program.consts, strict=True)}

        def read(variable: Any) -> Value:
            return _constant(variable.val) if isinstance(variable, Literal) else known[variable]

        for eqn in jaxpr.eqns:
            values = [read(variable) for variable in eqn.invars]
            known.update(zip(eqn.outvars, self._results(eqn, values), strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _results(self, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
        """What the results of one equation see."""
        name, called = eqn.primitive.name, list(inner_jaxprs(eqn))
        control = {'cond': self._cond, 'scan': self._scan, 'while': self._while}.get(name)
        if control:
            return control(eqn, values)
        if name not in extent_rules.RULES and len(called) == 1 and len(called[0].in_avals) == len(values):
            return self.run(called[0], values)
        if name == 'name':
            self.named[eqn.params['name']] = values[0]
            return values
        if not any(value.depends for value in values):
            return _folded(eqn, values)
        if name in extent_rules.ELEMENTWISE:
            return [union(values, len(eqn.outvars[0].aval.shape))] * len(eqn.outvars)  # type: ignore[attr-defined]
        results = extent_rules.RULES.get(name, _unknown)(eqn, values)
        if not all(all(extent.stride for extent in result.extents.values()) for result in results) or any(
            value.extents.keys() - result.extents.keys() for value in values for result in results
        ):
            self.note(values)
        return results

    def _cond(self, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
        """Any of the branches."""
        branches = [self.run(branch, values[1:]) for branch in eqn.params['branches']]
        ranks = [len(aval.shape) for aval in eqn.params['branches'][0].out_avals]
        return [union([*results, lost(values[0])], rank) for rank, *results in zip(ranks, *branches, strict=True)]

    def _scan(self, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
        """Turn by turn, until one changes nothing that the next one sees."""
        number, carries, length = (eqn.params[key] for key in ('num_consts', 'num_carry', 'length'))
        constants, carry, slices = values[:number], values[number : number + carries], values[number + carries :]
        moving = any(not extent.is_constant(0) for value in slices for extent in value.extents.values())
        steps = {axis: step for value in slices for axis, extent in value.extents.items() if (step := extent.steps[0])}
        turns: list[list[Value]] = []
        for turn in range(length)[:: -1 if eqn.params['reverse'] else 1]:
            if len(turns) == MOST_TURNS:
                elements = [lost(value) for value in slices]
                return self._loop(eqn.params['jaxpr'], constants, [lost(value) for value in carry], elements)
            elements = [extents.element(value, turn) for value in slices]
            results = self.run(eqn.params['jaxpr'], [*constants, *carry, *elements])
            still = not moving and all(map(Value.equals, carry, results))
            carry = results[:carries]
            turns.append(results[carries:])
            if still:
                turns *= length
                break
        turns = turns[:length][:: -1 if eqn.params['reverse'] else 1]
        return [*carry, *(extents.stack(results, steps) for results in zip(*turns, strict=True))]

    def _while(self, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
        first, number = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
        return self._loop(eqn.params['body_jaxpr'], values[first : first + number], values[first + number :], [])

    def _loop(
        self, body: ClosedJaxpr, constants: list[Value], carry: list[Value], elements: list[Value]
    ) -> list[Value]:
        """A loop of unknown length: what turns leave as it is, and else everything."""
        ranks = [len(aval.shape) for aval in body.out_avals]
        for turn in itertools.count():
            results = self.run(body, [*constants, *carry, *elements])
            joined = [union(pair, rank) for *pair, rank in zip(carry, results, ranks, strict=False)]
            if all(map(Value.equals, carry, joined)):
                return [*joined, *map(lost, results[len(carry) :])]
            carry = joined if turn < SHORT_LOOP else [lost(value) for value in joined]
        raise AssertionError


def _constant(value: Any) -> Value:
    return Value(constant=lambda: np.asarray(value))


def _unknown(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    return [lost(*values)] * len(eqn.outvars)


def _folded(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """Results that see nothing of the input; where they depend on no argument at all, they can be computed."""
    constants = [value.constant for value in values]
    if None in constants or list(inner_jaxprs(eqn)):
        return [Value()] * len(eqn.outvars)

    @functools.cache
    def compute() -> list[np.ndarray]:
        results = eqn.primitive.bind(*(jnp.asarray(constant()) for constant in constants if constant), **eqn.params)
        return [np.asarray(result) for result in (results if eqn.primitive.multiple_results else [results])]

    def result(index: int) -> np.ndarray:
        return compute()[index]

    return [Value(constant=functools.partial(result, index)) for index in range(len(eqn.outvars))]

"""How many multiply-adds a traced program has, by layer: counted from shapes, nothing is computed.

Padded taps count, biases, norms and other elementwise work do not. The convolutions of cnn.ops.conv are counted as what
they are, before a form is chosen. A product is one of three kinds:

    layer        an activation by what depends on parameters: convolutions, dense layers, tied embeddings
    activation   two activations: attention
    other        with constants (averages over a grid, resizing), or of parameters among themselves
"""

import contextlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

KINDS = LAYER, ACTIVATION, OTHER = 'layer', 'activation', 'other'
CONSTANT, PARAMETER, INPUT = 0, 1, 2  # what a value depends on: the sum of both if on both

Counts = Counter[tuple[str, str]]  # (scope, kind) -> multiply-adds


def scope(name: str) -> contextlib.AbstractContextManager:
    """What is traced inside counts for this name, unless for one further inside."""
    return jax.named_scope(f'<{name}>')


def multiply_adds(jaxpr: Jaxpr) -> int:
    """All multiply-adds of the convolutions and matmuls in a jaxpr.

    A scan counts once for each turn, a conditional as its largest branch, a loop of unknown length as one turn. Of a
    transposed convolution the zeros between its inputs are left out.
    """
    return count(jaxpr, [INPUT] * len(jaxpr.invars)).total()


def count(jaxpr: Jaxpr, sources: Sequence[int]) -> Counts:
    """Multiply-adds by (scope, kind), each argument being an INPUT, a PARAMETER or a CONSTANT."""
    counts: Counts = Counter()
    _walk(jaxpr, sources, '', counts)
    return counts


def dependence(jaxpr: Jaxpr, sources: Sequence[int]) -> list[int]:
    """Which kinds of arguments each result depends on: the sum of INPUT and PARAMETER if on both."""
    return _walk(jaxpr, sources, '', Counter())


def inner_jaxprs(eqn: JaxprEqn) -> Iterator[ClosedJaxpr]:
    """The programs that an equation calls."""
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item
            elif isinstance(item, Jaxpr):
                yield ClosedJaxpr(item, ())


def _walk(jaxpr: Jaxpr, sources: Sequence[int], outer: str, counts: Counts) -> list[int]:
    """Adds what a jaxpr has to `counts`; returns what its results depend on."""
    known: dict[Any, int] = dict(zip(jaxpr.invars, sources, strict=True))

    def read(variable: Any) -> int:
        return CONSTANT if isinstance(variable, Literal) else known.get(variable, CONSTANT)

    for eqn in jaxpr.eqns:
        inputs = [read(variable) for variable in eqn.invars]
        called = list(inner_jaxprs(eqn))
        name = _scope_of(eqn, outer) if called or eqn.primitive.name in PRODUCTS else outer
        if called:
            outputs = _call(eqn, [inner.jaxpr for inner in called], inputs, name, counts)
        else:
            outputs = [_union(inputs)] * len(eqn.outvars)
            if eqn.primitive.name in PRODUCTS:
                counts[name, _kind(*inputs[:2])] += PRODUCTS[eqn.primitive.name](eqn)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _call(eqn: JaxprEqn, called: list[Jaxpr], inputs: list[int], name: str, counts: Counts) -> list[int]:
    """Counts an equation that calls others, as often as it runs them."""
    kind = eqn.primitive.name
    if kind == 'cond':
        branches = []
        for branch in called:
            branch_counts: Counts = Counter()
            branches.append((branch_counts, _walk(branch, inputs[1:], name, branch_counts)))
        counts.update(max(branches, key=lambda branch: branch[0].total())[0])
        return [_union([inputs[0], *outputs]) for outputs in zip(*(outputs for _, outputs in branches), strict=True)]
    if kind in ('scan', 'while'):
        if kind == 'scan':
            constants, carries, body = eqn.params['num_consts'], eqn.params['num_carry'], called[0]
        else:
            condition = eqn.params['cond_jaxpr'].jaxpr
            first, constants = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
            body = eqn.params['body_jaxpr'].jaxpr
            _walk(condition, inputs[:first] + inputs[first + constants :], name, counts)
            inputs = inputs[first:]
            carries = len(inputs) - constants
        carried = slice(constants, constants + carries)
        while True:  # until a turn changes no more what the carried values depend on
            turn: Counts = Counter()
            outputs = _walk(body, inputs, name, turn)
            joined = [a | b for a, b in zip(inputs[carried], outputs, strict=False)]
            if joined == inputs[carried]:
                break
            inputs[carried] = joined
        times = eqn.params.get('length', 1)
        counts.update({key: times * value for key, value in turn.items()})
        return joined + outputs[carries:]
    results = []
    for inner in called:
        same = len(inner.invars) == len(inputs)
        results.append(_walk(inner, inputs if same else [_union(inputs)] * len(inner.invars), name, counts))
    if len(results) == 1 and len(results[0]) == len(eqn.outvars):
        return results[0]
    return [_union(inputs)] * len(eqn.outvars)


def _scope_of(eqn: JaxprEqn, outer: str) -> str:
    names = re.findall('<([^<>]*)>', str(eqn.source_info.name_stack))
    return names[-1] if names else outer


def _union(sources: Sequence[int]) -> int:
    union = CONSTANT
    for source in sources:
        union |= source
    return union


def _kind(first: int, second: int) -> str:
    if first & second & INPUT:
        return ACTIVATION
    return LAYER if (first | second) & INPUT and min(first, second) == PARAMETER else OTHER


def _dot(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params['dimension_numbers']
    operand, output = _shapes(eqn)
    return math.prod(output) * math.prod(operand[axis] for axis in contracted)


def _lax_conv(eqn: JaxprEqn) -> int:
    numbers = eqn.params['dimension_numbers']
    x, output = _shapes(eqn)
    kernel = eqn.invars[1].aval.shape  # type: ignore[attr-defined]
    features, channels = (kernel[axis] for axis in numbers.rhs_spec[:2])  # channels of one group
    taps = math.prod(kernel) // (features * channels)
    if math.prod(eqn.params['lhs_dilation']) > 1:
        return math.prod(x) * taps * features // eqn.params['feature_group_count']
    return math.prod(output) * taps * channels


def _own_conv(eqn: JaxprEqn) -> int:
    from cnn.ops import conv

    return conv.multiply_adds(eqn)


def _shapes(eqn: JaxprEqn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the first operand and of the result."""
    return eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape  # type: ignore[attr-defined]


PRODUCTS = {
    'dot_general': _dot,
    'conv_general_dilated': _lax_conv,
    'conv': _own_conv,
    'conv_input': _own_conv,
    'conv_weight': _own_conv,
}

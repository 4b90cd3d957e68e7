"""Several runs in one process, their steps done together.

Runs of a pack differ in seeds and other numbers only, so that they share one program. Three ways to do their steps:

    unrolled     one compiled program holds the step of every run
    dispatched   the runs have a device each, and the step of one is compiled for each
    vmapped      one step for all, vectorised over runs

Unrolled and dispatched, each run has the bits that it has alone. Vectorised, sums may be taken in another order: a run
agrees with itself alone to what float32 keeps of a step, 1e-5 relative after the first, and may part from it later.
"""

from collections.abc import Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cnn.training.loop import Step
from cnn.training.program import Program

STRATEGIES = ('unrolled', 'dispatched', 'vmapped')
Run = Generator[Step, Any, dict[str, Any]]  # of loop.training


def train(runs: Sequence[Run], strategy: str) -> list[dict[str, Any] | Exception]:
    """The result of every run, or the error that ended it, in their order.

    Runs that end, or resume late, leave the others to go on: steps are done together while all that are left want one.
    """
    results: dict[int, dict[str, Any] | Exception] = {}
    wanted: dict[int, Step] = {}

    def advance(index: int, done: Any) -> None:
        try:
            wanted[index] = runs[index].send(done)
        except StopIteration as end:
            results[index] = end.value
        except Exception as error:
            results[index] = error

    for index in range(len(runs)):
        advance(index, None)
    while wanted:
        steps, indices = list(wanted.values()), list(wanted)
        wanted.clear()
        for index, done in zip(indices, together(steps, strategy), strict=True):
            advance(index, done)
    return [results[index] for index in range(len(runs))]


def together(steps: Sequence[Step], strategy: str) -> list[Any]:
    """What each of these steps gives."""
    programs = {id(step.program) for step in steps}
    if strategy == 'dispatched' or len(steps) == 1 or len(programs) > 1:
        return [step.program.train_step(*step.arguments) for step in steps]  # which does not wait for the devices
    program = steps[0].program
    key = id(program), strategy  # programs are kept as long as the process lives
    if key not in _COMPILED:
        _COMPILED[key] = (_unrolled if strategy == 'unrolled' else _vmapped)(program)
    states, *others = zip(*(step.arguments for step in steps), strict=True)
    return _COMPILED[key](states, tuple(zip(*others, strict=True)))


_COMPILED: dict[tuple[int, str], Any] = {}


def _unrolled(program: Program) -> Any:
    def step(states: Any, others: Any) -> list[Any]:
        return [program.train_step(state, *other) for state, other in zip(states, others, strict=True)]

    return jax.jit(step, donate_argnums=0)


def _vmapped(program: Program) -> Any:
    def step(states: Any, others: Any) -> list[Any]:
        arguments = [(state, *other) for state, other in zip(states, others, strict=True)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arguments)
        done = jax.vmap(program.train_step)(*stacked)
        return [jax.tree.map(lambda leaf, index=index: leaf[index], done) for index in range(len(states))]

    return jax.jit(step, donate_argnums=0)

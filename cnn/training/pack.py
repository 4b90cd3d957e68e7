"""Several runs in one process, their steps done together.

Runs of a pack differ in seeds and other numbers only, so that they share one program. Three ways to do their steps:

    unrolled     one compiled program holds the step of every run
    dispatched   the runs have a device each, and the step of one is compiled for each
    vmapped      one step for all, vectorised over runs

Unrolled and dispatched, each run has the bits that it has alone. Vectorised, sums may be taken in another order: a run
agrees with itself alone to what float32 keeps of a step, 1e-5 relative after the first, and may part from it later.

Which is fastest is measured. A CPU that computes for long in a step has nothing to gain, and is not asked to compile.
"""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cnn.training.loop import Step
from cnn.training.program import Program

STRATEGIES = ('unrolled', 'dispatched', 'vmapped')
AUTO, NONE = 'auto', 'none'  # the fastest; one run after the other
CPU_STEP = 0.004  # seconds; of a longer one a CPU spends little between operations, which is what packing saves it
MARGIN = 1.5  # how much faster the runs must be together to give up the bits that they have alone
TIMED = 8  # steps
Run = Generator[Step, Any, dict[str, Any]]  # of loop.training


def train(
    runs: Sequence[Run], strategy: str, tell: Callable[[Mapping[str, float], str], None] | None = None
) -> list[dict[str, Any] | Exception]:
    """The result of every run, or the error that ended it, in their order.

    Runs that end, or resume late, leave the others to go on: steps are done together while all that are left want one.
    `auto` measures on copies of the first run's state, and `tell` is given the seconds of each strategy and the choice.
    With `none`, and where that is the choice, each run is begun when the one before it has ended.
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
        if strategy == AUTO and index in wanted:
            seconds = measure(wanted[index], len(runs) - index)
            strategy = choose(seconds)
            if tell:
                tell(seconds, strategy)
        while strategy == NONE and index in wanted:
            advance(index, together([wanted.pop(index)], strategy)[0])
    while wanted:
        steps, indices = list(wanted.values()), list(wanted)
        wanted.clear()
        for index, done in zip(indices, together(steps, strategy), strict=True):
            advance(index, done)
    return [results[index] for index in range(len(runs))]


def together(steps: Sequence[Step], strategy: str) -> list[Any]:
    """What each of these steps gives."""
    programs = {id(step.program) for step in steps}
    if strategy in ('dispatched', NONE) or len(steps) == 1 or len(programs) > 1:
        return [step.program.train_step(*step.arguments) for step in steps]  # which does not wait for the devices
    program = steps[0].program
    key = id(program), strategy  # programs are kept as long as the process lives
    if key not in _COMPILED:
        _COMPILED[key] = (_unrolled if strategy == 'unrolled' else _vmapped)(program)
    states, *others = zip(*(step.arguments for step in steps), strict=True)
    return _COMPILED[key](states, tuple(zip(*others, strict=True)))


def measure(step: Step, count: int) -> dict[str, float]:
    """Seconds of a step of so many runs on the devices of this one, by each strategy that may be worth it.

    Compilation is left out. A strategy that fails, such as by too little memory, takes for ever.
    """
    seconds = {NONE: count * _seconds([step], NONE)}
    computing = jax.default_backend() == 'cpu' and seconds[NONE] > CPU_STEP * count
    for strategy in ('unrolled', 'vmapped') if count > 1 and not computing else ():
        try:
            seconds[strategy] = _seconds([step] * count, strategy)
        except jax.errors.JaxRuntimeError:
            seconds[strategy] = math.inf
    return seconds


def choose(seconds: Mapping[str, float]) -> str:
    """The fastest; one that changes bits only where it is much faster."""
    exact = min((strategy for strategy in seconds if strategy != 'vmapped'), key=lambda strategy: seconds[strategy])
    return 'vmapped' if MARGIN * seconds.get('vmapped', math.inf) < seconds[exact] else exact


def _seconds(steps: Sequence[Step], strategy: str) -> float:
    states = [jax.tree.map(jnp.copy, step.arguments[0]) for step in steps]
    for count in range(1 + TIMED):
        wanted = [Step(step.program, (state, *step.arguments[1:])) for step, state in zip(steps, states, strict=True)]
        states = [state for state, _ in together(wanted, strategy)]
        if count == 0:
            jax.block_until_ready(states)
            began = time.perf_counter()
    jax.block_until_ready(states)
    return (time.perf_counter() - began) / TIMED


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

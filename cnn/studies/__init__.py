"""Ablation studies: a question, arms that differ in a few fields of an experiment, seeds, and what they show.

A study is a file with a function `get_study`:

    def arms() -> Iterator[Arm]:
        for depth in (8, 14, 20):
            for residual in (True, False):
                name = f'{"residual" if residual else "plain"} {depth}'
                options = {'model.options.depth': depth, 'model.options.residual': residual}
                yield Arm(name, options, against=f'residual {depth}')

    def get_study() -> Study:
        return Study('Do skip connections help at every depth?', 'experiments/digits.py', arms(), 'residual 8')

plan.py makes runs of it, queue.py and slurm.py run them, report.py says what they show. Run folders are the only state.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from cnn import scripts
from cnn.errors import InputError, nearest


@dataclasses.dataclass(frozen=True)
class Arm:
    """One form of the experiment."""

    name: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # by path, such as 'model.options.depth'
    against: str | None = None  # the arm that it is compared with; itself: nothing; None: the study's baseline
    start: str | None = None  # the arm whose run with the same seed it starts from


@dataclasses.dataclass(frozen=True)
class Study:
    """A question and the runs that answer it. Raises InputError for arms that can't be told apart or compared."""

    question: str  # one sentence
    base: str  # FILE[:ARG] of an experiment
    arms: Iterable[Arm]  # becomes a tuple
    baseline: str  # the arm that the others are compared with
    seeds: int = 8  # how many, from 0
    metric: str = 'accuracy'  # of the test split; decides
    also: tuple[str, ...] = ()  # further metrics, shown beside it
    effect: float | None = None  # the difference that would matter
    seeded: tuple[str, ...] = ('seed',)  # the fields that a seed sets; 'data.split_seed' draws other examples with each

    def __post_init__(self) -> None:
        object.__setattr__(self, 'arms', tuple(self.arms))
        names = [arm.name for arm in self.arms]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f'arm {name!r} is there {names.count(name)} times; give each its own name')
            if not name.strip():
                raise InputError('an arm has no name')
        others = [other for arm in self.arms for other in (arm.against, arm.start) if other is not None]
        for name in (self.baseline, *others):
            if name not in names:
                raise nearest('arm', name, names)
        for arm in self.arms:
            self.before(arm)
        if 'seed' not in self.seeded:
            raise InputError(f'seeded={self.seeded}: lacks seed, without which all runs of an arm begin alike')
        if self.seeds < 1:
            raise InputError(f'seeds={self.seeds}: a study needs one at least')

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def before(self, arm: Arm) -> list[Arm]:
        """The arms that must be done before this one, the nearest first. Raises InputError where they form a circle."""
        found: list[Arm] = []
        while arm.start is not None:
            arm = self.arm(arm.start)
            if arm in found:
                raise InputError(f'arm {arm.name!r} starts from itself, or from what starts from it')
            found.append(arm)
        return found

    def compared_with(self, arm: Arm) -> str | None:
        """The name of the arm that this one is compared with; None for one that is compared with nothing."""
        other = arm.against or self.baseline
        return None if other == arm.name else other

    @property
    def comparisons(self) -> int:
        """How many there are, for which Holm's correction makes up."""
        return sum(self.compared_with(arm) is not None for arm in self.arms)


def load(path: str) -> Study:
    """The study of FILE[:ARG]. Raises InputError naming the line where the file goes wrong."""
    return scripts.load(path, 'get_study', Study, 'experiments/ablations')

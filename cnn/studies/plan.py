"""A study as runs: what each of them is, where it goes, what became of it, and what all of them take and can show."""

import copy
import dataclasses
import hashlib
import json
import pathlib
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from cnn import config as configuration
from cnn import tasks, validation
from cnn.config import Experiment, Spec
from cnn.errors import InputError
from cnn.studies import Study
from cnn.studies import results as outcomes
from cnn.studies.arms import Form, Split, find_splits, forms
from cnn.studies.results import DONE, Cost, Outcome
from cnn.studies.statistics import seeds_needed
from cnn.training.records import code_revision

LONGEST_SLUG = 60
# What stands for the time of a run as long as none is finished: of small networks on two cores of a CPU.
START_SECONDS, MULTIPLY_ADDS_PER_SECOND = 10.0, 2e10


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: str
    seed: int
    config: Experiment  # resolved
    spec: Spec  # of the data's examples
    identity: str
    folder: pathlib.Path
    compilation: str  # equal for runs that share their compiled step
    outcome: Outcome  # as it was when the plan was made
    start: pathlib.Path | None  # the folder of the run that it starts from

    @property
    def status(self) -> str:
        """done, partial, failed, damaged, to do."""
        return self.outcome.status


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs of a study: for each arm, in its order, one with each seed; what others start from comes first."""

    study: Study
    root: pathlib.Path
    seeds: tuple[int, ...]
    forms: tuple[Form, ...]
    runs: tuple[Run, ...]
    code: str | None  # the revision now

    @property
    def left(self) -> tuple[Run, ...]:
        """The runs that are not done."""
        return tuple(run for run in self.runs if run.status != DONE)

    @property
    def compilations(self) -> int:
        """How many different steps the runs that are left compile."""
        return len({run.compilation for run in self.left})

    @property
    def costs(self) -> dict[str, Cost]:
        """By arm."""
        return {form.arm.name: form.cost for form in self.forms}

    @property
    def direction(self) -> str:
        """Of the study's metric: max, min."""
        task = self.forms[0].config.task
        return tasks.build(task.name, **task.options).directions[self.study.metric]

    @property
    def seeds_needed(self) -> int:
        """The fewest seeds with which this study can show anything."""
        return seeds_needed(self.study.comparisons)

    @property
    def other_code(self) -> dict[str, int]:
        """Revisions of the code that began runs had, other than the one now, and how many of them."""
        revisions = (revision for run in self.runs for revision in _revisions(run.outcome) if revision != self.code)
        return dict(Counter(revision or 'no checkout' for revision in revisions))

    def statuses(self, arm: str | None = None) -> dict[str, int]:
        """How many runs, of an arm or of all, became what."""
        return dict(Counter(run.status for run in self.runs if arm in (None, run.arm)))

    def seconds(self) -> tuple[dict[str, float], str]:
        """Of a run of each arm, times its devices; and how they are known: measured, scaled, guessed."""
        taken: dict[str, list[float]] = {}
        for run in self.runs:
            if run.outcome.seconds is not None:
                taken.setdefault(run.arm, []).append(run.outcome.seconds)
        measured = {arm: statistics.median(seconds) for arm, seconds in taken.items()}
        work = {form.arm.name: form.work for form in self.forms}
        if not measured:
            return {arm: START_SECONDS + of / MULTIPLY_ADDS_PER_SECOND for arm, of in work.items()}, 'guessed'
        pace = statistics.median(seconds / max(work[arm], 1) for arm, seconds in measured.items())
        known = 'measured' if len(measured) == len(work) else 'scaled'
        return {arm: measured.get(arm, pace * of) for arm, of in work.items()}, known


def plan(study: Study, seeds: Sequence[int], root: pathlib.Path) -> Plan:
    """The runs of a study, each checked and looked up in its folder under `root`. Nothing is written or computed.

    JAX must have been told to use the CPU. Raises InputError for a seed that is there twice and for arms that can't be
    run; see arms.forms.
    """
    for seed, times in Counter(seeds).items():
        if times > 1:
            raise InputError(f'--seeds: seed {seed} is there {times} times; a run counts once')
    splits: dict[str, Split] = {}
    made = forms(study, splits)
    runs: dict[tuple[str | None, int], Run] = {}
    for form in sorted(made, key=lambda form: len(study.before(form.arm))):
        for seed in seeds:
            runs[form.arm.name, seed] = _run(study, form, seed, root, splits, runs.get((form.arm.start, seed)))
    return Plan(study, root, tuple(seeds), made, tuple(runs.values()), code_revision())


def check_code(plan: Plan) -> None:
    """Raises InputError where runs that are left would have other code than runs that were begun."""
    if plan.other_code and plan.left:
        others = ', '.join(f'{count} with {revision}' for revision, count in plan.other_code.items())
        raise InputError(
            f'runs in {plan.root} had other code than {plan.code or "no checkout"}: {others}; '
            '--allow_code_change goes on, another --workdir starts afresh'
        )


def identify(config: Experiment, splits: Mapping[str, str]) -> str:
    """Twelve hexadecimal digits that name a run, of its resolved configuration and its splits' fingerprints."""
    content = json.dumps([configuration.to_dict(config), dict(splits)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _run(study: Study, form: Form, seed: int, root: pathlib.Path, splits: dict[str, Split], start: Run | None) -> Run:
    config = copy.deepcopy(form.config)
    configuration.override(config, dict.fromkeys(study.seeded, seed), config)
    validation.validate(config)
    name = form.arm.name
    if start:
        config.init_from = start.identity  # not its folder, which may be moved
    own = find_splits(config, form.spec, splits)
    identity = identify(config, {role: split.fingerprint for role, split in own.items()})
    if start:
        config.init_from = str(start.folder)
    slug = re.sub(r'[^A-Za-z0-9.]+', '_', name)[:LONGEST_SLUG].strip('._') or 'arm'
    folder = root / f'{slug}-{seed}-{identity}'
    outcome = outcomes.read(name, seed, folder)
    source = start.folder if start else None
    return Run(name, seed, config, form.spec, identity, folder, form.compilation, outcome, source)


def _revisions(outcome: Outcome) -> set[str | None]:
    """Of the code that a run had; none where it was not begun."""
    if not outcome.record:
        return set()
    changes = [entry.get('changed', {}).get('code', ()) for entry in outcome.record.get('history', ())]
    return {outcome.record.get('code'), *(revision for pair in changes for revision in pair)}

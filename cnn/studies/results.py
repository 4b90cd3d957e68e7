"""What the runs of a study left in their folders, by arm and seed, with those that are missing by name.

The folders are read anew each time: nothing else knows what is done. See cnn/training/records.py for what they hold;
what it cost is told by `devices` (how many it had to itself, as a share where runs go side by side) and `peak_memory`
(bytes, where it is known) of DONE.json.
"""

import dataclasses
import itertools
import json
import math
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from cnn import tasks
from cnn.config import Experiment, to_dict
from cnn.errors import InputError, nearest
from cnn.studies import Arm, Study
from cnn.training.records import read_json, read_rows

DONE, PARTIAL, FAILED, TO_DO, DAMAGED = 'done', 'partial', 'failed', 'to do', 'damaged'
NO_ARM = ('seed', 'log.every')  # fields that make no other arm of a run


class Planned(Protocol):
    """A run as plan.py has it."""

    @property
    def arm(self) -> str: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def folder(self) -> pathlib.Path: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run left."""

    arm: str
    seed: int
    folder: pathlib.Path | None
    status: str = TO_DO  # done, partial, failed, to do, damaged
    error: str | None = None  # what failed or is damaged
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of the last split, once the run is done
    seconds: float | None = None  # times the devices it had
    examples_per_second: float | None = None  # on each of its devices
    peak_memory: int | None = None  # bytes
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # run.json
    rows: tuple[Mapping[str, Any], ...] = ()  # of metrics.jsonl, once the run is done

    @property
    def split(self) -> str | None:
        """What the metrics are of."""
        if not self.metrics:
            return None
        if any(row['split'] == 'test' for row in self.rows):
            return 'test'
        return 'validation' if _at(self.record, 'config.data.validation_split') else 'train'


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of an arm's network."""

    parameters: int
    multiply_adds: int  # of one example, forward


@dataclasses.dataclass(frozen=True)
class Results:
    """The outcomes of a study: one for each arm and seed, whatever became of it."""

    study: Study
    direction: str  # of the study's metric: max (more is better), min
    seeds: tuple[int, ...]
    outcomes: tuple[Outcome, ...]
    costs: Mapping[str, Cost] = dataclasses.field(default_factory=dict)  # by arm

    @property
    def sign(self) -> int:
        """Times this, more is better."""
        return 1 if self.direction == 'max' else -1

    def of(self, arm: str) -> list[Outcome]:
        """An arm's outcomes, by seed."""
        return sorted((outcome for outcome in self.outcomes if outcome.arm == arm), key=lambda outcome: outcome.seed)

    def value(self, outcome: Outcome, metric: str | None = None) -> float | None:
        """The study's metric, or another one; None for what is not done, or is no number."""
        value = outcome.metrics.get(metric or self.study.metric, math.nan)
        return value if math.isfinite(value) else None

    def values(self, arm: str, metric: str | None = None) -> dict[int, float]:
        """The study's metric, or another one, by seed, where there is one."""
        pairs = ((outcome.seed, self.value(outcome, metric)) for outcome in self.of(arm))
        return {seed: value for seed, value in pairs if value is not None}

    def missing(self, arm: str) -> list[Outcome]:
        """The outcomes of an arm that have no value."""
        return [outcome for outcome in self.of(arm) if self.value(outcome) is None]

    def array(self) -> np.ndarray:
        """The study's metric [arms, seeds]; NaN where it is missing."""
        rows = [[self.values(arm.name).get(seed, np.nan) for seed in self.seeds] for arm in self.study.arms]
        return np.array(rows, float).reshape(len(rows), len(self.seeds))

    def word(self, outcome: Outcome) -> str:
        """What became of a run."""
        if outcome.status == DONE and self.value(outcome) is None:
            return f'{self.study.metric} is {outcome.metrics.get(self.study.metric)}'
        return outcome.status


def collect(
    study: Study, runs: Iterable[Planned], direction: str = 'max', costs: Mapping[str, Cost] | None = None
) -> Results:
    """Reads the folders of the runs; an arm that lacks a seed which another one has gets a run to do.

    Raises InputError where the finished runs do not measure the study's metrics.
    """
    return _complete(study, [read(run.arm, run.seed, pathlib.Path(run.folder)) for run in runs], direction, costs or {})


def _complete(study: Study, found: Iterable[Outcome], direction: str, costs: Mapping[str, Cost]) -> Results:
    outcomes = {(outcome.arm, outcome.seed): outcome for outcome in found}
    seeds = tuple(sorted({seed for _, seed in outcomes}))
    for arm, seed in itertools.product((arm.name for arm in study.arms), seeds):
        outcomes.setdefault((arm, seed), Outcome(arm, seed, folder=None))
    for outcome in outcomes.values():
        for metric in (study.metric, *study.also) if outcome.status == DONE else ():
            if metric not in outcome.metrics:
                raise nearest('metric', metric, outcome.metrics)
    return Results(study, direction, seeds, tuple(outcomes.values()), costs)


def read(arm: str, seed: int, folder: pathlib.Path) -> Outcome:
    """What a run left in its folder. A damaged file is an outcome, so that it does not hide the others."""
    try:
        record, done = read_json(folder / 'run.json'), read_json(folder / 'DONE.json')
        failed = read_json(folder / 'FAILED.json')
        if done:
            rows = read_rows(folder / 'metrics.jsonl')
            devices = done.get('devices') or _devices(record or {})
            return Outcome(
                arm, seed, folder, DONE, None,
                metrics={name: float(value) for name, value in done['metrics'].items()},
                seconds=done['seconds'] * devices,
                examples_per_second=done['examples_per_second'] / devices,
                peak_memory=done.get('peak_memory'),
                record=record or {},
                rows=tuple(rows),
            )  # fmt: skip
    except (InputError, json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        reason = f'lacks {error}' if isinstance(error, KeyError) else ' '.join(str(error).split())
        return Outcome(arm, seed, folder, DAMAGED, reason)
    status = FAILED if failed else PARTIAL if record else TO_DO
    return Outcome(arm, seed, folder, status, (failed or {}).get('error'), record=record or {})


def _devices(record: Mapping[str, Any]) -> int:
    """How many devices the mesh of a run had."""
    data, fsdp = _at(record, 'config.mesh.data'), _at(record, 'config.mesh.fsdp') or 1
    return data * fsdp if data else max(len(record.get('devices', ())), 1)


def _at(record: Any, path: str) -> Any:
    for name in path.split('.'):
        record = record.get(name) if isinstance(record, Mapping) else None
    return record


def from_folders(paths: Sequence[pathlib.Path], metric: str | None = None, *also: str) -> Results:
    """The run folders at and below the paths as a study: those that differ in the seed alone are one arm.

    The arms bear the fields in which they differ; the first one, in the order of paths and of names within them, is
    the baseline. The metric is the one that chose the best checkpoint, or the task's first; `also` are shown beside
    it. Raises InputError where there are no runs, where two are the same, or where tasks differ.
    """
    folders = [file.parent for path in paths for file in sorted(pathlib.Path(path).rglob('run.json'))]
    folders = list({folder.resolve(): folder for folder in folders}.values())
    if not folders:
        raise InputError(f'{", ".join(map(str, paths))}: no run folder there; a run folder has a run.json')
    configs = [_config(path) for path in folders]
    names, values = _arm_names(configs)
    runs: dict[tuple[str, int], pathlib.Path] = {}
    for folder, name, config in zip(folders, names, configs, strict=True):
        other = runs.setdefault((name, config['seed']), folder)
        if other != folder:
            raise InputError(f'{other} and {folder}: the same configuration and seed; move one of them away')
    metric, direction = _metric(configs, metric, also)
    arms = tuple(Arm(name, values[name]) for name in dict.fromkeys(names))
    seeds = {config['seed'] for config in configs}
    question = f'What do the runs in {", ".join(map(str, paths))} show?'
    study = Study(question, '', arms, arms[0].name, len(seeds), metric, also, seeded=_seeded(configs))
    return _complete(study, [read(arm, seed, folder) for (arm, seed), folder in runs.items()], direction, {})


def _config(folder: pathlib.Path) -> dict[str, Any]:
    """The fields of a run; of one that starts from a study's run with its own seed, that run's arm as `init_from`."""
    record = read_json(folder / 'run.json')
    if not isinstance(_at(record, 'config.task.name'), str):
        raise InputError(f'{folder}: run.json is no record of a run; leave that folder out')
    config = {**_flat(to_dict(Experiment())), **_flat(record['config'])}
    named = re.fullmatch(rf'(.+)-{config["seed"]}-[0-9a-f]{{12}}', pathlib.Path(config['init_from'] or '').name)
    return {**config, 'init_from': named[1]} if named else config


def _flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
    return flat


def _arm_names(configs: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """For each configuration the name of its arm; and by name the fields in which the arms differ, with their values.

    Options that only some of the networks have are left out where the other fields tell the arms apart.
    """

    def text(value: Any) -> str:
        return json.dumps(value, sort_keys=True)

    absent = object()
    paths = dict.fromkeys(path for config in configs for path in config if path not in (*NO_ARM, *_seeded(configs)))
    differing = [path for path in paths if len({text(config.get(path, '-')) for config in configs}) > 1]
    shared = [path for path in differing if all(path in config for config in configs)]

    def told_apart(by: Sequence[str]) -> int:
        return len({tuple(text(config.get(path, '-')) for path in by) for config in configs})

    if told_apart(shared) == told_apart(differing):
        differing = shared
    short = defaultdict(list)
    for path in differing:
        short[path.rpartition('.')[2]].append(path)
    names, values = [], {}
    for config in configs:
        chosen = {path: config[path] for path in differing if config.get(path, absent) is not absent}
        parts = []
        for path, value in chosen.items():
            last = path.rpartition('.')[2]
            label = last if len(short[last]) == 1 and last != 'name' else path.removesuffix('.name')
            parts.append(f'{label}={value if isinstance(value, str) else text(value)}')
        names.append(', '.join(parts) or 'runs')
        values[names[-1]] = chosen
    return names, values


def _seeded(configs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The fields that are the seed in every run."""

    def follows(path: str) -> bool:
        return all(type(config.get(path)) is int and config[path] == config['seed'] for config in configs)

    return tuple(path for path in configs[0] if follows(path))


def _metric(configs: Sequence[Mapping[str, Any]], metric: str | None, also: Sequence[str]) -> tuple[str, str]:
    """The metric that decides and its direction. Raises InputError where the runs do not agree."""
    names = {config['task.name'] for config in configs}
    if len(names) > 1:
        raise InputError(f'the runs are of several tasks ({", ".join(sorted(names))}); report one at a time')
    directions: dict[str, str] = {}
    for config in configs:
        options = {path.removeprefix('task.options.'): config[path] for path in config if 'task.options.' in path}
        directions |= tasks.build(config['task.name'], **options).directions
    chosen = {config['eval.metric'] or next(iter(directions)) for config in configs}
    if metric is None and len(chosen) > 1:
        raise InputError(f'the runs chose by several metrics ({", ".join(sorted(chosen))}); say which with --metric')
    name = metric or chosen.pop()
    for known in (name, *also):
        if known not in directions:
            raise nearest('metric', known, directions)
    return name, directions[name]


def environment(results: Results) -> dict[str, dict[str, list[Outcome]]]:
    """Code, devices and packages: name -> version -> the runs that had it; data by split and arm where they differ.

    A run that went on with other code or packages counts with both. Data that a seed draws differ as they shall.
    """
    found: dict[str, dict[str, list[Outcome]]] = {}
    for outcome in results.outcomes:
        for name, version in _versions(outcome):
            found.setdefault(name, {}).setdefault(version, []).append(outcome)
    data: dict[str, dict[str, list[Outcome]]] = {}
    for outcome in results.outcomes if 'data.split_seed' not in results.study.seeded else ():
        for split, digest in outcome.record.get('data', {}).items():
            data.setdefault(f'data of {outcome.arm}, {split}', {}).setdefault(digest[:12], []).append(outcome)
    return found | {name: versions for name, versions in data.items() if len(versions) > 1}


def _versions(outcome: Outcome) -> list[tuple[str, str]]:
    record = outcome.record
    if not record:
        return []
    changes = [entry.get('changed', {}) for entry in record.get('history', ())]
    pairs = [('split of the metrics', outcome.split)] if outcome.split else []
    for name in ('code', 'devices', 'packages'):
        for value in [record.get(name), *(change[name][1] for change in changes if name in change)]:
            if name == 'packages':
                pairs += list((value or {}).items())
            elif name == 'devices':
                pairs.append((name, _counted(value or ())))
            else:
                pairs.append((name, value or 'outside a checkout'))
    return list(dict.fromkeys(pairs))


def _counted(names: Sequence[str]) -> str:
    """Equal names once, with their number: 8 x tpu: TPU v4."""
    return ', '.join(f'{names.count(name)} x {name}' for name in dict.fromkeys(names)) or 'unknown'

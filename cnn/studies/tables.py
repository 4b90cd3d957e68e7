"""The tables of a report, as text in cells: Markdown, LaTeX and HTML are made of them."""

import dataclasses
import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cnn.studies.findings import Finding, absences, listed, number, p_text, places, signed, spoken
from cnn.studies.results import Outcome, Results, environment
from cnn.studies.statistics import Summary


@dataclasses.dataclass(frozen=True)
class Cell:
    """Text; loud where it must not be overlooked."""

    text: str
    loud: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells under a header; the first `left` columns, and the last one if told, begin at the left."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: int = 1
    last: bool = False

    def at_left(self, column: int) -> bool:
        """Whether a column begins at the left."""
        return column < self.left or (self.last and column == len(self.header) - 1)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1, last: bool = False) -> Table | None:
    """A table of strings and cells; None without rows."""
    cells = tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)
    return Table(tuple(header), cells, left, last) if cells else None


def arms(results: Results, findings: Sequence[Finding]) -> Table | None:
    """What each arm measured."""
    decimals = places(finding.summary for finding in findings)
    header = ['arm', 'seeds', spoken(results.study.metric), 'standard deviation', '95 % interval']
    rows: list[list[Any]] = []
    for finding in findings:
        summary = finding.summary
        figures = number(summary.mean, decimals), number(summary.deviation, decimals)
        rows.append([finding.arm, seeds(finding), *figures, interval(summary, decimals)])
    for name in results.study.also:
        header += [spoken(name), '95 % interval']
        decimals = places(finding.also[name] for finding in findings)
        for row, finding in zip(rows, findings, strict=True):
            row += [mean(finding.also[name], decimals, finding.summary.count), interval(finding.also[name], decimals)]
    return table(header, rows)


def differences(findings: Sequence[Finding]) -> Table | None:
    """How each arm differs from the one that it is compared with."""
    decimals = places(finding.difference.summary for finding in findings if finding.difference)
    rows: list[list[Any]] = []
    for finding in findings:
        if finding.against is None:
            continue
        if finding.difference is None:
            rows.append([finding.arm, finding.against, '', '', '', '', '', Cell(finding.verdict, loud=True)])
            continue
        summary, p = finding.difference.summary, (finding.difference.p, finding.difference.adjusted)
        few = summary.count < finding.planned
        pairs = Cell(f'{summary.count} of {finding.planned}' if few else str(summary.count), loud=few)
        figures = signed(summary.mean, decimals), interval(summary, decimals), *map(p_text, p)
        rows.append([finding.arm, finding.against, pairs, *figures, finding.verdict])
    header = ['arm', 'against', 'pairs', 'difference', '95 % interval', 'p', 'p (Holm)', 'verdict']
    return table(header, rows, left=2, last=True)


def joined(first: Table, second: Table | None) -> Table:
    """Two tables with the arm in the first column as one."""
    if second is None:
        return first
    beside = {row[0].text: row[1:] for row in second.rows}
    nothing = (Cell(''),) * (len(second.header) - 1)
    rows = tuple((*row, *beside.get(row[0].text, nothing)) for row in first.rows)
    return Table((*first.header, *second.header[1:]), rows, first.left, second.last)


def seeds(finding: Finding) -> Cell:
    """How many there are, and loudly which are missing."""
    if not finding.missing:
        return Cell(str(finding.summary.count))
    which = listed(str(outcome.seed) for outcome in finding.missing) if finding.summary.count else 'any'
    return Cell(f'{finding.summary.count} of {finding.planned}, without {which}', loud=True)


def mean(summary: Summary, decimals: int, count: int) -> Cell:
    """The mean, loud where it is not of so many seeds."""
    few = summary.count < count
    return Cell(number(summary.mean, decimals) + (f' ({summary.count} of {count} seeds)' if few else ''), loud=few)


def interval(summary: Summary, decimals: int) -> str:
    """From and to; empty where there is none."""
    ends = number(summary.low, decimals), number(summary.high, decimals)
    return ' to '.join(ends) if math.isfinite(summary.low) else ''


def costs(findings: Sequence[Finding]) -> Table | None:
    """What each arm costs; columns of which nothing is known are left out."""
    columns: list[tuple[str, Callable[[Finding], float], Callable[[float], str]]] = [
        ('device seconds of a run', lambda f: f.seconds, lambda x: f'{x:,.1f}'),
        (
            'examples per device second',
            lambda f: f.examples_per_second,
            lambda x: f'{x:,.0f}' if x >= 100 else f'{x:.3g}',
        ),
        ('parameters', lambda f: f.cost.parameters if f.cost else math.nan, lambda x: f'{x:,.0f}'),
        ('multiply-adds', lambda f: f.cost.multiply_adds if f.cost else math.nan, lambda x: f'{x:,.0f}'),
        ('peak memory, MiB', lambda f: f.peak_memory, lambda x: f'{x / 2**20:,.0f}'),
    ]
    known = [column for column in columns if any(math.isfinite(column[1](finding)) for finding in findings)]
    rows = [
        [finding.arm, *(show(get(finding)) if math.isfinite(get(finding)) else '' for _, get, show in known)]
        for finding in findings
    ]
    return table(['arm', *(name for name, _, _ in known)], rows if known else [])


def runs(results: Results) -> Table | None:
    """The metric of every run: arms x seeds."""
    values = [value for arm in results.study.arms for value in results.values(arm.name).values()]
    decimals = 4 if not values else max(4 - math.ceil(math.log10(max(max(map(abs, values)), 1e-8))), 0)

    def cell(outcome: Outcome) -> Cell:
        value = results.value(outcome)
        return Cell(results.word(outcome), loud=True) if value is None else Cell(number(value, decimals))

    rows = [[arm.name, *map(cell, results.of(arm.name))] for arm in results.study.arms]
    return table(['arm', *(f'seed {seed}' for seed in results.seeds)], rows)


def missing(results: Results) -> Table | None:
    """The runs that have no value, with what is known of them."""
    rows = [
        [arm.name, str(o.seed), Cell(results.word(o), loud=True), o.error or '', str(o.folder or '')]
        for arm in results.study.arms
        for o in results.missing(arm.name)
    ]
    return table(['arm', 'seed', 'state', 'error', 'folder'], rows, left=5)


def overrides(results: Results) -> Table | None:
    """What makes each arm."""

    def text(value: object) -> str:
        return 'none' if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    rows = []
    for arm in results.study.arms:
        changes = [f'{path}={text(value)}' for path, value in arm.overrides.items()]
        changes += [f'init_from=the run of {arm.start!r}'] if arm.start else []
        rows.append([arm.name, ', '.join(changes) or 'the base as it is'])
    return table(['arm', 'differs from the base in'], rows if results.study.base else [], left=2)


def same(results: Results) -> Table | None:
    """The environment, as far as all runs had the same."""
    rows = [
        [name, Cell(_version(version), loud=version.endswith('+'))]
        for name, versions in environment(results).items()
        for version in versions
        if len(versions) == 1
    ]
    return table(['what', 'value'], rows, left=2)


def differing(results: Results) -> Table | None:
    """The environment where runs differ, and which ones."""
    rows = []
    for name, versions in environment(results).items():
        most = max(versions, key=lambda version: len(versions[version]))
        for version, outcomes in versions.items() if len(versions) > 1 else ():
            which = f'{len(outcomes)} runs' if version == most else listed(_whose(outcomes), most=4)
            rows.append([name, Cell(_version(version), loud=True), which])
    return table(['what', 'value', 'runs'], rows, left=3)


def _version(version: str) -> str:
    return f'{version[:-1]} with changes that are not committed' if version.endswith('+') else version


def _whose(outcomes: Sequence[Outcome]) -> list[str]:
    arms = dict.fromkeys(outcome.arm for outcome in outcomes)
    return [f'{arm!r} {listed((str(o.seed) for o in outcomes if o.arm == arm), "seed")}' for arm in arms]


def alarm(findings: Sequence[Finding]) -> str | None:
    """What stands on top of a report from which runs are missing."""
    texts = absences(findings)
    if not texts:
        return None
    count, planned = sum(len(finding.missing) for finding in findings), sum(finding.planned for finding in findings)
    verb = 'is' if count == 1 else 'are'
    return f'INCOMPLETE: {count} of {planned} runs {verb} missing: {listed(texts)}. They are in no figure below.'


def recorded_commands(results: Results) -> list[str]:
    """Of each arm the command that began its first run."""
    commands = []
    for arm in results.study.arms:
        histories = [outcome.record.get('history') for outcome in results.of(arm.name)]
        given = [history[0]['command'] for history in histories if history and history[0].get('command')]
        commands += [shlex.join(['python', 'launch.py', *given[0][1:]])] if given else []
    return list(dict.fromkeys(commands))

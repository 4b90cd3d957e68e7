"""What a plan says, as text for a terminal."""

import re
from collections.abc import Sequence

from cnn.studies.arms import Form, differences, load_base
from cnn.studies.plan import MULTIPLY_ADDS_PER_SECOND, START_SECONDS, Plan
from cnn.studies.results import DAMAGED, DONE, FAILED, PARTIAL, TO_DO

WIDTH = 100  # characters
LONGEST_NAME = 36
ORDER = DONE, PARTIAL, FAILED, DAMAGED, TO_DO


def text(plan: Plan) -> str:
    """The question, the arms with their differences and costs, and the totals."""
    study, (seconds, _) = plan.study, plan.seconds()
    rows = [['arm', 'parameters', 'multiply-adds', 'a run', 'runs']]
    for form in plan.forms:
        name = form.arm.name
        figures = f'{form.cost.parameters:,}', f'{form.cost.multiply_adds:,}', duration(seconds[name])
        rows.append([_cut(name, LONGEST_NAME), *figures, _statuses(plan.statuses(name))])
    table = _columns(rows)
    lines = [_cut(study.question), _cut(f'{study.base}, runs in {plan.root}/'), '', table[0]]
    for form, line in zip(plan.forms, table[1:], strict=True):
        lines += [line, *_differences(plan, form)]
    return '\n'.join([*lines, '', *_totals(plan)])


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    for unit, size in (('days', 86400), ('h', 3600), ('min', 60)):
        if seconds >= 2 * size:
            return f'{seconds / size:.1f} {unit}'
    return f'{seconds:.0f} s'


def _differences(plan: Plan, form: Form) -> list[str]:
    """A line for each field in which an arm differs from the one that it is compared with.

    An arm that stands alone is shown beside the baseline, and the baseline beside the base.
    """
    baseline, against = plan.study.baseline, plan.study.compared_with(form.arm)
    if form.arm.name == baseline and against is None:
        head, found = f'baseline, from {plan.study.base}', differences(load_base(plan.study), form.given, form.arm)
    else:
        other = next(other for other in plan.forms if other.arm.name == (against or baseline))
        head = f'against {against}' if against else f'compared with nothing, from {baseline}'
        found = differences(other.config, form.config, form.arm, other.arm)
    lines = [f'    {path}: {old} -> {new}' for path, (old, new) in found.items()]
    return [_cut(line) for line in (f'  {head}:', *lines)]


def _totals(plan: Plan) -> list[str]:
    seconds, known = plan.seconds()
    whole = sum(seconds[run.arm] for run in plan.left)
    rate = f'{MULTIPLY_ADDS_PER_SECOND / 1e9:.0f}e9'
    how = {
        'measured': 'by the finished runs',
        'scaled': 'by the finished runs and multiply-adds',
        'guessed': f'a guess: {START_SECONDS:.0f} s to start and {rate} multiply-adds a second',
    }[known]
    lines = [f'{len(plan.forms)} arms x {len(plan.seeds)} seeds = {len(plan.runs)} runs: {_statuses(plan.statuses())}']
    if plan.left:
        number = f'{plan.compilations} compilation{"s" * (plan.compilations > 1)}'
        lines.append(f'left: {number}, {duration(whole)} one after another ({how})')
    lines = [_cut(line) for line in (*lines, _power(plan), *_code(plan))]
    ended = (run for run in plan.runs if run.outcome.error)
    return lines + [f'{run.status}: {run.arm}, seed {run.seed}: {run.outcome.error}' for run in ended]


def _power(plan: Plan) -> str:
    """What this number of seeds can show."""
    comparisons, seeds, needed = plan.study.comparisons, len(plan.seeds), plan.seeds_needed
    if not comparisons:
        return 'nothing is compared: every arm stands alone'
    family = f'{comparisons} comparison{"s" * (comparisons > 1)}'
    if seeds < needed:
        return f'WARNING: {family} need {needed} seeds before one can reach p < .05 (Holm); {seeds} can show none'
    return f'{seeds} seeds can show a difference at p < .05: {family} need {needed} (sign-flip test, Holm)'


def _code(plan: Plan) -> list[str]:
    now = plan.code or 'no checkout'
    lines = [f'code {_short(now)}' + (' (+: files differ from the commit)' if now.endswith('+') else '')]
    for revision, count in plan.other_code.items():
        lines.append(f'WARNING: differing code: {count} begun runs had {_short(revision)}; --allow_code_change goes on')
    return lines


def _short(revision: str) -> str:
    """The first digits of a commit, and the mark that files differ from it."""
    return re.sub('^([0-9a-f]{12})[0-9a-f]+', r'\1', revision)


def _statuses(counts: dict[str, int]) -> str:
    return ', '.join(f'{counts[status]} {status}' for status in ORDER if status in counts)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns of one width; the first and the last begin at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *middle, last in rows:
        cells = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        lines.append(_cut('  '.join([first.ljust(widths[0]), *cells, last])))
    return lines


def _cut(line: str, width: int = WIDTH) -> str:
    return line if len(line) <= width else f'{line[: width - 3]}...'

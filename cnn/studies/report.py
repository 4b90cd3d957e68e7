"""The report of a study: Markdown, CSV, LaTeX, PNG and an HTML page that stands alone.

report.md      everything, with the pictures beside it        report.html   the same in one file
results.csv    a row for each run, whatever became of it      arms.csv      a row for each arm
report.tex     the table of the arms, for booktabs            curves.png, effects.png, costs.png
"""

import csv
import io
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cnn.studies import figures, page, tables, tradeoff
from cnn.studies.canvas import DARK, LIGHT, Theme
from cnn.studies.findings import Finding, answer, find, listed, spoken
from cnn.studies.page import Section
from cnn.studies.results import Results
from cnn.studies.statistics import FEWEST_FOR_BOOTSTRAP
from cnn.studies.tables import Cell, Table

EFFECTS = (
    'Of runs that share a seed. In the picture strokes are seeds, the bar is the 95 % interval; the best is on top.'
)
CURVES = (
    'The mean over the finished runs of an arm; the band reaches from the lowest to the highest seed. '
    'The range of the axis leaves out the first fifth.'
)
COST = (
    'Means with 95 % intervals against cost. Triangles up and down: better and worse than what the arm is compared '
    'with; circles: no difference shown; squares: compared with nothing.'
)
DIFFERING = 'Runs that should differ in arm and seed alone differ in this too.'
PICTURES = {'effects': figures.effects, 'curves': figures.curves, 'costs': tradeoff.costs}
ESCAPES = {
    '\\': r'\textbackslash{}', '{': r'\{', '}': r'\}', '$': r'\$', '&': r'\&', '#': r'\#', '_': r'\_', '%': r'\%',
    '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': r'\textless{}', '>': r'\textgreater{}',
    '|': r'\textbar{}', '\u2212': '$-$', '\u2013': '--',
}  # fmt: skip


def write(results: Results, folder: pathlib.Path, commands: Sequence[str] = ()) -> str:
    """Writes all files of the report into `folder`, each whole or not at all, and returns the answer.

    `commands` make the study again; without them the report names those that its runs record.
    """
    files = render(results, commands)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        _write(folder / name, content)
    for name in PICTURES:
        if f'{name}.png' not in files:
            (folder / f'{name}.png').unlink(missing_ok=True)
    return answer(results, find(results))


def render(results: Results, commands: Sequence[str] = ()) -> dict[str, bytes]:
    """The files by name."""
    findings = find(results)
    light, dark = pictures(results, findings, LIGHT), pictures(results, findings, DARK)
    parts = sections(results, findings, commands or tables.recorded_commands(results))
    texts = {
        'report.md': markdown(results, findings, parts, list(light)),
        'report.tex': latex(results, findings),
        'results.csv': runs_csv(results),
        'arms.csv': arms_csv(findings),
        'report.html': page.html(
            results.study.question, answer(results, findings), tables.alarm(findings), parts, light, dark
        ),
    }
    return {f'{name}.png': content for name, content in light.items()} | {n: t.encode() for n, t in texts.items()}


def pictures(results: Results, findings: Sequence[Finding], theme: Theme) -> dict[str, bytes]:
    """PNG files by name, of what there is to draw."""
    drawn = {name: draw(results, findings, theme) for name, draw in PICTURES.items()}
    return {name: png(picture) for name, picture in drawn.items() if picture is not None}


def sections(results: Results, findings: Sequence[Finding], commands: Sequence[str]) -> list[Section]:
    """What the report says under which heading, in its order."""
    metric = spoken(results.study.metric)
    better = 'more' if results.sign > 0 else 'less'
    splits = sorted({outcome.split for outcome in results.outcomes if outcome.split})
    of = f' ({", ".join(splits)})' if splits else ''
    also = listed(map(spoken, results.study.also)) if results.study.also else ''
    beside = f' {also.capitalize()}: shown beside it, and not compared.' if also else ''
    parts = [
        Section('Arms', f'{metric.capitalize()}{of}; {better} is better.{beside}', tables.arms(results, findings)),
        Section('Differences', EFFECTS, tables.differences(findings), picture='effects'),
        Section('Curves', CURVES, picture='curves'),
        Section('Cost', COST, tables.costs(findings), picture='costs'),
        Section('Missing runs', '', tables.missing(results)),
        Section('Every run', f'{metric.capitalize()} by seed.', tables.runs(results)),
        Section('What the arms are', f'The base is {results.study.base}.', tables.overrides(results)),
        Section('Environment', '', tables.same(results)),
        Section('Differences among the runs', DIFFERING, tables.differing(results), loud=True),
        Section('To make it again', '', commands=tuple(commands)),
        Section('How to read this', '', notes=notes(results)),
    ]  # fmt: skip
    return [part for part in parts if part.table or part.picture or part.commands or part.notes]


def notes(results: Results) -> tuple[str, ...]:
    """What the figures are."""
    comparisons, effect = results.study.comparisons, results.study.effect
    texts = [
        'Standard deviations are of the sample (n - 1). Intervals hold a mean in 95 of 100 cases: '
        f"Student's t below {FEWEST_FOR_BOOTSTRAP} seeds, the BCa bootstrap from there on."
    ]
    if comparisons:
        texts += [
            'Differences are of the two runs that share a seed, over the seeds that both arms have.',
            'p is of the two-sided sign-flip test; p (Holm) is corrected for '
            + (f'all {comparisons} comparisons of the study' if comparisons > 1 else 'its one comparison')
            + '. Better and worse stand where it is below .05; the intervals hold for each comparison by itself.',
        ]
    if comparisons and effect:
        texts.append(
            f'A difference is larger than {effect:g}, which would matter, where its whole interval lies beyond '
            f'-{effect:g} or +{effect:g}; smaller where it lies between them.'
        )
    texts.append('Missing runs are left out of every mean and named where the mean stands; nothing takes their place.')
    if results.outcomes and any(outcome.seconds for outcome in results.outcomes):
        texts.append(
            'Device seconds are the time of a run times the devices that it had, or its share of them; of an arm the '
            'median, since the first run of a process compiles for those that follow.'
        )
    if any(outcome.peak_memory for outcome in results.outcomes):
        texts.append(
            'Peak memory is that of the fullest device, on a CPU of the process, and of an arm the largest; it is '
            'known of runs whose process did nothing else.'
        )
    if results.costs:
        texts.append('Multiply-adds are of one example, forward, in convolutions and matrix products.')
    return tuple(texts)


def markdown(results: Results, findings: Sequence[Finding], parts: Iterable[Section], pictures: Sequence[str]) -> str:
    """report.md."""
    warning = tables.alarm(findings)
    lines = [f'# {_marked(results.study.question)}', '']
    lines += [f'> **{_marked(warning)}**', ''] if warning else []
    lines += [f'**Answer.** {_marked(answer(results, findings))}', '']
    for part in parts:
        if part.picture and part.picture not in pictures and not part.table:
            continue
        lines += [f'## {part.title}', '']
        lines += [f'**{_marked(part.text)}**' if part.loud else _marked(part.text), ''] if part.text else []
        lines += [markdown_table(part.table), ''] if part.table else []
        lines += [f'![{part.title}]({part.picture}.png)', ''] if part.picture in pictures else []
        lines += ['```bash', *part.commands, '```', ''] if part.commands else []
        lines += [*(f'- {_marked(note)}' for note in part.notes), ''] if part.notes else []
    return '\n'.join(lines).rstrip() + '\n'


def markdown_table(table: Table) -> str:
    """Columns of one width, so that it can be read as it is."""
    header = [_marked(name) for name in table.header]
    rows = [[f'**{_marked(cell.text)}**' if cell.loud else _marked(cell.text) for cell in row] for row in table.rows]
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if table.at_left(column) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )  # fmt: skip
        return f'| {" | ".join(padded)} |'

    rule = ['-' * width if table.at_left(column) else '-' * (width - 1) + ':' for column, width in enumerate(widths)]
    return '\n'.join([line(header), line(rule), *map(line, rows)])


def _marked(text: str) -> str:
    """With what Markdown would take for its own escaped."""
    return re.sub(r'([\\|*_`<>\[\]#])', r'\\\1', ' '.join(text.split()))


def latex(results: Results, findings: Sequence[Finding]) -> str:
    """The table of the arms, for \\usepackage{booktabs}."""
    measured = tables.arms(results, findings)
    assert measured is not None  # a study has a baseline
    table = tables.joined(measured, tables.differences(findings))
    better = 'More' if results.sign > 0 else 'Less'
    caption = f'{results.study.question} {answer(results, findings)} {better} is better.'

    def cell(content: Cell) -> str:
        text = _escaped(content.text)
        return rf'\textbf{{{text}}}' if content.loud else text

    lines = [
        r'% needs \usepackage{booktabs}',
        r'\begin{table}', r'  \centering', rf'  \caption{{{_escaped(caption)}}}',
        rf'  \begin{{tabular}}{{{"".join("l" if table.at_left(i) else "r" for i in range(len(table.header)))}}}',
        r'    \toprule',
        '    ' + ' & '.join(map(_escaped, table.header)) + r' \\', r'    \midrule',
        *('    ' + ' & '.join(map(cell, row)) + r' \\' for row in table.rows),
        r'    \bottomrule', r'  \end{tabular}', r'\end{table}',
    ]  # fmt: skip
    return '\n'.join(lines) + '\n'


def _escaped(text: str) -> str:
    return ''.join(ESCAPES.get(letter, letter) for letter in text)


def runs_csv(results: Results) -> str:
    """A row for each run: its metrics, the study's first, in full precision."""
    study = results.study
    metrics = dict.fromkeys([study.metric, *study.also, *(name for o in results.outcomes for name in o.metrics)])
    outcomes = [outcome for arm in study.arms for outcome in results.of(arm.name)]
    return _csv(
        {'arm': outcome.arm, 'seed': outcome.seed, 'status': outcome.status}
        | {name: outcome.metrics.get(name) for name in metrics}
        | {'device_seconds': outcome.seconds, 'examples_per_device_second': outcome.examples_per_second}
        | {'peak_memory': outcome.peak_memory, 'split': outcome.split, 'code': outcome.record.get('code')}
        | {'folder': outcome.folder, 'error': outcome.error}
        for outcome in outcomes
    )


def arms_csv(findings: Iterable[Finding]) -> str:
    """A row for each arm, in full precision."""
    return _csv(map(_arm_row, findings))


def _arm_row(finding: Finding) -> dict[str, object]:
    summary, difference, cost = finding.summary, finding.difference, finding.cost
    of = difference.summary if difference else None
    return {
        'arm': finding.arm,
        'seeds': summary.count,
        'planned': finding.planned,
        'missing': ' '.join(str(outcome.seed) for outcome in finding.missing),
        'mean': summary.mean,
        'standard_deviation': summary.deviation,
        'low': summary.low,
        'high': summary.high,
        'against': finding.against,
        'pairs': of.count if of else 0,
        'difference': of.mean if of else None,
        'difference_low': of.low if of else None,
        'difference_high': of.high if of else None,
        'p': difference.p if difference else None,
        'p_holm': difference.adjusted if difference else None,
        'verdict': finding.verdict,
        'device_seconds': finding.seconds,
        'examples_per_device_second': finding.examples_per_second,
        'parameters': cost.parameters if cost else None,
        'multiply_adds': cost.multiply_adds if cost else None,
        'peak_memory': finding.peak_memory,
    } | {
        f'{name}_{what}': value
        for name, of in finding.also.items()
        for what, value in (('seeds', of.count), ('mean', of.mean), ('low', of.low), ('high', of.high))
    }


def _csv(rows: Iterable[Mapping[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    for index, row in enumerate(rows):
        if index == 0:
            writer.writerow(row)
        empty = (cell is None or (isinstance(cell, float) and math.isnan(cell)) for cell in row.values())
        writer.writerow('' if nothing else cell for nothing, cell in zip(empty, row.values(), strict=True))
    return text.getvalue()


def png(picture: np.ndarray) -> bytes:
    """A picture uint8 [H, W, 3] as a file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format='png', optimize=True)
    return file.getvalue()


def _write(path: pathlib.Path, content: bytes) -> None:
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        temporary.write_bytes(content)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)

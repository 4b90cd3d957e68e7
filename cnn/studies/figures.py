"""Pictures of what a study shows, as uint8 [H, W, 3]: curves and effects; None where nothing is done.

Colour is never alone in telling what something is.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cnn.studies.canvas import LIGHT, Theme, figure, style, wrapped
from cnn.studies.findings import BETTER, WORSE, Finding, places, signed, spoken
from cnn.studies.results import DONE, Outcome, Results
from cnn.studies.statistics import Summary

TOGETHER = 4  # arms whose curves share one panel; more get one each, beside what they are compared with
OUTLYING = 4.0  # times the usual difference, what is put at the edge of the picture
SETTLED = 0.2  # the share of the steps that the range of curves is not chosen by


@dataclasses.dataclass(frozen=True)
class Curve:
    """Of one arm: the mean over its finished runs and their range, at the steps that all of them have."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: int


def curves(results: Results, findings: Sequence[Finding], theme: Theme = LIGHT) -> np.ndarray | None:
    """The metric on validation over steps, or what of training there is: mean and range of the seeds."""
    split, name = _followed(results)
    by_arm = {finding.arm: curve(results.of(finding.arm), split, name) for finding in findings}
    shown = {arm: drawn for arm, drawn in by_arm.items() if drawn is not None}
    if not shown:
        return None
    together = len(findings) <= TOGETHER
    columns = 1 if together else 2
    rows = 1 if together else -(-len(findings) // columns)

    def draw(page: Any) -> None:
        panels = page.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in panels.flat:
            style(axes, theme)
            axes.set_ylim(*_range(shown.values()))
        if together:
            _panel(panels[0, 0], findings, by_arm, theme, theme.series)
            lines = panels[0, 0].lines
            names = [line.get_label() for line in lines]  # named one by one, or those that begin with _ are left out
            page.legend(lines, names, loc='outside upper center', ncols=2, fontsize=8, frameon=False,
                        labelcolor=theme.ink)  # fmt: skip
        else:
            for axes, finding in zip(panels.flat, findings, strict=False):
                pair = [other for other in findings if other.arm == finding.against] + [finding]
                _panel(axes, pair, by_arm, theme, (theme.faint, theme.series[0])[-len(pair) :])
                _title(axes, finding, theme)
            for axes in panels.flat[len(findings) :]:
                axes.axis('off')
            for axes in panels.flat[max(len(findings) - columns, 0) : len(findings)]:
                axes.tick_params(labelbottom=True)
        page.supxlabel('step', fontsize=9, color=theme.ink)
        page.supylabel(f'{spoken(name)}, {split}', fontsize=9, color=theme.ink)

    return figure(draw, 3.8 if together else 0.6 + 1.75 * rows, theme)


def effects(results: Results, findings: Sequence[Finding], theme: Theme = LIGHT) -> np.ndarray | None:
    """The differences with their intervals and seeds, the best on top; those that can't be told at the bottom."""
    compared = [finding for finding in findings if finding.against]
    if not any(finding.difference for finding in compared):
        return None
    order = sorted(compared, key=lambda finding: (math.isfinite(finding.gain), finding.gain))
    one = len({finding.against for finding in compared}) == 1
    summaries = [finding.difference.summary for finding in compared if finding.difference]
    limit, decimals = _limit(summaries), places(summaries)

    def draw(page: Any) -> None:
        axes = page.add_subplot()
        style(axes, theme, grid='x')
        effect = results.study.effect
        if effect:
            axes.axvspan(-effect, effect, color=theme.faint, alpha=0.15, linewidth=0)
        axes.axvline(0, color=theme.ink, linewidth=1)
        for row, finding in enumerate(order):
            _effect(axes, row, finding, results, theme, limit, decimals)
        labels = [wrapped(finding.arm, 26) + ('' if one else f'\nagainst {finding.against}') for finding in order]
        axes.set_yticks(range(len(order)), labels, color=theme.ink, fontsize=8)
        axes.set_ylim(-0.6, len(order) - 0.4)
        side = 'right' if results.sign > 0 else 'left'
        than = f' from {compared[0].against}' if one else ''
        axes.set_xlabel(
            wrapped(f'difference in {spoken(results.study.metric)}{than} ({side} is better)', 70),
            color=theme.ink, fontsize=9,
        )  # fmt: skip
        handles = [
            axes.plot([], [], marker, color=theme.word(word), markersize=6, linestyle='none', label=label)[0]
            for marker, word, label in (
                ('>' if results.sign > 0 else '<', BETTER, 'better'),
                ('<' if results.sign > 0 else '>', WORSE, 'worse'),
                ('o', '', 'no difference shown'),
            )
        ]
        if effect:
            handles.append(axes.axvspan(0, 0, color=theme.faint, alpha=0.3, label=f'within {effect:g}'))
        page.legend(
            handles=handles, loc='outside upper center', ncols=4, fontsize=8, frameon=False, labelcolor=theme.ink
        )

    lines = sum(max(len(finding.arm) // 26 + 1 + (not one), 1.8) for finding in order)
    return figure(draw, 1.2 + 0.22 * lines, theme)


def curve(outcomes: Sequence[Outcome], split: str, name: str) -> Curve | None:
    """Of one arm's finished runs; None where there are none, or they have no step in common."""
    runs = [
        {row['step']: row[name] for row in outcome.rows if row['split'] == split and name in row}
        for outcome in outcomes
        if outcome.status == DONE
    ]
    if not runs:
        return None
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    if not steps:
        return None
    values = np.array([[run[step] for step in steps] for run in runs], float)
    return Curve(np.array(steps), values.mean(0), values.min(0), values.max(0), len(runs))


def _followed(results: Results) -> tuple[str, str]:
    """The split and name of the rows that curves show: those that every finished run has, at best."""
    done = [outcome for outcome in results.outcomes if outcome.status == DONE]
    choices = [('validation', results.study.metric), ('train', results.study.metric), ('train', 'loss')]

    def having(choice: tuple[str, str]) -> int:
        return sum(any(row['split'] == choice[0] and choice[1] in row for row in outcome.rows) for outcome in done)

    return max(choices, key=having)


def _range(shown: Any) -> tuple[float, float]:
    """Of all curves once they have settled, with a margin."""
    shown = list(shown)
    lows, highs = [], []
    for drawn in shown:
        late = drawn.steps >= SETTLED * drawn.steps[-1]
        lows.append(drawn.low[late].min())
        highs.append(drawn.high[late].max())
    low, high = float(np.nanmin(lows)), float(np.nanmax(highs))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _panel(
    axes: Any, findings: Sequence[Finding], by_arm: Mapping[str, Curve | None], theme: Theme, colours: Sequence[str]
) -> None:
    """Curves over one another; dashes tell the second and later ones apart."""
    for finding, colour, dashes in zip(findings, colours, ('-', '--', '-.', ':'), strict=False):
        drawn = by_arm[finding.arm]
        style = dashes if len(colours) == len(theme.series) else '-'
        missing = f' ({len(finding.missing)} of {finding.planned} missing)' if finding.missing else ''
        label = wrapped(f'{finding.arm}{missing}', 44)
        if drawn is None:
            axes.plot([], [], style, color=colour, label=label)
            continue
        single = 'o' if len(drawn.steps) == 1 else ''
        axes.plot(drawn.steps, drawn.mean, style + single, color=colour, linewidth=1.5, label=label)
        axes.fill_between(drawn.steps, drawn.low, drawn.high, color=colour, alpha=0.22, linewidth=0)


def _title(axes: Any, finding: Finding, theme: Theme) -> None:
    axes.set_title(wrapped(finding.arm, 34), fontsize=8, color=theme.ink, loc='left')
    if finding.against:
        grey = wrapped(f'grey: {finding.against}', 40)
        axes.text(0.97, 0.16, grey, color=theme.faint, fontsize=7.5, ha='right', transform=axes.transAxes)
    if finding.missing:
        text = f'{len(finding.missing)} of {finding.planned} seeds missing'
        axes.text(
            0.97, 0.04, text, color=theme.alarm, fontsize=8, fontweight='bold', ha='right', transform=axes.transAxes
        )


def _limit(summaries: Sequence[Summary]) -> float:
    """How far from zero the picture of effects reaches: not to a few that would press the others into a line."""
    extents = sorted(max(abs(x) for x in (s.mean, s.low, s.high) if math.isfinite(x)) for s in summaries)
    usual = extents[int(0.75 * (len(extents) - 1))]
    return 1.5 * usual if extents[-1] > OUTLYING * usual > 0 else math.inf


def arrow(finding: Finding) -> str:
    """The mark of a difference: where it points, or a circle where none is shown."""
    if finding.difference is None or not finding.shown:
        return 'o'
    return '>' if finding.difference.summary.mean > 0 else '<'


def _effect(axes: Any, row: int, finding: Finding, results: Results, theme: Theme, limit: float, decimals: int) -> None:
    """One row of the picture of effects; what lies beyond the limit is an arrow at the edge, with its figures."""
    if finding.difference is None:
        axes.text(0.5, row, 'MISSING: no seed that both have', color=theme.alarm, fontsize=8, fontweight='bold',
                  ha='center', va='center', transform=axes.get_yaxis_transform())  # fmt: skip
        return
    summary, colour = finding.difference.summary, theme.word(finding.word)
    text = signed(summary.mean, decimals)
    lacking = f'  {summary.count} of {finding.planned} seeds' if summary.count < finding.planned else ''
    ink = theme.alarm if lacking else theme.ink
    paper = {'facecolor': theme.paper, 'edgecolor': 'none', 'alpha': 0.75, 'pad': 0.6}
    marker = arrow(finding)
    if max(abs(summary.mean), abs(summary.low), abs(summary.high)) > limit:
        right = summary.mean > 0
        axes.plot(limit if right else -limit, row, marker, color=colour, markersize=6.5)
        text = f'off the scale: {text} ({signed(summary.low, decimals)} to {signed(summary.high, decimals)}){lacking}'
        axes.annotate(text, (limit if right else -limit, row), (-8 if right else 8, 0), textcoords='offset points',
                      ha='right' if right else 'left', va='center', fontsize=7.5, color=ink, bbox=paper)  # fmt: skip
        return
    mine, theirs = results.values(finding.arm), results.values(finding.against or '')
    seeds = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
    axes.plot(np.clip(seeds, -limit, limit), [row - 0.25] * len(seeds), '|', color=colour, markersize=4, alpha=0.7)
    if summary.count > 1:
        axes.plot([summary.low, summary.high], [row, row], color=colour, linewidth=2.2, solid_capstyle='butt')
    axes.plot(summary.mean, row, marker, color=colour, markersize=6.5)
    axes.annotate(text + lacking, (summary.mean, row), (0, 6), textcoords='offset points', ha='center', fontsize=7.5,
                  color=ink, bbox=paper)  # fmt: skip

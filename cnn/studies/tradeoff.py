"""The picture of a study's metric against what it costs, as uint8 [H, W, 3]."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cnn.studies.canvas import LIGHT, Theme, figure, style, wrapped
from cnn.studies.findings import BETTER, WORSE, Finding, listed, spoken
from cnn.studies.results import Results

AROUND = [  # offsets of a name from its point, the best first: points right, points up, alignment
    *((7, 4, 'left'), (-7, 4, 'right'), (7, -10, 'left'), (-7, -10, 'right'), (0, 12, 'center'), (0, -18, 'center')),
    *((9, 16, 'left'), (-9, 16, 'right'), (9, -22, 'left'), (-9, -22, 'right'), (9, 28, 'left'), (-9, -34, 'right')),
]
APART = 0.015  # of the axis, between arms of one cost


def costs(results: Results, findings: Sequence[Finding], theme: Theme = LIGHT) -> np.ndarray | None:
    """The metric with its interval against multiply-adds, where arms differ in them, and device seconds of a run."""
    done = [finding for finding in findings if finding.summary.count]
    kinds: list[tuple[str, list[float]]] = []
    if done and all(finding.cost for finding in done):
        adds = [float(finding.cost.multiply_adds) for finding in done if finding.cost]
        if len(set(adds)) > 1 and min(adds) > 0:
            kinds.append(('multiply-adds of one example', adds))
    seconds = [finding.seconds for finding in done]
    if done and min(seconds) > 0 and all(map(math.isfinite, seconds)):
        kinds.append(('device seconds of a run', seconds))
    if not kinds:
        return None

    def draw(page: Any) -> None:
        for axes, (label, sizes) in zip(page.subplots(len(kinds), squeeze=False)[:, 0], kinds, strict=True):
            style(axes, theme)
            axes.set_xscale('log')
            _spread(axes, sizes, 'seconds' in label)
            for finding, size in zip(done, _beside(axes, sizes), strict=True):
                _cost(axes, size, finding, theme)
            axes.set_xlabel(label, color=theme.ink, fontsize=9)
            axes.set_ylabel(spoken(results.study.metric), color=theme.ink, fontsize=9)
            axes.margins(y=0.18)
        absent = [finding.arm for finding in findings if not finding.summary.count]
        if absent:
            text = wrapped(f'MISSING, no run is done: {listed(absent)}', 80)
            page.suptitle(text, fontsize=8, color=theme.alarm, fontweight='bold')
        page.draw_without_rendering()
        for axes, (_, sizes) in zip(page.axes, kinds, strict=True):
            _label(axes, _beside(axes, sizes), done, theme)

    return figure(draw, 0.2 + (3.2 + 0.05 * len(done)) * len(kinds), theme)


def _cost(axes: Any, size: float, finding: Finding, theme: Theme) -> None:
    colour = theme.word(finding.word) if finding.against else theme.ink
    summary = finding.summary
    if summary.count > 1:
        axes.plot([size, size], [summary.low, summary.high], color=colour, linewidth=1.6)
    marker = {BETTER: '^', WORSE: 'v', '': 's'}.get(finding.word, 'o')
    axes.plot(size, summary.mean, marker, color=colour, markersize=5.5)


def _spread(axes: Any, sizes: Sequence[float], seconds: bool) -> None:
    """Limits of a logarithmic axis with room for names, and few labels."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    low, high = math.log10(min(sizes)), math.log10(max(sizes))
    room = max(0.25 * (high - low), 0.08)
    axes.set_xlim(10 ** (low - room), 10 ** (high + room))
    few = high - low + 2 * room < 1.2
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if few else (1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.6g}') if seconds else EngFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _beside(axes: Any, sizes: list[float]) -> list[float]:
    """Places on the axis: arms of one cost stand beside each other, or they would cover one another."""
    low, high = map(math.log10, axes.get_xlim())
    step = APART * (high - low)
    ranks = [sizes[:index].count(size) - (sizes.count(size) - 1) / 2 for index, size in enumerate(sizes)]
    return [size * 10 ** (step * rank) for size, rank in zip(sizes, ranks, strict=True)]


def _label(axes: Any, sizes: Sequence[float], findings: Sequence[Finding], theme: Theme) -> None:
    """Writes each arm's name beside its point, where it covers the fewest others."""
    renderer = axes.figure.canvas.get_renderer()
    places = [(size, finding.summary.mean) for size, finding in zip(sizes, findings, strict=True)]
    lines = [
        (place, height)
        for (place, mean), finding in zip(places, findings, strict=True)
        for height in [mean, *np.linspace(finding.summary.low, finding.summary.high, 9)]
    ]
    points, frame = axes.transData.transform(lines), axes.get_window_extent(renderer)
    taken: list[Any] = []
    for place, finding in zip(places, findings, strict=True):
        name = wrapped(finding.arm, 30)
        text = axes.annotate(name, place, (0, 0), textcoords='offset points', fontsize=7.5, color=theme.ink)

        def put(around: tuple[int, int, str], text: Any = text) -> Any:
            text.set_position(around[:2])
            text.set_horizontalalignment(around[2])
            return text.get_window_extent(renderer)

        def covered(around: tuple[int, int, str]) -> int:
            box = put(around)
            outside = 3 * (box.x0 < frame.x0 or box.x1 > frame.x1) + (box.y0 < frame.y0 or box.y1 > frame.y1)
            return outside + 2 * box.count_overlaps(taken) + sum(box.contains(*point) for point in points)

        best = min(AROUND, key=covered)
        taken.append(put(best))
        line = {'arrowstyle': '-', 'color': theme.faint, 'linewidth': 0.7, 'shrinkA': 0, 'shrinkB': 2}
        axes.annotate('', place, (best[0], best[1] + 3), textcoords='offset points', arrowprops=line)

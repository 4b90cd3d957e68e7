"""What the pictures of a study share: size, colours, frames."""

import dataclasses
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np

from cnn.studies.findings import BETTER, WORSE

WIDTH, DPI = 6.4, 160  # inches, pixels per inch: type of 8 points can be read on a phone


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours."""

    paper: str
    ink: str
    faint: str
    alarm: str
    series: tuple[str, str, str, str]  # told apart by the colour-blind (Okabe and Ito 2008)

    def word(self, word: str) -> str:
        """Of a verdict."""
        return {BETTER: self.series[0], WORSE: self.series[1]}.get(word, self.faint)


LIGHT = Theme('#ffffff', '#1f2328', '#7d8590', '#c1121f', ('#0072b2', '#d55e00', '#009e73', '#b5508f'))
DARK = Theme('#12161c', '#e6e9ed', '#8d96a0', '#ff7b72', ('#56b4e9', '#f0913a', '#2cc295', '#e39ac4'))


def style(axes: Any, theme: Theme, grid: str = 'both') -> None:
    """Two spines, a faint grid."""
    axes.set_facecolor(theme.paper)
    axes.grid(axis=grid, color=theme.faint, alpha=0.25, linewidth=0.6)
    axes.tick_params(colors=theme.ink, labelsize=8, which='both')
    for name, spine in axes.spines.items():
        spine.set_visible(name in ('left', 'bottom'))
        spine.set_color(theme.faint)


def wrapped(text: str, width: int) -> str:
    """In lines of so many characters."""
    return '\n'.join(textwrap.wrap(text, width)) or text


def figure(draw: Callable[[Any], None], height: float, theme: Theme) -> np.ndarray:
    """Draws on a figure of that many inches; a dollar is one, wherever it stands."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({'text.parse_math': False}):
        page = Figure(figsize=(WIDTH, height), dpi=DPI, layout='constrained', facecolor=theme.paper)
        canvas = FigureCanvasAgg(page)
        draw(page)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

"""How far a study is, on a terminal as bars by arm with the time left, else as a line for each run that ends."""

import math
import shutil
import sys
import threading
from typing import Any

from tqdm import tqdm

from cnn.studies.plan import Plan, Run
from cnn.studies.results import DONE

ALL, ALL_RUNS = '', 'all runs'  # in place of the name of an arm, and as it is shown
OF_ARM = '{desc}{percentage:5.0f} %|{bar}|'
OF_ALL = OF_ARM + ' {elapsed}, {remaining} left'


class Progress:
    """Bars count the steps of each arm's runs, the last one what all are expected to take."""

    def __init__(self, plan: Plan):
        self._plan, self._steps = plan, dict.fromkeys((run.folder for run in plan.runs), 0)
        self._whole = {form.arm.name: form.steps for form in plan.forms}
        # Whole microseconds, since sums of fractions may end beyond the total, of which tqdm warns into the bars.
        self._work = {arm: round(1e6 * of / self._whole[arm]) + 1 for arm, of in plan.seconds()[0].items()}  # of a step
        self._values: dict[str, list[float]] = {arm: [] for arm in (*self._whole, ALL)}
        for run in plan.runs:
            if run.status == DONE:
                self._note(run, run.outcome.metrics)
        self._bars = self._drawn() if sys.stderr.isatty() else {}
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)
        if self._bars:
            self._clock.start()

    def _drawn(self) -> dict[str, Any]:
        """A bar for each arm that has runs left, where the screen has room for them, and one for all."""
        arms = list(dict.fromkeys(run.arm for run in self._plan.left))
        columns, lines = shutil.get_terminal_size()
        shown = [*(arms if len(arms) <= lines - 3 else ()), ALL]
        self._width = min(max(len(name or ALL_RUNS) for name in shown), max(columns // 3, len(ALL_RUNS)))
        bars = {}
        for name in shown:
            runs = [run for run in self._plan.left if name in (ALL, run.arm)]
            total = sum(self._whole[run.arm] * self._weight(name, run) for run in runs)
            form = OF_ARM if name else OF_ALL
            bars[name] = tqdm(desc=self._label(name), total=total, bar_format=form, dynamic_ncols=True, smoothing=0)
        return bars

    def _weight(self, bar: str, run: Run) -> int:
        return self._work[run.arm] if bar == ALL else 1

    def _tick(self) -> None:
        """Keeps the clock going where nothing else happens."""
        while not self._ended.wait(1.0):
            for bar in self._bars.values():
                bar.refresh()

    def at(self, run: Run, step: int) -> None:
        """A run is at this step."""
        more, self._steps[run.folder] = step - self._steps[run.folder], step
        for name in (run.arm, ALL):
            if name in self._bars:
                self._bars[name].update(more * self._weight(name, run))

    def done(self, run: Run, event: dict[str, Any]) -> None:
        """A run is done."""
        value = self._note(run, event['metrics'])
        for name in (run.arm, ALL):
            if name in self._bars:
                self._bars[name].set_description_str(self._label(name), refresh=False)
        self.at(run, self._whole[run.arm])
        if not self._bars:
            seconds = f' ({event["seconds"]:.0f} s)' if 'seconds' in event else ' (by another process)'
            count = f'{len(self._values[ALL])}/{len(self._plan.runs)}'
            self.say(f'{count} {run.arm}, seed {run.seed}: {self._plan.study.metric} {value:.4f}{seconds}')

    def _note(self, run: Run, metrics: Any) -> float:
        value = metrics.get(self._plan.study.metric, math.nan)
        for name in (run.arm, ALL):
            self._values[name].append(value)
        return value

    def _label(self, name: str) -> str:
        """The arm, how many of its runs are done and the mean of their metric."""
        values, planned = self._values[name], sum(name in (ALL, run.arm) for run in self._plan.runs)
        short = (name or ALL_RUNS) if len(name) <= self._width else f'{name[: self._width - 3]}...'
        mean = f'{self._plan.study.metric} {sum(values) / len(values):.4f}' if name and values else ''
        counts = f'{len(values)}/{planned}'.rjust(2 * len(str(len(self._plan.runs))) + 1)
        return f'{short.ljust(self._width)}  {counts}  {mean.ljust(len(self._plan.study.metric) + 7)}'

    def say(self, line: str) -> None:
        """A line above the bars."""
        tqdm.write(line, file=sys.stderr if self._bars else sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Leaves the bars as they are."""
        self._ended.set()
        if self._bars:
            self._clock.join()
        for bar in self._bars.values():
            bar.close()

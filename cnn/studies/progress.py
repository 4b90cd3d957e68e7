"""How far a study is, on a terminal as bars by arm with the time left, else as a line for each run that ends."""

import shutil
import sys
from typing import Any

from tqdm import tqdm

from cnn.studies.plan import Plan, Run
from cnn.studies.results import DONE


class Progress:
    """Bars count steps, the last one of all arms."""

    def __init__(self, plan: Plan):
        self._plan, self._steps = plan, dict.fromkeys((run.folder for run in plan.runs), 0)
        self._whole = {form.arm.name: form.steps for form in plan.forms}
        self._done = sum(run.status == DONE for run in plan.runs)
        self._bars: dict[str, Any] = {}
        if sys.stderr.isatty():
            arms = [form.arm.name for form in plan.forms if any(run.arm == form.arm.name for run in plan.left)]
            fit = len(arms) <= shutil.get_terminal_size().lines - 3
            width = min(max(map(len, arms), default=0), 36)
            for name in (*(arms if fit else ()), ''):
                own = [run for run in plan.left if name in ('', run.arm)]
                label = (name or f'{len(plan.runs)} runs')[:width].ljust(width)
                total = sum(self._whole[run.arm] for run in own)
                self._bars[name] = tqdm(total=total, desc=label, unit='step', dynamic_ncols=True, smoothing=0.05)

    def at(self, run: Run, step: int) -> None:
        """A run is at this step."""
        more, self._steps[run.folder] = step - self._steps[run.folder], step
        for name in (run.arm, ''):
            if name in self._bars:
                self._bars[name].update(more)

    def done(self, run: Run, event: dict[str, Any]) -> None:
        """A run is done."""
        self.at(run, self._whole[run.arm])
        self._done += 1
        metric = self._plan.study.metric
        seconds = f' ({event["seconds"]:.0f} s)' if 'seconds' in event else ' (by another process)'
        value = event['metrics'].get(metric, float('nan'))
        said = f'{self._done}/{len(self._plan.runs)} {run.arm}, seed {run.seed}: {metric} {value:.4f}{seconds}'
        if not self._bars:
            self.say(said)

    def say(self, line: str) -> None:
        """A line above the bars."""
        tqdm.write(line, file=sys.stderr if self._bars else sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Leaves the bars as they are."""
        for bar in self._bars.values():
            bar.close()

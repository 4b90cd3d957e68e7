"""The runs of a plan as commands for a shell, each of which trains one run into its folder."""

import shlex
import typing
from typing import Any

from cnn import config as configuration
from cnn import validation
from cnn.config import Experiment
from cnn.studies.arms import base_file
from cnn.studies.plan import Plan, Run


def commands(plan: Plan, launcher: str = 'launch.py') -> list[str]:
    """One for each run that is not done: `python launch.py train ... --workdir=FOLDER`, quoted for a shell.

    A run comes after the one that it starts from.
    """
    return [command(plan, run, launcher) for run in plan.left]


def command(plan: Plan, run: Run, launcher: str = 'launch.py') -> str:
    """What trains a run."""
    form = next(form for form in plan.forms if form.arm.name == run.arm)
    start = {'init_from': run.config.init_from} if run.start else {}
    values = {**form.arm.overrides, **dict.fromkeys(plan.study.seeded, run.seed), **start}
    flags = [f'--config.{path}={flag_text(form.given, path, value)}' for path, value in values.items()]
    arguments = ['python', launcher, 'train', f'--config={base_file(plan.study)}', *flags, f'--workdir={run.folder}']
    return shlex.join(arguments)


def flag_text(given: Experiment, path: str, value: Any) -> str:
    """A value as the flag of its field takes it."""
    if '.options.' in path:
        return value if isinstance(value, str) and validation.literal(value) == value else repr(value)
    annotation = configuration.field_paths(given)[path]
    value = validation.conform(value, annotation)
    if value is None:
        return 'none'
    if isinstance(value, tuple):
        return ','.join(map(_item, value)) if value else '()'
    return str(value).lower() if annotation is bool or bool in typing.get_args(annotation) else str(value)


def _item(item: Any) -> str:
    if not isinstance(item, str):
        return repr(item)
    return f'"{item}"' if "'" in item else f"'{item}'"

"""The way from config.distill.teacher to a network that teaches."""

import hashlib
import json
import pathlib
from typing import Any

from jax.sharding import Mesh

from cnn import tasks
from cnn.config import Experiment, Spec
from cnn.data import augment, sources
from cnn.errors import InputError
from cnn.training.checkpoints import checksums
from cnn.training.distillation import Teacher
from cnn.training.evaluation import load_run, read_config


def check(config: Experiment, spec: Spec) -> None:
    """Raises InputError where config.distill.teacher is no run that can teach this one. Starts no device."""
    if config.distill.teacher is None:
        return
    folder = pathlib.Path(config.distill.teacher)
    theirs = read_config(folder)
    prefix = f'config.distill.teacher={folder}:'
    if not any((folder / 'checkpoints').glob('[0-9]*')):
        raise InputError(f'{prefix} holds no checkpoint yet; finish that run first')
    if theirs.task.name != config.task.name:
        raise InputError(f'{prefix} was trained for {theirs.task.name}, not {config.task.name}')
    its, ours = _common(theirs, sources.spec(theirs.data)), _common(config, spec)
    for name, value in its.items():
        if value != ours[name]:
            raise InputError(f'{prefix} has {name} {value}, and this run {ours[name]}; a teacher must have the same')


def _common(config: Experiment, spec: Spec) -> dict[str, Any]:
    """What a teacher and its student have in common."""
    spec = augment.prepared_spec(spec, config.data, config.spectrogram)
    field = tasks.input_field(spec.shapes, config.task.name)
    names = tasks.class_names(spec, 'label', config.task.name)
    return {
        'number of classes': len(names),
        'classes': ', '.join(names),
        'input': f'{field} {tuple(spec.shapes[field])}',
        'config.data.mean': config.data.mean,
        'config.data.std': config.data.std,
        'config.spectrogram': config.spectrogram,
    }


def load(config: Experiment, spec: Spec, mesh: Mesh) -> Teacher | None:
    """The best checkpoint of config.distill.teacher, as it is evaluated; None without one. Raises as `check` does."""
    if config.distill.teacher is None:
        return None
    check(config, spec)
    theirs, _, _, state, step = load_run(pathlib.Path(config.distill.teacher), mesh)
    digest = hashlib.sha256(json.dumps(checksums(state.eval_variables), sort_keys=True).encode()).hexdigest()
    return Teacher(theirs.model, state.eval_variables, digest[:12], f'step {step} of {config.distill.teacher}')

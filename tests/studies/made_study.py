"""A study whose run folders are written by hand: what runs leave, without the runs."""

import dataclasses
import json
import pathlib

import numpy as np

from cnn.config import Experiment, set_value, to_dict
from cnn.studies import Arm, Study
from cnn.studies.results import Cost, collect

PACKAGES = {'python': '3.11.7', 'jax': '0.10.2', 'numpy': '2.4.6'}
# Per arm: final accuracy, deviation over seeds, seconds, parameters, multiply-adds.
ARMS = {
    'residual 8': (0.951, 0.004, 12.0, 78_042, 1_200_000),
    'plain 8': (0.949, 0.004, 11.0, 76_500, 1_190_000),
    'residual 20 with 100 % wider_layers & more': (0.978, 0.003, 31.0, 272_474, 4_100_000),
    'plain 20': (0.938, 0.007, 29.0, 270_000, 4_050_000),
    'residual 56': (0.983, 0.003, 88.0, 855_770, 12_600_000),
    'plain 56': (0.61, 0.09, 85.0, 853_000, 12_500_000),
    'plain 110': (0.4, 0.1, 180.0, 1_700_000, 25_000_000),
    'residual 8 | twice': (0.9515, 0.004, 12.5, 78_042, 1_200_000),
}
AGAINST = {'plain 56': 'residual 56', 'plain 110': 'residual 56'}
BASELINE, FAILING, LATE, ODD = 'residual 8', 'plain 110', ('plain 20', 3), ('plain 8', 2)


@dataclasses.dataclass(frozen=True)
class Run:
    """As the plan has it."""

    arm: str
    seed: int
    folder: pathlib.Path


def write_run(folder, seed, metrics, *, rows=(), config=None, seconds=10.0, status='done', **record):
    """What a run of that status leaves."""
    if status == 'to do':
        return
    folder.mkdir(parents=True)
    config = config or Experiment()
    set_value(config, 'seed', seed)
    command = ['/somewhere/launch.py', '--config=experiments/digits.py', f'--config.seed={seed}']
    record = {
        'config': to_dict(config), 'data': {'train': 'a' * 64, 'test': 'b' * 64}, 'code': 'c' * 40,
        'packages': PACKAGES, 'devices': ['cpu: cpu'], 'history': [{'started': '2026-11-20', 'command': command}],
    } | record  # fmt: skip
    (folder / 'run.json').write_text(json.dumps(record))
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    if status == 'failed':
        (folder / 'FAILED.json').write_text(json.dumps({'error': 'out of memory: 3 <GiB> more', 'exit_code': 1}))
    if status == 'done':
        done = {'step': 200, 'best_step': 180, 'metrics': metrics, 'seconds': seconds}
        (folder / 'DONE.json').write_text(json.dumps({**done, 'examples_per_second': 9000 / seconds}))


def rows(final, generator, metric='accuracy', steps=20):
    """Training and validation as they usually look."""
    made = []
    for step in range(10, 10 * steps + 1, 10):
        value = 0.1 + (final - 0.1) * (1 - np.exp(-step / 40)) + generator.normal(0, 0.006)
        made.append({'step': step, 'split': 'train', 'loss': float(-np.log(max(value, 1e-3)))})
        made.append({'step': step, 'split': 'validation', metric: float(value), 'loss': 1 - float(value)})
    return [*made, {'step': 10 * steps, 'split': 'test', metric: final}]


def made_study(root, seeds=8, effect=0.01):
    """Eight arms: one fails always, another with its seed 3. Returns the study, the plan's runs and the costs."""
    generator = np.random.default_rng(0)
    luck = generator.normal(0, 1, seeds)
    runs = []
    for index, (name, (mean, deviation, seconds, *_)) in enumerate(ARMS.items()):
        for seed in range(seeds):
            folder = root / f'{index}-{seed}'
            final = float(np.clip(mean + deviation * (0.6 * luck[seed] + 0.8 * generator.normal()), 0, 1))
            status = 'failed' if name == FAILING else 'partial' if (name, seed) == LATE else 'done'
            other = {} if (name, seed) != ODD else {'code': 'd' * 40 + '+', 'packages': {**PACKAGES, 'jax': '0.10.3'}}
            write_run(
                folder, seed, {'accuracy': final, 'loss': 1 - final}, rows=rows(final, generator),
                seconds=seconds * (1 + 0.02 * generator.normal()), status=status, **other,
            )  # fmt: skip
            runs.append(Run(name, seed, folder))
    arms = [
        Arm(name, {'model.options.depth': index, 'model.options.residual': 'residual' in name}, AGAINST.get(name))
        for index, name in enumerate(ARMS)
    ]
    question = 'Do skip connections help at every depth?'
    study = Study(question, 'experiments/digits.py', arms, BASELINE, seeds, effect=effect)
    return study, runs, {name: Cost(*values[3:]) for name, values in ARMS.items()}


def small_results(root, values, *, metric='accuracy', direction='max', effect=None, against=None, **fields):
    """Results of arms with these values, seed by seed; None is a run that was never begun."""
    runs = []
    for index, (arm, of) in enumerate(values.items()):
        for seed, value in enumerate(of):
            folder = root / f'{index}-{seed}'
            status = 'to do' if value is None else 'done'
            measured = {metric: value} | dict.fromkeys(fields.get('also', ()), -1.0)
            write_run(folder, seed, measured, rows=fields.get('rows', ()), status=status)
            runs.append(Run(arm, seed, folder))
    arms = [Arm(arm, against=(against or {}).get(arm)) for arm in values]
    base, baseline, also = 'experiments/digits.py', next(iter(values)), fields.get('also', ())
    study = Study('Does it help?', base, arms, baseline, metric=metric, also=also, effect=effect)
    return collect(study, runs, direction)

"""Pretrained against trained from scratch over the number of labels: every arm, number and seed, and the table.

    python -m experiments.transfer.few_labels --experiment=experiments/transfer/digits.py

The arms of an experiment are the arguments of its `get_config`: what is in its ARMS, and, where PRETRAIN names one,
another that is trained first with all labels and that the others start from, `scratch` aside. A seed decides the
initialisation, the order and which examples have a label, so that arms are compared pair by pair. Finished runs are not
repeated: the same command goes on where it was cut off.
"""

import contextlib
import io
import pathlib
import runpy
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging
from scipy import stats
from tqdm import tqdm

import launch
from cnn import config as configuration

FLAGS = flags.FLAGS
flags.DEFINE_string('experiment', 'experiments/transfer/digits.py', 'the file with the arms')
flags.DEFINE_list('labels', ['1', '5', '10', '50'], 'numbers of labelled examples of each class')
flags.DEFINE_integer('seeds', 6, 'how many seeds, from 0', lower_bound=2)
flags.DEFINE_string('init_from', None, 'weights to start from, where the experiment has no PRETRAIN')
flags.DEFINE_string('workdir', 'runs/transfer', 'the folder for the runs')


def run(name: str, folder: pathlib.Path, seed: int, init_from: str | None, labels: int | None) -> float:
    """The test accuracy of an arm, FILE:ARM, with so many labels of each class."""
    config = launch.load_experiment(name)
    config.seed = config.data.split_seed = seed
    config.data.examples_per_class = labels
    if init_from is not None:
        config.init_from = init_from
    configuration.validate(config)
    launch.prepare_jax(config)
    from cnn.training import sharding
    from cnn.training.loop import train_and_evaluate
    from cnn.training.records import RunFolder

    spec, config = launch.resolve(config)
    with contextlib.redirect_stdout(io.StringIO()):
        result = train_and_evaluate(config, spec, sharding.make_mesh(config), RunFolder(folder), [name])
    return result['metrics']['accuracy']


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(np.mean(values)), float(half)


def table(accuracy: dict[tuple[str, int], list[float]], arms: Sequence[str], labels: Sequence[int]) -> str:
    """A row for each number of labels: accuracy of each arm, and its difference from `scratch` seed by seed."""
    columns = [*arms, *(f'{arm} - scratch' for arm in arms if arm != 'scratch')]
    lines = ['| labels of each class | ' + ' | '.join(columns) + ' |', '|---' * (len(columns) + 1) + '|']
    for count in labels:
        values = {arm: np.array(accuracy[arm, count]) for arm in arms}
        differences = [values[arm] - values['scratch'] for arm in arms if arm != 'scratch']
        cells = ['{:.3f} ± {:.3f}'.format(*interval(value)) for value in values.values()]
        cells += ['{:+.3f} ± {:.3f}'.format(*interval(difference)) for difference in differences]
        lines.append(f'| {count} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def main(_: Any) -> None:
    """Runs what is missing and prints the table."""
    logging.set_verbosity(logging.WARNING)
    file = FLAGS.experiment
    module = runpy.run_path(file)
    arms, pretrain = module['ARMS'], module.get('PRETRAIN')
    root = pathlib.Path(FLAGS.workdir) / pathlib.Path(file).stem
    labels = [int(count) for count in FLAGS.labels]
    accuracy: dict[tuple[str, int], list[float]] = {(arm, count): [] for arm in arms for count in labels}
    with tqdm(total=FLAGS.seeds * len(accuracy), unit='run', disable=None) as bar:
        for seed in range(FLAGS.seeds):
            start = FLAGS.init_from
            if pretrain:
                start = str(root / f'{pretrain}-{seed}')
                run(f'{file}:{pretrain}', pathlib.Path(start), seed, None, None)
            for arm, count in accuracy:
                folder = root / f'{arm}-{count}-{seed}'
                init_from = None if arm == 'scratch' else start
                accuracy[arm, count].append(run(f'{file}:{arm}', folder, seed, init_from, count))
                bar.update()
    print(table(accuracy, arms, labels))


if __name__ == '__main__':
    app.run(main)

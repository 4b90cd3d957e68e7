"""A study of eight seeds of experiments/digits.py: by the queue, by separate launches, and in PyTorch. Wall time.

    pip install torch==2.13.0
    python -m experiments.benchmarks.study [--seeds=8] [--rounds=1] [--only=study,launches,pytorch] [--json=FILE]

All train the same network with the same data, batches, steps, optimizer, schedule and shifts, evaluate as often, keep
the best weights in files and test them. Separate processes go one after the other, and two at a time. Ours keep their
compiled programs from one process to the next; a first launch that is not timed compiles them. PyTorch's processes
have as many threads as there are cores for each: with more of them they wait for each other and take minutes.
"""

import argparse
import collections
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cnn.scripts import ROOT
from experiments.benchmarks import sidebyside

STUDY = """\
from cnn.studies import Arm, Study


def get_study():
    return Study('How well are digits read?', 'experiments/digits.py', [Arm('digits')], 'digits', seeds={seeds})
"""
Contender = Callable[[pathlib.Path], None]  # does everything in a new folder


def process(arguments: Sequence[object], **environment: str) -> None:
    """Runs Python with these arguments. Raises CalledProcessError."""
    command = [sys.executable, *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})


def save_digits(file: pathlib.Path) -> None:
    """The splits of the data set for a process that has only NumPy."""
    from cnn import scripts
    from cnn.config import Experiment
    from cnn.data import sources

    data = scripts.load(str(ROOT / 'experiments/digits.py'), 'get_config', Experiment).data
    arrays: dict[str, np.ndarray] = {}
    splits = {'train': data.train_split, 'validation': data.validation_split, 'test': data.test_split}
    for name, split in splits.items():
        found = sources.load(data, str(split), ('image', 'label')).arrays()
        arrays |= {name: found['image'], f'{name}_label': found['label']}
    pixels = {'mean': np.mean(arrays['train']), 'deviation': np.std(arrays['train'])}
    np.savez(file, **{**arrays, **pixels})


def contenders(folder: pathlib.Path, seeds: int, pack: str) -> dict[str, Contender]:
    """By name."""
    study, digits = folder / 'study.py', folder / 'digits.npz'
    study.write_text(STUDY.format(seeds=seeds))

    def queue(out: pathlib.Path) -> None:
        process(['launch.py', 'ablate', f'--study={study}', f'--workdir={out}', f'--pack={pack}'])

    def launch(out: pathlib.Path, seed: int, at_once: int) -> None:
        process(['launch.py', f'--config.seed={seed}', f'--workdir={out / str(seed)}'])

    def pytorch(out: pathlib.Path, seed: int, at_once: int) -> None:
        command = ['-m', 'experiments.benchmarks.study_torch', digits, seed, out / str(seed)]
        process(command, OMP_NUM_THREADS=str(max(1, sidebyside.cores() // at_once)))

    def separate(run: Callable[[pathlib.Path, int, int], None], at_once: int) -> Contender:
        def all_seeds(out: pathlib.Path) -> None:
            with ThreadPoolExecutor(at_once) as pool:
                list(pool.map(lambda seed: run(out, seed, at_once), range(seeds)))

        return all_seeds

    made: dict[str, Contender] = {'study': queue}
    for name, run in (('launches', launch), ('pytorch', pytorch)):
        made |= {name: separate(run, 1), f'{name}, two at a time': separate(run, 2)}
    return made


def accuracy(out: pathlib.Path) -> float:
    """The mean of the runs."""
    found = [json.loads(path.read_text()) for path in out.glob('*/DONE.json')]
    return statistics.mean(done.get('metrics', done)['accuracy'] for done in found)


def main() -> None:
    """Takes the times in turns and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=1)
    parser.add_argument('--pack', default='auto', help='as of launch.py ablate')
    parser.add_argument('--only', default='study,launches,pytorch', help='names, divided by commas')
    parser.add_argument('--json', type=pathlib.Path)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = collections.defaultdict(list)
    reached: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        save_digits(folder / 'digits.npz')
        chosen = {
            name: run
            for name, run in contenders(folder, arguments.seeds, arguments.pack).items()
            if name.partition(',')[0] in arguments.only.split(',')
        }
        if importlib.util.find_spec('torch') is None:
            print('PyTorch is not installed: JAX alone; pip install torch==2.13.0 to compare')
            chosen = {name: run for name, run in chosen.items() if not name.startswith('pytorch')}
        process(['launch.py', '--config.train.duration=2ep', f'--workdir={folder / "warm"}'])
        for count in range(arguments.rounds):
            for name, run in chosen.items():
                out = folder / f'{name.replace(" ", "_")}-{count}'
                began = time.perf_counter()
                run(out)
                seconds[name].append(time.perf_counter() - began)
                reached[name] = accuracy(out)
                print(f'{name}: {seconds[name][-1]:.1f} s, accuracy {reached[name]:.4f}', flush=True)
    print(f'\n{"":24} seconds  of the study  accuracy')
    ours = statistics.median(seconds.get('study', [float('nan')]))
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f'{name:24} {median:7.1f} {median / ours:13.2f} {reached[name]:9.4f}')
    if arguments.json:
        arguments.json.write_text(json.dumps({'seconds': seconds, 'accuracy': reached}, indent=1))


if __name__ == '__main__':
    main()

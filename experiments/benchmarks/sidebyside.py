"""JAX and PyTorch timed side by side, for the comparisons in this directory.

JAX runs in this process and PyTorch in one child, because PyTorch's threads spin on after an operation and slow
whoever else runs in their process. The two take turns in blocks of repetitions, after a pause in which those threads
come to rest, so that what else the machine does falls on both. Both use every core. The first repetition of a block is
not counted, of neither: a virtual machine gives memory that has been idle back to its host, and what first takes it
again waits for that (a step of 800 ms took 1,300), as no step of a training does.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from cnn.training import environment

MISSING = (
    'PyTorch is not installed: JAX alone; pip install torch==2.13.0 '
    '(--index-url https://download.pytorch.org/whl/cpu without a GPU) to compare'
)
PAUSE = 0.05  # seconds before a block
BLOCK = 0.5  # seconds that a block aims at, far more than the threads of JAX take to wake
MOST = 200  # repetitions in a block

Run = Callable[[], object]  # one repetition, finished when it returns
Repeat = Callable[[int], list[float]]  # number of repetitions -> milliseconds of each


class Disagreement(Exception):
    """The two sides do not compute the same."""


class PeerError(Exception):
    """What went wrong in the child process, in one line."""


class Options(NamedTuple):
    """What both sides need to know of a comparison."""

    dtype: str = 'float32'  # or bfloat16
    device: str = 'cpu'  # or cuda


class Side(NamedTuple):
    """What PyTorch brings to a case."""

    runs: dict[str, Run]  # by variant, e.g. a memory format
    values: dict[str, Any]  # NumPy arrays and numbers by which JAX is checked
    unavailable: dict[str, str] = {}  # variant -> reason


Prepare = Callable[[str, Options], Side]  # name of a case -> PyTorch's side of it
PrepareJax = Callable[[str, Options, dict[str, Any] | None], Run]  # also PyTorch's values; raises Disagreement


@dataclasses.dataclass(frozen=True)
class Timing:
    """The milliseconds of all repetitions of one contender."""

    milliseconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return float(np.median(self.milliseconds))

    @property
    def spread(self) -> tuple[float, float]:
        """From the 10th to the 90th percentile."""
        low, high = np.percentile(self.milliseconds, (10, 90))
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.spread
        return f'{number(self.median)} ({number(low)}-{number(high)})'


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured of a case."""

    name: str
    jax: Timing
    torch: dict[str, Timing] = dataclasses.field(default_factory=dict)  # by variant
    unavailable: dict[str, str] = dataclasses.field(default_factory=dict)  # variant -> reason

    def fastest(self, prefix: str = '') -> str | None:
        """The variant of PyTorch with the lowest median among those whose names begin so; None without any."""
        names = [name for name in self.torch if name.startswith(prefix)]
        return min(names, key=lambda name: self.torch[name].median, default=None)

    def ratio(self, prefix: str = '') -> float | None:
        """JAX's median by that of the fastest such variant: below 1 JAX is faster."""
        name = self.fastest(prefix)
        return None if name is None else self.jax.median / self.torch[name].median

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            'name': self.name,
            'jax': _record(self.jax),
            'torch': {name: _record(timing) for name, timing in self.torch.items()},
            'fastest': self.fastest(),
            'ratio': self.ratio(),
            'unavailable': self.unavailable,
        }


class Peer:
    """The child process that runs PyTorch. It waits on a pipe, idle, between commands.

    `start(device)` describes PyTorch or raises; `prepare` gives the side of a case. Both must be importable by name.
    Raises PeerError where PyTorch does not start or a command fails.
    """

    def __init__(self, prepare: Prepare, start: Callable[[str], str], device: str = 'cpu') -> None:
        context = multiprocessing.get_context('spawn')
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, prepare, start, device))
        self._process.start()
        theirs.close()  # the end of either process is then the end of the pipe
        try:
            self.description = self._receive()
        except PeerError:
            self.close()
            raise

    def prepare(self, name: str, options: Options) -> tuple[list[str], dict[str, Any], dict[str, str]]:
        """Builds a case and runs each variant of it once: their names, the values, and variant -> why it can't run."""
        return self._ask('prepare', name, options)

    def run(self, variant: str, repetitions: int) -> list[float]:
        """Milliseconds of each repetition."""
        return self._ask('run', variant, repetitions)

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> 'Peer':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, *command: Any) -> Any:
        self._connection.send(command)
        return self._receive()

    def _receive(self) -> Any:
        try:
            error, reply = self._connection.recv()
        except (EOFError, ConnectionResetError) as end:
            self._process.join(10)
            raise PeerError(f'the process ended with exit code {self._process.exitcode}') from end
        if error:
            raise PeerError(error)
        return reply


def _serve(
    connection: multiprocessing.connection.Connection, prepare: Prepare, start: Callable[[str], str], device: str
) -> None:
    """Answers the commands of a Peer with (error or None, reply) until the pipe closes."""
    runs: dict[str, Run] = {}

    def prepared(name: str, options: Options) -> tuple[list[str], dict[str, Any], dict[str, str]]:
        runs.clear()
        side = prepare(name, options)
        unavailable = dict(side.unavailable)
        for variant, run in side.runs.items():
            try:
                run()
                runs[variant] = run
            except Exception as error:
                unavailable[variant] = one_line(error)
        return list(runs), side.values, unavailable

    commands: dict[str, Callable[..., Any]] = {
        'prepare': prepared,
        'run': lambda variant, repetitions: milliseconds(runs[variant], repetitions),
    }
    command: Callable[..., Any] = start
    arguments: list[Any] = [device]
    while True:
        answer: tuple[str | None, Any]
        try:
            answer = (None, command(*arguments))
        except KeyboardInterrupt:
            return
        except Exception as error:
            answer = (one_line(error), None)
        try:
            connection.send(answer)
            name, *arguments = connection.recv()
        except (EOFError, BrokenPipeError, KeyboardInterrupt):
            return
        command = commands[name]


def start_torch(device: str) -> str:
    """Gives PyTorch every core, or the GPU; says what it is. Raises RuntimeError where it has no such device."""
    import torch

    torch.set_num_threads(cores())
    if device != 'cuda':
        return f'PyTorch {torch.__version__} on cpu, {torch.get_num_threads()} threads'
    if not torch.cuda.is_available():
        raise RuntimeError('it was built without a GPU or sees none')
    # As JAX does by default, which computes float32 convolutions and matmuls in TF32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True  # XLA tries its algorithms too
    return f'PyTorch {torch.__version__} on {torch.cuda.get_device_name()}'


def connect(prepare: Prepare, start: Callable[[str], str] = start_torch) -> tuple[Peer | None, Options]:
    """The child process and its device. Where there is nothing to compare with, prints why and gives None."""
    import jax

    backend = jax.default_backend()
    print(f'JAX {jax.__version__} on {jax.devices()[0].device_kind}, {cores()} threads')
    device = {'cpu': 'cpu', 'gpu': 'cuda'}.get(backend)
    peer = None
    if importlib.util.find_spec('torch') is None and start is start_torch:
        print(MISSING)
    elif device is None:
        print(f'PyTorch does not run on {backend}: JAX alone')
    else:
        try:
            peer = Peer(prepare, start, device)
            print(peer.description)
        except PeerError as error:
            print(f'PyTorch does not start: {error}: JAX alone')
    return peer, Options(device=device or backend)


def compare(name: str, prepare_jax: PrepareJax, peer: Peer | None, options: Options, rounds: int) -> Result:
    """Times a case on both sides in turns. Raises Disagreement with the case's name where they compute different."""
    variants: list[str] = []
    values: dict[str, Any] | None = None
    unavailable: dict[str, str] = {}
    if peer:
        variants, values, unavailable = peer.prepare(name, options)
    try:
        contenders: dict[str, Repeat] = {'jax': functools.partial(milliseconds, prepare_jax(name, options, values))}
    except Disagreement as disagreement:
        raise Disagreement(f'{name}: refused: {disagreement}') from None
    if peer:
        contenders |= {f'torch {variant}': functools.partial(peer.run, variant) for variant in variants}
    timings = alternate(contenders, rounds)
    return Result(name, timings['jax'], {variant: timings[f'torch {variant}'] for variant in variants}, unavailable)


def alternate(contenders: Mapping[str, Repeat], rounds: int) -> dict[str, Timing]:
    """Times each contender in `rounds` blocks, taking turns, after a warm-up that compiles and fixes its block."""
    repetitions = {}
    for name, repeat in contenders.items():
        time.sleep(PAUSE)
        shortest = min(repeat(2)) / 1000  # the first may compile
        repetitions[name] = min(max(round(BLOCK / shortest), 1), MOST) if shortest else MOST
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, repeat in contenders.items():
            time.sleep(PAUSE)
            taken[name] += repeat(repetitions[name] + 1)[1:]
    return {name: Timing(tuple(values)) for name, values in taken.items()}


def milliseconds(run: Run, repetitions: int) -> list[float]:
    """What each repetition takes."""
    taken = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        run()
        taken.append((time.perf_counter() - begin) * 1000)
    return taken


def agree(what: str, ours: Any, theirs: Any, tolerance: float) -> None:
    """Raises Disagreement unless two arrays have one shape and differ by less than this part of their largest value."""
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
    if ours.shape != theirs.shape:
        raise Disagreement(f'{what} has shape {ours.shape} in JAX and {theirs.shape} in PyTorch')
    difference = float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))
    if not difference <= tolerance:
        raise Disagreement(f'{what} differs by {difference:.1e} of its largest value, tolerance {tolerance:.0e}')


def matmul_rate(dtype: str, rounds: int = 5) -> float:
    """GFLOP/s of JAX's product of two square matrices, large enough for the device: what a convolution could reach."""
    import jax
    import jax.numpy as jnp

    size = 2048 if jax.default_backend() == 'cpu' else 8192
    x = jnp.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32), dtype)
    product = jax.jit(jnp.matmul)
    timing = alternate({'matmul': lambda n: milliseconds(lambda: product(x, x).block_until_ready(), n)}, rounds)
    return 2 * size**3 / timing['matmul'].median / 1e6


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The flags that the comparisons share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default='', metavar='SUBSTRING', help='only rows whose names contain it')
    parser.add_argument('--rounds', type=_positive, default=5, help='blocks of each side')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32', help='of the computation')
    parser.add_argument('--form', choices=('auto', 'portable', 'plain'), help='of convolutions in JAX: sets CNN_CONV')
    parser.add_argument('--json', type=pathlib.Path, metavar='FILE', help='keep all figures')
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags, after what must stand before JAX is imported: the settings that launch.py makes for a run."""
    arguments = parser.parse_args()
    environment.use_huge_pages()  # PyTorch's process has them too
    if arguments.form:
        os.environ['CNN_CONV'] = arguments.form
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # a GPU is shared with PyTorch
    environment.set_xla_flags()
    return arguments


def chosen(names: list[str], only: str) -> list[str]:
    """The names that contain `only`; without any the program ends with exit code 2 and all names."""
    found = [name for name in names if only in name]
    if not found:
        print(f'--only={only} is in no row: {", ".join(names)}', file=sys.stderr)
        raise SystemExit(2)
    return found


def save(file: pathlib.Path | None, arguments: argparse.Namespace, **content: Any) -> None:
    """Writes what was measured as JSON, with the versions, the flags and the device."""
    if file is None:
        return
    import jax

    versions: dict[str, str | None] = {}
    for package in ('jax', 'jaxlib', 'flax', 'torch'):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    device = {'backend': jax.default_backend(), 'kind': jax.devices()[0].device_kind, 'cores': cores()}
    flags = {name: str(value) for name, value in vars(arguments).items()}
    flags['CNN_CONV'] = os.environ.get('CNN_CONV', '')
    file.write_text(json.dumps({'flags': flags, 'versions': versions, 'device': device, **content}, indent=1) + '\n')


def number(value: float | None) -> str:
    """Three digits, or a dash for nothing."""
    if value is None:
        return '-'
    return f'{value:.{min(max(2 - int(np.floor(np.log10(value))), 0), 3)}f}' if value > 0 else '0'


def one_line(error: BaseException) -> str:
    """An error's type and the first line that it says."""
    said = str(error).strip().splitlines()
    return f'{type(error).__name__}: {said[0]}' if said else type(error).__name__


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError('must be at least 1')
    return value


def _record(timing: Timing) -> dict[str, Any]:
    low, high = timing.spread
    count = len(timing.milliseconds)
    return {'median_ms': timing.median, 'p10_ms': low, 'p90_ms': high, 'repetitions': count}

"""Random crops of ImageNet-sized JPEG files: images per second and core, beside the limit and PyTorch's DataLoader.

    pip install torch==2.13.0 && pip install --no-deps torchvision==0.28.0
    python -m experiments.benchmarks.input_pipeline [--size=224] [--rounds=5] [--json=FILE]

The files are made here: 500x375 pixels or thereabouts, quality 90, about 110 kB, in a folder of their own. All read
them from there, on all cores, and take turns:

    decode      simplejpeg decodes whole files, in a process for each core: the limit
    bare        a loop with nothing around it that makes our crops, in a process for each core; 100 %
    threads     our batches on the device, read in threads of this process (config.data.workers=0)
    processes   our batches on the device, read in a process for each core (config.data.workers=CORES)
    dataloader  torchvision's RandomResizedCrop and flip on Pillow's images, in PyTorch's DataLoader, a worker for each
                core; without turning pixels into floats, which we leave to the device

Before they are timed the loop and the pipeline must give the same pixels. What a pipeline made while others had their
turn is thrown away first.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import flags

from experiments.benchmarks import sidebyside
from experiments.benchmarks.sidebyside import Disagreement, Options, Peer, PeerError, Side, Timing

SIZES = ((375, 500), (500, 375), (333, 500), (400, 480))  # height, width, in turns
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
BATCH = 64
DRAINED = 16  # batches that may have been made in another's turn
FILES = 240
ENDLESS = 10**7
CONTEXT = 'fork'  # of the DataLoader's workers; its default on Linux

Share = list[tuple[str, tuple[int, ...]]]  # files and their windows: top, left, height, width


def make_files(directory: pathlib.Path, count: int) -> None:
    """A folder for config.data.name=folder:DIR of one class. Waves, blocks and noise: about 110 kB each."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder = directory / 'train' / 'picture'
    folder.mkdir(parents=True)
    for index in range(count):
        height, width = SIZES[index % len(SIZES)]
        rows, columns = np.mgrid[:height, :width] / 100
        waves = [np.sin(columns * (1 + c) + index) + np.cos(rows * (2 - c) * 1.3 + index) for c in range(3)]
        blocks = rng.normal(0, 40, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
        noise = rng.normal(0, 16, (height, width, 1))
        pixels = np.clip(128 + 50 * np.stack(waves, -1) + blocks + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f'{index:05}.jpg', quality=90)


def decode_loop(share: Share, size: int) -> None:
    """Decodes whole files."""
    import simplejpeg

    for path, _ in share:
        simplejpeg.decode_jpeg(pathlib.Path(path).read_bytes())


def crop_loop(share: Share, size: int) -> np.ndarray:
    """The windows of files, resized: [N, size, size, 3]. It knows that the files are colour JPEG in blocks of 16."""
    import simplejpeg
    from PIL import Image

    crops = np.empty((len(share), size, size, 3), np.uint8)
    for place, (path, (top, left, height, width)) in enumerate(share):
        data = bytearray(pathlib.Path(path).read_bytes())
        header = data.find(b'\xff\xc0') + 5
        rows, columns = (int.from_bytes(data[start : start + 2], 'big') for start in (header, header + 2))
        by = 2 if min(height, width) >= 2 * size else 1
        rows = min(rows, -(-(top + height + by) // 16) * 16)
        data[header : header + 2] = rows.to_bytes(2, 'big')
        pixels = simplejpeg.decode_jpeg(data, 'RGB', False, False, -(-rows // by), -(-columns // by), by, strict=False)
        first, start = top // by, left // by
        part = Image.fromarray(pixels[first : -(-(top + height) // by), start : -(-(left + width) // by)])
        box = left / by - start, top / by - first, (left + width) / by - start, (top + height) / by - first
        crops[place] = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return crops


LOOPS: dict[str, Callable[[Share, int], Any]] = {'decode': decode_loop, 'bare': crop_loop}


def timed_loop(name: str, share: Share, size: int) -> float:
    """Seconds of a loop over its share, in a process of the pool."""
    begin = time.perf_counter()
    LOOPS[name](share, size)
    return time.perf_counter() - begin


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Our batches of a folder, from a step on."""

    directory: pathlib.Path
    size: int
    workers: int

    def stream(self, batch: int = BATCH) -> Iterator[dict[str, Any]]:
        """Batches without end, on the device."""
        from cnn.config import Augment, Data, Experiment
        from cnn.data import fitting, sources
        from cnn.data.batches import Batches, train_indices
        from cnn.training.sharding import batch_sharding, make_mesh

        data = Data(name=f'folder:{self.directory}', image_size=(self.size, self.size), workers=self.workers)
        config = Experiment(data=data, augment=Augment(crop_scale=SCALE, crop_ratio=RATIO))
        source = sources.load(data, 'train+validation+test', ('image', 'label'))
        batches = Batches(source, batch_sharding(make_mesh(config)), data, fitting.fit(config, source.spec))
        return batches(train_indices(len(source), batch, config.seed), 0, ENDLESS)

    def share(self, count: int) -> Share:
        """The first `count` files of the stream, and the windows that are cut from them."""
        from cnn.config import Data
        from cnn.data import crops, decoding, sources
        from cnn.data.batches import train_indices

        source = sources.load(Data(name=f'folder:{self.directory}'), 'train+validation+test', ('image',))
        rows = train_indices(len(source), count, 0)(0)
        share = []
        for position, index in enumerate(rows.indices.tolist()):
            with open(source.where(index), 'rb') as file:
                height, width, _ = decoding.picture_header(file).shape
            window = crops.random_window(height, width, SCALE, RATIO, crops.uniforms(0, position))
            share.append((source.where(index), tuple(map(int, window[:4]))))
        return share


def check(pipeline: Pipeline, count: int = 32) -> None:
    """Raises Disagreement unless the loop makes the pixels of the pipeline."""
    ours = np.asarray(next(pipeline.stream(count))['image'])
    sidebyside.agree('a batch', ours, crop_loop(pipeline.share(count), pipeline.size), 1e-9)


def seconds(stream: Iterator[Any], count: int) -> float:
    """That `count` batches take, after those that may have been ready."""
    import jax

    for _ in range(DRAINED):
        jax.block_until_ready(next(stream))
    begin = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(next(stream))
    return time.perf_counter() - begin


# PyTorch's side, in a process of its own.


def start_loader(device: str) -> str:
    """Says what it is. Raises ImportError where it is not installed."""
    import torch

    from experiments.benchmarks import networks_torch

    return f'torchvision {networks_torch.torchvision().__version__}, PyTorch {torch.__version__}'


def prepare_loader(name: str, options: Options) -> Side:
    """A repetition takes batches of a DataLoader that never ends; `name` is JSON: directory, size, workers, count."""
    import torch

    from experiments.benchmarks import networks_torch

    transforms, datasets = (getattr(networks_torch.torchvision(), part) for part in ('transforms', 'datasets'))
    told = json.loads(name)
    files = datasets.ImageFolder(
        pathlib.Path(told['directory']) / 'train',
        transforms.Compose(
            [
                transforms.RandomResizedCrop(told['size'], SCALE, RATIO),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
            ]
        ),
    )
    sampler = torch.utils.data.RandomSampler(files, replacement=True, num_samples=ENDLESS)
    workers = {'num_workers': told['workers'], 'multiprocessing_context': CONTEXT}
    loader = iter(torch.utils.data.DataLoader(files, BATCH, sampler=sampler, **workers))

    def drain() -> None:
        for _ in range(DRAINED):
            next(loader)

    def take() -> None:
        for _ in range(told['count']):
            next(loader)

    return Side({'drain': drain, 'take': take}, {})


def compare(directory: pathlib.Path, size: int, rounds: int, count: int) -> dict[str, Timing]:
    """Milliseconds for each picture of each contender; a round takes `count` batches of each."""
    cores = sidebyside.cores()
    share = Pipeline(directory, size, 0).share(count * BATCH)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(multiprocessing.get_context('spawn').Pool(cores))

        def loop(name: str) -> float:
            return max(pool.starmap(timed_loop, [(name, share[core::cores], size) for core in range(cores)], 1))

        contenders: dict[str, Callable[[], float]] = {name: functools.partial(loop, name) for name in LOOPS}
        for name, workers in (('threads', 0), ('processes', cores)):
            stream = Pipeline(directory, size, workers).stream()
            stack.callback(stream.close)  # type: ignore[attr-defined]
            contenders[name] = functools.partial(seconds, stream, count)
        try:
            peer = stack.enter_context(Peer(prepare_loader, start_loader))
            print(peer.description)
            told = {'directory': str(directory), 'size': size, 'workers': cores, 'count': count}
            *_, unavailable = peer.prepare(json.dumps(told), Options())
            if unavailable:
                raise PeerError('; '.join(unavailable.values()))

            def loader() -> float:
                peer.run('drain', 1)
                return peer.run('take', 1)[0] / 1000

            contenders['dataloader'] = loader
        except PeerError as error:
            print(f'no DataLoader: {error}')
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(rounds + 1):
            for name, run in contenders.items():
                time.sleep(sidebyside.PAUSE)
                spent = run()
                if turn:  # the first warms up
                    taken[name].append(spent * 1000 / (count * BATCH))
    return {name: Timing(tuple(values)) for name, values in taken.items()}


def table(timings: dict[str, Timing], cores: int) -> list[str]:
    """A line for each contender."""
    bare = timings['bare'].median
    lines = [f'{"":11} {"images/s":>9} {"per core":>9} {"of bare":>8}']
    for name, timing in timings.items():
        rate = 1000 / timing.median
        lines.append(f'{name:11} {rate:9.0f} {rate / cores:9.0f} {bare / timing.median:8.2f}')
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', type=int, default=224, help='of the crops')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--batches', type=int, default=60, help='of 64, in a round')
    parser.add_argument('--json', type=pathlib.Path, metavar='FILE', help='keep all figures')
    arguments = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # Grain's processes ask for them
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        make_files(directory, FILES)
        sizes = [path.stat().st_size for path in directory.rglob('*.jpg')]
        made = f'{len(sizes)} files of {np.mean(sizes) / 1000:.0f} kB'
        print(f'{made}, {sidebyside.cores()} cores, crops of {arguments.size}')
        try:
            check(Pipeline(directory, arguments.size, 0))
        except Disagreement as disagreement:
            sys.exit(str(disagreement))
        timings = compare(directory, arguments.size, arguments.rounds, arguments.batches)
    print(*table(timings, sidebyside.cores()), sep='\n')
    figures = {name: timing.milliseconds for name, timing in timings.items()}
    sidebyside.save(arguments.json, arguments, milliseconds=figures)


if __name__ == '__main__':
    main()

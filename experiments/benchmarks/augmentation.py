"""Augmentation of CIFAR-sized images on the device, beside Pillow and torchvision.

    pip install torch==2.13.0 && pip install --no-deps torchvision==0.28.0
    python -m experiments.benchmarks.augmentation [--only=randaugment] [--json=FILE]

Every row is milliseconds for 1,000 images of 32 x 32 x 3, each with its own draw. JAX: one jitted call on the batch,
from 8 bits to 0..1. Pillow: a Python loop over pictures that are there already, the operations alone, with strengths
drawn beforehand. torchvision: its v2 transforms, on each Pillow picture by itself, and on the whole batch as a uint8
tensor. The latter draws once for all images and so does less: of its columns only the first is the same work.
"""

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.benchmarks import sidebyside
from experiments.benchmarks.sidebyside import Options, Run, Side

COUNT, SIZE = 1000, 32
MISSING = 'torchvision is not installed: JAX and Pillow alone'

# By row: the fields of config.Augment.
ROWS: dict[str, dict[str, Any]] = {
    'flip': {'flip': True},
    'shift': {'shift': 4},
    'crop': {'crop_scale': (0.08, 1.0)},
    'rotate': {'rotate': 30.0},
    'affine': {'rotate': 15.0, 'translate': 0.1, 'shear': 10.0},
    'brightness': {'brightness': 0.4},
    'contrast': {'contrast': 0.4},
    'saturation': {'saturation': 0.4},
    'hue': {'hue': 0.1},
    'jitter': {'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'hue': 0.1},
    'randaugment': {'policy': 'randaugment', 'num_operations': 2, 'magnitude': 9.0},
    'trivialaugment': {'policy': 'trivialaugment'},
    'autoaugment_imagenet': {'policy': 'autoaugment_imagenet'},
    'autoaugment_cifar10': {'policy': 'autoaugment_cifar10'},
    'autoaugment_svhn': {'policy': 'autoaugment_svhn'},
}
OPERATIONS = ('sharpness', 'posterize', 'solarize', 'autocontrast', 'equalize', 'invert')  # of policies, alone
NAMES = [*ROWS, *OPERATIONS]


def images() -> np.ndarray:
    """uint8 [COUNT, SIZE, SIZE, 3]: smooth fields with noise, the same on all sides."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 200, (COUNT, 4, 4, 3)).repeat(SIZE // 4, 1).repeat(SIZE // 4, 2)
    return (coarse + generator.integers(0, 56, (COUNT, SIZE, SIZE, 3))).astype(np.uint8)


def jax_case(name: str, _options: Options, _values: Any) -> Run:
    """One jitted call on the batch, with a new key each time."""
    import jax
    import jax.numpy as jnp

    from cnn import config
    from cnn.data import augment, color

    batch = {'image': jnp.asarray(images())}
    if name in ROWS:
        structure = config.Experiment()
        structure.augment = config.Augment(**ROWS[name])
        structure, numbers = config.split_numbers(structure)
        spec = config.Spec({'image': (SIZE, SIZE, 3)}, {'image': 'uint8'}, {}, {})
        prepare = jax.jit(augment.preparation(structure, spec))
        keys = iter(jax.random.split(jax.random.key(0), 100_000))
        return lambda: jax.block_until_ready(prepare(batch, next(keys), numbers))
    strength = {'sharpness': (1.5,), 'posterize': (4,), 'solarize': (128.0,)}.get(name, ())
    change = jax.jit(lambda image: getattr(color, name)(image.astype(jnp.float32) / 255, *strength))
    return lambda: jax.block_until_ready(change(batch['image']))


def pillow_case(name: str) -> Run | None:
    """A loop over pictures; None where Pillow has no such operation of its own."""
    from PIL import Image, ImageEnhance, ImageOps

    pictures = [Image.fromarray(image) for image in images()]
    generator = np.random.default_rng(1)
    factors = generator.uniform(0.6, 1.4, COUNT).tolist()
    angles = generator.uniform(-30, 30, COUNT).tolist()
    offsets = generator.integers(-4, 5, (COUNT, 2)).tolist()
    flips = (generator.random(COUNT) < 0.5).tolist()
    sides = generator.integers(10, SIZE + 1, COUNT).tolist()

    def enhance(kind: str) -> Callable[[Any, int], Any]:
        return lambda picture, index: getattr(ImageEnhance, kind)(picture).enhance(factors[index])

    def crop(picture: Any, index: int) -> Any:
        box = (0, 0, sides[index], sides[index])
        return picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)

    def shift(picture: Any, index: int) -> Any:
        right, down = offsets[index]
        return picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, -right, 0, 1, -down))

    changes: dict[str, Callable[[Any, int], Any]] = {
        'flip': lambda picture, index: ImageOps.mirror(picture) if flips[index] else picture,
        'shift': shift,
        'crop': crop,
        'rotate': lambda picture, index: picture.rotate(angles[index], Image.Resampling.BILINEAR),
        **{kind.lower(): enhance(kind) for kind in ('Brightness', 'Contrast', 'Sharpness')},
        'saturation': enhance('Color'),
        'posterize': lambda picture, _: ImageOps.posterize(picture, 4),
        'solarize': lambda picture, _: ImageOps.solarize(picture, 128),
        **{
            kind: functools.partial(lambda change, picture, _: change(picture), getattr(ImageOps, kind))
            for kind in ('autocontrast', 'equalize', 'invert')
        },
    }
    if 'policy' in ROWS.get(name, {}):
        return pillow_policy(name, pictures)
    if name not in changes:
        return None
    return lambda: [changes[name](picture, index) for index, picture in enumerate(pictures)]


def pillow_policy(name: str, pictures: Sequence[Any]) -> Run:
    """A loop over pictures, each with its own operations, drawn beforehand by ours."""
    import jax
    from PIL import Image, ImageEnhance, ImageOps

    from cnn import config
    from cnn.data import policies

    augment = config.Augment(**ROWS[name])
    ranges = policies.WIDE if name == 'trivialaugment' else policies.usual_ranges(SIZE, SIZE)
    plain: dict[str, Callable[[Any, float], Any]] = {
        'posterize': lambda picture, level: ImageOps.posterize(picture, 8 - round(abs(level) * ranges.posterize)),
        'solarize': lambda picture, level: ImageOps.solarize(picture, round(255 * (1 - abs(level)))),
        **{
            kind: functools.partial(lambda change, picture, _: change(picture), getattr(ImageOps, kind))
            for kind in ('autocontrast', 'equalize', 'invert')
        },
        'identity': lambda picture, _: picture,
    }
    blends = {kind: getattr(ImageEnhance, {'saturation': 'Color'}.get(kind, kind.title())) for kind in policies.BLENDS}
    steps = []
    for operation, level in policies.draw(jax.random.key(0), COUNT, vars(augment), augment):
        matrices = policies.warps(operation, level, ranges, SIZE, SIZE).reshape(COUNT, 6).tolist()
        names = [policies.OPERATIONS[index] for index in operation.tolist()]
        steps.append(list(zip(names, level.tolist(), matrices, strict=True)))

    def change(picture: Any, name: str, level: float, matrix: list[float]) -> Any:
        if name in policies.WARPS:
            return picture.transform((SIZE, SIZE), Image.Transform.AFFINE, matrix)
        if name in blends:
            return blends[name](picture).enhance(1 + level * ranges.blend)
        return plain[name](picture, level)

    def run() -> list[Any]:
        changed = list(pictures)
        for step in steps:
            changed = [change(picture, *drawn) for picture, drawn in zip(changed, step, strict=True)]
        return changed

    return run


_KEPT: list[Any] = []  # what PyTorch would take back when it is collected


def start_torchvision(device: str) -> str:
    """PyTorch with every core, ready to import torchvision, two of whose operators a wheel for CPUs lacks."""
    import torch

    said = sidebyside.start_torch(device)
    library = torch.library.Library('torchvision', 'DEF')
    for name in ('nms', 'qnms'):
        with contextlib.suppress(RuntimeError):  # it is there
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _KEPT.append(library)
    import torchvision

    return f'{said}; torchvision {torchvision.__version__}'


def torch_case(name: str, _options: Options) -> Side:
    """torchvision's transforms on pictures one by one, and on the batch with one draw for all."""
    import torch
    from PIL import Image
    from torchvision.transforms import v2

    bilinear = v2.InterpolationMode.BILINEAR
    jitter = ROWS.get(name, {})
    transforms: dict[str, Callable[[], Any]] = {
        'flip': v2.RandomHorizontalFlip,
        'shift': lambda: v2.RandomCrop(SIZE, padding=4),
        'crop': lambda: v2.RandomResizedCrop(SIZE, interpolation=bilinear),
        'rotate': lambda: v2.RandomRotation(30, interpolation=bilinear),
        'affine': lambda: v2.RandomAffine(15, (0.1, 0.1), shear=10, interpolation=bilinear),
        **{
            kind: lambda: v2.ColorJitter(**jitter) for kind in ('brightness', 'contrast', 'saturation', 'hue', 'jitter')
        },
        'randaugment': v2.RandAugment,
        'trivialaugment': v2.TrivialAugmentWide,
        **{f'autoaugment_{policy.value}': functools.partial(v2.AutoAugment, policy) for policy in v2.AutoAugmentPolicy},
        'sharpness': lambda: v2.RandomAdjustSharpness(1.5, p=1),
        'posterize': lambda: v2.RandomPosterize(4, p=1),
        'solarize': lambda: v2.RandomSolarize(128, p=1),
        'autocontrast': lambda: v2.RandomAutocontrast(p=1),
        'equalize': lambda: v2.RandomEqualize(p=1),
        'invert': lambda: v2.RandomInvert(p=1),
    }
    transform = transforms[name]()
    pictures = [Image.fromarray(image) for image in images()]
    batch = torch.from_numpy(images()).permute(0, 3, 1, 2).contiguous()
    return Side({'each': lambda: [transform(picture) for picture in pictures], 'batch': lambda: transform(batch)}, {})


def main() -> None:
    """Prints a table."""
    parser = sidebyside.argument_parser(__doc__)
    arguments = sidebyside.parse(parser)
    names = sidebyside.chosen(NAMES, arguments.only)
    peer, options = None, Options(device='cpu')
    if importlib.util.find_spec('torchvision') is None:
        print(MISSING)
    else:
        peer, options = sidebyside.connect(torch_case, start_torchvision)
    print(f'milliseconds for {COUNT} images of {SIZE} x {SIZE} x 3: median; ratio: JAX / the other\n')
    print(
        f'{"":22} {"JAX":>8} {"Pillow":>8} {"ratio":>6} {"torchvision":>12} {"ratio":>6} {"one draw":>9} {"ratio":>6}'
    )
    rows = []
    try:
        for name in names:
            row = measure(name, peer, options, arguments.rounds)
            rows.append({'name': name, 'median_ms': row})
            cells = [f'{name:22} {sidebyside.number(row["JAX"]):>8}']
            for other, width in (('Pillow', 8), ('torch each', 12), ('torch batch', 9)):
                median = row.get(other)
                ratio = row['JAX'] / median if median else None
                cells.append(f'{sidebyside.number(median):>{width}} {sidebyside.number(ratio):>6}')
            print(*cells, flush=True)
    finally:
        if peer:
            peer.close()
    sidebyside.save(arguments.json, arguments, rows=rows)


def measure(name: str, peer: sidebyside.Peer | None, options: Options, rounds: int) -> dict[str, float]:
    """Median milliseconds of each side that there is, taking turns."""
    contenders = {'JAX': functools.partial(sidebyside.milliseconds, jax_case(name, options, None))}
    pillow = pillow_case(name)
    if pillow is not None:
        contenders['Pillow'] = functools.partial(sidebyside.milliseconds, pillow)
    if peer:
        variants, _, unavailable = peer.prepare(name, options)
        contenders |= {f'torch {variant}': functools.partial(peer.run, variant) for variant in variants}
        for variant, reason in unavailable.items():
            print(f'    torchvision {variant} is not available: {reason}')
    return {side: timing.median for side, timing in sidebyside.alternate(contenders, rounds).items()}


if __name__ == '__main__':
    main()

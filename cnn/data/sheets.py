"""Contact sheets of examples: pictures, boxes, masks and recordings on one page, drawn on the host."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cnn import config, pictures
from cnn.config import Spec
from cnn.data.files import IGNORED

Example = Mapping[str, Any]
SHOWN = 64  # examples
_PALETTE = ('1f77b4', 'ff7f0e', '2ca02c', 'd62728', '9467bd', '8c564b', 'e377c2', '7f7f7f', 'bcbd22', '17becf')


def drawable(spec: Spec) -> bool:
    """Whether there is anything to be seen."""
    return bool(spec.shapes.keys() & {'image', 'signal', 'video'})


def examples(shown: Sequence[Example], spec: Spec) -> np.ndarray:
    """A page of examples under their labels, with boxes and masks in the colours of their classes: uint8 [H, W, 3]."""
    marked = next((field for field in ('semantic', 'box_labels') if field in spec.class_names), None)
    side, columns = (224, 6) if marked else (112, 8)
    tiles = [_tile(example, side) for example in shown]
    page = pictures.sheet(tiles, [_caption(example, spec) for example in shown], columns, side)
    return np.concatenate([page, _legend(spec.class_names[marked], page.shape[1])]) if marked else page


def prepared(batch: Example, spec: Spec, data: config.Data) -> np.ndarray:
    """A page of the batch that the network has, where `spec` is that of the raw examples.

    Pictures without their normalisation, cut to 0..1; spectrograms each stretched to its own range, time to the right
    and low bands at the bottom. Captions give the share of the example's own label where labels are mixed.
    """
    shown = [{field: np.asarray(values[row]) for field, values in batch.items()} for row in range(len(batch['valid']))]
    for example in shown:
        if 'image' in example:
            image = example['image'] * np.array(data.std or 1.0) + np.array(data.mean or 0.0)
            if 'signal' in spec.shapes:
                image = ((image - image.min()) / max(np.ptp(image), 1e-9)).swapaxes(0, 1)[::-1]
            example['image'] = (image.clip(0, 1) * 255).round().astype(np.uint8)
    return examples([example for example in shown if example['valid']], spec)


def _caption(example: Example, spec: Spec) -> str:
    words = []
    if 'label' in spec.class_names and 'label' in example:
        names = spec.class_names['label']
        words.append(names[int(example['label'])])
        if 'mix' in example and example['mix'] < 1:
            words[0] += f' {example["mix"]:.0%} + {names[int(example["mixed_label"])]}'
    if 'box_labels' in spec.class_names and 'box_labels' in example:
        counts = collections.Counter(int(label) for label in np.ravel(example['box_labels']) if label >= 0)
        names = spec.class_names['box_labels']
        words += [names[label] + f' x{count}' * (count > 1) for label, count in sorted(counts.items())]
    if 'signal' in example and spec.sample_rate:
        words.append(f'{len(example["signal"]) / spec.sample_rate:.2f} s')
    return ', '.join(words)


def _tile(example: Example, side: int) -> np.ndarray:
    """uint8 [H, W, 3] with a longer side of `side`, so that lines are a pixel wide."""
    from PIL import Image, ImageDraw

    if 'signal' in example:
        return _waveform(np.asarray(example['signal'])[:, 0], side)
    image = example['image'] if 'image' in example else example['video'][len(example['video']) // 2]
    image = np.broadcast_to(image[..., : 3 if image.shape[-1] >= 3 else 1], (*image.shape[:2], 3))
    scale = side / max(image.shape[:2])
    height, width = (max(round(length * scale), 1) for length in image.shape[:2])
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    tile = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), how)
    if 'semantic' in example:
        labels = Image.fromarray(np.asarray(example['semantic'], np.uint8)).resize(
            (width, height), Image.Resampling.NEAREST
        )
        tile = _overlay(np.asarray(tile), np.asarray(labels))
    if 'boxes' in example:
        draw = ImageDraw.Draw(tile)
        for box, label in zip(example['boxes'], example['box_labels'], strict=True):
            if label >= 0:
                x0, y0, x1, y1 = (np.asarray(box) * scale).tolist()
                outline = 'white' if 'semantic' in example else colour(int(label))
                draw.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=outline)
    return np.asarray(tile)


def _overlay(image: np.ndarray, labels: np.ndarray) -> Any:
    """Classes above 0 in their colours over the picture; white where there is no class."""
    from PIL import Image

    palette = np.array([colour(label) for label in range(256)], np.uint8)
    palette[IGNORED] = 255
    mixed = (image.astype(np.uint16) + palette[labels]) // 2
    return Image.fromarray(np.where((labels > 0)[..., None], mixed, image).astype(np.uint8))


def _waveform(samples: np.ndarray, side: int) -> np.ndarray:
    """The range of the samples in each column, in shares of the largest."""
    height, width = side // 2, side
    drawn = np.full((height, width, 3), 255, np.uint8)
    drawn[height // 2] = 200
    peak = max(float(np.abs(samples).max(initial=0)), 1e-9)
    ends = np.linspace(0, len(samples), width + 1).round().astype(int)
    for column in range(width):
        part = samples[ends[column] : ends[column + 1] + 1] / peak  # with the next sample, so that the line is whole
        if part.size:
            top, bottom = ((1 - end) / 2 * (height - 1) for end in (part.max(), part.min()))
            drawn[round(top) : round(bottom) + 1, column] = colour(0)
    return drawn


def _legend(names: Sequence[str], width: int) -> np.ndarray:
    """The classes, each in its colour."""
    from PIL import Image, ImageDraw

    line, gap = 14, 10
    draw = ImageDraw.Draw(Image.new('RGB', (1, 1)))
    places, left, top = [], float(gap), 0
    for name in names[:60]:
        length = draw.textlength(name)
        if left + length > width and left > gap:
            left, top = gap, top + line
        places.append((left, top))
        left += length + gap
    legend = Image.new('RGB', (width, top + line + 4), 'white')
    draw = ImageDraw.Draw(legend)
    for label, place in enumerate(places):
        draw.text(place, names[label], fill=colour(label))
    return np.asarray(legend)


def colour(label: int) -> tuple[int, int, int]:
    """Of a class: ten that are told apart, again and again."""
    red, green, blue = bytes.fromhex(_PALETTE[label % len(_PALETTE)])
    return red, green, blue

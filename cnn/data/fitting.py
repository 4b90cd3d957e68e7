"""Examples of different sizes as examples of one: pictures by windows and resizing, signals by cutting and zeros."""

import dataclasses
from typing import Any

import numpy as np

from cnn import config
from cnn.config import Experiment, Spec
from cnn.data import decoding, jpeg
from cnn.data.crops import MASKS, Window, middle_window, move, random_window, resample, uniforms
from cnn.data.decoding import Unreadable
from cnn.data.sources import Source
from cnn.errors import InputError


@dataclasses.dataclass(frozen=True)
class Fit:
    """How pictures of different sizes are brought to one; the fields of config.Data and config.Augment."""

    resize: str = 'stretch'
    side: int | None = None
    crop_scale: tuple[float, ...] = ()  # in training; empty: as in evaluation
    crop_ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    seed: int = 0


def fit(config: Experiment, spec: Spec) -> Fit:
    """What the configuration asks for. Raises InputError where it asks for what can't be done with this spec."""
    data, augment = config.data, config.augment
    if is_ragged(spec) and augment.crop_scale and data.resident:
        raise InputError(
            'config.data.resident=True: pictures of different sizes that are cropped at random '
            '(config.augment.crop_scale) are read anew for each crop; leave it unset'
        )
    drawn = is_ragged(spec) and augment.crop_scale  # where nothing is, runs with other seeds share what is read
    return Fit(data.resize, data.resize_side, augment.crop_scale, augment.crop_ratio, config.seed if drawn else 0)


def is_ragged(spec: Spec) -> bool:
    """Whether pictures differ in size, so that they are brought to one where they are read."""
    return -1 in spec.shapes.get('image', ())


def fitted_spec(spec: Spec, data: config.Data, training: bool = True) -> Spec:
    """What the rows of a batch are, before `augment.prepare`.

    Raises InputError where examples differ in size and the configuration gives none.
    """
    shapes = dict(spec.shapes)
    image, signal = shapes.get('image', ()), shapes.get('signal', ())
    if -1 in image:
        size = data.image_size if training else data.test_size or data.image_size
        channels = data.channels if image[-1] == -1 else image[-1]
        if size is None:
            raise InputError('the pictures differ in size: give config.data.image_size=HEIGHT,WIDTH')
        if channels is None:
            raise InputError('some pictures are grey and some in colour: give config.data.channels=3, or 1')
        shapes['image'] = (*size, channels)
        shapes |= {field: (*shapes[field][:-2], *size) for field in set(MASKS) & shapes.keys()}
    if signal:
        shapes['signal'] = (signal[0] if data.length is None else data.length, *signal[1:])
        if shapes['signal'][0] == -1:
            raise InputError('the signals differ in length: give the number of samples, config.data.length')
    return dataclasses.replace(spec, shapes=shapes)


def example(source: Source, index: int, spec: Spec, fit: Fit, position: int | None) -> dict[str, Any]:
    """An example as `spec`, the fitted one, has it.

    `position` is that in the stream of training examples, None in evaluation. Raises Unreadable.
    """
    found = _fitted(source, index, spec.shapes['image'], fit, position) if is_ragged(source.spec) else source[index]
    if 'signal' in found:
        found = {**found, 'signal': decoding.fit_length(found['signal'], spec.shapes['signal'][0])}
    return found


def _fitted(source: Source, index: int, shape: tuple[int, ...], fit: Fit, position: int | None) -> dict[str, Any]:
    chosen: list[tuple[int, int, Window]] = []
    size = shape[0], shape[1]

    def choose(height: int, width: int) -> Window:
        if position is not None and fit.crop_scale:
            window = random_window(height, width, fit.crop_scale, fit.crop_ratio, uniforms(fit.seed, position))
        elif fit.resize == 'crop':
            window = middle_window(height, width, size, fit.side)
        else:
            window = Window(0, 0, height, width, inside=True)
        chosen.append((height, width, window))
        return window

    found = source.read(index, lambda data: jpeg.decode(data, size, choose))
    if not chosen:  # an array, not a picture's file
        found['image'] = resample(found['image'], choose(*found['image'].shape[:2]), size)
    found['image'] = _with_channels(found['image'], shape[2])
    height, width, window = chosen[-1]
    for field in set(MASKS) & found.keys():
        if found[field].shape[-2:] != (height, width):
            sizes = f'{[height, width]} and {list(found[field].shape[-2:])}'
            raise Unreadable(f'{source.where(index)}: the picture and its mask differ in size, {sizes}')
    return move(found, window, size)


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    from PIL import Image

    if image.shape[-1] == channels:
        return image
    if channels == 1:
        return np.asarray(Image.fromarray(image).convert('L'))[..., None]
    return np.repeat(image[..., :1], channels, -1)

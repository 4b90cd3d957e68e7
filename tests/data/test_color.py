import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from cnn import config
from cnn.data import color

REFERENCE = json.loads((pathlib.Path(__file__).with_name('references') / 'augment.json').read_text())


def pixels():
    """Noise, a gradient, a dark picture with an outlier, two of one colour, and a half-dark one."""
    made = np.random.default_rng(1).integers(0, 256, (6, 18, 22, 3), np.uint8)
    made[1] = np.linspace(30, 170, 18 * 22 * 3).reshape(18, 22, 3)
    made[2] //= 20
    made[2, 3, 4] = 200
    made[3], made[4] = 77, 255
    made[5, :9] = 3
    return made


@pytest.mark.parametrize(
    ('ours', 'theirs', 'tolerance'),
    [
        (color.invert, ImageOps.invert, 0),
        (color.autocontrast, ImageOps.autocontrast, 1),
        (color.equalize, ImageOps.equalize, 0),
        (lambda x: color.posterize(x, 3), lambda image: ImageOps.posterize(image, 3), 0),
        (lambda x: color.posterize(x, 8), lambda image: image, 0),
        (lambda x: color.solarize(x, 100.0), lambda image: ImageOps.solarize(image, 100), 0),
        (lambda x: color.solarize(x, 99.5), lambda image: ImageOps.solarize(image, 99.5), 0),
        (lambda x: color.brightness(x, 0.4), lambda image: ImageEnhance.Brightness(image).enhance(0.4), 1),
        (lambda x: color.brightness(x, 1.9), lambda image: ImageEnhance.Brightness(image).enhance(1.9), 1),
        (lambda x: color.contrast(x, 1.6), lambda image: ImageEnhance.Contrast(image).enhance(1.6), 2),
        (lambda x: color.saturation(x, 0.3), lambda image: ImageEnhance.Color(image).enhance(0.3), 2),
        (lambda x: color.sharpness(x, 1.8), lambda image: ImageEnhance.Sharpness(image).enhance(1.8), 2),
        (lambda x: color.sharpness(x, 0.2), lambda image: ImageEnhance.Sharpness(image).enhance(0.2), 2),
    ],
)
@pytest.mark.parametrize('channels', [1, 3])
def test_operations_are_pillows(ours, theirs, tolerance, channels):
    images = pixels()[..., :channels]
    changed = np.asarray(ours(jnp.asarray(images, jnp.float32) / 255)) * 255
    for image, ours_ in zip(images, changed, strict=True):
        expected = np.asarray(theirs(Image.fromarray(image.squeeze(-1) if channels == 1 else image)), np.float32)
        np.testing.assert_allclose(ours_.reshape(expected.shape), expected, atol=tolerance + 1e-3)


@pytest.mark.parametrize('case', REFERENCE['colors'])
def test_float_operations_are_torchvisions(case):
    name, argument = case.split()
    image = np.reshape(REFERENCE['pixels'], (3, 4, 5)).transpose(1, 2, 0) / 255
    changed = getattr(color, name)(jnp.asarray(image)[None], float(argument))[0]
    expected = np.reshape(REFERENCE['colors'][case], (3, 4, 5)).transpose(1, 2, 0)
    np.testing.assert_allclose(changed, expected, atol=2e-4)  # its luma weighs red by .2989


def test_each_example_has_its_own_factor():
    images = jnp.asarray(pixels()[[0, 0]] / 255)
    factors = jnp.array([0.3, 1.9])
    for change in map(jax.jit, (color.brightness, color.contrast, color.saturation, color.sharpness, color.hue)):
        together = change(images, factors)
        for index in range(2):
            alone = change(images, jnp.full(2, factors[index]))
            np.testing.assert_allclose(together[index], alone[index], atol=1e-6)
            assert jnp.abs(together - alone).max() > 0.01


def test_histograms_are_the_same_over_several_devices(monkeypatch):
    images = jnp.asarray(pixels() / 255)
    equalized = []
    for devices in (1, 2):
        monkeypatch.setattr(jax, 'device_count', lambda devices=devices: devices)
        equalized.append(color.equalize(images))
    np.testing.assert_array_equal(*equalized)


def test_jitter_draws_uniform_factors_and_turns(monkeypatch):
    seen = {}

    def record(name):
        def change(image, value):
            seen[name] = np.asarray(value)
            return image

        change.__name__ = name
        return change

    for name in ('brightness', 'contrast', 'saturation', 'hue'):
        monkeypatch.setattr(color, name, record(name))
    numbers = {'brightness': 0.4, 'contrast': 1.5, 'saturation': 0.2, 'hue': 0.1}
    batch = {'image': jnp.zeros((4000, 1, 1, 3))}
    color.jitter(batch, jax.random.key(0), numbers, config.Augment(**numbers))
    bounds = {'brightness': (0.6, 1.4), 'contrast': (0, 2.5), 'saturation': (0.8, 1.2), 'hue': (-0.1, 0.1)}
    for name, values in seen.items():
        counts, _ = np.histogram(values, 4, bounds[name])
        assert counts.sum() == 4000
        assert (abs(counts - 1000) < 130).all()
    assert np.abs(np.corrcoef(list(seen.values())) - np.eye(4)).max() < 0.08
    color.jitter(batch, jax.random.key(0), {'hue': 0.1}, config.Augment(hue=0.1))


def test_jitter_leaves_grey_images_grey():
    image = jnp.asarray(pixels()[..., :1] / 255)
    numbers = {'saturation': 0.9, 'hue': 0.5}
    batch = color.jitter({'image': image}, jax.random.key(0), numbers, config.Augment(**numbers))
    np.testing.assert_allclose(batch['image'], image, atol=1e-6)

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cnn import config
from cnn.data import geometry

REFERENCES = pathlib.Path(__file__).with_name('references')
STRENGTHS = {'shift': 3, 'translate': 0.2, 'rotate': 30.0, 'shear': 20.0, 'seed': 5}


def scene_batch(count=6, height=7, width=9):
    generator = np.random.default_rng(0)
    masks = np.zeros((count, 2, height, width), np.uint8)
    masks[:, 0, 2:4, 3:6] = 1
    masks[:, 1, 5:7, 0:2] = 1
    return {
        'image': jnp.asarray(generator.integers(1, 256, (count, height, width, 1)), jnp.float32),
        'semantic': jnp.asarray(masks[:, 0] * 3 + masks[:, 1] * 5),
        'instance_masks': jnp.asarray(masks),
        'boxes': jnp.tile(jnp.array([[3.0, 2, 6, 4], [0, 5, 2, 7]]), (count, 1, 1)),
        'box_labels': jnp.tile(jnp.array([2, 4]), (count, 1)),
        'index': jnp.arange(count),
        'epoch': jnp.zeros(count, jnp.int32),
    }


def box_of(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None


def shift(batch, key, limit, border='zero'):
    return geometry.shift(batch, key, {'shift': limit}, config.Augment(shift=1, shift_border=border))


@pytest.mark.parametrize('border', ['zero', 'reflect'])
def test_shift_moves_whole_pixels_within_the_limit(border):
    image = np.random.default_rng(1).uniform(1, 2, (64, 8, 8, 1)).astype(np.float32)
    shifted = np.asarray(shift({'image': jnp.asarray(image)}, jax.random.key(0), 2, border)['image'])
    mode = {'zero': 'constant', 'reflect': 'reflect'}[border]
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)), mode)
    offsets = []
    for example, moved in zip(padded, shifted, strict=True):
        matches = [(y, x) for y in range(5) for x in range(5) if (example[y : y + 8, x : x + 8] == moved).all()]
        offsets += matches
        assert len(matches) == 1
    assert set(offsets) == {(y, x) for y in range(5) for x in range(5)}  # all 25 occur among 64


def test_shift_takes_a_traced_limit_and_zero_moves_nothing():
    batch = scene_batch()
    jitted = jax.jit(shift)
    for limit in (0, 1, 3):
        for field, value in shift(batch, jax.random.key(5), limit).items():
            np.testing.assert_array_equal(jitted(batch, jax.random.key(5), limit)[field], value)
    for field, value in shift(batch, jax.random.key(5), 0).items():
        np.testing.assert_array_equal(value, batch[field])


@pytest.mark.parametrize('operation', [geometry.shift, geometry.flip, geometry.alternating_flip])
def test_masks_and_boxes_move_with_their_images_exactly_by_whole_pixels(operation):
    batch = scene_batch(count=40)
    result = operation(batch, jax.random.key(2), STRENGTHS, config.Augment())
    moved = {field: np.asarray(value) for field, value in result.items()}
    assert (moved['image'] != np.asarray(batch['image'])).any()
    for index in range(40):
        # A pixel of the image says where it came from: values are unique enough to be followed.
        inside = moved['semantic'][index] != 255
        first, second = moved['instance_masks'][index]
        np.testing.assert_array_equal(moved['semantic'][index][inside], (first * 3 + second * 5)[inside])
        np.testing.assert_array_equal(moved['image'][index, ..., 0] > 0, inside)
        for mask, box, label in zip((first, second), moved['boxes'][index], moved['box_labels'][index], strict=True):
            expected = box_of(mask)
            assert (label == -1) == (expected is None)
            if expected:
                np.testing.assert_array_equal(box, expected)
        ink = moved['image'][index, ..., 0][first.astype(bool)]
        assert set(ink) <= set(np.asarray(batch['image'])[index, 2:4, 3:6].ravel())


def test_reflected_borders_are_ignored_in_masks():
    batch = scene_batch(count=20)
    reflected, black = (shift(batch, jax.random.key(2), 3, border) for border in ('reflect', 'zero'))
    for field in ('semantic', 'instance_masks', 'boxes', 'box_labels'):
        np.testing.assert_array_equal(reflected[field], black[field])
    assert (reflected['image'] > 0).all()


def big_scene(count):
    """Images whose pixels are 1 in a rectangle, with masks and boxes of it; one box far out, one place without any."""
    mask = np.zeros((count, 30, 40), bool)
    mask[:, 8:20, 12:30] = True
    boxes = np.array([[12.0, 8, 30, 20], [0, 0, 2, 1], [7, 7, 7, 7]], np.float32)
    return {
        'image': jnp.asarray(mask[..., None], jnp.float32),
        'semantic': jnp.asarray(mask, jnp.uint8),
        'instance_masks': jnp.asarray(mask[:, None]),
        'boxes': jnp.tile(boxes, (count, 1, 1)),
        'box_labels': jnp.tile(jnp.array([1, 2, -1]), (count, 1)),
    }


CROP = config.Augment(crop_scale=(0.1, 0.9))


@pytest.mark.parametrize(
    ('operation', 'slack'),
    [
        (lambda batch, key: geometry.affine(batch, key, STRENGTHS, config.Augment()), 1.5),
        (lambda batch, key: geometry.random_crop(batch, key, CROP, (30, 40)), 5.0),  # of which one pixel becomes some
    ],
)
def test_masks_and_boxes_follow_warps_and_crops(operation, slack):
    moved = {field: np.asarray(value) for field, value in operation(big_scene(60), jax.random.key(1)).items()}
    gone = 0
    for index in range(60):
        mask, box = moved['instance_masks'][index, 0], moved['boxes'][index, 0]
        agree = mask == (moved['image'][index, ..., 0] > 0.5)
        assert agree.mean() > 0.96
        inside = moved['semantic'][index] != 255
        np.testing.assert_array_equal(moved['semantic'][index][inside], mask[inside])
        assert not mask[~inside].any()
        if mask.any():
            assert moved['box_labels'][index, 0] == 1
            # The box holds the mask; corners of a turned rectangle may have been cut off at the border.
            found = box_of(mask)
            assert (box[:2] <= np.array(found[:2]) + 0.51 * slack).all()
            assert (box[2:] >= np.array(found[2:]) - 0.51 * slack).all()
            if found[0] > 0 and found[1] > 0 and found[2] < 40 and found[3] < 30:
                np.testing.assert_allclose(box, found, atol=slack)
        gone += moved['box_labels'][index, 1] == -1
        empty = moved['boxes'][index, 1, 2:] <= moved['boxes'][index, 1, :2]
        assert empty.any() == (moved['box_labels'][index, 1] == -1)
    assert 0 < gone < 60  # the box in the corner leaves some images and stays in others
    assert ((moved['boxes'] >= 0) & (moved['boxes'] <= [40, 30, 40, 30])).all()
    np.testing.assert_array_equal(moved['boxes'][:, 2], 7)
    np.testing.assert_array_equal(moved['box_labels'][:, 2], -1)


def test_boxes_become_the_bounds_of_their_moved_corners():
    angle = np.pi / 6
    matrices = geometry.inverse_affine(jnp.full(1, angle), jnp.zeros(1), jnp.array([2.0]), jnp.array([1.0]), (20, 15))
    batch = {
        'image': jnp.zeros((1, 30, 40, 1)),
        'boxes': jnp.array([[[15.0, 10, 25, 22]]]),
        'box_labels': jnp.ones((1, 1)),
    }
    offsets = np.array([[15, 10], [25, 10], [15, 22], [25, 22]]) - [20, 15]
    turned = offsets @ [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]] + [22, 16]  # clockwise
    expected = [*turned.min(0), *turned.max(0)]
    np.testing.assert_allclose(geometry.warp(batch, matrices, 'nearest')['boxes'][0, 0], expected, rtol=1e-5)


def test_flip_mirrors_about_half_of_the_images():
    image = jnp.arange(400 * 6.0).reshape(400, 1, 6, 1)
    flipped = geometry.flip({'image': image}, jax.random.key(0), {}, config.Augment())['image']
    mirrored = (flipped == image[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == image).all((1, 2, 3))).all()
    assert 160 < mirrored.sum() < 240


def test_flip_leaves_the_place_of_missing_boxes_alone():
    batch = {**scene_batch(), 'box_labels': jnp.tile(jnp.array([2, -1]), (6, 1)), 'boxes': jnp.zeros((6, 2, 4))}
    flipped = geometry.flip(batch, jax.random.key(0), {}, config.Augment())
    np.testing.assert_array_equal(flipped['boxes'][:, 1], 0)


def test_alternating_flip_mirrors_each_example_in_every_other_epoch_whatever_the_key():
    image = jnp.arange(400 * 6.0).reshape(400, 1, 6, 1)

    def mirrored(epoch, seed=0, step=0, order=slice(None)):
        batch = {'image': image[order], 'index': jnp.arange(400)[order], 'epoch': jnp.full(400, epoch)}
        key = jax.random.key(step)
        flipped = geometry.alternating_flip(batch, key, {'seed': seed}, config.Augment())['image']
        return np.asarray((flipped != image[order]).any((1, 2, 3)))

    first = mirrored(0)
    assert 160 < first.sum() < 240
    np.testing.assert_array_equal(mirrored(1, step=7), ~first)
    np.testing.assert_array_equal(mirrored(2, step=9), first)
    np.testing.assert_array_equal(mirrored(4, order=slice(None, None, -1)), first[::-1])
    assert 120 < (mirrored(0, seed=1) != first).sum() < 280


@pytest.mark.parametrize('method', ['nearest', 'bilinear'])
def test_warps_are_pillows(method):
    pixels = np.random.default_rng(2).integers(0, 256, (5, 21, 34, 3), np.uint8)
    cases = [(25.0, 0.0, 0.0, 0.0), (0.0, 17.0, 0.0, 0.0), (0.0, 0.0, 5.0, -3.0), (-100.0, 10.0, 2.3, 4.6), (0.0,) * 4]
    angle, shear, right, down = jnp.asarray(cases).T
    matrices = geometry.inverse_affine(jnp.deg2rad(angle), jnp.deg2rad(shear), right, down, (17, 10.5))
    warped = geometry.warp({'image': jnp.asarray(pixels / 255)}, matrices, method)['image'] * 255
    resampling = {'nearest': Image.Resampling.NEAREST, 'bilinear': Image.Resampling.BILINEAR}[method]
    for index, matrix in enumerate(np.asarray(matrices, np.float64).reshape(5, 6)):
        picture = Image.fromarray(pixels[index])
        expected = picture.transform(picture.size, Image.Transform.AFFINE, matrix.tolist(), resampling)
        wrong = np.abs(warped[index] - np.asarray(expected, np.float32)).max(-1) > 1.001
        assert wrong.sum() <= 2, cases[index]  # Pillow takes the nearest pixel in fixed point: ties fall otherwise
    turned = Image.fromarray(pixels[0]).rotate(-25, resampling)  # clockwise
    assert (np.abs(warped[0] - np.asarray(turned, np.float32)).max(-1) > 1.001).sum() <= 2
    np.testing.assert_allclose(warped[4], pixels[4], atol=1e-4)


def test_matrices_are_torchvisions():
    reference = json.loads((REFERENCES / 'augment.json').read_text())
    height, width = reference['size']
    for (angle, shear, right, down), expected in reference['matrices']:
        arguments = (jnp.asarray([value]) for value in (np.deg2rad(angle), np.deg2rad(shear), right, down))
        matrix = geometry.inverse_affine(*arguments, (width / 2, height / 2))
        np.testing.assert_allclose(matrix.ravel(), expected, atol=1e-5)


def test_affine_draws_uniformly_up_to_its_limits(monkeypatch):
    seen = {}

    def inverse_affine(*drawn):
        seen['drawn'] = [np.asarray(value) for value in drawn[:4]]
        return original(*drawn)

    original = geometry.inverse_affine
    monkeypatch.setattr(geometry, 'inverse_affine', inverse_affine)
    batch = {'image': jnp.zeros((4000, 2, 6, 1))}
    geometry.affine(batch, jax.random.key(3), STRENGTHS, config.Augment())
    for drawn, limit in zip(seen['drawn'], (np.pi / 6, np.pi / 9, 0.2 * 6, 0.2 * 2), strict=True):
        counts, _ = np.histogram(drawn, 4, (-limit, limit))
        assert counts.sum() == 4000
        assert (abs(counts - 1000) < 130).all()
    assert np.abs(np.corrcoef(seen['drawn']) - np.eye(4)).max() < 0.08


def test_windows_are_torchvisions():
    for case in json.loads((REFERENCES / 'crops.json').read_text())['windows']:
        draws = jnp.asarray(case['draws'])[None]
        window = geometry.crop_windows(draws, tuple(case['size']), tuple(case['scale']), tuple(case['ratio']))
        np.testing.assert_array_equal(window[0], case['window'])


@pytest.mark.parametrize('size', [(9, 11), (33, 48)])
def test_crops_are_pillows_resize_of_a_box(size):
    pixels = np.random.default_rng(4).integers(0, 256, (12, 24, 36, 3), np.uint8)
    augment = config.Augment(crop_scale=(0.1, 0.8))
    key = jax.random.key(1)
    cropped = geometry.random_crop({'image': jnp.asarray(pixels / 255)}, key, augment, size)['image'] * 255
    draws = jax.random.uniform(key, (12, 10, 4))
    windows = geometry.crop_windows(draws, (24, 36), augment.crop_scale, augment.crop_ratio)
    for image, picture, window in zip(cropped, pixels, np.asarray(windows), strict=True):
        top, left, tall, wide = (int(value) for value in window)
        part = Image.fromarray(picture[top : top + tall, left : left + wide])
        expected = part.resize(size[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_allclose(image, np.asarray(expected), atol=1.1)  # Pillow rounds after each of the two axes


def test_resize_moves_masks_and_boxes_in_proportion():
    batch = geometry.resize(scene_batch(), (14, 27))
    assert batch['semantic'].shape == (6, 14, 27)
    for mask, box in zip(batch['instance_masks'][0], batch['boxes'][0], strict=True):
        np.testing.assert_array_equal(box, box_of(mask))


def test_resize_and_crop_shows_the_middle_as_pillow_does():
    pixels = np.random.default_rng(4).integers(0, 256, (2, 30, 52, 3), np.uint8)
    shown = geometry.resize_and_crop({'image': jnp.asarray(pixels / 255)}, (14, 14))['image'] * 255
    side, left = 16, (27 - 14 + 1) // 2  # 52 x 16 / 30 = 27.7
    for image, picture in zip(shown, pixels, strict=True):
        resized = Image.fromarray(picture).resize((27, side), Image.Resampling.BILINEAR)
        expected = np.asarray(resized)[1:15, left - 1 : left + 13]
        np.testing.assert_allclose(image, expected, atol=1.1)
    moved = geometry.resize_and_crop(scene_batch(), (7, 7), 7)  # the middle columns: 1 to 8 of 9
    np.testing.assert_array_equal(moved['semantic'], scene_batch()['semantic'][..., 1:8])
    np.testing.assert_array_equal(moved['boxes'][0], [[2, 2, 5, 4], [0, 5, 1, 7]])

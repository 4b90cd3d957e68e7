import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import config
from cnn.data import augment


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
    }


def box_of(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None


def test_shift_moves_whole_pixels_within_the_limit_and_black_comes_in():
    image = np.random.default_rng(1).uniform(1, 2, (64, 8, 8, 1)).astype(np.float32)
    shifted = np.asarray(augment.shift({'image': jnp.asarray(image)}, jax.random.key(0), 2)['image'])
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)))
    offsets = []
    for example, moved in zip(padded, shifted, strict=True):
        matches = [(y, x) for y in range(5) for x in range(5) if (example[y : y + 8, x : x + 8] == moved).all()]
        offsets += matches
        assert len(matches) == 1
    assert set(offsets) == {(y, x) for y in range(5) for x in range(5)}  # all 25 occur among 64


def test_shift_takes_a_traced_limit_and_zero_moves_nothing():
    batch = scene_batch()
    shift = jax.jit(augment.shift)
    for limit in (0, 1, 3):
        for field, value in augment.shift(batch, jax.random.key(5), limit).items():
            np.testing.assert_array_equal(shift(batch, jax.random.key(5), limit)[field], value)
    for field, value in shift(batch, jax.random.key(5), 0).items():
        np.testing.assert_array_equal(value, batch[field])


@pytest.mark.parametrize('operation', [augment.shift, augment.flip])
def test_masks_and_boxes_move_with_their_images(operation):
    batch = scene_batch(count=40)
    moved = {field: np.asarray(value) for field, value in operation(batch, jax.random.key(2), 3).items()}
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


def test_flip_mirrors_about_half_of_the_images():
    image = jnp.arange(400 * 6.0).reshape(400, 1, 6, 1)
    flipped = augment.flip({'image': image}, jax.random.key(0), None)['image']
    mirrored = (flipped == image[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == image).all((1, 2, 3))).all()
    assert 160 < mirrored.sum() < 240


def test_flip_leaves_the_place_of_missing_boxes_alone():
    batch = {**scene_batch(), 'box_labels': jnp.tile(jnp.array([2, -1]), (6, 1)), 'boxes': jnp.zeros((6, 2, 4))}
    np.testing.assert_array_equal(augment.flip(batch, jax.random.key(0), None)['boxes'][:, 1], 0)


def test_prepare_scales_resizes_and_normalises():
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    data = config.Data(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4))
    prepared = augment.prepare({'image': jnp.asarray(image)}, None, {}, data=data, augment=config.Augment(shift=2))
    np.testing.assert_allclose(prepared['image'], (image / 255 - data.mean) / data.std, rtol=1e-5, atol=1e-5)
    data = config.Data(image_size=(8, 12))
    resized = augment.prepare({'image': jnp.asarray(image)}, None, {}, data=data, augment=config.Augment())['image']
    assert resized.shape == (2, 8, 12, 3)
    np.testing.assert_allclose(resized.mean((1, 2)), image.mean((1, 2)) / 255, atol=0.03)


def test_resize_moves_masks_and_boxes_in_proportion():
    batch = augment.resize(scene_batch(), (14, 27))
    assert batch['semantic'].shape == (6, 14, 27)
    for mask, box in zip(batch['instance_masks'][0], batch['boxes'][0], strict=True):
        np.testing.assert_array_equal(box, box_of(mask))


def test_prepared_spec_is_what_prepare_makes():
    shapes = {'image': (7, 9, 1), 'semantic': (7, 9)}
    spec = config.Spec(shapes, {'image': 'uint8', 'semantic': 'uint8'}, {}, {})
    data = config.Data(image_size=(14, 18), mean=(0.5,), std=(0.5,))
    batch = {'image': jnp.zeros((2, 7, 9, 1), jnp.uint8), 'semantic': jnp.zeros((2, 7, 9), jnp.uint8)}
    prepared = augment.prepare(batch, jax.random.key(0), {'augment': {}}, data=data, augment=config.Augment(flip=True))
    found = augment.prepared_spec(spec, data)
    assert {field: value.shape[1:] for field, value in prepared.items()} == dict(found.shapes)
    assert {field: str(value.dtype) for field, value in prepared.items()} == dict(found.dtypes)
    assert found.normalized
    with pytest.raises(config.InputError, match='1 numbers'):
        augment.prepared_spec(spec, config.Data(mean=(0.5, 0.5), std=(1.0, 1.0)))

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cnn import config
from cnn.data import augment
from cnn.errors import InputError


def test_prepare_scales_resizes_and_normalises():
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    data = config.Data(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4))
    prepared = augment.prepare({'image': jnp.asarray(image)}, None, {}, data=data, augment=config.Augment(shift=2))
    np.testing.assert_allclose(prepared['image'], (image / 255 - data.mean) / data.std, rtol=1e-5, atol=1e-5)
    data = config.Data(image_size=(8, 12))
    resized = augment.prepare({'image': jnp.asarray(image)}, None, {}, data=data, augment=config.Augment())['image']
    assert resized.shape == (2, 8, 12, 3)
    np.testing.assert_allclose(resized.mean((1, 2)), image.mean((1, 2)) / 255, atol=0.03)


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
    with pytest.raises(InputError, match='1 numbers'):
        augment.prepared_spec(spec, config.Data(mean=(0.5, 0.5), std=(1.0, 1.0)))


def prepared(batch, structure=None, key=None, spec=None, **fields):
    config_ = config.Experiment() if structure is None else structure
    for path, value in fields.items():
        config.set_value(config_, path.replace('__', '.'), value)
    shapes = {field: value.shape[1:] for field, value in batch.items()}
    spec = spec or config.Spec(shapes, {'image': 'uint8'}, {}, {})
    structure, numbers = config.split_numbers(config_)
    prepare = jax.jit(augment.preparation(structure, spec))
    return prepare(batch, key, {**numbers, 'seed': 3})


def pictures(count=4, height=12, width=16, channels=3):
    generator = np.random.default_rng(5)
    return {'image': jnp.asarray(generator.integers(0, 256, (count, height, width, channels), np.uint8))}


def test_channels_become_grey_or_coloured_as_in_pillow():
    batch = pictures()
    grey = prepared(batch, data__channels=1)['image']
    for image, picture in zip(grey, np.asarray(batch['image']), strict=True):
        np.testing.assert_allclose(image[..., 0] * 255, np.asarray(Image.fromarray(picture).convert('L')), atol=0.51)
    coloured = prepared(pictures(channels=1), data__channels=3)['image']
    np.testing.assert_array_equal(coloured, jnp.repeat(pictures(channels=1)['image'] / 255, 3, -1))
    assert prepared(pictures(channels=1), data__channels=1)['image'].shape == (4, 12, 16, 1)


def test_training_and_evaluation_have_their_own_sizes():
    sizes = {'data__image_size': (8, 10), 'data__test_size': (6, 7), 'augment__flip': True}
    for resize in ('stretch', 'crop'):
        for key, size in ((jax.random.key(0), (8, 10)), (None, (6, 7))):
            assert prepared(pictures(), key=key, data__resize=resize, **sizes)['image'].shape[1:3] == size
    stretched, middle = (
        prepared(pictures(), data__image_size=(12, 12), data__resize=resize)['image'] for resize in ('stretch', 'crop')
    )
    assert abs(stretched - middle).max() > 0.1
    same = prepared(pictures(), data__image_size=(12, 16), data__resize='crop', data__resize_side=20)['image']
    np.testing.assert_array_equal(same, pictures()['image'] / 255)  # it was brought to this size where it was read


def test_crops_are_made_here_unless_pictures_differ_in_size():
    key, crops = jax.random.key(0), {'augment__crop_scale': (0.1, 0.5), 'data__image_size': (12, 16)}
    image = pictures()['image'] / 255
    assert abs(prepared(pictures(), key=key, **crops)['image'] - image).max() > 0.1
    ragged = config.Spec({'image': (-1, -1, 3)}, {'image': 'uint8'}, {}, {})
    np.testing.assert_array_equal(prepared(pictures(), key=key, spec=ragged, **crops)['image'], image)
    np.testing.assert_array_equal(prepared(pictures(), key=None, **crops)['image'], image)


ALL = {
    'augment__shift': 2, 'augment__flip': True, 'augment__alternating_flip': True, 'augment__translate': 0.1,
    'augment__rotate': 10.0, 'augment__shear': 5.0, 'augment__brightness': 0.3, 'augment__contrast': 0.3,
    'augment__saturation': 0.3, 'augment__hue': 0.1, 'augment__policy': 'randaugment', 'augment__num_operations': 1,
    'augment__erase': 0.5, 'augment__mixup': 0.2, 'augment__cutmix': 1.0,
}  # fmt: skip


def test_every_operation_counts_and_is_pure_in_the_key():
    batch = {
        **pictures(8),
        'label': jnp.arange(8),
        'valid': jnp.ones(8, bool),
        'index': jnp.arange(8),
        'epoch': jnp.zeros(8, jnp.int32),
    }
    everything = prepared(batch, key=jax.random.key(1), **ALL)['image']
    assert np.isfinite(everything).all()  # split_numbers leaves NaN where a number would be compiled in
    np.testing.assert_array_equal(prepared(batch, key=jax.random.key(1), **ALL)['image'], everything)
    assert (prepared(batch, key=jax.random.key(2), **ALL)['image'] != everything).any()
    for path in ('augment__shift', 'augment__alternating_flip', 'augment__rotate', 'augment__hue', 'augment__erase'):
        alone = prepared(batch, key=jax.random.key(1), **{path: ALL[path]})['image']
        assert (alone != batch['image'] / 255).any(), path
    np.testing.assert_array_equal(prepared(batch, **ALL)['image'], batch['image'] / 255)  # without a key


def test_an_operation_draws_the_same_whatever_else_is_on():
    key = jax.random.key(1)
    shifted = prepared(pictures(), key=key, augment__shift=3)['image']
    both = prepared(pictures(), key=key, augment__shift=3, augment__flip=True)['image']
    for one, other in zip(shifted, both, strict=True):
        assert (one == other).all() or (one[:, ::-1] == other).all()


def test_the_spec_says_what_is_missing():
    spec = config.Spec({'image': (-1, -1, -1), 'semantic': (-1, -1)}, {'image': 'uint8'}, {}, {})
    with pytest.raises(InputError, match=r'config\.data\.image_size'):
        augment.prepared_spec(spec, config.Data())
    with pytest.raises(InputError, match=r'config\.data\.channels'):
        augment.prepared_spec(spec, config.Data(image_size=(4, 5)))
    found = augment.prepared_spec(spec, config.Data(image_size=(4, 5), test_size=(6, 6), channels=3))
    assert found.shapes == {'image': (4, 5, 3), 'semantic': (4, 5)}


def test_every_operation_has_a_key_of_its_own(monkeypatch):
    seen = []

    def record(batch, key, *_):
        seen.append(jax.random.key_data(key).tolist())
        return batch

    for table in ('IMAGE', 'INPUT'):
        recorded = tuple(operation._replace(function=record) for operation in getattr(augment, table))
        monkeypatch.setattr(augment, table, recorded)
    structure = config.Experiment()
    for path, value in ALL.items():
        config.set_value(structure, path.replace('__', '.'), value)
    numbers = {'augment': {}, 'seed': 0}
    augment.prepare(pictures(), jax.random.key(0), numbers, data=structure.data, augment=structure.augment)
    assert len(seen) == len({tuple(key) for key in seen}) == len(augment.IMAGE) + len(augment.INPUT)

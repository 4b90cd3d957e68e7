import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn import config
from cnn.data import augment, signals
from cnn.errors import InputError

KEY = jax.random.key(0)
SPECTROGRAM = config.Spectrogram(bands=8, window=64, hop=32, low=0.0)


def recordings(count=4, samples=256):
    return jnp.asarray(np.random.default_rng(0).normal(size=(count, samples, 1)), jnp.float32)


def prepared(batch, key=None, spectrogram=SPECTROGRAM, **augment):
    return signals.prepare(
        batch, key, augment, spectrogram=spectrogram, augment=config.Augment(**augment), sample_rate=8000
    )


def test_shift_moves_whole_samples_within_the_limit_and_zeros_come_in():
    signal = np.random.default_rng(1).uniform(1, 2, (200, 9, 2)).astype(np.float32)
    shifted = np.asarray(jax.jit(signals.shift)(signal, KEY, 3))
    offsets = []
    for example, moved in zip(np.pad(signal, ((0, 0), (3, 3), (0, 0))), shifted, strict=True):
        matches = [start - 3 for start in range(7) if (example[start : start + 9] == moved).all()]
        offsets += matches
        assert len(matches) == 1
    assert set(offsets) == set(range(-3, 4))
    np.testing.assert_array_equal(signals.shift(signal, KEY, 0), signal)


def test_gain_is_uniform_in_decibels():
    signal = jnp.ones((4000, 3, 1))
    found = np.asarray(jax.jit(signals.gain)(signal, KEY, 6.0))
    assert (found == found[:, :1]).all()  # one for an example
    decibels = 20 * np.log10(found[:, 0, 0])
    np.testing.assert_allclose([decibels.min(), decibels.max()], [-6, 6], atol=0.02)
    np.testing.assert_allclose([decibels.mean(), decibels.std()], [0, 12 / np.sqrt(12)], atol=0.1)


def test_noise_has_its_deviation_and_is_new_at_each_sample():
    signal = jnp.full((50, 400, 1), 3.0)
    added = np.asarray(jax.jit(signals.noise)(signal, KEY, 0.1))[..., 0] - 3
    np.testing.assert_allclose([added.mean(), added.std()], [0, 0.1], atol=0.003)
    assert abs(np.corrcoef(added[:, :-1].ravel(), added[:, 1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(added[0], added[1])[0, 1]) < 0.2


@pytest.mark.parametrize('axis', [1, 2])
def test_masks_blank_whole_spans_with_the_mean(axis):
    image = jnp.asarray(np.random.default_rng(2).normal(size=(500, 12, 9, 1)), jnp.float32)
    found = np.asarray(jax.jit(signals.mask, static_argnames=('count', 'axis'))(image, KEY, 4, count=1, axis=axis))
    mean = np.asarray(image.mean((1, 2, 3), keepdims=True))
    changed = found != np.asarray(image)
    np.testing.assert_allclose(np.where(changed, found - mean, 0), 0, atol=1e-6)
    spans = changed.all(axis=(3 - axis, 3))  # [N, size]
    assert (spans == changed.any(axis=(3 - axis, 3))).all()
    widths, size = spans.sum(1), image.shape[axis]
    assert (np.abs(np.diff(np.pad(spans, ((0, 0), (1, 1))).astype(int))).sum(1) <= 2).all()  # one span
    np.testing.assert_allclose(np.bincount(widths) / 500, np.full(5, 1 / 5), atol=0.06)  # 0 to 4 wide
    starts = spans[widths == 4].argmax(1)
    np.testing.assert_allclose(np.bincount(starts) / len(starts), np.full(size - 3, 1 / (size - 3)), atol=0.12)


def test_several_masks_fall_by_themselves_and_none_is_wider_than_the_image():
    image = jnp.asarray(np.random.default_rng(3).normal(size=(300, 20, 4, 1)), jnp.float32)
    blank = np.asarray((signals.mask(image, KEY, 3, count=2, axis=1) != image).all((2, 3)))
    assert blank.sum(1).max() == 6
    assert (np.abs(np.diff(np.pad(blank, ((0, 0), (1, 1))).astype(int))).sum(1) == 4).any()  # two spans
    wide = np.asarray((signals.mask(image, KEY, 100, count=1, axis=2) != image).all((1, 3)))
    np.testing.assert_allclose(np.bincount(wide.sum(1)) / 300, np.full(5, 1 / 5), atol=0.07)  # 0 to 4 wide


def test_signals_stay_signals_without_spectrograms():
    found = prepared({'signal': recordings(), 'label': jnp.arange(4)}, KEY, config.Spectrogram(), gain=3.0)
    ratio = found['signal'] / recordings()
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-5)
    assert len(np.unique(np.asarray(ratio[:, 0, 0]))) == 4
    assert 'image' not in found
    np.testing.assert_array_equal(found['label'], np.arange(4))


def test_only_training_is_augmented():
    settings = {'shift': 40, 'gain': 6.0, 'noise': 0.1, 'time_masks': 1, 'frequency_masks': 1}
    settings |= {'time_mask_width': 3, 'frequency_mask_width': 3}
    plain = prepared({'signal': recordings()})['image']
    np.testing.assert_array_equal(prepared({'signal': recordings()}, None, **settings)['image'], plain)
    for name in ('shift', 'gain', 'noise', 'time', 'frequency'):
        chosen = {field: value for field, value in settings.items() if field.startswith(name)}
        assert (prepared({'signal': recordings()}, KEY, **chosen)['image'] != plain).any(), name


@pytest.mark.parametrize(('kind', 'axis'), [('time', 1), ('frequency', 2)])
def test_time_masks_blank_frames_and_frequency_masks_bands(kind, axis):
    masks = {f'{kind}_masks': 1, f'{kind}_mask_width': 3}
    batch = {'signal': recordings()}
    changed = np.asarray(prepared(batch, KEY, **masks)['image'] != prepared(batch)['image'])
    assert changed.any()
    assert not changed.all()
    np.testing.assert_array_equal(changed.any(3 - axis), changed.all(3 - axis))


def test_spectrogram_takes_the_place_of_the_signal():
    batch = {'signal': recordings(), 'label': jnp.arange(4), 'valid': jnp.ones(4, bool)}
    found = prepared(batch)
    assert sorted(found) == ['image', 'label', 'valid']
    spec = config.Spec({'signal': (256, 1), 'label': ()}, {'signal': 'float32', 'label': 'int64'}, {}, {})
    described = signals.prepared_spec(spec, SPECTROGRAM, 8000)
    assert described.shapes == {'image': found['image'].shape[1:], 'label': ()} == {'image': (7, 8, 1), 'label': ()}
    assert described.dtypes == {'image': 'float32', 'label': 'int64'}
    assert signals.prepared_spec(spec, config.Spectrogram(), None) == spec


@pytest.mark.parametrize(
    ('shapes', 'rate', 'message'),
    [
        ({'image': (8, 8, 1)}, None, 'bands=8: needs signals; the data has image'),
        ({'signal': (256, 2)}, 8000, 'bands=8: needs signals of one channel, not 2'),
        ({'signal': (-1, 1)}, 8000, 'config.data.length: the signals differ in length; give the number of samples'),
        ({'signal': (256, 1)}, None, 'config.data.sample_rate: give the sample rate of the signals, in Hz'),
        ({'signal': (40, 1)}, 8000, 'window=64: longer than the signals, which have 40 samples'),
        ({'signal': (256, 1)}, 100_000, 'bands=8: band 0'),
    ],
)
def test_signals_that_give_no_spectrogram_are_refused(shapes, rate, message):
    spec = config.Spec(shapes, dict.fromkeys(shapes, 'float32'), {}, {})
    with pytest.raises(InputError, match=message):
        signals.prepared_spec(spec, SPECTROGRAM, rate)


def test_spectrograms_are_resized_repeated_and_normalised_as_pictures_are_and_not_divided_by_255():
    data = config.Data(image_size=(14, 16), channels=3, mean=(-7.0, -6.0, -5.0), std=(2.0, 3.0, 4.0))
    prepare = functools.partial(augment.prepare, augment=config.Augment(), spectrogram=SPECTROGRAM, sample_rate=8000)
    plain = prepare({'signal': recordings()}, None, {}, data=config.Data())['image']
    np.testing.assert_array_equal(plain, prepared({'signal': recordings()})['image'])
    found = prepare({'signal': recordings()}, None, {}, data=data)['image']
    large = jax.image.resize(plain, (4, 14, 16, 1), 'linear')
    np.testing.assert_allclose(found, (large - np.array(data.mean)) / np.array(data.std), rtol=1e-4, atol=1e-5)
    spec = config.Spec({'signal': (256, 1)}, {'signal': 'float32'}, {}, {}, sample_rate=8000)
    described = augment.prepared_spec(spec, data, SPECTROGRAM)
    assert described.shapes == {'image': found.shape[1:]}
    assert described.normalized


def test_augmentation_of_spectrograms_is_traced_and_one_compilation_serves_all_strengths():
    strengths = {'shift': 30, 'gain': 3.0, 'noise': 0.1, 'time_mask_width': 3, 'frequency_mask_width': 2}
    strengths |= {'erase': 0.5, 'mixup': 0.4, 'cutmix': 1.0}
    whole = config.Experiment(augment=config.Augment(time_masks=1, frequency_masks=1, **strengths))
    structure, numbers = config.split_numbers(whole)
    prepare = jax.jit(functools.partial(_prepare, settings=structure.augment))
    batch = {'signal': recordings(), 'label': jnp.arange(4), 'valid': jnp.ones(4, bool)}
    found = prepare(batch, KEY, numbers)
    assert np.isfinite(found['image']).all()
    assert sorted(found) == ['image', 'label', 'mix', 'mixed_label', 'valid']
    prepare(batch, KEY, {**numbers, 'augment': {name: value * 2 for name, value in numbers['augment'].items()}})
    assert prepare._cache_size() == 1


def _prepare(batch, key, numbers, settings):
    data = config.Data()
    return augment.prepare(batch, key, numbers, data=data, augment=settings, spectrogram=SPECTROGRAM, sample_rate=8000)


@pytest.mark.parametrize(
    ('shapes', 'settings', 'message'),
    [
        ({'image': (8, 8, 1)}, {'gain': 3.0}, 'config.augment.gain: is for signals; the data has image'),
        ({'image': (8, 8, 1)}, {'time_masks': 1}, 'config.augment.time_masks: is for spectrograms'),
        ({'signal': (256, 1)}, {'flip': True}, 'config.augment.flip: is for pictures; the data has signal'),
        ({'signal': (256, 1)}, {'crop_scale': (0.5, 1.0)}, 'config.augment.crop_scale: is for pictures'),
        ({'tokens': (9,)}, {'shift': 1}, 'config.augment.shift: is for pictures and signals; the data has tokens'),
        ({'tokens': (9,)}, {'mixup': 0.2}, 'config.augment.mixup: is for pictures and signals; the data has tokens'),
    ],
)
def test_augmentation_that_the_data_cannot_have_is_refused(shapes, settings, message):
    spec = config.Spec(shapes, {}, {}, {})
    with pytest.raises(InputError, match=message):
        augment.check(config.Augment(**settings), spec, spec, ('image', 'label'))


def test_mixing_needs_a_task_that_reads_labels():
    spec = config.Spec({'image': (8, 8, 1)}, {}, {}, {})
    augment.check(config.Augment(mixup=0.2), spec, spec, ('image', 'label'))
    for name in ('mixup', 'cutmix'):
        with pytest.raises(InputError, match=f'{name}: mixes labels; the task reads image, semantic'):
            augment.check(config.Augment(**{name: 0.2}), spec, spec, ('image', 'semantic'))


def test_signals_and_spectrograms_have_their_augmentation():
    raw = config.Spec({'signal': (256, 1)}, {}, {}, {})
    image = config.Spec({'image': (7, 8, 1)}, {}, {}, {})
    settings = {'shift': 1, 'gain': 1.0, 'noise': 1.0, 'mixup': 1.0, 'cutmix': 1.0}
    augment.check(config.Augment(**settings), raw, raw, ('signal', 'label'))
    settings |= {'time_masks': 1, 'frequency_masks': 1, 'erase': 0.5}
    augment.check(config.Augment(**settings), raw, image, ('signal', 'label'))

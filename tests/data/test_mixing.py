import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cnn.data import mixing

TORCHVISION = pathlib.Path(__file__).parent / 'references' / 'mixing.json'  # made by make_mixing.py there
KEYS = jax.random.split(jax.random.key(0), 4000)


def constant_batch(count, *sides, valid=None):
    """Example i is i + 1 everywhere, with label 10 i."""
    image = jnp.broadcast_to(jnp.arange(1.0, count + 1).reshape(-1, *[1] * (len(sides) + 1)), (count, *sides, 1))
    return {
        'image' if len(sides) == 2 else 'signal': image,
        'label': 10 * jnp.arange(count),
        'valid': jnp.ones(count, bool) if valid is None else jnp.asarray(valid),
    }


def erased(key, height, width):
    """Top, left, height and width of what is blanked of one image; zeros where nothing is."""
    image = mixing.erase({'image': jnp.ones((1, height, width, 1))}, key, 1.0)['image'][0, :, :, 0]
    blank = image == 0
    rows, columns = blank.any(1), blank.any(0)
    whole = blank.sum() == rows.sum() * columns.sum()
    return jnp.stack([rows.argmax(), columns.argmax(), rows.sum(), columns.sum(), whole])


@pytest.mark.parametrize('case', range(2))
def test_erased_rectangles_have_the_distribution_of_torchvision(case):
    expected = json.loads(TORCHVISION.read_text())['erasing'][case]
    draw = jax.jit(jax.vmap(lambda key: erased(key, *expected['size'])))
    top, left, height, width, whole = np.asarray(draw(jax.random.split(jax.random.key(1), 20_000))).T
    assert whole.all()  # it is a rectangle that is blank, and nothing beside it
    np.testing.assert_allclose((height * width).mean(), expected['area'], rtol=0.02)
    for name, found in {'top': top, 'left': left, 'height': height, 'width': width}.items():
        shares = np.cumsum(np.bincount(found, minlength=len(expected[name])))[: len(expected[name])] / len(found)
        np.testing.assert_allclose(shares, expected[name], atol=0.015, err_msg=name)


def test_erase_blanks_all_channels_with_its_probability_and_each_image_by_itself():
    image = jnp.ones((2000, 16, 16, 2))
    erase = jax.jit(lambda probability: mixing.erase({'image': image}, jax.random.key(2), probability)['image'])
    found = np.asarray(erase(0.3))
    assert (found[..., 0] == found[..., 1]).all()
    assert 0.27 < (found == 0).any(axis=(1, 2, 3)).mean() < 0.33
    assert len({example.tobytes() for example in found}) > 200
    areas = (found == 0).mean(axis=(1, 2, 3))
    assert areas[areas > 0].std() > 0.07  # uniform from .02 to .33: .09
    assert (np.asarray(erase(0.0)) == 1).all()


@pytest.mark.parametrize('alpha', [0.1, 0.2, 1.0])
def test_mixup_shares_follow_the_beta_distribution(alpha):
    batch = constant_batch(2, 1, 1)
    draw = jax.jit(jax.vmap(lambda key, alpha: mixing.mix(batch, key, mixup=alpha)['mix'][0], (0, None)))
    shares = np.asarray(draw(KEYS, alpha))
    assert np.isfinite(shares).all()
    # float32 can't tell 1 - 1e-9 from 1, where such alphas have their mass.
    expected = scipy.stats.beta(alpha, alpha).rvs(200_000, random_state=0)
    ends = [np.clip(values.astype(np.float64), 1e-6, 1 - 1e-6) for values in (shares, expected)]
    assert scipy.stats.ks_2samp(*ends).statistic < 0.03
    np.testing.assert_allclose(shares.mean(), 0.5, atol=0.03)
    np.testing.assert_allclose(shares.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.06)


def test_mixup_blends_images_and_labels_alike():
    batch = constant_batch(5, 3, 4)
    mixed = mixing.mix(batch, KEYS[3], mixup=1.0)
    own, partner = np.arange(1.0, 6), np.arange(5.0, 0, -1)
    share = float(mixed['mix'][0])
    assert 0.05 < share < 0.95
    np.testing.assert_array_equal(mixed['mix'], np.full(5, share, np.float32))
    expected = share * own + (1 - share) * partner
    np.testing.assert_allclose(mixed['image'], np.broadcast_to(expected[:, None, None, None], (5, 3, 4, 1)), rtol=1e-6)
    np.testing.assert_array_equal(mixed['label'], 10 * (own - 1))
    np.testing.assert_array_equal(mixed['mixed_label'], 10 * (partner - 1))


def test_mixup_takes_signals():
    mixed = mixing.mix(constant_batch(2, 6), KEYS[3], mixup=1.0)
    share = float(mixed['mix'][0])
    np.testing.assert_allclose(mixed['signal'][:, 0, 0], [share + 2 * (1 - share), 2 * share + 1 - share], rtol=1e-6)


def test_cutmix_pastes_a_box_and_the_share_is_that_of_its_pixels():
    batch = constant_batch(2, 9, 14)
    images, shares = jax.jit(jax.vmap(lambda key: _both(mixing.mix(batch, key, cutmix=1.0))))(KEYS[:300])
    foreign = np.asarray(images)[:, 0, :, :, 0] == 2
    assert (np.asarray(images)[:, 0, :, :, 0] == np.where(foreign, 2, 1)).all()  # whole pixels
    assert (np.asarray(images)[:, 1, :, :, 0] == np.where(foreign, 1, 2)).all()  # the same box for all
    np.testing.assert_allclose(shares[:, 0], 1 - foreign.mean((1, 2)), atol=1e-6)
    rows, columns = foreign.any(2), foreign.any(1)
    assert (foreign == rows[:, :, None] & columns[:, None, :]).all()
    assert (np.abs(np.diff(rows.astype(int))).sum(1) <= 2).all()  # no holes
    assert (np.abs(np.diff(columns.astype(int))).sum(1) <= 2).all()


def _both(batch):
    return batch['image'], batch['mix']


def test_cutmix_areas_are_those_of_the_published_algorithm():
    generator, height, width = np.random.default_rng(0), 32, 24
    expected = np.zeros((20_000, 2))
    for row in expected:  # algorithm A1, number by number
        cut = np.sqrt(1 - generator.beta(1.0, 1.0))
        for axis, side in enumerate((height, width)):
            centre, half = generator.integers(side), int(side * cut) // 2
            row[axis] = min(centre + half, side) - max(centre - half, 0)
    batch = constant_batch(2, height, width)
    images = jax.jit(jax.vmap(lambda key: mixing.mix(batch, key, cutmix=1.0)['image'][0, :, :, 0]))(KEYS)
    foreign = np.asarray(images) == 2
    for axis, found in enumerate((foreign.any(2).sum(1), foreign.any(1).sum(1))):
        assert scipy.stats.ks_2samp(found, expected[:, axis]).statistic < 0.03


def test_with_both_half_of_the_batches_have_each():
    batch = constant_batch(2, 16, 16)
    mix = jax.jit(jax.vmap(lambda key: mixing.mix(batch, key, mixup=5.0, cutmix=1.0)['image'][0]))
    images = np.asarray(mix(KEYS[:1000]))
    blended = ((images > 1) & (images < 2)).any(axis=(1, 2, 3))
    assert 0.45 < blended.mean() < 0.55
    assert (blended == ((images > 1) & (images < 2)).all(axis=(1, 2, 3))).all()  # a batch has one of them


def test_examples_without_a_valid_partner_stay_as_they_are():
    batch = constant_batch(6, 4, 4, valid=[True, False, True, True, True, True])  # partners: 0 and 5, 1 and 4, 2 and 3
    for settings in ({'mixup': 1.0}, {'cutmix': 1.0}):
        mixed = mixing.mix(batch, KEYS[3], **settings)
        changed = (mixed['image'] != batch['image']).any(axis=(1, 2, 3))
        np.testing.assert_array_equal(changed, [True, False, True, True, False, True])
        np.testing.assert_array_equal(mixed['mix'] < 1, changed)
        np.testing.assert_array_equal(mixed['valid'], batch['valid'])


def test_mixing_is_the_same_on_one_device_and_on_eight():
    batch = constant_batch(16, 4, 4)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    divided = jax.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    mix = jax.jit(lambda batch, alpha: mixing.mix(batch, KEYS[5], mixup=alpha, cutmix=alpha))
    alone, together = mix(batch, 0.8), mix(jax.device_put(batch, divided), 0.8)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(alone), jax.device_get(together))

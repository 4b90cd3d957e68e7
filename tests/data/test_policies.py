import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from cnn import config, validation
from cnn.data import policies
from cnn.data.autoaugment import POLICIES

REFERENCE = json.loads((pathlib.Path(__file__).with_name('references') / 'augment.json').read_text())
THEIRS = {
    'identity': 'Identity', 'shear_x': 'ShearX', 'shear_y': 'ShearY', 'translate_x': 'TranslateX',
    'translate_y': 'TranslateY', 'rotate': 'Rotate', 'brightness': 'Brightness', 'saturation': 'Color',
    'contrast': 'Contrast', 'sharpness': 'Sharpness', 'posterize': 'Posterize', 'solarize': 'Solarize',
    'autocontrast': 'AutoContrast', 'equalize': 'Equalize', 'invert': 'Invert',
}  # fmt: skip
HEIGHT, WIDTH = REFERENCE['size']


def by_pillow(picture, name, strength):
    """What torchvision's _apply_op makes of a picture, by Pillow."""
    matrices = {
        'shear_x': (1, strength, 0, 0, 1, 0),
        'shear_y': (1, 0, 0, strength, 1, 0),
        'translate_x': (1, 0, -int(strength), 0, 1, 0),
        'translate_y': (1, 0, 0, 0, 1, -int(strength)),
    }
    if name in matrices:
        return picture.transform(picture.size, Image.Transform.AFFINE, matrices[name])
    enhance = {'saturation': 'Color'}.get(name, name.title())
    if hasattr(ImageEnhance, enhance):
        return getattr(ImageEnhance, enhance)(picture).enhance(1 + strength)
    others = {
        'identity': lambda: picture,
        'rotate': lambda: picture.rotate(strength),
        'posterize': lambda: ImageOps.posterize(picture, int(strength)),
        'solarize': lambda: ImageOps.solarize(picture, strength),
    }
    return others[name]() if name in others else getattr(ImageOps, name)(picture)


def test_a_shear_is_torchvisions():
    np.testing.assert_allclose(REFERENCE['shear_x 0.3'], (1, 0.3, 0, 0, 1, 0), atol=1e-6)  # as by_pillow has it


def cases(policy):
    """(operation, level, strength in torchvision) of every operation, up and down."""
    space = REFERENCE['spaces'][policy]
    for name, their_name in THEIRS.items():
        if their_name in space:
            strengths = space[their_name]['strengths']
            levels = np.linspace(0, 1, len(strengths)) if len(strengths) > 1 else [0.5]
            for level, strength in list(zip(levels, strengths, strict=True))[1 if len(strengths) > 1 else 0 :: 3]:
                yield name, level, strength
                if space[their_name]['signed']:
                    yield name, -level, -strength
                else:
                    yield name, -level, strength  # the sign is not looked at


@pytest.mark.parametrize('change', [policies.in_full, policies.in_groups])
@pytest.mark.parametrize('policy', ['randaugment', 'trivialaugment', 'autoaugment'])
def test_operations_are_torchvisions_at_every_strength(policy, change):
    # Twice, so that groups are no multiples of the chunks in which they are worked on.
    names, levels, strengths = zip(*list(cases(policy)) * 2, strict=True)
    assert set(names) == set(THEIRS) - ({'invert'} if policy != 'autoaugment' else {'identity'})
    pixels = np.random.default_rng(0).integers(0, 256, (len(names), HEIGHT, WIDTH, 3), np.uint8)
    pixels[::2] //= 2  # so that contrast can be stretched
    ranges = policies.WIDE if policy == 'trivialaugment' else policies.usual_ranges(HEIGHT, WIDTH)
    operation = jnp.asarray([policies.OPERATIONS.index(name) for name in names])
    level = jnp.asarray(levels, jnp.float32)
    image = jnp.asarray(pixels, jnp.float32) / 255
    matrices = policies.warps(operation, level, ranges, HEIGHT, WIDTH)
    changed = np.asarray(jax.jit(functools.partial(change, ranges=ranges))(image, operation, matrices, level)) * 255
    for name, strength, picture, ours in zip(names, strengths, pixels, changed, strict=True):
        # A coordinate on the edge of a pixel falls to either side: Pillow computes it in fixed point.
        nearby = (1, 1 - 1e-3, 1 + 1e-3) if name in policies.WARPS and not name.startswith('translate') else (1,)
        expected = [by_pillow(Image.fromarray(picture), name, strength * factor) for factor in nearby]
        wrong = np.min([np.abs(ours - np.asarray(image, np.float32)).max(-1) for image in expected], axis=0)
        tolerance = 2 if name in policies.BLENDS else 1 if name == 'autocontrast' else 1e-3
        assert (wrong > tolerance).mean() <= 0.002 * (name in policies.WARPS), (name, strength)


def test_policies_are_torchvisions():
    assert POLICIES.keys() == REFERENCE['policies'].keys()
    for name, pairs in REFERENCE['policies'].items():
        ours = [[[THEIRS[step[0]], *step[1:]] for step in pair] for pair in POLICIES[name]]
        assert ours == [[[step[0], step[1], step[2] or 0] for step in pair] for pair in pairs]


def assert_shares(values, expected):
    """The shares of whole numbers 0, 1, ... among values are the expected ones, to five standard deviations."""
    found = np.bincount(np.asarray(values), minlength=len(expected)) / len(values)
    deviation = np.sqrt(np.asarray(expected) * (1 - np.asarray(expected)) / len(values))
    assert (np.abs(found - expected) <= 5 * deviation + 1e-12).all()


COUNT = 20_000
UNIFORM = [1 / 14] * 14  # identity to equalize


def test_randaugment_draws_as_published():
    first, second = policies.randaugment(jax.random.key(0), COUNT, 2, 9.0, 0.0)
    for operation, level in (first, second):
        assert_shares(operation, UNIFORM)
        np.testing.assert_allclose(jnp.abs(level), 0.3, rtol=1e-6)
        assert_shares(level > 0, [0.5, 0.5])
    assert_shares(first[0] == second[0], [13 / 14, 1 / 14])
    assert_shares(first[1] == second[1], [0.5, 0.5])
    ((_, level),) = policies.randaugment(jax.random.key(1), COUNT, 1, 15.0, 3.0)
    assert abs(jnp.abs(level).mean() - 0.5) < 0.005
    assert abs(jnp.abs(level).std() - 0.1) < 0.005
    ((_, level),) = policies.randaugment(jax.random.key(1), COUNT, 1, 28.0, 6.0)
    assert jnp.abs(level).max() == 1


def test_trivialaugment_draws_as_published():
    operation, level = policies.trivialaugment(jax.random.key(0), COUNT)
    assert_shares(operation, UNIFORM)
    levels = np.rint(np.abs(level) * 30)
    np.testing.assert_allclose(levels, np.abs(level) * 30, atol=1e-4)
    assert_shares(levels.astype(int), [1 / 31] * 31)
    assert_shares(level[levels > 0] > 0, [0.5, 0.5])


@pytest.mark.parametrize('name', POLICIES)
def test_autoaugment_draws_as_published(name):
    steps = policies.autoaugment(jax.random.key(0), COUNT, name)
    expected = np.zeros((2, 15))
    pairs = np.zeros((15, 15))
    for pair in POLICIES[name]:
        (one, p, _), (other, q, _) = pair
        one, other = (policies.OPERATIONS.index(operation) for operation in (one, other))
        for first, first_share in ((one, p), (0, 1 - p)):
            for second, second_share in ((other, q), (0, 1 - q)):
                pairs[first, second] += first_share * second_share / 25
    expected = pairs.sum(1), pairs.sum(0)
    for (operation, level), shares, place in zip(steps, expected, range(2), strict=True):
        assert_shares(operation, shares)
        assert_shares(level[level != 0] > 0, [0.5, 0.5])
        allowed = {(policies.OPERATIONS.index(pair[place][0]), pair[place][2]) for pair in POLICIES[name]}
        drawn = set(zip(np.asarray(operation).tolist(), np.rint(np.abs(level) * 9).astype(int).tolist(), strict=True))
        assert {found for found in drawn if found[0]} <= allowed
    assert_shares(steps[0][0] * 15 + steps[1][0], pairs.ravel())


@pytest.mark.parametrize('policy', validation.CHOICES['augment.policy'][1:])
def test_every_policy_changes_most_images_and_takes_masks_and_boxes_along(policy):
    count = 40
    mask = np.zeros((count, 24, 24), bool)
    mask[:, 8:16, 6:18] = True
    batch = {
        'image': jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.8, (count, 24, 24, 3)), jnp.float32),
        'instance_masks': jnp.asarray(mask[:, None]),
        'boxes': jnp.tile(jnp.array([[6.0, 8, 18, 16]]), (count, 1, 1)),
        'box_labels': jnp.ones((count, 1), jnp.int32),
    }
    augment = config.Augment(policy=policy)
    apply = jax.jit(lambda batch, key, numbers: policies.apply(batch, key, numbers, augment))
    changed = apply(batch, jax.random.key(0), {'magnitude': 20.0})
    assert (changed['image'] != batch['image']).any((1, 2, 3)).mean() > 0.6
    assert ((changed['image'] >= 0) & (changed['image'] <= 1)).all()
    moved = np.asarray(changed['instance_masks'][:, 0])
    same = (moved == mask).all((1, 2))
    assert 0 < same.sum() < count
    np.testing.assert_array_equal((changed['boxes'] == batch['boxes']).all((1, 2))[~same & moved.any((1, 2))], False)
    if policy == 'randaugment':
        assert (apply(batch, jax.random.key(0), {'magnitude': 5.0})['image'] != changed['image']).any()
        np.testing.assert_allclose(  # zero is off: it is no number then
            policies.apply(batch, jax.random.key(0), {}, augment)['image'],
            policies.apply(batch, jax.random.key(0), {'magnitude': 0.0}, augment)['image'],
        )

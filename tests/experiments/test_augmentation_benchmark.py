import importlib.util
import sys

import jax
import numpy as np
import pytest

from cnn import config, validation
from cnn.data import policies
from experiments.benchmarks import augmentation, sidebyside


def test_every_policy_and_operation_of_images_has_a_row():
    fields = {field for row in augmentation.ROWS.values() for field in row}
    for field in ('flip', 'shift', 'crop_scale', 'translate', 'rotate', 'shear', 'brightness', 'contrast', 'hue'):
        assert field in fields
    policies = {row.get('policy') for row in augmentation.ROWS.values()} - {None}
    assert policies == set(validation.CHOICES['augment.policy']) - {'none'}


@pytest.mark.parametrize('name', ['shift', 'invert'])
def test_jax_and_pillow_change_the_same_images(name, monkeypatch):
    monkeypatch.setattr(augmentation, 'COUNT', 8)
    ours = augmentation.jax_case(name, sidebyside.Options(device='cpu'), None)()
    ours = np.asarray(ours['image'] if isinstance(ours, dict) else ours)
    theirs = np.stack([np.asarray(picture) for picture in augmentation.pillow_case(name)()])
    assert ours.shape == theirs.shape == (8, 32, 32, 3)
    assert (theirs != augmentation.images()).any()
    if name == 'invert':
        np.testing.assert_allclose(ours * 255, theirs, atol=1e-3)


@pytest.mark.parametrize('name', ['randaugment', 'autoaugment_imagenet'])
def test_jax_and_pillow_follow_the_same_policies(name, monkeypatch):
    monkeypatch.setattr(augmentation, 'COUNT', 64)
    given = augmentation.images()
    theirs = np.stack([np.asarray(picture) for picture in augmentation.pillow_case(name)()])
    settings = config.Augment(**augmentation.ROWS[name])
    batch = {'image': given.astype(np.float32) / 255}
    ours = policies.apply(batch, jax.random.key(0), vars(settings), settings)['image']
    same = np.abs(255 * np.asarray(ours) - theirs) < 3  # the rest: pixels off by one at ties
    assert same.all((1, 2, 3)).mean() > 0.7
    assert same.mean() > 0.97
    assert (np.abs(theirs.astype(int) - given) >= 3).any((1, 2, 3)).mean() > 0.4


def test_it_says_that_torchvision_is_missing_and_measures_the_rest(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'torchvision' else find(name))
    monkeypatch.setattr(augmentation, 'COUNT', 8)
    monkeypatch.setattr(sidebyside, 'BLOCK', 0.001)
    monkeypatch.setattr(sidebyside, 'parse', lambda parser: parser.parse_args())
    monkeypatch.setattr(sys, 'argv', ['augmentation', '--only=invert', '--rounds=1'])
    augmentation.main()
    said = capsys.readouterr().out
    assert augmentation.MISSING in said
    row = said.splitlines()[-1].split()
    assert row[0] == 'invert'
    assert float(row[1]) > 0
    assert float(row[2]) > 0
    assert row[4:] == ['-', '-', '-', '-']

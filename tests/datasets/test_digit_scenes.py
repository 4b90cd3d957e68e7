import hashlib
import itertools

import numpy as np
import pytest

from cnn.config import Data
from cnn.data import sources
from cnn.datasets import digit_scenes, digits

FIELDS = ['image', 'boxes', 'box_labels', 'instance_masks', 'semantic']
CONFIG = digit_scenes.Builder.builder_configs['64']


def scene(split='train', index=0, seed=digit_scenes.SEED, config=CONFIG):
    return digit_scenes.scene(digit_scenes.generator(seed, split, index), *digits.read(split), config)


def differ(one, other):
    return not np.array_equal(one['image'], other['image']) and not np.array_equal(one['boxes'], other['boxes'])


@pytest.fixture(scope='module')
def test_split():
    return sources.load(Data('digit_scenes'), 'test', FIELDS).arrays()


def test_spec():
    for name, size, slots in [('digit_scenes', 64, 5), ('digit_scenes/64', 64, 5), ('digit_scenes/128', 128, 10)]:
        spec = sources.spec(Data(name))
        assert spec.shapes == {
            'image': (size, size, 1),
            'boxes': (slots, 4),
            'box_labels': (slots,),
            'instance_masks': (slots, size, size),
            'semantic': (size, size),
        }
        assert spec.class_names['semantic'] == ('background', *'0123456789')
        assert spec.class_names['box_labels'] == tuple('0123456789')
        assert spec.num_examples == {'train': 2000, 'validation': 250, 'test': 500}


def test_arrays_are_as_the_spec_says(test_split):
    spec = sources.spec(Data('digit_scenes'))
    assert {field: array.shape for field, array in test_split.items()} == {
        field: (500, *shape) for field, shape in spec.shapes.items()
    }
    assert {field: array.dtype.name for field, array in test_split.items()} == spec.dtypes


def test_fields_agree(test_split):
    counts = set()
    for boxes, labels, masks, semantic in zip(*(test_split[field] for field in FIELDS[1:]), strict=True):
        assert masks.sum(0).max() == 1  # a pixel belongs to one instance at most
        expected = np.zeros((64, 64), np.uint8)
        for box, label, mask in zip(boxes, labels, masks, strict=True):
            if label == -1:
                assert not mask.any()
                assert not box.any()
                continue
            assert 0 <= label <= 9
            expected[mask] = 1 + label
            rows, columns = np.nonzero(mask)
            np.testing.assert_array_equal(box, [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        np.testing.assert_array_equal(semantic, expected)
        counts.add((labels >= 0).sum())
    assert counts == {1, 2, 3, 4, 5}


def test_digits_stand_out_and_background_is_not_empty(test_split):
    ink = test_split['semantic'] > 0
    image = test_split['image'][..., 0]
    assert image[ink].mean() - image[~ink].mean() > 80
    assert np.percentile(image[~ink], 99) > image[ink].mean() - 40  # clutter reaches the digits' brightness
    assert 0.05 < ink.mean() < 0.2
    assert np.bincount(test_split['box_labels'][test_split['box_labels'] >= 0]).min() > 50  # all classes are there


@pytest.mark.parametrize('split', digit_scenes.NUM_SCENES)
def test_prepared_scenes_are_made_of_their_own_writers(split):
    source = sources.load(Data('digit_scenes'), split, FIELDS)
    for index in (0, 1, len(source) - 1):
        for field, array in scene(split, index).items():
            np.testing.assert_array_equal(source[index][field], array)
    assert differ(
        scene('train'), digit_scenes.scene(digit_scenes.generator(0, 'train', 0), *digits.read('test'), CONFIG)
    )


def test_scenes_follow_seed_split_and_index_alone():
    first = scene()
    for field, array in scene().items():
        np.testing.assert_array_equal(array, first[field])
    others = [scene(index=1), scene(seed=1), scene(index=1, seed=1)]
    assert all(differ(*pair) for pair in itertools.combinations([first, *others], 2))
    keys = {digit_scenes.generator(0, split, 0).integers(2**60) for split in digit_scenes.NUM_SCENES}
    assert len(keys) == 3


def test_scenes_have_the_same_bits_on_any_machine():
    digest = hashlib.sha256(b''.join(array.tobytes() for array in scene(index=7).values())).hexdigest()
    assert digest[:16] == '5115b72f61a669d5', 'scenes changed: raise VERSION of digit_scenes, then update this line'


def hidden_parts(monkeypatch, scenes):
    """The hidden part of each instance's ink, for so many scenes."""
    blend, pasted = digit_scenes._blend, []

    def recorded(canvas, window, alpha, brightness):
        pasted.append(np.zeros(canvas.shape, bool))
        pasted[-1][window] = alpha >= digit_scenes.INK
        blend(canvas, window, alpha, brightness)

    monkeypatch.setattr(digit_scenes, '_blend', recorded)
    for index in range(scenes):
        pasted.clear()
        masks = scene(index=index)['instance_masks']
        count = masks.any((1, 2)).sum()
        for mask, ink in zip(masks, pasted[-count:], strict=False):  # fragments were pasted before
            assert not np.any(mask & ~ink)
            yield 1 - mask.sum() / ink.sum()


def test_at_most_a_tenth_of_a_digit_is_hidden(monkeypatch):
    hidden = list(hidden_parts(monkeypatch, 60))
    assert 0.05 < max(hidden) <= 0.1  # overlaps there are, of limited size
    monkeypatch.setattr(digit_scenes, 'HIDDEN', 0.5)
    assert max(hidden_parts(monkeypatch, 60)) > 0.3  # so this test would see a greater one


def test_larger_canvas():
    config = digit_scenes.Builder.builder_configs['128']
    scenes = [scene(index=index, config=config) for index in range(20)]
    assert scenes[0]['image'].shape == (128, 128, 1)
    assert max((example['box_labels'] >= 0).sum() for example in scenes) > 5
    boxes = np.concatenate([example['boxes'] for example in scenes])
    assert boxes.max() > 100

import numpy as np
import pytest

from cnn.config import Spec
from cnn.data import subsets
from cnn.errors import InputError


class Letters:
    """Twelve examples of three classes: a 0, b 1, c 2, a 0 ..."""

    spec = Spec({'image': (1, 1, 1), 'label': ()}, {'image': 'uint8', 'label': 'int64'}, {'label': ('a', 'b', 'c')}, {})
    fingerprint = 'letters'
    notes = {'empty': ('a note',)}
    labels = np.arange(12) % 3

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {'image': np.full((1, 1, 1), index, np.uint8), 'label': self.labels[index]}

    def read(self, index, decode):
        return {**self[index], 'image': decode(b'%d' % index)}

    def where(self, index):
        return f'letter {index}'

    def arrays(self):
        return {'image': np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1), 'label': self.labels}


def subset(classes=('c', 'a'), per_class=None, seed=0):
    return subsets.Subset(Letters(), Letters.labels, ('a', 'b', 'c'), classes, per_class, seed)


def test_the_examples_of_the_classes_remain_with_new_numbers():
    chosen = subset()
    assert len(chosen) == 8
    assert chosen.spec.class_names['label'] == ('c', 'a')
    examples = [chosen[index] for index in range(8)]
    assert [int(example['image'][0, 0, 0]) for example in examples] == [0, 2, 3, 5, 6, 8, 9, 11]
    assert [int(example['label']) for example in examples] == [1, 0] * 4
    assert examples[0]['label'].dtype == np.int64
    arrays = chosen.arrays()
    assert arrays['image'].ravel().tolist() == [0, 2, 3, 5, 6, 8, 9, 11]
    assert arrays['label'].tolist() == [1, 0] * 4
    assert chosen.where(1) == 'letter 2'
    assert chosen.notes == Letters.notes
    assert chosen.read(1, decode=lambda data: data) == {'image': b'2', 'label': 0}


def test_a_few_of_each_class_are_drawn_by_the_seed_and_more_hold_those():
    drawn = {}
    for seed in range(30):
        few, more = (subset(per_class=count, seed=seed).arrays() for count in (1, 3))
        assert sorted(few['label'].tolist()) == [0, 1]
        assert sorted(more['label'].tolist()) == [0, 0, 0, 1, 1, 1]
        assert set(few['image'].ravel()) <= set(more['image'].ravel())
        drawn[seed] = tuple(few['image'].ravel())
    assert {image for pair in drawn.values() for image in pair} == {0, 2, 3, 5, 6, 8, 9, 11}  # each is drawn some time
    assert drawn[3] == tuple(subset(per_class=1, seed=3).arrays()['image'].ravel())


def test_the_fingerprint_is_of_the_choice():
    prints = [
        subset(*choice).fingerprint for choice in ((), (('a', 'c'),), (('c',),), (('c', 'a'), 2), (('c', 'a'), 2, 1))
    ]
    assert len(set(prints)) == 5
    assert subset().fingerprint == prints[0]


def test_what_can_not_be_chosen_is_refused():
    with pytest.raises(InputError, match=r"^config\.data\.examples_per_class=5: class 'c' has 4 examples$"):
        subset(per_class=5)
    with pytest.raises(InputError, match=r"^unknown class of data set letters 'd'; there are: a, b, c$"):
        subsets.check(Letters.spec, ('a', 'd'), 'letters')
    with pytest.raises(InputError, match=r"^config.data.classes=\('a', 'a'\): names a class twice$"):
        subsets.check(Letters.spec, ('a', 'a'), 'letters')
    with pytest.raises(InputError, match='data set plain has no labels to choose by'):
        subsets.check(Spec({}, {}, {}, {}), (), 'plain')

import numpy as np
import pytest

from cnn.config import Data
from cnn.data import sources
from cnn.datasets import permuted_digits


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_the_order_of_all_pictures_is_one_and_no_pixel_is_lost(split):
    permuted = sources.load(Data('permuted_digits'), split, ['image', 'label']).arrays()
    plain = sources.load(Data('digits'), split, ['image', 'label']).arrays()
    back = np.empty_like(plain['image']).reshape(len(plain['image']), 64)
    back[:, permuted_digits.ORDER] = permuted['image'].reshape(len(back), 64)
    np.testing.assert_array_equal(back.reshape(plain['image'].shape), plain['image'])
    np.testing.assert_array_equal(permuted['label'], plain['label'])


def test_neighbours_are_apart():
    """Among the 64 pixels, few of the 112 pairs of neighbours are neighbours still; the order stays what it is."""
    order = permuted_digits.ORDER
    assert sorted(order) == list(range(64))
    assert order[:8].tolist() == [0, 54, 43, 38, 21, 2, 11, 20]
    row, column = np.divmod(order.reshape(8, 8), 8)
    steps = [np.abs(np.diff(row, axis=axis)) + np.abs(np.diff(column, axis=axis)) for axis in (0, 1)]
    assert sum((step == 1).sum() for step in steps) < 8


def test_chosen_examples_are_those_of_digits():
    few = [sources.load(Data(name, examples_per_class=2), 'train', ['label']) for name in ('digits', 'permuted_digits')]
    np.testing.assert_array_equal(*(source.arrays()['label'] for source in few))

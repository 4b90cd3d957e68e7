import numpy as np
import pytest

from cnn.config import Data
from cnn.data import sources


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_digits_lie_in_the_middle_of_black(split):
    framed = sources.load(Data('framed_digits'), split, ['image', 'label']).arrays()
    plain = sources.load(Data('digits'), split, ['image', 'label']).arrays()
    assert framed['image'].shape == (len(plain['image']), 16, 16, 1)
    np.testing.assert_array_equal(framed['image'][:, 4:12, 4:12], plain['image'])
    assert framed['image'].sum() == plain['image'].sum()
    np.testing.assert_array_equal(framed['label'], plain['label'])


def test_spec_is_that_of_digits_but_for_the_size():
    framed, plain = sources.spec(Data('framed_digits')), sources.spec(Data('digits'))
    assert framed.shapes == {'image': (16, 16, 1), 'label': ()}
    assert (framed.class_names, framed.num_examples) == (plain.class_names, plain.num_examples)

import numpy as np
from PIL import Image

from cnn import config
from cnn.data import overview, sources


def test_boxes_are_counted_without_the_empty_slots_and_every_split_has_its_sheet(tmp_path):
    # The default task could not use this data; to look at it, it need not.
    text = overview.describe(config.Data(name='digit_scenes', train_split='test', validation_split=None), tmp_path)
    labels = sources.load('digit_scenes', 'test', ('box_labels',)).arrays()['box_labels']
    counts = ', '.join(f'{digit} {(labels == digit).sum()}' for digit in range(10))
    assert f'box_labels: {counts}\n' in text
    assert 'test: 500 examples' in text
    assert text.count('sheet: ') == 1
    assert np.asarray(Image.open(tmp_path / 'test.png')).std() > 10


def test_a_listing_has_a_line_for_each_name_and_where_it_is():
    lines = dict(line.split(maxsplit=1) for line in overview.listing().splitlines())
    assert lines['digits'].endswith('digits.py')

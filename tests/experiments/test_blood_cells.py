import json

import numpy as np
import pytest
from PIL import Image

from cnn.errors import InputError
from experiments.transfer import blood_cells


def test_cells_are_cut_with_their_surroundings_and_as_many_of_each_kind(tmp_path):
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[10:20, 30:50] = (0, 255, 0)
    (tmp_path / 'train').mkdir()
    Image.fromarray(picture).save(tmp_path / 'train' / 'a.png')
    boxes = {1: [[30, 10, 20, 10], [30, 10, 0, 5]], 2: [[0, 0, 8, 8], [50, 30, 8, 8], [20, 20, 8, 8]]}
    annotations = [{'image_id': 7, 'category_id': kind, 'bbox': box} for kind in boxes for box in boxes[kind]]
    coco = {
        'images': [{'id': 7, 'file_name': 'a.png'}],
        'categories': [{'id': 1, 'name': 'green'}, {'id': 2, 'name': 'black'}, {'id': 3, 'name': 'never'}],
        'annotations': annotations,
    }
    (tmp_path / 'annotations_train.json').write_text(json.dumps(coco))
    assert blood_cells.cut(tmp_path, tmp_path / 'out', 'train') == {'green': 1, 'black': 1}
    (file,) = (tmp_path / 'out' / 'train' / 'green').iterdir()
    cell = np.asarray(Image.open(file))
    assert cell.shape == (blood_cells.SIDE, blood_cells.SIDE, 3)
    # The box is 20 wide in a square of 24: 2 of 24 at the left are black, and 7 of 24 above.
    green = cell[..., 1] > 127
    rows, columns = np.nonzero(green)
    assert np.allclose([columns.min(), columns.max() + 1], [5.3, 58.7], atol=1)
    assert np.allclose([rows.min(), rows.max() + 1], [18.7, 45.3], atol=1)
    with pytest.raises(InputError, match='has no annotations_test'):
        blood_cells.cut(tmp_path, tmp_path / 'out', 'test')

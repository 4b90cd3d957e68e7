import json

import numpy as np
import pytest
from PIL import Image

import launch
from cnn import config as configuration
from cnn.config import InputError
from experiments.transfer import blood_cells, digits, few_labels


def test_the_interval_is_students():
    mean, half = few_labels.interval(np.array([0.7, 0.8, 0.9]))
    assert (mean, half) == pytest.approx((0.8, 4.302653 * 0.1 / 3**0.5), abs=1e-6)


def test_the_table_compares_seed_by_seed():
    accuracy = {('scratch', 5): [0.5, 0.6, 0.7], ('tuned', 5): [0.6, 0.7, 0.8]}
    lines = few_labels.table(accuracy, ('scratch', 'tuned'), [5]).splitlines()
    assert lines[0] == '| labels of each class | scratch | tuned | tuned - scratch |'
    assert lines[2] == '| 5 | 0.600 ± 0.248 | 0.700 ± 0.248 | +0.100 ± 0.000 |'


def test_every_arm_is_an_experiment_and_the_probe_learns_its_head_alone():
    for arm in (*digits.ARMS, digits.PRETRAIN):
        config = digits.get_config(arm)
        configuration.validate(config)
        launch.resolve(config)
        assert config.data.classes == (tuple('01234') if arm == 'pretrain' else tuple('56789'))
        assert bool(config.optimizer.frozen) == (arm == 'probe')


def test_the_smallest_study_runs_and_goes_on_where_it_was(tmp_path):
    start, folder = tmp_path / 'start', tmp_path / 'tuned'
    file = tmp_path / 'tiny.py'
    file.write_text(
        'from experiments.transfer import digits\n\n\n'
        'def get_config(arm):\n'
        '    config = digits.get_config(arm)\n'
        "    config.model.options = {'widths': (4, 4, 4), 'hidden': 8}\n"
        "    config.train.duration = '3'\n"
        '    return config\n'
    )
    few_labels.run(f'{file}:pretrain', start, 0, None, None)
    first = few_labels.run(f'{file}:tuned', folder, 1, str(start), 2)
    record = json.loads((folder / 'run.json').read_text())
    assert record['config']['data']['examples_per_class'] == 2
    assert record['config']['seed'] == record['config']['data']['split_seed'] == 1
    assert record['config']['init_from'] == str(start)
    assert few_labels.run(f'{file}:tuned', folder, 1, str(start), 2) == first


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

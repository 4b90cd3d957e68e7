import io
import json

import numpy as np
import pytest
import scipy.io.wavfile
from PIL import Image

from cnn import config
from cnn.config import Data, Experiment
from cnn.data import overview, sheets, sources
from cnn.errors import InputError

ONLY_TRAIN = {'validation_split': None, 'test_split': None}


def encoded(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, 'png')
    return buffer.getvalue()


def write(root, contents):
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def page(path):
    return np.asarray(Image.open(path)).astype(int)


def test_boxes_are_counted_without_the_empty_slots_and_every_split_has_its_sheet(tmp_path):
    # The default task could not use this data; to look at it, it need not.
    data = config.Data(name='digit_scenes', train_split='test[:90]', validation_split=None)
    text = overview.describe(data, tmp_path)
    labels = sources.load(data, 'test', ('box_labels',)).arrays()['box_labels']
    counts = ', '.join(f'{digit} {(labels == digit).sum()}' for digit in range(10))
    assert f'box_labels: {counts}\n' in text
    assert 'test: 500 examples' in text
    assert text.count('sheet: ') == 2
    assert page(tmp_path / 'test.png').std() > 10


def test_a_listing_has_a_line_for_each_name_and_where_it_is():
    lines = dict(line.split(maxsplit=1) for line in overview.listing().splitlines())
    assert lines['digits'].endswith('digits.py')
    assert {'folder:DIR', 'arrays:FILE.npz', 'pairs:DIR', 'coco:DIR'} <= lines.keys()


def test_what_is_wrong_with_a_folder_is_counted_and_listed(tmp_path):
    contents = {
        f'set/train/{name}/{index}.png': encoded(np.full((6, 6 + index), 9, np.uint8))
        for name in 'ab'
        for index in range(30)
    }
    contents |= {f'set/train/a/bad{index}.png': b'' for index in range(25)}
    contents |= {'set/train/a/readme.txt': b'', 'set/test/a/1.png': encoded(np.zeros((4, 4, 3), np.uint8))}
    root = write(tmp_path, contents) / 'set'
    text = overview.describe(
        Data(f'folder:{root}', train_split='train+validation', validation_split=None), tmp_path / 'out'
    )
    assert 'train+validation: 85 examples' in text
    assert 'label: a 55, b 30' in text
    assert 'image: 6 x 6..35 x 3' in text
    assert 'unreadable in train+validation: 25\n' in text
    assert f'{root}/train/a/bad0.png: is empty' in text
    assert '  and 5 more\n' in text
    assert text.count(': is empty') == 20
    notes = (tmp_path / 'out' / 'notes.txt').read_text().splitlines()
    assert len(notes) == 26
    assert 'files of other kinds, left out: train/a/readme.txt' in notes
    assert (tmp_path / 'out' / 'test.png').exists()


def test_a_folder_of_unreadable_files_has_no_sheet(tmp_path):
    root = write(tmp_path, {f'set/a/{index}.png': b'' for index in range(10)}) / 'set'
    text = overview.describe(Data(f'folder:{root}', **ONLY_TRAIN), tmp_path / 'out')
    assert 'unreadable in train: 8' in text
    assert 'sheet' not in text


def test_larger_sets_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(overview, 'MOST_OPENED', 10)
    np.savez(tmp_path / 'a.npz', x_train=np.zeros((100, 4, 4), np.uint8), y_train=np.arange(100) % 2)
    text = overview.describe(Data(f'arrays:{tmp_path / "a.npz"}', train_split='all', **ONLY_TRAIN), tmp_path)
    assert 'opened: 10 of them, evenly spaced' in text
    assert 'label: 0 50, 1 50' in text


def test_recordings_are_drawn_as_waveforms(tmp_path):
    tone = np.sin(np.arange(800) / 5) * np.linspace(0, 1, 800)
    buffer = io.BytesIO()
    scipy.io.wavfile.write(buffer, 400, (tone * 9000).astype(np.int16))
    root = write(tmp_path, {f'set/a/{index}.wav': buffer.getvalue() for index in range(10)}) / 'set'
    text = overview.describe(Data(f'folder:{root}', **ONLY_TRAIN), tmp_path)
    assert 'length: 2.000 to 2.000 s at 400 Hz' in text
    line = (page(tmp_path / 'train.png') == sheets.colour(0)).all(-1)[22 : 22 + 56, 8 : 8 + 112]  # of the first tile
    tops, bottoms = line.argmax(0), 55 - line[::-1].argmax(0)
    assert line.any(0).all()
    assert (np.maximum(tops[1:], tops[:-1]) <= np.minimum(bottoms[1:], bottoms[:-1])).all()  # a line without gaps
    assert line[:, -20:].any(1).sum() > 50  # it swells
    assert line[:, :20].any(1).sum() < 15


def test_boxes_are_drawn_in_the_colours_of_their_classes(tmp_path):
    images = [{'id': index, 'file_name': f'{index}.png'} for index in range(4)]
    annotations = [
        {'id': 0, 'image_id': 0, 'category_id': 1, 'bbox': [10, 20, 30, 40]},
        {'id': 1, 'image_id': 0, 'category_id': 2, 'bbox': [60, 10, 20, 20]},
    ]
    content = {
        'images': images,
        'annotations': annotations,
        'categories': [{'id': 1, 'name': 'a'}, {'id': 2, 'name': 'b'}],
    }
    contents = {f'train/{index}.png': encoded(np.zeros((112, 112, 3), np.uint8)) for index in range(4)}
    root = write(tmp_path, contents | {'annotations_train.json': json.dumps(content).encode()})
    overview.describe(Data(f'coco:{root}', train_split='all', **ONLY_TRAIN), tmp_path)
    picture = page(tmp_path / 'all.png')
    for colour, (left, top, right, bottom) in ((0, (20, 40, 79, 119)), (1, (120, 20, 159, 59))):  # twice as large
        rows, columns = np.nonzero((picture[22 : 22 + 224, 8 : 8 + 224] == sheets.colour(colour)).all(-1))
        assert (columns.min(), rows.min(), columns.max(), rows.max()) == (left, top, right, bottom)


def test_masks_lie_over_their_pictures(tmp_path):
    mask = np.zeros((56, 56), np.uint8)
    mask[:28, :28], mask[28:, 28:] = 2, 255
    contents = {f'images/{index}.png': encoded(np.full((56, 56, 3), 100, np.uint8)) for index in range(10)}
    contents |= {f'masks/{index}.png': encoded(mask) for index in range(10)}
    text = overview.describe(Data(f'pairs:{write(tmp_path, contents)}', **ONLY_TRAIN), tmp_path)
    assert 'semantic: 0 50.0%, 1 0.0%, 2 25.0%, none 6272 pixels' in text
    tile = page(tmp_path / 'train.png')[22 : 22 + 224, 8 : 8 + 224]
    assert tile[50, 50].tolist() == [(100 + part) // 2 for part in sheets.colour(2)]
    assert tile[200, 200].tolist() == [(100 + 255) // 2] * 3
    assert tile[50, 200].tolist() == [100] * 3


def experiment(data, **augment):
    settings = Experiment(data=data)
    for name, value in augment.items():
        setattr(settings.augment, name, value)
    return settings


def test_augmented_examples_are_drawn_as_the_network_sees_them(tmp_path):
    images = np.full((40, 8, 8), 64, np.uint8)
    images[:, :, 7] = 255
    np.savez(tmp_path / 'a.npz', x=images, y=np.arange(40) % 3)
    data = Data(f'arrays:{tmp_path / "a.npz"}', mean=(0.5,), std=(0.25,))
    told = overview.augmented(experiment(data, flip=True), tmp_path)
    assert told == f'augmented: {tmp_path / "augmented.png"}'
    picture = page(tmp_path / 'augmented.png')
    tiles = [picture[22 : 22 + 112, left : left + 112] for left in range(8, 900, 120)]
    assert {(tile[0, 0, 0], tile[0, -1, 0]) for tile in tiles} == {(64, 255), (255, 64)}  # normalisation is undone
    assert all((tile == 255).mean() == 1 / 8 and (tile == 64).mean() == 7 / 8 for tile in tiles)


def test_augmentation_that_the_data_cannot_have_is_refused(tmp_path):
    np.savez(tmp_path / 'a.npz', x=np.zeros((40, 8, 8), np.uint8), y=np.arange(40) % 3)
    data = Data(f'arrays:{tmp_path / "a.npz"}')
    with pytest.raises(InputError, match=r'config.augment.noise: is for signals'):
        overview.augmented(experiment(data, noise=0.1), tmp_path)
    assert not (tmp_path / 'augmented.png').exists()


def test_captions_tell_labels_shares_and_lengths():
    spec = config.Spec({}, {}, {'label': ('cat', 'dog'), 'box_labels': ('a', 'b')}, {}, sample_rate=10)
    assert sheets._caption({'label': 1, 'mix': 0.75, 'mixed_label': 0}, spec) == 'dog 75% + cat'
    assert sheets._caption({'label': 1, 'mix': 1.0, 'mixed_label': 0}, spec) == 'dog'
    assert sheets._caption({'box_labels': np.array([1, 0, 1, -1])}, spec) == 'a, b x2'
    assert sheets._caption({'label': 0, 'signal': np.zeros((25, 1))}, spec) == 'cat, 2.50 s'

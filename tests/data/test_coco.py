import copy
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from cnn.config import Data
from cnn.data import coco, files, sources
from cnn.errors import InputError

BCCD = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'bccd'
CATEGORIES = [{'id': 7, 'name': 'ship'}, {'id': 3, 'name': 'buoy'}]
FIELDS = ['image', 'boxes', 'box_labels']


def png(shape=(20, 30, 3)):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(buffer, 'png')
    return buffer.getvalue()


def content(boxes, count=2, categories=CATEGORIES):
    """COCO's JSON for pictures 0.png, 1.png ..., with (picture, category, bbox) as boxes."""
    images = [{'id': index, 'file_name': f'{index}.png', 'width': 30, 'height': 20} for index in range(count)]
    annotations = [
        {'id': index, 'image_id': image, 'category_id': category, 'bbox': box, 'iscrowd': 0}
        for index, (image, category, box) in enumerate(boxes)
    ]
    return {'images': images, 'annotations': annotations, 'categories': copy.deepcopy(categories)}


def write(root, contents):
    for name, value in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return root


def split(name, annotations, pictures, boxes=(), count=2):
    return {f'{pictures}/{index}.png': png() for index in range(count)} | {annotations: content(boxes, count)}


def spec(root):
    return sources.spec(Data(f'coco:{root}'))


def refusal(root):
    with pytest.raises(InputError) as caught:
        spec(root)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_boxes_are_corners_padded_to_the_largest_number(tmp_path):
    boxes = [(0, 7, [1, 2, 10, 5]), (0, 3, [0, 0, 30, 20]), (0, 7, [3.5, 4, 1, 1.25]), (1, 3, [5, 6, 7, 8])]
    write(tmp_path, split('train', 'annotations_train.json', 'train', boxes, 3))
    data = Data(f'coco:{tmp_path}')
    found = spec(tmp_path)
    assert found.shapes == {'image': (20, 30, 3), 'boxes': (3, 4), 'box_labels': (3,)}
    assert found.class_names == {'box_labels': ('buoy', 'ship')}  # in the order of their ids
    arrays = sources.load(data, 'train', FIELDS).arrays()
    expected = [
        [[1, 2, 11, 7], [0, 0, 30, 20], [3.5, 4, 4.5, 5.25]],
        [[5, 6, 12, 14], [0] * 4, [0] * 4],
        np.zeros((3, 4)),
    ]
    np.testing.assert_array_equal(arrays['boxes'], np.array([np.array(rows) for rows in expected]))
    np.testing.assert_array_equal(arrays['box_labels'], [[1, 0, 1], [0, -1, -1], [-1, -1, -1]])
    assert arrays['boxes'].dtype == np.float32


def test_boxes_are_dropped_clipped_and_listed(tmp_path):
    boxes = [
        (0, 7, [1, 2, 0, 5]),
        (0, 7, [1, 2, 5, -1]),
        (0, 7, [40, 2, 5, 5]),
        (1, 7, [-3, -4, 10, 10]),
        (1, 7, [25, 15, 10, 10]),
        (1, 7, [1, 1, float('nan'), 2]),
        (1, 7, [20, 10, 10, 10]),
        (1, 3, [0, 0, 9, 9]),
    ]
    contents = split('train', 'annotations_train.json', 'train', boxes)
    contents['annotations_train.json']['annotations'][-1]['iscrowd'] = 1
    source = sources.load(Data(f'coco:{write(tmp_path, contents)}'), 'train', FIELDS)
    assert {kind: len(entries) for kind, entries in source.notes.items()} == {
        coco.DROPPED: 4,
        coco.CLIPPED: 2,
        coco.CROWDS: 1,
    }
    assert source.notes[coco.DROPPED][0] == 'train/0.png: annotation 0, [1, 2, 0, 5]'
    assert source.notes[coco.CLIPPED] == [
        'train/1.png: annotation 3, [-3, -4, 10, 10]',
        'train/1.png: annotation 4, [25, 15, 10, 10]',
    ]
    np.testing.assert_array_equal(source[1]['boxes'], [[0, 0, 7, 6], [25, 15, 30, 20], [20, 10, 30, 20]])
    np.testing.assert_array_equal(source[0]['box_labels'], [-1, -1, -1])


@pytest.mark.parametrize(
    'layout',
    [
        ('annotations_{}.json', '{}'),
        ('annotations/instances_{}2017.json', '{}2017'),
        ('annotations/instances_{}2017.json', 'images/{}2017'),
        ('annotations_{}.json', 'images/{}'),
        ('annotations_{}.json', 'images'),
        ('{}/_annotations.coco.json', '{}'),
    ],
)
def test_layouts(layout, tmp_path):
    for name, count in (('train', 9), ('val', 3), ('test', 2)):
        write(tmp_path, split(name, *(part.format(name) for part in layout), count=count))
    assert spec(tmp_path).num_examples == {'train': 9, 'validation': 3, 'test': 2}
    assert len(sources.load(Data(f'coco:{tmp_path}'), 'test', FIELDS).arrays()['image']) == 2


@pytest.mark.parametrize('pictures', ['images', '.'])
def test_one_file_is_divided(pictures, tmp_path):
    write(tmp_path, split('', 'annotations.json', pictures, count=20))
    assert spec(tmp_path).num_examples == {'train': 16, 'validation': 2, 'test': 2}


def test_sizes_are_taken_from_the_file_where_there_are_too_many_pictures(tmp_path, monkeypatch):
    write(tmp_path, split('train', 'annotations_train.json', 'train', [(0, 7, [25, 15, 10, 10])]))
    monkeypatch.setattr(files, 'MOST_HEADERS', 0)
    source = sources.load(Data(f'coco:{tmp_path}'), 'train', FIELDS)
    assert source.spec.shapes['image'] == (-1, -1, 3)
    np.testing.assert_array_equal(source[0]['boxes'], [[25, 15, 30, 20]])


def changed(part, index, **values):
    def change(content):
        content[part][index] |= values

    return change


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (changed('images', 1, file_name='2.png'), ['names 2.png, which is not in ', '/train (1 such pictures)']),
        (changed('annotations', 0, category_id=9), ['annotation 0 is of class 9, which it does not name']),
        (changed('annotations', 0, image_id=9), ['annotation 0 is of picture 9, which it does not name']),
        (changed('annotations', 1, id=0), ['two of its annotations have the id 0']),
        (changed('images', 1, id=0), ['two of its images have the id 0']),
        (changed('categories', 1, id=7), ['two of its categories have the id 7']),
        (changed('annotations', 1, bbox=[1, 2, 3]), ['the bbox of annotation 1 is not four numbers']),
        (changed('annotations', 1, bbox='abcd'), ['the bbox of annotation 1 is not four numbers']),
        (changed('images', 0, width=31), ['train/0.png is 30 x 20 pixels and not 31 x 20']),
        (lambda content: content['images'][0].pop('file_name'), ["has no 'file_name'"]),
        (lambda content: content.pop('categories'), ["has no 'categories'"]),
        (lambda content: content['categories'].clear(), ['has no categories']),
        (lambda content: (content['images'].clear(), content['annotations'].clear()), ['names no picture']),
    ],
)
def test_mistakes_are_named(change, told, tmp_path):
    contents = split('train', 'annotations_train.json', 'train', [(0, 7, [1, 2, 3, 4]), (1, 3, [1, 2, 3, 4])])
    change(contents['annotations_train.json'])
    message = refusal(write(tmp_path, contents))
    assert f'{tmp_path}/annotations_train.json: ' in message
    assert all(part in message for part in told), message


def test_what_is_no_coco_file_is_named(tmp_path):
    assert f'{tmp_path}: has no annotations_train.json' in refusal(tmp_path)
    write(tmp_path, {'annotations_train.json': b'{'})
    sources._listing.cache_clear()
    assert f'{tmp_path}/annotations_train.json: is no COCO file' in refusal(tmp_path)


def test_files_must_agree(tmp_path):
    contents = split('train', 'annotations_train.json', 'train') | split('val', 'annotations_val.json', 'val')
    contents['annotations_val.json']['categories'] = CATEGORIES[:1]
    assert 'has other categories than' in refusal(write(tmp_path, contents))
    write(tmp_path, {'annotations/instances_train.json': b''})
    sources._listing.cache_clear()
    assert 'are both of the train split' in refusal(tmp_path)


@pytest.mark.skipif(not BCCD.exists(), reason='needs the blood cells')
def test_blood_cells():
    source = sources.load(Data(f'coco:{BCCD}'), 'train', FIELDS)
    assert source.spec.num_examples == {'train': 205, 'validation': 87, 'test': 72}
    assert source.spec.class_names == {'box_labels': ('Platelets', 'RBC', 'WBC')}
    assert source.notes == {
        coco.DROPPED: [
            'train/BloodImage_00343.jpg: annotation 2288, [181, 329, 0, 0]',
            'val/BloodImage_00338.jpg: annotation 887, [504, 337, 0, 0]',
        ]
    }
    example = source[0]
    assert example['boxes'][0].tolist() == [68, 315, 286, 480]
    assert example['image'].shape == (480, 640, 3)

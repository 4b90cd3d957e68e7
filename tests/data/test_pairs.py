import io

import numpy as np
import pytest
from PIL import Image

from cnn.config import Data
from cnn.data import files, sources
from cnn.data.decoding import Unreadable
from cnn.errors import InputError

GENERATOR = np.random.default_rng(0)


def encoded(array, kind='png'):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


PICTURE = encoded(GENERATOR.integers(0, 256, (6, 8, 3), np.uint8), 'jpeg')
MASK = GENERATOR.integers(0, 3, (6, 8), np.uint8)


def write(root, contents):
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def pairs(pictures='images', masks='masks', count=10, mask=MASK):
    contents = {f'{pictures}/{index}.jpg': PICTURE for index in range(count)}
    return contents | {f'{masks}/{index}.png': encoded(mask) for index in range(count)}


def refusal(root):
    with pytest.raises(InputError) as caught:
        sources.spec(Data(f'pairs:{root}'))
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize('layout', ['{split}/images {split}/masks', 'images/{split} masks/{split}'])
def test_folders_of_splits(layout, tmp_path):
    for split, count in (('train', 20), ('val', 3), ('test', 2)):
        write(tmp_path, pairs(*layout.format(split=split).split(), count))
    spec = sources.spec(Data(f'pairs:{tmp_path}'))
    assert spec.num_examples == {'train': 20, 'validation': 3, 'test': 2}
    assert spec.shapes == {'image': (6, 8, 3), 'semantic': (6, 8)}
    assert spec.class_names == {'semantic': ('0', '1', '2')}
    example = sources.load(Data(f'pairs:{tmp_path}'), 'test', ['image', 'semantic'])[1]
    np.testing.assert_array_equal(example['semantic'], MASK)
    np.testing.assert_array_equal(example['image'], np.asarray(Image.open(io.BytesIO(PICTURE))))


def test_one_folder_is_divided_and_pairs_stay_together(tmp_path):
    contents = {}
    for index in range(20):
        contents[f'images/{index}.png'] = encoded(np.full((2, 3), index, np.uint8))
        contents[f'masks/{index}.png'] = encoded(np.full((2, 3), index, np.uint8))
    data = Data(f'pairs:{write(tmp_path, contents)}')
    assert sources.spec(data).num_examples == {'train': 16, 'validation': 2, 'test': 2}
    arrays = sources.load(data, 'all', ['image', 'semantic']).arrays()
    np.testing.assert_array_equal(arrays['image'][..., 0], arrays['semantic'])
    assert sorted(arrays['semantic'][:, 0, 0]) == list(range(20))


def test_classes_have_names(tmp_path):
    write(tmp_path, pairs() | {'classes.txt': b'ground\nsky\n\nsea\nship\n'})
    spec = sources.spec(Data(f'pairs:{tmp_path}'))
    assert spec.class_names == {'semantic': ('ground', 'sky', 'sea', 'ship')}


def test_no_class_is_255(tmp_path):
    mask = MASK.copy()
    mask[0] = 255
    write(tmp_path, pairs(mask=mask))
    data = Data(f'pairs:{tmp_path}')
    assert sources.spec(data).class_names == {'semantic': ('0', '1', '2')}
    assert (sources.load(data, 'train', ['semantic'])[0]['semantic'][0] == 255).all()


def test_masks_that_do_not_fit_are_unreadable(tmp_path):
    contents = pairs() | {'classes.txt': b'a\nb\nc'}
    contents['masks/1.png'] = encoded(MASK.T)
    contents['masks/2.png'] = encoded(MASK + 1)
    contents['masks/3.png'] = encoded(np.zeros((6, 8, 3), np.uint8))
    contents['masks/4.png'] = b''
    data = Data(f'pairs:{write(tmp_path, contents)}')
    source, told = sources.load(data, 'all', ['image', 'semantic']), []
    for index in range(len(source)):
        try:
            source[index]
        except Unreadable as error:
            told.append(str(error))
    told.sort()
    assert told[0] == f'{tmp_path}/images/1.jpg: semantic is [8, 6], others are [6, 8]'
    assert told[1] == f'{tmp_path}/masks/2.png: holds class 3; there are 3, from 0, and 255 for none'
    assert told[2].startswith(f'{tmp_path}/masks/3.png: a mask has one class')
    assert told[3] == f'{tmp_path}/masks/4.png: is empty'
    assert len(told) == 4


def test_a_mask_of_another_size_is_unreadable_where_pictures_differ_too(tmp_path):
    contents = pairs() | {'images/1.jpg': encoded(np.zeros((5, 8, 3), np.uint8))}
    source = sources.load(Data(f'pairs:{write(tmp_path, contents)}'), 'all', ['image', 'semantic'])
    assert source.spec.shapes == {'image': (-1, 8, 3), 'semantic': (-1, 8)}
    index = [source.where(index) for index in range(len(source))].index(f'{tmp_path}/images/1.jpg')
    with pytest.raises(
        Unreadable, match=r'images/1.jpg: the picture and its mask differ in size, \[5, 8\] and \[6, 8\]'
    ):
        source[index]


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ({'images/lonely.jpg': PICTURE}, ['images/lonely.jpg: has no mask of that name in ', '(1 such files)']),
        ({'masks/lonely.png': encoded(MASK)}, ['masks/lonely.png: has no picture of that name in ']),
        ({'images/1.png': PICTURE}, ['images/1.png: and 1.jpg have the same name']),
        ({'classes.txt': b''}, ['classes.txt: give one class a line']),
        ({'classes.txt': b'a\na'}, ['classes.txt: give one class a line']),
        ({'train/images/1.jpg': PICTURE}, ['/train/masks: there is no such folder']),
    ],
)
def test_mistakes_are_named(change, told, tmp_path):
    message = refusal(write(tmp_path, pairs() | change))
    assert str(tmp_path) in message
    assert all(part in message for part in told), message


def test_masks_without_classes_are_named(tmp_path):
    binary = np.where(MASK > 0, 255, 0).astype(np.uint8)
    assert 'its masks hold no class but 0 (255 is none)' in refusal(write(tmp_path, pairs(mask=binary)))


def test_empty_folders_are_named(tmp_path):
    assert '/images: there is no such folder' in refusal(tmp_path)
    (tmp_path / 'images').mkdir()
    (tmp_path / 'masks').mkdir()
    sources._listing.cache_clear()
    assert '/images: holds no pictures' in refusal(tmp_path)


def test_many_masks_are_not_opened_for_their_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'MOST_HEADERS', 9)
    assert '10 masks are too many' in refusal(write(tmp_path, pairs()))

import hashlib
import io

import jax
import numpy as np
import pytest
from PIL import Image

from cnn import config
from cnn.config import Data, Spec
from cnn.data import batches as batching
from cnn.data import decoding, fitting, sources
from cnn.data.batches import Batches, eval_indices, num_eval_steps, train_indices
from cnn.data.decoding import Unreadable
from cnn.data.fitting import Fit
from cnn.errors import InputError, RunFailed
from cnn.training.sharding import batch_sharding, make_mesh

CROPPED = Fit(crop_scale=(0.2, 1.0), seed=4)


class Pictures:
    """Twenty JPEG files of different sizes, some of which are damaged."""

    notes = {}

    def __init__(self, damaged=(), shape=(-1, -1, 3)):
        self.spec = Spec({'image': shape, 'label': ()}, {'image': 'uint8', 'label': 'int64'}, {}, {})
        self.files = []
        rng = np.random.default_rng(0)
        for index in range(20):
            size = (30 + index, 50 - index, 3) if -1 in shape else shape
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(file, 'jpeg')
            self.files.append(file.getvalue()[: 100 if index in damaged else None])

    @property
    def fingerprint(self):
        return hashlib.sha256(b''.join(self.files)).hexdigest()

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return self.read(index, decoding.decode_picture)

    def read(self, index, decode):
        try:
            return {'image': decode(self.files[index]), 'label': np.int64(index)}
        except Unreadable as error:
            raise Unreadable(f'{self.where(index)}: {error}') from error

    def arrays(self):
        examples = [self[index] for index in range(20)]
        return {field: np.stack([example[field] for example in examples]) for field in examples[0]}

    def where(self, index):
        return f'pictures/{index}.jpg'


def sharding():
    return batch_sharding(make_mesh(config.Experiment()))


def taken(batches, *steps):
    return [jax.device_get(batch) for batch in batches(*steps)]


def assert_equal(first, second):
    assert len(first) == len(second) > 0
    for ours, theirs in zip(first, second, strict=True):
        assert ours.keys() == theirs.keys()
        for field in ours:
            assert ours[field].dtype == theirs[field].dtype
            np.testing.assert_array_equal(ours[field], theirs[field])


def test_every_epoch_holds_every_example_once_in_a_new_order():
    indices = train_indices(10, 4, seed=3)
    flat = np.concatenate([indices(step)[0] for step in range(15)])  # six epochs
    epochs = flat.reshape(6, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 6


def test_training_order_is_a_function_of_seed_and_step_alone():
    forward = [train_indices(10, 4, seed=3)(step)[0].tolist() for step in range(9)]
    indices = train_indices(10, 4, seed=3)
    assert [indices(step)[0].tolist() for step in reversed(range(9))] == forward[::-1]
    assert [train_indices(10, 4, seed=4)(step)[0].tolist() for step in range(9)] != forward
    # Written down once: a change of this order would change every published run.
    assert forward[:3] == [[6, 1, 8, 5], [2, 7, 9, 4], [3, 0, 9, 7]]


def test_a_batch_may_span_several_epochs():
    rows = train_indices(3, 8, seed=0)(1)
    assert sorted(rows.indices[1:4]) == sorted(rows.indices[4:7]) == [0, 1, 2]
    assert rows.epochs.tolist() == [2, 3, 3, 3, 4, 4, 4, 5]
    assert rows.positions.tolist() == list(range(8, 16))
    assert rows.valid.all()


@pytest.mark.parametrize(('num_examples', 'repeats'), [(12, 3), (10, 4), (3, 4)])
def test_repeats_stand_in_one_batch_and_an_epoch_keeps_its_length(num_examples, repeats):
    indices = train_indices(num_examples, 4 * repeats, seed=1, repeats=repeats)
    for step in range(6):
        rows = indices(step)
        groups = rows.indices.reshape(4, repeats)
        assert (groups == groups[:, :1]).all()
        assert len(set(rows.positions.tolist())) == 4 * repeats  # each is augmented in its own way
    stream = np.concatenate([indices(step).indices for step in range(6)])
    epochs = np.concatenate([indices(step).epochs for step in range(6)])
    shown = -(-num_examples // repeats)  # different examples of an epoch
    for epoch in range(int(epochs.max())):
        seen = stream[epochs == epoch]
        assert len(seen) == shown * repeats
        # The samplers of torchvision and timm: the first of the shuffled examples, each so often, in order.
        order = train_indices(num_examples, num_examples, seed=1)(epoch).indices
        np.testing.assert_array_equal(seen, np.repeat(order, repeats)[: shown * repeats])


@pytest.mark.parametrize(('num_examples', 'batch_size'), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_evaluation_pads_and_drops_nothing(num_examples, batch_size):
    indices = eval_indices(num_examples, batch_size)
    batches = [indices(step) for step in range(num_eval_steps(num_examples, batch_size))]
    assert all(len(rows.indices) == len(rows.valid) == batch_size for rows in batches)
    assert [index for rows in batches for index in rows.indices[rows.valid]] == list(range(num_examples))


@pytest.mark.parametrize('workers', [0, 1])
def test_resident_and_streamed_batches_are_bit_equal(workers):
    source = sources.load(config.Data('digits'), 'validation', ('image', 'label'))
    resident = Batches(source, sharding(), Data(resident=True))
    streamed = Batches(source, sharding(), Data(resident=False, workers=workers))
    for indices, start, stop in [
        (train_indices(len(source), 32, seed=1), 3, 11),
        (eval_indices(len(source), 32), 0, num_eval_steps(len(source), 32)),
    ]:
        pairs = list(zip(resident(indices, start, stop), streamed(indices, start, stop), strict=True))
        assert len(pairs) == stop - start
        for first, second in pairs:
            extra = {'index', 'epoch'} if indices(0).epochs is not None else set()
            assert first.keys() == second.keys() == {'image', 'label', 'valid'} | extra
            for field in first:
                assert first[field].dtype == second[field].dtype
                assert first[field].sharding == second[field].sharding
                np.testing.assert_array_equal(first[field], second[field])


def test_batches_hold_the_examples_that_were_asked_for():
    source = sources.load(config.Data('digits'), 'test', ('image', 'label'))
    batches = Batches(source, sharding(), Data())
    indices = train_indices(len(source), 16, seed=9)
    (batch,) = batches(indices, 50, 51)
    np.testing.assert_array_equal(batch['index'], indices(50).indices)
    np.testing.assert_array_equal(batch['epoch'], indices(50).epochs)
    assert batch['index'].dtype == batch['epoch'].dtype == np.int32
    assert batch['epoch'].max() > 0
    for row, index in enumerate(indices(50).indices):
        np.testing.assert_array_equal(batch['image'][row], source[int(index)]['image'])
        assert batch['label'][row] == source[int(index)]['label']


def test_small_splits_are_resident_and_large_ones_stream(monkeypatch):
    source = sources.load(Data(), 'validation', ('image', 'label'))
    assert Batches(source, sharding(), Data()).resident(training=True)
    monkeypatch.setattr('cnn.data.batches.RESIDENT_BYTES', 100)
    assert not Batches(source, sharding(), Data()).resident(training=True)
    assert Batches(source, sharding(), Data(resident=True)).resident(training=True)


def test_pictures_of_different_sizes_are_resident_unless_they_are_cropped_at_random():
    data = Data(image_size=(8, 8))
    assert Batches(Pictures(), sharding(), data).resident(training=True)
    cropped = Batches(Pictures(), sharding(), data, CROPPED)
    assert not cropped.resident(training=True)
    assert cropped.resident(training=False)


@pytest.mark.parametrize('resize', ['stretch', 'crop'])
def test_pictures_of_different_sizes_are_the_same_resident_and_streamed(resize):
    fit, sizes = Fit(resize=resize), {'image_size': (8, 12), 'test_size': (16, 16)}
    resident = Batches(Pictures(), sharding(), Data(resident=True, **sizes), fit)
    streamed = Batches(Pictures(), sharding(), Data(resident=False, **sizes), fit)
    for indices, size in ((train_indices(20, 8, 0), (8, 12)), (eval_indices(20, 8), (16, 16))):
        batches = taken(streamed, indices, 0, 3)
        assert_equal(taken(resident, indices, 0, 3), batches)
        assert batches[0]['image'].shape == (8, *size, 3)
        spec = fitting.fitted_spec(Pictures().spec, Data(**sizes), training=size == (8, 12))
        expected = fitting.example(Pictures(), int(indices(1).indices[2]), spec, fit, None)
        np.testing.assert_array_equal(batches[1]['image'][2], expected['image'])


def test_crops_are_a_function_of_seed_and_step_alone():
    indices, data = train_indices(20, 8, seed=4, repeats=2), Data(image_size=(8, 8), batch_size=8)
    whole = taken(Batches(Pictures(), sharding(), data, CROPPED), indices, 0, 5)
    resumed = taken(Batches(Pictures(), sharding(), data, CROPPED), indices, 3, 5)
    assert_equal(resumed, whole[3:])
    other = taken(Batches(Pictures(), sharding(), data, Fit(crop_scale=(0.2, 1.0), seed=5)), indices, 0, 1)
    assert (other[0]['label'] == whole[0]['label']).all()
    assert (other[0]['image'] != whole[0]['image']).any()
    first, second = whole[0]['image'][:2]  # the same example, twice
    assert whole[0]['label'][0] == whole[0]['label'][1]
    assert (first != second).any()
    spec = fitting.fitted_spec(Pictures().spec, data)
    for step, row in ((0, 0), (3, 5)):
        index = int(indices(step).indices[row])
        expected, uncropped = (fitting.example(Pictures(), index, spec, CROPPED, at) for at in (step * 8 + row, None))
        np.testing.assert_array_equal(whole[step]['image'][row], expected['image'])
        assert (expected['image'] != uncropped['image']).any()


def test_the_number_of_worker_processes_changes_nothing():
    indices, sizes = train_indices(20, 8, seed=4, repeats=2), {'image_size': (8, 8)}
    here = Batches(Pictures(damaged=(3, 5)), sharding(), Data(**sizes), CROPPED)
    there = Batches(Pictures(damaged=(3, 5)), sharding(), Data(workers=2, **sizes), CROPPED)
    assert_equal(taken(there, indices, 1, 9), taken(here, indices, 1, 9))
    assert there.unreadable == here.unreadable
    assert sorted(there.unreadable) == [3, 5]


def test_processes_share_a_batch():
    indices, spec = train_indices(20, 8, 0), fitting.fitted_spec(Pictures().spec, Data(image_size=(8, 8)))
    (whole, _), *parts = (
        batching._read(Pictures(), spec, CROPPED, indices, process, count, 2)
        for process, count in [(0, 1), (0, 2), (1, 2)]
    )
    for field in whole:
        np.testing.assert_array_equal(np.concatenate([part[field] for part, _ in parts]), whole[field])


@pytest.mark.parametrize('resident', [True, False])
def test_what_cannot_be_read_is_a_row_of_zeros_that_is_not_valid(resident):
    source = Pictures(damaged=(3, 17))
    batches = Batches(source, sharding(), Data(image_size=(8, 8), resident=resident))
    (batch,) = taken(batches, eval_indices(20, 24), 0, 1)
    assert np.flatnonzero(~batch['valid']).tolist() == [3, 17, 20, 21, 22, 23]
    assert (batch['image'].reshape(24, -1).max(1) == 0).nonzero()[0].tolist() == [3, 17]
    assert (batch['label'][[3, 17]] == 0).all()
    assert sorted(batches.unreadable) == [3, 17]
    assert batches.unreadable[3].startswith('pictures/3.jpg: ')
    told = []
    batches.report(told.append)
    assert sorted(told) == sorted(batches.unreadable.values())


def test_unreadable_pictures_of_one_size_are_left_out_too():
    source = Pictures(damaged=(3,), shape=(16, 16, 3))
    for resident in (True, False):
        (batch,) = taken(Batches(source, sharding(), Data(resident=resident)), eval_indices(20, 24), 0, 1)
        assert np.flatnonzero(~batch['valid']).tolist() == [3, 20, 21, 22, 23]
        np.testing.assert_array_equal(batch['image'][4], source[4]['image'])


@pytest.mark.parametrize('resident', [True, False])
def test_too_many_unreadable_examples_end_the_run_with_their_names(resident):
    source = Pictures(damaged=(1, 2, 5, 8))
    data = Data(image_size=(8, 8), resident=resident, max_unreadable=3)
    with pytest.raises(
        RunFailed, match=r'^more .*4.*max_unreadable=3: pictures/1.jpg: .*; pictures/2.*5.jpg.* \.\.\.$'
    ):
        taken(Batches(source, sharding(), data), eval_indices(20, 24), 0, 1)
    data.max_unreadable = 4
    batches = Batches(source, sharding(), data)
    told = []
    batches.report(told.append)
    for _ in range(3):  # one that is met again counts once
        taken(batches, eval_indices(20, 24), 0, 1)
    assert len(told) == 4


def test_other_fields_must_have_one_shape():
    source = Pictures()
    source.spec.shapes['boxes'] = (-1, 4)
    with pytest.raises(InputError, match='boxes differs in shape'):
        Batches(source, sharding(), Data(image_size=(8, 8)))


def test_signals_are_brought_to_one_length():
    class Signals(Pictures):
        def __init__(self):
            self.spec = Spec({'signal': (-1, 1)}, {'signal': 'float32'}, {}, {})
            self.files = []

        def __getitem__(self, index):
            return {'signal': np.full((index + 1, 1), index + 1.0, np.float32)}

    for resident in (True, False):
        (batch,) = taken(Batches(Signals(), sharding(), Data(length=5, resident=resident)), eval_indices(20, 24), 0, 1)
        np.testing.assert_array_equal(batch['signal'][2, :, 0], [3, 3, 3, 0, 0])
        np.testing.assert_array_equal(batch['signal'][9, :, 0], [10] * 5)


def test_splits_on_the_devices_are_read_once_in_a_process(monkeypatch):
    monkeypatch.setattr(batching, '_SHARED', {})
    source = Pictures(damaged=(3,))
    reads = []
    read = source.read
    monkeypatch.setattr(source, 'read', lambda *arguments: reads.append(1) or read(*arguments))

    def batch(size, seed=0):
        batches = Batches(source, sharding(), Data(image_size=size), Fit(seed=seed))
        told = []
        batches.report(told.append)
        (found,) = taken(batches, eval_indices(20, 24), 0, 1)
        assert list(batches.unreadable) == [3]
        assert len(told) == 1  # by each that shares it
        return found

    first, again = batch((16, 16)), batch((16, 16))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert len(reads) == 20
    batch((8, 8))
    assert len(reads) == 40
    source.files[0] = source.files[1]
    assert not np.array_equal(batch((16, 16))['image'][0], first['image'][0])


def test_of_splits_that_no_run_has_any_more_some_are_kept(monkeypatch):
    monkeypatch.setattr(batching, '_SHARED', {})
    monkeypatch.setattr(batching, 'RESIDENT_BYTES', 20 * 41 * 41 * 3)
    for side in (8, 16, 24, 32):
        list(Batches(Pictures(), sharding(), Data(image_size=(side, side)))(eval_indices(20, 24), 0, 1))
    assert [shared.arrays[0]['image'].shape[1] for shared in batching._SHARED.values()] == [24, 32]

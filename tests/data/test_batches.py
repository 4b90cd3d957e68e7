import jax
import numpy as np
import pytest

from cnn import config
from cnn.data import sources
from cnn.data.batches import Batches, eval_indices, num_eval_steps, train_indices
from cnn.training.sharding import batch_sharding, make_mesh


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
    chosen, valid = train_indices(3, 8, seed=0)(0)
    assert sorted(chosen[:3]) == sorted(chosen[3:6]) == [0, 1, 2]
    assert valid.all()


@pytest.mark.parametrize(('num_examples', 'batch_size'), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_evaluation_pads_and_drops_nothing(num_examples, batch_size):
    indices = eval_indices(num_examples, batch_size)
    batches = [indices(step) for step in range(num_eval_steps(num_examples, batch_size))]
    assert all(len(chosen) == len(valid) == batch_size for chosen, valid in batches)
    assert [index for chosen, valid in batches for index in chosen[valid]] == list(range(num_examples))


@pytest.mark.parametrize('workers', [0, 1])
def test_resident_and_streamed_batches_are_bit_equal(workers):
    source = sources.load('digits', 'validation', ('image', 'label'))
    sharding = batch_sharding(make_mesh(config.Experiment()))
    resident = Batches(source, sharding, resident=True)
    streamed = Batches(source, sharding, resident=False, workers=workers)
    for indices, start, stop in [
        (train_indices(len(source), 32, seed=1), 3, 11),
        (eval_indices(len(source), 32), 0, num_eval_steps(len(source), 32)),
    ]:
        pairs = list(zip(resident(indices, start, stop), streamed(indices, start, stop), strict=True))
        assert len(pairs) == stop - start
        for first, second in pairs:
            assert first.keys() == second.keys() == {'image', 'label', 'valid'}
            for field in first:
                assert first[field].dtype == second[field].dtype
                assert first[field].sharding == second[field].sharding
                np.testing.assert_array_equal(first[field], second[field])


def test_batches_hold_the_examples_that_were_asked_for():
    source = sources.load('digits', 'test', ('image', 'label'))
    batches = Batches(source, batch_sharding(make_mesh(config.Experiment())), resident=None)
    indices = train_indices(len(source), 16, seed=9)
    (batch,) = batches(indices, 5, 6)
    for row, index in enumerate(indices(5)[0]):
        np.testing.assert_array_equal(batch['image'][row], source[int(index)]['image'])
        assert batch['label'][row] == source[int(index)]['label']


def test_small_splits_are_resident_and_large_ones_stream(monkeypatch):
    source = sources.load('digits', 'validation', ('image', 'label'))
    sharding = batch_sharding(make_mesh(config.Experiment()))
    assert Batches(source, sharding, resident=None).resident
    monkeypatch.setattr('cnn.data.batches.RESIDENT_BYTES', 100)
    assert not Batches(source, sharding, resident=None).resident
    assert Batches(source, sharding, resident=True).resident
    assert jax.devices()

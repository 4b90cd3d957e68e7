import numpy as np
import pytest

from experiments.benchmarks.static_codes import levels, order_0, order_1


def test_uniform_values_cost_their_entropy():
    values = np.random.default_rng(0).integers(0, 4, (5000, 6))
    assert order_0(values, values, 4) == pytest.approx(2, abs=0.01)
    assert order_1(values, values, 4) == pytest.approx(2, abs=0.01)


def test_order_0_knows_positions_and_order_1_knows_the_value_before():
    positions = np.tile([0, 1, 2, 3], (1000, 1))
    assert order_0(positions, positions, 4) < 0.01
    starts = np.random.default_rng(0).integers(0, 4, (1000, 1))
    chains = (starts + np.arange(8)) % 4
    assert order_0(chains, chains, 4) == pytest.approx(2, abs=0.01)
    assert order_1(chains, chains, 4) == pytest.approx(0, abs=0.01)


def test_the_digits_cost_what_the_readme_says():
    train, test = levels('train'), levels('test')
    assert train.shape == (1293, 64)
    assert set(np.unique(train)) == set(range(17))
    assert round(order_0(train, test), 2) == 2.39
    assert round(order_1(train, test), 2) == 2.70

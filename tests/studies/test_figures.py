import numpy as np
import pytest
from made_study import made_study, small_results

from cnn.studies import figures, tradeoff
from cnn.studies.canvas import DARK, LIGHT
from cnn.studies.findings import find
from cnn.studies.results import DONE, Outcome, collect
from cnn.studies.statistics import Summary

EIGHT = [0.90, 0.91, 0.89, 0.92, 0.90, 0.91, 0.90, 0.88]
DRAWN = {'curves': figures.curves, 'effects': figures.effects, 'costs': tradeoff.costs}


def outcome(seed, rows, status=DONE):
    return Outcome('a', seed, None, status, rows=tuple(rows))


def rows(values, split='validation', name='accuracy'):
    return [{'step': step, 'split': split, name: value} for step, value in values.items()]


def test_a_curve_is_the_mean_and_the_range_at_the_steps_that_all_finished_runs_have():
    outcomes = [
        outcome(0, rows({10: 0.1, 20: 0.5, 30: 0.9})),
        outcome(1, rows({10: 0.3, 20: 0.6})),
        outcome(2, rows({10: 0.2, 20: 0.1, 25: 0.7}) + rows({10: 9.0}, 'train')),
        outcome(3, rows({10: 100.0}), 'partial'),
    ]
    curve = figures.curve(outcomes, 'validation', 'accuracy')
    assert curve.count == 3
    np.testing.assert_array_equal(curve.steps, [10, 20])
    np.testing.assert_allclose(curve.mean, [0.2, 0.4])
    np.testing.assert_allclose(curve.low, [0.1, 0.1])
    np.testing.assert_allclose(curve.high, [0.3, 0.6])
    assert figures.curve(outcomes[3:], 'validation', 'accuracy') is None
    assert figures.curve([outcome(0, rows({1: 0.5})), outcome(1, rows({2: 0.5}))], 'validation', 'accuracy') is None


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    study, runs, costs = made_study(tmp_path_factory.mktemp('study'))
    return collect(study, runs, 'max', costs)


def near(picture, colour, slack=12):
    """Where a picture has a colour."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return np.argwhere(np.abs(picture.astype(int) - wanted).max(-1) <= slack)


@pytest.mark.parametrize('theme', [LIGHT, DARK], ids=['light', 'dark'])
@pytest.mark.parametrize('name', DRAWN)
def test_pictures_are_loud_about_missing_runs(results, name, theme):
    picture = DRAWN[name](results, find(results), theme)
    assert picture.dtype == np.uint8
    assert picture.shape[1:] == (1024, 3)
    assert len(near(picture, theme.paper, 1)) > 0.5 * picture.shape[0] * 1024
    assert len(near(picture, theme.alarm)) > 100


@pytest.mark.parametrize('direction', ['max', 'min'])
def test_the_best_effect_is_on_top_and_the_worst_at_the_bottom(tmp_path, direction):
    noise = [0.001, -0.002, 0.002, -0.001, 0.0015, 0.0005, -0.0005, 0.0]
    values = {'base': EIGHT} | {
        name: [x + by + n for x, n in zip(EIGHT, noise, strict=True)]
        for name, by in (('same', 0.0), ('less', -0.03), ('more', 0.03))
    }
    whole = small_results(tmp_path, values, direction=direction)
    picture = figures.effects(whole, find(whole), LIGHT)
    legend = 60  # pixels
    better, worse = (near(picture[legend:], colour) for colour in LIGHT.series[:2])
    assert better[:, 0].mean() < worse[:, 0].mean()
    right, left = (better, worse) if direction == 'max' else (worse, better)
    assert right[:, 1].mean() > left[:, 1].mean() + 200
    assert len(near(picture, LIGHT.alarm)) == 0
    assert [figures.arrow(finding) for finding in find(whole)] == ['o', 'o', '<', '>']


def test_few_large_effects_do_not_press_the_others_into_a_line():
    small = [Summary(8, 0.01 * sign, 0.0, 0.01 * sign - 0.002, 0.01 * sign + 0.002) for sign in (1, -1, 1)]
    large = Summary(8, -0.5, 0.1, -0.6, -0.4)
    assert figures._limit(small) == np.inf
    assert 0.012 < figures._limit([*small, large]) < 0.05
    assert figures._limit([large]) == np.inf
    assert figures._limit([*small[:1], large]) < 0.05
    assert figures._limit([Summary(1, 0.5, np.nan, np.nan, np.nan)]) == np.inf


def test_nothing_is_drawn_of_nothing(tmp_path):
    nothing = small_results(tmp_path / '0', {'a': [None, None], 'b': [None, None]})
    assert [draw(nothing, find(nothing)) for draw in DRAWN.values()] == [None] * 3
    alone = small_results(tmp_path / '1', {'a': [0.5, 0.6]})
    assert figures.effects(alone, find(alone)) is None
    assert figures.curves(alone, find(alone)) is None
    assert tradeoff.costs(alone, find(alone)) is not None


def test_training_is_followed_where_there_is_no_validation(tmp_path):
    with_loss = small_results(tmp_path, {'a': [0.5, 0.6]}, rows=rows({1: 0.5, 2: 0.4}, 'train', 'loss'))
    assert figures._followed(with_loss) == ('train', 'loss')
    assert figures.curves(with_loss, find(with_loss)) is not None

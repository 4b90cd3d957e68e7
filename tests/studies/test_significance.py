import itertools
import math

import numpy as np
import pytest
from scipy import stats

from cnn.studies.statistics import Summary, bearing, compare, holm, seeds_needed, sign_flip, summarize

SLEEP = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]  # hours gained by ten patients: Student 1908, table 1


def test_the_interval_of_students_sleepers():
    summary = summarize(SLEEP)
    assert (summary.count, round(summary.mean, 10)) == (10, 0.75)
    assert summary.deviation == pytest.approx(math.sqrt(sum((x - 0.75) ** 2 for x in SLEEP) / 9))
    half = 2.2621572 * summary.deviation / math.sqrt(10)  # the table's 97.5 % point of nine degrees of freedom
    assert (summary.low, summary.high) == pytest.approx((0.75 - half, 0.75 + half), abs=1e-6)


def test_one_value_or_none_has_no_interval_and_equal_ones_have_a_point():
    assert summarize([0.5]).mean == 0.5
    assert all(math.isnan(value) for value in (summarize([0.5]).low, summarize([0.5]).deviation, summarize([]).mean))
    same = summarize([0.5] * 4)
    assert (same.low, same.high, same.deviation) == (0.5, 0.5, 0)


@pytest.mark.parametrize('count', [6, 25])
def test_the_interval_covers_the_mean_at_its_rate(count):
    """Of 600 samples, .95 give or take three standard errors; the bootstrap covers a little less."""
    generator = np.random.default_rng(count)
    samples = generator.normal(1.0, 2.0, (600 if count < 20 else 150, count))
    covered = np.mean([summary.low <= 1 <= summary.high for summary in map(summarize, samples)])
    slack = 3 * math.sqrt(0.95 * 0.05 / len(samples))
    assert 0.95 - slack - (0.02 if count >= 20 else 0) <= covered <= 0.95 + slack


@pytest.mark.parametrize('differences', [SLEEP, [1.0, 2.0, 3.0], [0.1, -0.1, 0.1], [0.0, 0.0], [0.3]])
def test_sign_flips_are_counted_one_by_one(differences):
    observed = abs(sum(differences))
    flips = [
        abs(sum(s * x for s, x in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    expected = np.mean([flip >= observed - 1e-9 for flip in flips])
    assert sign_flip(differences) == pytest.approx(expected)


@pytest.mark.parametrize('seed', range(3))
def test_the_p_of_pairs_is_scipys_of_exchanging_them(seed):
    values, baseline = np.random.default_rng(seed).normal([[0.5], [0.0]], 1.0, (2, 9))
    exchanged = stats.permutation_test(
        (values, baseline), lambda a, b, axis: a.mean(axis) - b.mean(axis),
        permutation_type='samples', alternative='two-sided', n_resamples=np.inf, vectorized=True,
    )  # fmt: skip
    assert compare(values, baseline).p == pytest.approx(exchanged.pvalue)


def test_sign_flips_of_many_values_are_drawn_and_agree_with_the_normal_limit():
    differences = np.random.default_rng(3).normal(0.3, 1, 60)
    z = abs(differences.sum()) / math.sqrt((differences**2).sum())
    assert sign_flip(differences) == pytest.approx(2 * stats.norm.sf(z), abs=0.01)


def test_false_alarms_come_at_their_rate():
    generator = np.random.default_rng(1)
    rate = np.mean([sign_flip(generator.normal(0, 1, 8)) <= 0.05 for _ in range(300)])
    assert rate <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_a_difference_is_of_pairs():
    difference = compare([1.0, 2.0, 3.1], [0.5, 1.5, 2.5])
    assert difference.summary.mean == pytest.approx((0.5 + 0.5 + 0.6) / 3)
    assert difference.p == difference.adjusted == 0.25  # all three up: 2 of 8


def test_holm_multiplies_the_smallest_by_all_and_stays_in_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 x .01, 1 x .04 raised, 2 x .03
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def test_how_many_seeds_can_show_anything():
    assert [seeds_needed(count) for count in (1, 3, 6, 12)] == [6, 7, 8, 9]
    for count in (1, 2, 3, 5, 6, 12, 30):
        seeds = seeds_needed(count)
        assert holm([sign_flip([1.0] * seeds)] + [1.0] * (count - 1))[0] < 0.05
        assert holm([sign_flip([1.0] * (seeds - 1))] + [1.0] * (count - 1))[0] >= 0.05


@pytest.mark.parametrize(
    ('low', 'high', 'expected'),
    [
        (0.011, 0.03, 'larger'), (-0.03, -0.011, 'larger'), (-0.009, 0.009, 'smaller'), (0.0, 0.0, 'smaller'),
        (0.009, 0.011, 'open'), (-0.011, 0.0, 'open'), (-0.5, 0.5, 'open'), (math.nan, math.nan, 'open'),
    ],
)  # fmt: skip
def test_an_interval_beside_the_effect_that_would_matter(low, high, expected):
    assert bearing(Summary(8, (low + high) / 2, 0.01, low, high), 0.01) == expected


def test_a_difference_at_the_effect_itself_is_seldom_taken_for_larger_or_smaller():
    """Each end of the interval errs in 2.5 of 100 cases, give or take three standard errors."""
    generator = np.random.default_rng(5)
    taken = [bearing(summarize(generator.normal(1.0, 0.2, 8)), 1.0) for _ in range(600)]
    for word in ('larger', 'smaller'):
        assert abs(taken.count(word) / 600 - 0.025) <= 3 * math.sqrt(0.025 * 0.975 / 600)

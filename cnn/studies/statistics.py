"""What a handful of seeds says: means, intervals, paired differences, tests; by SciPy.

Seeds are paired: the run of an arm and that of the baseline with one seed share initialisation and order as far as
their networks do, so that differences seed by seed vary less than their parts.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

LEVEL = 0.95
FEWEST_FOR_BOOTSTRAP = 20  # the BCa bootstrap's 95 % interval covers but 87 % at six
MOST_FLIPS = 2**16  # sign patterns that are all counted; with more values as many are drawn


@dataclasses.dataclass(frozen=True)
class Summary:
    """Of the values of one arm."""

    count: int
    mean: float
    deviation: float  # the standard deviation of the sample
    low: float  # of the 95 % interval of the mean
    high: float


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of two arms, seed by seed."""

    summary: Summary
    p: float  # of the two-sided sign-flip test
    adjusted: float  # the same after Holm's correction, once `holm` gave it


def summarize(values: Sequence[float]) -> Summary:
    """Mean, deviation and 95 % interval: Student's t below 20 values, the BCa bootstrap from there on.

    With one value there is no interval: its ends are NaN, and so is the deviation.
    """
    from scipy import stats  # here, since a plan need not wait for it

    array = np.asarray(values, float)
    if len(array) < 2:
        mean = float(array.mean()) if len(array) else np.nan
        return Summary(len(array), mean, np.nan, np.nan, np.nan)
    mean, deviation = float(array.mean()), float(array.std(ddof=1))
    if deviation == 0:
        low = high = mean
    elif len(array) < FEWEST_FOR_BOOTSTRAP:
        low, high = stats.t.interval(LEVEL, len(array) - 1, mean, stats.sem(array))
    else:
        generator = np.random.default_rng(0)  # one result for one table
        low, high = stats.bootstrap(
            (array,), np.mean, confidence_level=LEVEL, method='BCa', rng=generator
        ).confidence_interval
    return Summary(len(array), mean, deviation, float(low), float(high))


def compare(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """The differences values - baseline, which are of the same seeds in the same order."""
    differences = np.asarray(values, float) - np.asarray(baseline, float)
    p = sign_flip(differences)
    return Difference(summarize(differences), p, p)


def sign_flip(differences: Sequence[float]) -> float:
    """The two-sided p of a mean as far from zero, were the sign of each difference an even chance (Fisher 1935, 21)."""
    from scipy import stats

    array = np.asarray(differences, float)
    if len(array) < 2:
        return 1.0 if len(array) else np.nan
    # Rounded, since sums of the same numbers in other signs differ in their last bits, and equal ones must count.
    scaled = np.round(array / (np.abs(array).max() or 1), 12)
    test = stats.permutation_test(
        (scaled,),
        lambda x, axis: np.round(np.abs(x.sum(axis=axis)), 9),
        permutation_type='samples',
        n_resamples=MOST_FLIPS,
        alternative='greater',
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def bearing(interval: Summary, effect: float) -> str:
    """Whether a difference is as large as one that would matter, by its interval: larger, smaller, or open.

    `larger` where the whole interval lies beyond +effect or beyond -effect, `smaller` where it lies between them.
    """
    if interval.low >= effect or interval.high <= -effect:
        return 'larger'
    return 'smaller' if -effect < interval.low and interval.high < effect else 'open'


def holm(p: Sequence[float]) -> list[float]:
    """The p of several tests, so adjusted that one in twenty such families has any false one below .05 (Holm 1979)."""
    array = np.asarray(p, float)
    order = np.argsort(array, kind='stable')
    raised = np.maximum.accumulate(array[order] * np.arange(len(array), 0, -1))
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(raised, 1)
    return adjusted.tolist()


def seeds_needed(comparisons: int, level: float = 1 - LEVEL) -> int:
    """The fewest seeds with which one of so many sign-flip tests can fall below `level` after Holm's correction.

    The smallest p of n values is 2 / 2**n: 6 seeds for one comparison, 7 for three, 8 for six, 9 for twelve.
    """
    seeds = 1
    while max(comparisons, 1) * 2.0 ** (1 - seeds) >= level:
        seeds += 1
    return seeds

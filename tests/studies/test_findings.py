import dataclasses
import math
import re

import pytest
from made_study import FAILING, made_study, small_results

from cnn.studies.findings import answer, find, listed, number, p_text, places, signed
from cnn.studies.results import collect
from cnn.studies.statistics import Summary, holm, sign_flip

EIGHT = [0.90, 0.91, 0.89, 0.92, 0.90, 0.91, 0.90, 0.88]
NOISE = [0.001, -0.002, 0.002, -0.001, 0.0015, 0.0005, -0.0005, 0.0]


def up(by, seeds=8):
    return [value + by + noise for value, noise in zip(EIGHT, NOISE, strict=True)][:seeds]


def found(results):
    return {finding.arm: finding for finding in find(results)}


def test_differences_pair_the_seeds_that_both_have(tmp_path):
    results = small_results(tmp_path, {'a': [0.1, None, 0.3, 0.4], 'b': [None, 0.9, 0.5, 0.5]})
    finding = found(results)['b']
    assert finding.difference.summary.count == 2
    assert finding.difference.summary.mean == pytest.approx((0.2 + 0.1) / 2)
    assert (finding.summary.count, finding.planned, [o.seed for o in finding.missing]) == (3, 4, [0])


def test_further_metrics_are_summarized_by_themselves_and_costs_are_medians(tmp_path):
    results = small_results(tmp_path, {'a': [0.1, 0.3, 0.2]}, also=('loss',))
    values = {0: 1.0, 1: 3.0, 2: math.inf}
    outcomes = [
        dataclasses.replace(
            outcome, metrics={**outcome.metrics, 'loss': values[outcome.seed]}, seconds=2.0**outcome.seed
        )
        for outcome in results.outcomes
    ]
    [finding] = find(dataclasses.replace(results, outcomes=tuple(outcomes)))
    assert (finding.also['loss'].mean, finding.also['loss'].count, finding.summary.count) == (2.0, 2, 3)
    assert finding.seconds == 2.0


def test_p_is_corrected_for_all_comparisons_of_the_study_those_that_lack_runs_too(tmp_path):
    values = {'a': EIGHT, 'b': up(0.03), 'c': up(0.0), 'd': [None] * 8, 'e': up(0.02)}
    findings = found(small_results(tmp_path, values))
    raw = [sign_flip([x - y for x, y in zip(values[arm], EIGHT, strict=True)]) for arm in 'bce']
    assert [findings[arm].difference.p for arm in 'bce'] == pytest.approx(raw)
    assert [findings[arm].difference.adjusted for arm in 'bce'] == pytest.approx(holm([*raw, 1.0])[:3])
    assert findings['b'].difference.adjusted == pytest.approx(4 * 2 / 2**8)
    assert findings['d'].difference is None
    assert findings['d'].verdict == 'can not be compared: no seed that both have'
    assert findings['a'].verdict == ''


@pytest.mark.parametrize(('direction', 'words'), [('max', ['better', 'worse']), ('min', ['worse', 'better'])])
def test_what_is_better_depends_on_the_metric(tmp_path, direction, words):
    results = small_results(tmp_path, {'a': EIGHT, 'b': up(0.03), 'c': up(-0.03)}, direction=direction)
    findings = found(results)
    assert [findings[arm].word for arm in 'bc'] == words
    assert findings['b'].difference.summary.mean > 0
    assert [round(findings[arm].gain, 2) for arm in 'bc'] == ([0.03, -0.03] if direction == 'max' else [-0.03, 0.03])


def test_the_verdict_says_how_the_difference_stands_beside_the_one_that_would_matter(tmp_path):
    values = {'a': EIGHT, 'b': up(0.03), 'c': up(-0.03), 'd': up(0.005), 'e': up(0.0), 'f': up(0.0101)}
    findings = found(small_results(tmp_path, values, effect=0.01))
    assert [findings[arm].verdict for arm in 'bcdef'] == [
        'better; larger than 0.01',
        'worse; larger than 0.01',
        'better; smaller than 0.01',
        'no difference shown; smaller than 0.01',
        "better; can't tell whether it reaches 0.01",
    ]


def test_an_interval_beyond_the_effect_that_few_seeds_can_not_confirm_is_said_to_be_that(tmp_path):
    results = small_results(tmp_path, {'a': EIGHT[:4], 'b': up(0.03, 4)}, effect=0.01)
    finding = found(results)['b']
    assert finding.verdict == 'no difference shown, though the interval lies beyond 0.01'
    assert 'p = .125, though the interval lies beyond the 0.01 that would matter)' in answer(results, [finding])


def answered(root, *arguments, **fields):
    results = small_results(root, *arguments, **fields)
    return answer(results, find(results))


def test_the_answer_of_one_comparison(tmp_path):
    text = answered(tmp_path / '1', {'plain': EIGHT, 'residual': up(0.03)}, effect=0.01)
    assert text == (
        "'residual' is better in accuracy than 'plain' by 0.0302 (0.0291 to 0.0313, p = .008, "
        'more than the 0.01 that would matter), with 8 seeds.'
    )
    text = answered(tmp_path / '2', {'plain': EIGHT, 'residual': up(-0.03)})
    assert text.startswith("'residual' is worse in accuracy than 'plain' by 0.0298 (0.0287 to 0.0309, p = .008)")
    text = answered(tmp_path / '3', {'plain': EIGHT, 'residual': up(0.0)})
    assert text.startswith(
        "No difference in accuracy between 'residual' and 'plain' can be shown with 8 seeds (+0.0002"
    )
    assert 'at least' not in text
    assert 'at least' not in answered(tmp_path / '6', {'plain': EIGHT[:6], 'residual': up(0.0, 6)})
    text = answered(tmp_path / '4', {'plain': EIGHT[:4], 'residual': up(0.03, 4)})
    assert text.startswith(
        "4 seeds are too few to show a difference in accuracy between 'residual' and 'plain' (+0.0300, "
    )
    assert text.endswith(', p = .125); one comparison needs 6 at least.')


def test_the_answer_of_several_names_the_best_first_and_those_of_which_nothing_is_shown(tmp_path):
    text = answered(tmp_path, {'a': EIGHT, 'b': up(0.02), 'c': up(0.03), 'd': up(0.0), 'e': up(-0.02)})
    assert text.startswith("Better in accuracy than 'a': 'c' by 0.0302 (")
    assert text.index("'c' by") < text.index("'b' by") < text.index("'e' is worse in accuracy than 'a' by 0.0198")
    assert text.endswith("; no difference can be shown with 8 seeds for 'd'.")


def test_the_answer_names_both_arms_where_they_are_compared_with_several(tmp_path):
    values = {'a': EIGHT, 'b': up(0.02), 'c': up(0.05)}
    text = answered(tmp_path, values, against={'c': 'b'})
    assert "'c' than 'b' by 0.0300" in text
    assert "'b' than 'a' by 0.0202" in text


def test_the_answer_says_when_so_few_seeds_can_show_nothing(tmp_path):
    values = {'a': EIGHT} | {name: up(0.03) for name in 'bcdefgh'}
    text = answered(tmp_path, values, effect=0.05)
    assert text == (
        '8 seeds are too few to show a difference in accuracy in any of 7 comparisons (95 % intervals: 7 within the '
        '0.05 that would matter); 7 comparisons need 9 at least.'
    )
    noise = {'a': EIGHT, 'b': up(0.0), 'c': EIGHT[::-1], 'd': [0.5, *EIGHT[1:]]}
    assert answered(tmp_path / 'x', noise, effect=0.01) == (
        'No difference in accuracy in any of 3 comparisons can be shown with 8 seeds (95 % intervals: 1 within, '
        '2 across the 0.01 that would matter).'
    )


def test_the_answer_begins_with_what_is_missing(tmp_path):
    study, runs, costs = made_study(tmp_path, seeds=9)
    results = collect(study, runs, 'max', costs)
    text = answer(results, find(results))
    head = "Incomplete, 10 of 72 runs are missing (seed 3 of 'plain 20' and all 9 seeds of 'plain 110'): better"
    assert text.startswith(head)
    assert text.endswith(f'; {FAILING!r} can not be compared.')
    text = answered(tmp_path / 'x', {'plain': EIGHT, 'residual': [None, *up(0.03)[1:]]})
    assert text.startswith("Incomplete, 1 of 16 runs is missing (seed 0 of 'residual'): 'residual' is better")
    assert '7 seeds' in text


def test_the_answer_where_there_is_nothing_to_compare(tmp_path):
    assert answered(tmp_path / '1', {'a': [None], 'b': [None]}) == 'No run is done, so there is nothing to say.'
    text = answered(tmp_path / '2', {'a': EIGHT})
    assert re.fullmatch(r"'a' has accuracy 0\.901 \(95 % .*, 8 seeds\); there is nothing to compare it with\.", text)
    text = answered(tmp_path / '3', {'a': [0.5, None], 'b': [None, 0.5]})
    assert ': no arm has a seed in common with the one that it is compared with, so nothing can be compared.' in text
    assert 'p = 1); one comparison needs' in answered(tmp_path / '4', {'a': [0.5], 'b': [0.6]})


def test_figures_have_two_digits_of_their_interval():
    assert places([Summary(8, 0.95, 0.01, 0.9417, 0.9583)]) == 4
    assert places([Summary(8, 95.0, 10.0, 87.0, 103.0)]) == 1
    assert places([Summary(8, 9500.0, 10.0, 9300.0, 9700.0)]) == 0
    assert places([Summary(1, 0.5, math.nan, math.nan, math.nan)]) == 4
    assert places([]) == 3


def test_numbers_in_words():
    assert [number(-0.0312, 3), number(-0.0001, 3), number(math.nan, 3)] == ['\u22120.031', '0.000', '\u2013']
    assert [signed(0.0312, 3), signed(-0.5, 1), signed(0.0001, 2)] == ['+0.031', '\u22120.5', '0.00']
    assert [p_text(0.0078125), p_text(0.0004), p_text(1.0), p_text(0.9996)] == ['.008', '< .001', '1', '1']
    assert [p_text(0.0078, 'p'), p_text(0.0004, 'p')] == ['p = .008', 'p < .001']
    assert [listed(['a']), listed('abc'), listed('ab', 'seed'), listed('abcd', most=2)] == [
        'a', 'a, b and c', 'seeds a and b', 'a, b and 2 more',
    ]  # fmt: skip

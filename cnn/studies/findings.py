"""What the results of a study show: a summary of each arm, its difference from another, and the answer in one sentence.

Differences are of pairs of runs with one seed. Their p is Holm's over all comparisons of the study, of those too that
could not be made since runs are missing. Intervals hold for each comparison by itself.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cnn.studies.results import Cost, Outcome, Results
from cnn.studies.statistics import LEVEL, Difference, Summary, bearing, compare, holm, seeds_needed, summarize

BETTER, WORSE, UNSHOWN = 'better', 'worse', 'no difference shown'
NAMED = 6  # arms that the answer names of a kind, before it counts the others


@dataclasses.dataclass(frozen=True)
class Finding:
    """Of one arm."""

    arm: str
    summary: Summary
    missing: tuple[Outcome, ...]  # the runs without a value
    planned: int  # seeds
    against: str | None  # the arm that it is compared with
    difference: Difference | None  # None where it is compared with nothing, or has no seed in common with it
    sign: int  # times this, more is better
    effect: float | None  # that would matter
    seconds: float  # device seconds of a run, the median; NaN where no run is done, as in the next two
    examples_per_second: float  # of a device, the median
    peak_memory: float  # bytes, the largest
    cost: Cost | None
    also: Mapping[str, Summary] = dataclasses.field(default_factory=dict)  # of the study's further metrics

    @property
    def shown(self) -> bool:
        """Whether the difference is one that chance does not explain."""
        return self.difference is not None and self.difference.adjusted < 1 - LEVEL

    @property
    def gain(self) -> float:
        """The difference, above zero where it is for the better; NaN where there is none."""
        return self.sign * self.difference.summary.mean if self.difference else math.nan

    @property
    def word(self) -> str:
        """Better, worse or no difference shown; empty where there is nothing to compare."""
        if not self.difference:
            return ''
        return (BETTER if self.gain > 0 else WORSE) if self.shown else UNSHOWN

    @property
    def bearing(self) -> str | None:
        """The difference beside the effect that would matter: larger, smaller, open; None where none was named."""
        return bearing(self.difference.summary, self.effect) if self.difference and self.effect else None

    @property
    def verdict(self) -> str:
        """The word and the bearing."""
        if self.against and not self.difference:
            return 'can not be compared: no seed that both have'
        how = {'larger': '; larger than', 'smaller': '; smaller than', 'open': "; can't tell whether it reaches"}
        if not self.shown:
            how['larger'] = ', though the interval lies beyond'
        return self.word + (f'{how[self.bearing]} {self.effect:g}' if self.bearing else '')


def find(results: Results) -> list[Finding]:
    """A finding for each arm, in their order."""
    study, values = results.study, {arm.name: results.values(arm.name) for arm in results.study.arms}
    differences: dict[str, Difference] = {}
    for arm in study.arms:
        other = study.compared_with(arm)
        common = sorted(values[arm.name].keys() & values[other].keys()) if other else []
        if common and other:
            mine, theirs = ([values[name][seed] for seed in common] for name in (arm.name, other))
            differences[arm.name] = compare(mine, theirs)
    family = [difference.p for difference in differences.values()]
    adjusted = holm(family + [1.0] * (study.comparisons - len(family)))
    for name, p in zip(list(differences), adjusted, strict=False):
        differences[name] = dataclasses.replace(differences[name], adjusted=p)
    findings = []
    for arm in study.arms:
        done = [outcome for outcome in results.of(arm.name) if results.value(outcome) is not None]
        memory = [outcome.peak_memory for outcome in done if outcome.peak_memory is not None]
        findings.append(
            Finding(
                arm.name,
                summarize(list(values[arm.name].values())),
                tuple(results.missing(arm.name)),
                len(results.of(arm.name)),
                study.compared_with(arm),
                differences.get(arm.name),
                results.sign,
                study.effect,
                seconds=_median(outcome.seconds for outcome in done),
                examples_per_second=_median(outcome.examples_per_second for outcome in done),
                peak_memory=max(memory, default=math.nan),
                cost=results.costs.get(arm.name),
                also={name: summarize(list(results.values(arm.name, name).values())) for name in study.also},
            )
        )
    return findings


def _median(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else math.nan


def answer(results: Results, findings: Sequence[Finding]) -> str:
    """One sentence: what is missing, what is better or worse, and what can't be told."""
    text = _absent(findings) + _shown(results, findings)
    return text[0].upper() + text[1:]


def absences(findings: Iterable[Finding]) -> list[str]:
    """By arm, the seeds without a value: all 8 seeds of 'plain 20', seed 3 of 'residual 14'."""
    texts = []
    for finding in findings:
        seeds = [outcome.seed for outcome in finding.missing]
        if seeds:
            which = f'all {len(seeds)} seeds' if len(seeds) == finding.planned > 1 else listed(map(str, seeds), 'seed')
            texts.append(f'{which} of {finding.arm!r}')
    return texts


def listed(items: Iterable[str], noun: str = '', most: int | None = None) -> str:
    """a, b and c; after `noun`, in the plural for several; beyond `most` they are counted."""
    items = list(items)
    count = len(items)
    if most is not None and count > most:
        items = [*items[:most], f'{count - most} more']
    head = ', '.join(items[:-1])
    text = f'{head} and {items[-1]}' if head else items[-1]
    return f'{noun}{"s" * (count > 1)} {text}' if noun else text


def _absent(findings: Sequence[Finding]) -> str:
    missing, planned = sum(len(finding.missing) for finding in findings), sum(finding.planned for finding in findings)
    if not missing or missing == planned:
        return ''
    verb = 'is' if missing == 1 else 'are'
    return f'incomplete, {missing} of {planned} runs {verb} missing ({listed(absences(findings), most=NAMED)}): '


def _shown(results: Results, findings: Sequence[Finding]) -> str:
    study, metric = results.study, spoken(results.study.metric)
    compared = [finding for finding in findings if finding.difference]
    if not any(finding.summary.count for finding in findings):
        return 'no run is done, so there is nothing to say.'
    if not study.comparisons:
        return f'{_alone(findings[0], metric)}; there is nothing to compare it with.'
    if not compared:
        return 'no arm has a seed in common with the one that it is compared with, so nothing can be compared.'
    shown = sorted((finding for finding in compared if finding.shown), key=lambda finding: -abs(finding.gain))
    seeds = _seeds(compared)
    if not shown:
        return _nothing(study.comparisons, compared, seeds, metric)
    clauses = [
        _group(word, [finding for finding in shown if finding.word == word], metric)
        for word in (BETTER, WORSE)
        if any(finding.word == word for finding in shown)
    ]
    others = [finding for finding in compared if not finding.shown]
    if others:
        names = listed((repr(finding.arm) for finding in others), most=NAMED)
        clauses.append(f'no difference can be shown with {_seeds(others)} for {names}')
    apart = [repr(finding.arm) for finding in findings if finding.against and not finding.difference]
    clauses += [f'{listed(apart, most=NAMED)} can not be compared'] if apart else []
    return '; '.join(clauses) + (f', with {seeds}' if not others else '') + '.'


def _alone(finding: Finding, metric: str) -> str:
    decimals = places([finding.summary])
    mean, low, high = (number(x, decimals) for x in (finding.summary.mean, finding.summary.low, finding.summary.high))
    interval = f'95 % interval {low} to {high}, ' if finding.summary.count > 1 else ''
    return f'{finding.arm!r} has {metric} {mean} ({interval}{_count(finding.summary.count)})'


def _group(word: str, findings: Sequence[Finding], metric: str) -> str:
    """Those of one word: better in accuracy than 'plain': 'residual' by 0.031 (0.020 to 0.042, p = .008) and ..."""
    decimals = places([finding.difference.summary for finding in findings if finding.difference])
    against = dict.fromkeys(finding.against for finding in findings)
    than = f' than {findings[0].against!r}' if len(against) == 1 else ''
    if len(findings) == 1:
        return f'{findings[0].arm!r} is {word} in {metric}{than} by {_size(findings[0], decimals)}'
    items = [
        f'{finding.arm!r}{"" if than else f" than {finding.against!r}"} by {_size(finding, decimals)}'
        for finding in findings
    ]
    return f'{word} in {metric}{than}: {listed(items, most=NAMED)}'


def _size(finding: Finding, decimals: int) -> str:
    """How large a difference is, whichever its sign, with its interval."""
    assert finding.difference is not None
    summary = finding.difference.summary
    ends = [summary.low, summary.high] if summary.mean > 0 else [-summary.high, -summary.low]
    low, high = (number(end, decimals) for end in ends)
    p = p_text(finding.difference.adjusted, 'p')
    return f'{number(abs(summary.mean), decimals)} ({low} to {high}, {p}{_matter(finding)})'


def _nothing(comparisons: int, compared: Sequence[Finding], seeds: str, metric: str) -> str:
    fewest = seeds_needed(comparisons)
    few = max(finding.difference.summary.count for finding in compared if finding.difference) < fewest
    if len(compared) == 1:
        where = f'between {compared[0].arm!r} and {compared[0].against!r}'
    else:
        where = f'in any of {len(compared)} comparisons'
    if not few:
        return f'no difference in {metric} {where} can be shown with {seeds}{_bearings(compared)}.'
    family = f'{comparisons} comparisons need' if comparisons > 1 else 'one comparison needs'
    are = 'is' if seeds == _count(1) else 'are'
    head = f'{seeds} {are} too few to show a difference in {metric} {where}{_bearings(compared)}'
    return f'{head}; {family} {fewest} at least.'


def _bearings(compared: Sequence[Finding]) -> str:
    """Of differences that are not shown: the one with its figures, several by how they stand beside the effect."""
    if len(compared) == 1 and compared[0].difference:
        summary = compared[0].difference.summary
        decimals = places([summary])
        interval = f', 95 % interval {number(summary.low, decimals)} to {number(summary.high, decimals)}'
        figures = f'{signed(summary.mean, decimals)}{interval if summary.count > 1 else ""}'
        return f' ({figures}, {p_text(compared[0].difference.adjusted, "p")}{_matter(compared[0])})'
    counts = Counter(finding.bearing for finding in compared if finding.bearing)
    words = {'smaller': 'within', 'larger': 'beyond', 'open': 'across'}
    parts = [f'{counts[kind]} {word}' for kind, word in words.items() if counts[kind]]
    return f' (95 % intervals: {", ".join(parts)} the {compared[0].effect:g} that would matter)' if parts else ''


def _matter(finding: Finding) -> str:
    words = {
        'larger': 'more than {} that would matter'
        if finding.shown
        else 'though the interval lies beyond {} that would matter',
        'smaller': 'less than {} that would matter',
        'open': 'which may or may not reach {} that would matter',
    }
    return ', ' + words[finding.bearing].format(f'the {finding.effect:g}') if finding.bearing else ''


def _seeds(findings: Sequence[Finding]) -> str:
    counts = sorted({finding.difference.summary.count for finding in findings if finding.difference})
    return _count(counts[0]) if len(counts) == 1 else f'{counts[0]} to {counts[-1]} seeds'


def _count(seeds: int) -> str:
    return f'{seeds} seed{"s" * (seeds != 1)}'


def spoken(name: str) -> str:
    """A metric's name in a sentence."""
    return name.replace('_', ' ')


def places(summaries: Iterable[Summary]) -> int:
    """How many decimals show two digits of the usual half-width of an interval; of one value, four digits of it."""
    summaries = list(summaries)
    widths = [(summary.high - summary.low) / 2 for summary in summaries if summary.high > summary.low]
    sizes = [abs(summary.mean) for summary in summaries if math.isfinite(summary.mean) and summary.mean]
    scale = float(np.median(widths)) if widths else max(sizes, default=1.0) / 100
    return min(max(1 - math.floor(math.log10(scale)), 0), 8)


def number(value: float, decimals: int) -> str:
    """With that many decimals and a proper minus; a dash for what is not there."""
    if not math.isfinite(value):
        return '–'  # noqa: RUF001
    text = f'{value:.{decimals}f}'
    return text.replace('-', '' if float(text) == 0 else '\u2212')


def signed(value: float, decimals: int) -> str:
    """The same with a plus before what is above zero."""
    text = number(value, decimals)
    return f'+{text}' if value > 0 and float(text) > 0 else text


def p_text(p: float, name: str = '') -> str:
    """A p as tables have it: .016, < .001; with its name p = .016, p < .001."""
    if not math.isfinite(p):
        return '–'  # noqa: RUF001
    text = '< .001' if p < 0.001 else '1' if p >= 0.9995 else f'{p:.3f}'.lstrip('0')
    return text if not name else f'{name} {text}' if text.startswith('<') else f'{name} = {text}'

import pytest

from cnn.errors import InputError
from cnn.studies import Arm, Study


def study(*arms, baseline='a', **fields):
    return Study('Does it help?', 'experiments/digits.py', iter(arms), baseline, **fields)


def test_arms_are_compared_with_the_baseline_or_with_the_arm_that_they_name():
    whole = study(Arm('a'), Arm('b'), Arm('c', {'seed': 1}, against='b'), Arm('d', against='d'))
    assert isinstance(whole.arms, tuple)
    assert [whole.compared_with(arm) for arm in whole.arms] == [None, 'a', 'b', None]
    assert whole.comparisons == 2
    assert whole.arm('c').overrides == {'seed': 1}


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: study(Arm('a'), Arm('b'), Arm('b')), "arm 'b' is there 2 times; give each its own name"),
        (lambda: study(Arm('a'), Arm(' ')), 'an arm has no name'),
        (lambda: study(Arm('apple'), baseline='aple'), "unknown arm 'aple'; did you mean 'apple'?"),
        (lambda: study(Arm('a'), Arm('blue', against='blu')), "unknown arm 'blu'; did you mean 'blue'?"),
        (lambda: study(Arm('a'), seeds=0), 'seeds=0: a study needs one at least'),
        (lambda: study(), "unknown arm 'a'; there are: none"),
    ],
)
def test_arms_that_can_not_be_told_apart_or_compared_are_refused(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message

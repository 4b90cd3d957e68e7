import itertools
import threading
import time

import pytest

from cnn.data.ahead import Ahead
from cnn.errors import RunFailed


def test_items_are_made_ahead_and_not_for_ever():
    made = []
    ahead = Ahead((made.append(index) or index for index in itertools.count()), depth=2)
    deadline = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ahead.ready
    assert [next(ahead), next(ahead)] == [0, 1]
    ahead.close()
    assert len(made) <= 6
    with pytest.raises(StopIteration):
        next(ahead)


def test_errors_come_after_the_items_before_them_and_threads_end():
    def failing():
        yield 1
        raise RunFailed('no more')

    before = threading.active_count()
    ahead = Ahead(failing())
    assert next(ahead) == 1
    with pytest.raises(RunFailed, match='no more'):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)
    assert list(Ahead(iter(range(7)))) == list(range(7))
    left = Ahead(itertools.count())
    next(left)
    del left
    del ahead
    assert threading.active_count() == before

"""What a process is asked for while it trains: to stop, to trace its steps."""

import contextlib
import pathlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax


def trace(profile: range | None, step: int, folder: pathlib.Path) -> None:
    """Starts and stops the profiler at the ends of a range of steps."""
    if profile and step == profile.start:
        jax.profiler.start_trace(folder / 'profile')
    elif profile and step == profile.stop:
        jax.profiler.stop_trace()


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[], bool]]:
    """A function that tells whether SIGTERM came, while inside; runs that go side by side all hear it."""
    heard = list(next(iter(_listeners.values()), ()))  # one that starts late hears what came before
    if not _listeners:
        _before.append(signal.signal(signal.SIGTERM, _tell))
    _listeners[id(heard)] = heard
    try:
        yield lambda: bool(heard)
    finally:
        del _listeners[id(heard)]
        if not _listeners:
            signal.signal(signal.SIGTERM, _before.pop())


def stop() -> None:
    """As if SIGTERM had come."""
    _tell(signal.SIGTERM, None)


_listeners: dict[int, list[int]] = {}
_before: list[Any] = []  # the handler that stood there, while anybody listens


def _tell(number: int, _: Any) -> None:
    for heard in list(_listeners.values()):
        heard.append(number)

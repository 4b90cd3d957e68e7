"""An iterator whose next items a thread makes."""

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any

AHEAD = 2  # items, such as batches on the device, before they are used


class Ahead:
    """An iterator whose next items a thread makes ahead of their use."""

    def __init__(self, items: Iterator[Any], depth: int = AHEAD):
        self._made: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=_make, args=(items, self._made, self._stop), daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the next item need not be waited for."""
        return not self._made.empty()

    def __iter__(self) -> 'Ahead':
        return self

    def __next__(self) -> Any:
        if self._stop.is_set():
            raise StopIteration
        item, error = self._made.get()
        if error is not None:
            self._stop.set()
            raise error
        return item

    def close(self) -> None:
        """Ends the thread, and what it reads from."""
        self._stop.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._made.get_nowait()
        self._thread.join()

    def __del__(self) -> None:
        self.close()


def _make(items: Iterator[Any], made: 'queue.Queue[tuple[Any, BaseException | None]]', stop: threading.Event) -> None:
    """Puts the items, and at last the error that ended them. It knows no Ahead, which is closed when it is let go."""
    error: BaseException = StopIteration()
    try:
        for item in items:
            made.put((item, None))
            if stop.is_set():
                break
    except Exception as raised:
        error = raised
    finally:
        getattr(items, 'close', lambda: None)()
    if not stop.is_set():
        made.put((None, error))

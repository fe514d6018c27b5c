"""Who may be at an encoder at a time, and how long somebody was."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock, Semaphore


class Places:
    """So many threads at a time, or one that has all places to itself."""

    def __init__(self, number: int) -> None:
        self._number, self._free, self._taking_all = number, Semaphore(number), Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Take a place, once there is one."""
        with self._free:
            yield

    @contextmanager
    def all(self) -> Iterator[None]:
        """Take all places, once nobody else has any."""
        with self._taking_all, ExitStack() as taken:
            for _ in range(self._number):
                taken.enter_context(self._free)
            yield


class BusyClock:
    """Seconds of stretches that may overlap: what two threads spend side by side counts once."""

    def __init__(self) -> None:
        self._counted_to, self._lock = 0.0, Lock()

    def count(self, started: float) -> float:
        """Give the seconds from `started`, by time.perf_counter, until now that were not counted yet."""
        with self._lock:
            now = time.perf_counter()
            seconds = now - max(started, self._counted_to)
            self._counted_to = now
        return seconds

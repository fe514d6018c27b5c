"""Threads that share an encoder: shared and exclusive access, and the busy time of overlapping intervals."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedder.pipeline.actors import BusyClock, Concurrency


def test_shared_access_is_bounded_and_exclusive_access_is_alone() -> None:
    concurrency, inside, seen, lock = Concurrency(2), [0], {False: set(), True: set()}, threading.Lock()

    def visit(alone: bool) -> None:
        with concurrency.exclusive() if alone else concurrency.shared():
            with lock:
                inside[0] += 1
            time.sleep(0.002)
            with lock:
                seen[alone].add(inside[0])
                inside[0] -= 1

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(visit, [number % 12 == 0 for number in range(60)]))
    assert seen == {False: {1, 2}, True: {1}}


def test_access_is_released_after_an_error() -> None:
    concurrency = Concurrency(1)
    for access in (concurrency.shared, concurrency.exclusive, concurrency.shared):
        with pytest.raises(ValueError, match="within"), access():
            raise ValueError("within")


def test_overlapping_intervals_count_once_and_pauses_not_at_all() -> None:
    clock = BusyClock()
    first = time.perf_counter()
    time.sleep(0.03)
    second = time.perf_counter()
    time.sleep(0.03)
    total = clock.count(first)
    time.sleep(0.03)
    total += clock.count(second)
    assert total == pytest.approx(time.perf_counter() - first, abs=0.005)
    time.sleep(0.05)
    assert clock.count(time.perf_counter()) < 0.01

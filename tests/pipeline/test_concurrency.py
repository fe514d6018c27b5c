"""Several units at one encoder: each has a place, one under suspicion has them all, and what they spend side by side counts once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedder.pipeline.actors import BusyClock, Concurrency


def test_so_many_have_a_place_at_a_time_and_one_that_asks_for_all_has_nobody_beside_it() -> None:
    places, inside, seen, lock = Concurrency(2), [0], {False: set(), True: set()}, threading.Lock()

    def visit(alone: bool) -> None:
        with places.all() if alone else places.one():
            with lock:
                inside[0] += 1
            time.sleep(0.002)
            with lock:
                seen[alone].add(inside[0])
                inside[0] -= 1

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(visit, [number % 12 == 0 for number in range(60)]))
    assert seen == {False: {1, 2}, True: {1}}


def test_a_place_is_free_again_after_an_error() -> None:
    places = Concurrency(1)
    for take in (places.one, places.all, places.one):
        with pytest.raises(ValueError, match="within"), take():
            raise ValueError("within")


def test_stretches_side_by_side_count_once_and_a_pause_not_at_all() -> None:
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

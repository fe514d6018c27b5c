"""A function that queues work on a device → seconds it takes there: medians by events, and sustained over seconds."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch

Run = Callable[[], object]


def time_once(run: Run, device: str, least_seconds: float = 0.1, most_calls: int = 50) -> float:
    """Return the median seconds of a call after warm-up: by events on a GPU, so that the host's time to queue does not count."""
    for _ in range(3):
        run()
    found: list[float] = []
    while len(found) < 5 or (sum(found) < least_seconds and len(found) < most_calls):
        found += _time_calls(run, device, 5)
    return statistics.median(found)


def _time_calls(run: Run, device: str, count: int) -> list[float]:
    if torch.device(device).type == "cpu":
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        return seconds
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [first.elapsed_time(second) / 1000 for first, second in pairwise(events)]


def time_sustained(run: Run, device: str, seconds: float) -> float:
    """Return the mean seconds of a call over at least so many seconds of work without a pause: clocks fall under load."""
    each = time_once(run, device)
    count = max(3, int(seconds / each))
    started = time.perf_counter()
    for number in range(count):
        run()
        if number % 64 == 63:
            synchronize(device)  # a queue of thousands of calls takes memory
    synchronize(device)
    return (time.perf_counter() - started) / count


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()

"""Contenders → rates and ratios that a machine which slows down does not change: run in turn, compared within a round."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """One contender: its median rate, and the median of its ratios to the reference of the same round."""

    name: str
    tokens_per_second: float
    ratio: float
    seconds: tuple[float, ...] = ()
    """By round, for other ratios."""

    def ratio_to(self, other: "Timing") -> float:
        """Give the median over rounds of how many times faster it was."""
        return statistics.median(theirs / mine for theirs, mine in zip(other.seconds, self.seconds, strict=True))


def compare(contenders: Mapping[str, Run], num_tokens: int, rounds: int) -> list[Timing]:
    """Time every contender once a round, after one round of warm-up; the first is the reference."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    reference = seconds[next(iter(contenders))]
    return [
        Timing(
            name,
            num_tokens / statistics.median(taken),
            statistics.median(theirs / mine for theirs, mine in zip(reference, taken, strict=True)),
            tuple(taken),
        )
        for name, taken in seconds.items()
    ]

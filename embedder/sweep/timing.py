"""Contenders → rates and ratios that a machine which slows down does not change: run in turn, compared within a round."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from embedder.core.errors import EmbedderError

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


def run_module(module: str, *args: str) -> str:
    """Run a module as a process of its own; gives what it printed."""
    done = subprocess.run([sys.executable, "-m", module, *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmbedderError(f"{module} ended with exit code {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout

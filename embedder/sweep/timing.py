"""Alternating runs → rates and ratios that hold on a machine whose speed drifts: runs are compared within a round."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from embedder.core.errors import EmbedderError

Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """One contender: its median rate, and its median ratio to the reference of the same round."""

    name: str
    tokens_per_second: float
    ratio: float
    seconds: tuple[float, ...] = ()
    """By round."""

    def ratio_to(self, other: "Timing") -> float:
        """Return the median over rounds of how many times faster this one was."""
        return _median_ratio(other.seconds, self.seconds)


def compare(contenders: Mapping[str, Run], num_tokens: int, rounds: int) -> list[Timing]:
    """Time every contender once a round, after one round of warm-up; the first is the reference."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    reference = next(iter(seconds.values()))
    return [
        Timing(name, num_tokens / statistics.median(taken), _median_ratio(reference, taken), tuple(taken))
        for name, taken in seconds.items()
    ]


def _median_ratio(theirs: Sequence[float], mine: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, mine, strict=True))


def run_module(module: str, *args: str, **environment: str) -> str:
    """Run a module in its own process, with more environment variables, and return its stdout."""
    command = [sys.executable, "-m", module, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    if done.returncode:
        raise EmbedderError(f"{module} ended with exit code {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout

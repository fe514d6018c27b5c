"""Rows of a corpus → the fastest backend and token budget of a GPU, measured on a sample of them for a few seconds, once a process."""

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import numpy as np
import pyarrow as pa

from embedder.model.loading import BackendName
from embedder.model.results import Encoded

BUDGETS = (65_536, 32_768, 16_384, 8_192)
"""On one H200, BERT-large runs as fast with 8,192 to 65,536 tokens within 5%; 4,096 halves the rate."""
SAMPLE_TOKENS = 131_072
"""Two of the largest batches: 0.2 s of BERT-large on one H200."""
ROUNDS = 3
MOST_SECONDS = 5.0
CLEARLY_SLOWER = 1.3
"""A candidate that takes so many times as long as the best one in a round is not measured again."""

logger = logging.getLogger("embedder")


class Switchable(Protocol):
    """An encoder whose layers run by any of its backends."""

    backends: tuple[BackendName, ...]
    """Those that agree with torch on the probe; torch is the first."""

    def use_backend(self, name: BackendName) -> None:
        """Run the layers by this backend from now on."""

    def encode(self, token_ids: pa.ListArray, token_budget: int) -> Encoded:
        """Return vectors."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend and a token budget."""

    backend: BackendName
    token_budget: int


_chosen: dict[tuple[object, ...], Candidate] = {}
_lock = Lock()


def choose_fastest(encoder: Switchable, token_ids: pa.ListArray, budgets: Sequence[int], key: tuple[object, ...]) -> Candidate | None:
    """Measure every backend and budget on a sample of the rows, switch the encoder to the fastest, and return it.

    The key names the model and the settings: a process, which has one card, measures each key once. None: too few tokens to measure by.
    """
    with _lock:  # threads that share the encoder wait, and do not disturb the measurement
        if key not in _chosen:
            if len(token_ids.flatten()) < 2 * min(budgets):
                return None
            _chosen[key] = _measure(encoder, draw_sample(token_ids), budgets)
        encoder.use_backend(_chosen[key].backend)
        return _chosen[key]


def list_budgets(most: int) -> tuple[int, ...]:
    """Return the largest token budget that fits and the smaller ones worth a measurement, in descending order."""
    return (most, *(budget for budget in BUDGETS if budget < most))


def draw_sample(token_ids: pa.ListArray) -> pa.ListArray:
    """Return rows at even distances, so that their lengths are distributed as in the whole, of about `SAMPLE_TOKENS` tokens."""
    step = max(1.0, len(token_ids.flatten()) / SAMPLE_TOKENS)
    return token_ids.take(pa.array(np.arange(0, len(token_ids), step).astype(np.int64)))


def _measure(encoder: Switchable, sample: pa.ListArray, budgets: Sequence[int]) -> Candidate:
    candidates = [Candidate(backend, budget) for backend in encoder.backends for budget in budgets]
    seconds: dict[Candidate, list[float]] = {}
    started = time.perf_counter()
    for candidate in candidates:  # warm-up: the first call builds kernels
        encoder.use_backend(candidate.backend)
        if encoder.encode(sample, candidate.token_budget).token_budget == candidate.token_budget:
            seconds[candidate] = []
    if not seconds:
        return Candidate("torch", min(budgets))
    for number in range(ROUNDS):
        best = min(map(statistics.median, seconds.values())) if number else float("inf")
        for candidate, found in seconds.items():
            if not number or statistics.median(found) < CLEARLY_SLOWER * best:
                found.append(_time_call(encoder, sample, candidate))
        if time.perf_counter() - started > MOST_SECONDS:
            break
    fastest = min(seconds, key=lambda candidate: statistics.median(seconds[candidate]))
    _report(fastest, {candidate: len(sample.flatten()) / statistics.median(found) for candidate, found in seconds.items()})
    return fastest


def _time_call(encoder: Switchable, sample: pa.ListArray, candidate: Candidate) -> float:
    encoder.use_backend(candidate.backend)
    started = time.perf_counter()
    encoder.encode(sample, candidate.token_budget)
    return time.perf_counter() - started


def _report(fastest: Candidate, rates: dict[Candidate, float]) -> None:
    measured = ", ".join(
        f"{each.backend} {each.token_budget}: {rate:,.0f}" for each, rate in sorted(rates.items(), key=lambda item: -item[1])
    )
    ratio = rates[fastest] / max((rate for each, rate in rates.items() if each.backend == "torch"), default=rates[fastest])
    logger.info(
        "compute.backend=auto: %s with a token budget of %d, %.2f x as fast as torch; tokens/s measured: %s",
        fastest.backend,
        fastest.token_budget,
        ratio,
        measured,
    )

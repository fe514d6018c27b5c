"""What a depth costs on this machine: tokens a second of encoders really cut there, and what that makes of the whole corpus."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from embedder.core.spec import Exit
from embedder.model.encoder import Encoder
from embedder.sweep.timing import Run, compare


class ExitVariant(NamedTuple):
    """What decides how fast an encoder of a model is."""

    depth: int
    exit: Exit
    float8: bool = False


ROUNDS = 3
LEAST_SECONDS = 1.0
"""A full-depth pass over the timed chunks takes at least as long, where the sample has enough of them."""
FIRST_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class Corpus:
    """How much there is to embed; estimated from the sample where it was not counted."""

    documents: int
    chunks: int
    tokens: int
    is_estimate: bool


@dataclass(frozen=True, slots=True)
class Speed:
    """One depth on this machine."""

    tokens_per_second: float
    speedup: float
    """Beside the full depth, in the same rounds."""
    model_bytes: int
    """Of weights held."""
    is_emulated: bool = False
    """Whether it is of float8 on a CPU, and says nothing of a device that has it."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What the user pays; None: not said, and then not counted."""

    device_hour_usd: float | None
    index_gb_month_usd: float | None
    index_months: float


@dataclass(frozen=True, slots=True)
class Cost:
    """One setting over the whole corpus."""

    seconds: float
    """Of one device, or of the API."""
    embed_usd: float | None
    index_bytes: float
    index_usd: float | None
    model_bytes: int | None
    tokens_per_second: float
    speedup: float | None
    is_emulated: bool = False
    """Whether seconds, speed and price are of float8 on a CPU, and say nothing of a device that has it."""

    @property
    def usd(self) -> float | None:
        """What is known of it in money: None where embedding has no price."""
        return None if self.embed_usd is None else self.embed_usd + (self.index_usd or 0.0)


def measure_speeds(encoders: Mapping[ExitVariant, Encoder], token_ids: pa.ListArray, token_budget: int) -> dict[ExitVariant, Speed]:
    """Time encoders, the first the reference, in alternation on random chunks of the sample, after a warm-up."""
    timed = choose_timed(next(iter(encoders.values())), token_ids, token_budget)
    contenders: dict[str, Run] = {str(leaving): partial(each.encode, timed, token_budget) for leaving, each in encoders.items()}
    timings = compare(contenders, len(timed.flatten()), ROUNDS)
    return {
        leaving: Speed(timing.tokens_per_second, timing.ratio, encoder.weight_bytes, leaving.float8 and encoder.device_type == "cpu")
        for (leaving, encoder), timing in zip(encoders.items(), timings, strict=True)
    }


def choose_timed(encoder: Encoder, token_ids: pa.ListArray, token_budget: int) -> pa.ListArray:
    """Take random chunks, doubling until a pass is long enough to be timed or there are no more."""
    shuffled = token_ids.take(pa.array(np.random.default_rng(0).permutation(len(token_ids))))
    encoder.encode(shuffled.slice(0, FIRST_CHUNKS), token_budget)
    num_chunks = FIRST_CHUNKS
    while num_chunks < len(shuffled):
        started = time.perf_counter()
        encoder.encode(shuffled.slice(0, num_chunks), token_budget)
        if time.perf_counter() - started >= LEAST_SECONDS:
            break
        num_chunks *= 2
    return shuffled.slice(0, num_chunks)


def project(speed: Speed, corpus: Corpus, bytes_per_vector: float, prices: Prices) -> Cost:
    """Extend a measured speed to the whole corpus."""
    seconds = corpus.tokens / speed.tokens_per_second
    embed_usd = None if prices.device_hour_usd is None else seconds / 3600 * prices.device_hour_usd
    index_bytes = corpus.chunks * bytes_per_vector
    index_usd, rate = price_index(index_bytes, prices), speed.tokens_per_second
    return Cost(seconds, embed_usd, index_bytes, index_usd, speed.model_bytes, rate, speed.speedup, speed.is_emulated)


def price_index(index_bytes: float, prices: Prices) -> float | None:
    """Price keeping the vectors."""
    if prices.index_gb_month_usd is None:
        return None
    return index_bytes / 1e9 * prices.index_gb_month_usd * prices.index_months

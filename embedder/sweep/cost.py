"""Measured speed of encoders cut at each depth → time, money and bytes of the whole corpus; and how these are shown."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from embedder.core.spec import Exit
from embedder.model.encoder import Encoder
from embedder.sweep.candidates import Chunks
from embedder.sweep.timing import Run, compare

ROUNDS = 3
LEAST_SECONDS = 1.0
"""A pass over the timed chunks takes at least as long, if the sample has enough of them."""
FIRST_CHUNKS = 64


class ExitVariant(NamedTuple):
    """The settings that determine the speed of a model's encoder."""

    depth: int
    exit: Exit
    float8: bool = False


@dataclass(frozen=True, slots=True)
class Corpus:
    """Size of the corpus; estimated from the sample unless counted."""

    documents: int
    chunks: int
    tokens: int
    is_estimate: bool


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of one encoder on this machine, or of an API."""

    tokens_per_second: float
    speedup: float | None
    """Over the full depth, in the same rounds; None for an API, like the weights held."""
    model_bytes: int | None
    is_emulated: bool = False
    """Whether float8 ran on a CPU, whose speed does not predict a GPU's."""


@dataclass(frozen=True, slots=True)
class Prices:
    """The user's prices; None: not set, and not counted."""

    device_hour_usd: float | None
    index_gb_month_usd: float | None
    index_months: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one setting over the whole corpus."""

    seconds: float
    """Of one device, or of the API."""
    embed_usd: float | None
    index_bytes: float
    index_usd: float | None
    model_bytes: int | None
    tokens_per_second: float
    speedup: float | None
    chunks_per_document: float
    tokens_per_document: float
    is_emulated: bool = False
    """Whether float8 ran on a CPU; seconds, speed and price then do not predict a GPU's."""

    @property
    def usd(self) -> float | None:
        """Known cost in money; None if embedding has no price."""
        return None if self.embed_usd is None else self.embed_usd + (self.index_usd or 0.0)


def measure_speeds(
    encoders: Mapping[ExitVariant, Encoder], cut: Mapping[str, Chunks], token_budget: int
) -> dict[str, dict[ExitVariant, Speed]]:
    """Time encoders, the first being the reference, in alternation on random chunks of the sample as each chunking cuts it."""
    first = next(iter(encoders.values()))
    timed = {name: choose_timed(first, chunks, token_budget) for name, chunks in cut.items()}
    contenders: dict[str, Run] = {
        f"{name} {variant}": partial(each.encode, chunks.token_ids, token_budget, chunks.spans)
        for name, chunks in timed.items()
        for variant, each in encoders.items()
    }
    timings = iter(compare(contenders, 1, ROUNDS))  # their rates are passes a second
    speeds: dict[str, dict[ExitVariant, Speed]] = {}
    for name, chunks in timed.items():
        num_tokens, mine = len(chunks.token_ids.flatten()), [next(timings) for _ in encoders]
        speeds[name] = {
            variant: Speed(
                num_tokens * timing.tokens_per_second,
                timing.ratio_to(mine[0]),
                encoder.weight_bytes,
                variant.float8 and encoder.device_type == "cpu",
            )
            for (variant, encoder), timing in zip(encoders.items(), mine, strict=True)
        }
    return speeds


def choose_timed(encoder: Encoder, chunks: Chunks, token_budget: int) -> Chunks:
    """Return random chunks, or passes: their number is doubled until a pass is long enough to be timed, or all are taken."""
    shuffled, num_rows = np.random.default_rng(0).permutation(len(chunks.token_ids)), FIRST_CHUNKS
    timed = chunks.take(shuffled[:num_rows])
    encoder.encode(timed.token_ids, token_budget, timed.spans)
    while num_rows < len(shuffled):
        started = time.perf_counter()
        encoder.encode(timed.token_ids, token_budget, timed.spans)
        if time.perf_counter() - started >= LEAST_SECONDS:
            break
        num_rows *= 2
        timed = chunks.take(shuffled[:num_rows])
    return timed


def project(speed: Speed, corpus: Corpus, bytes_per_vector: float, prices: Prices) -> Cost:
    """Extend a measured speed to the whole corpus."""
    seconds = corpus.tokens / speed.tokens_per_second
    embed_usd = None if prices.device_hour_usd is None else seconds / 3600 * prices.device_hour_usd
    index_bytes, month_usd, rate = corpus.chunks * bytes_per_vector, prices.index_gb_month_usd, speed.tokens_per_second
    index_usd = None if month_usd is None else index_bytes / 1e9 * month_usd * prices.index_months
    per_document = corpus.chunks / corpus.documents, corpus.tokens / corpus.documents
    return Cost(seconds, embed_usd, index_bytes, index_usd, speed.model_bytes, rate, speed.speedup, *per_document, speed.is_emulated)


def show_seconds(seconds: float) -> str:
    """Return a time in seconds, minutes, hours or days."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{_short(seconds / unit)} {name}"
    return f"{_short(seconds / 86_400)} days"


def show_bytes(size: float) -> str:
    """Return a size in powers of 1,000."""
    for name in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{_short(size)} {name}"
        size /= 1000
    return f"{_short(size)} TB"


def show_usd(usd: float) -> str:
    """Return dollars, to the cent from $1 up, else to two digits."""
    if 0 < usd < 0.0001:
        return "under $0.0001"
    return f"${usd:,.2f}" if usd >= 1 or usd == 0 else f"${usd:.2g}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

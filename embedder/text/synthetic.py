"""Chunks of a sample → synthetic chunks of the same vocabulary and style: more texts to fit on than a sample has.

The full model gives every text a vector, so a map can be fitted on any. New combinations of the sample's own words help unseen documents.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ids = npt.NDArray[Any]
LEAST_TOKENS = 6
"""Tokens of the shortest passage, where a chunk has as many."""
MOST_OF_CHUNK = 0.8
"""Share of its chunk that the longest passage has."""
SWAPPED = 0.4
"""Share of the tokens of a chunk that are exchanged for others of the sample."""


def mix_chunks(token_ids: pa.ListArray, count: int, seed: tuple[int, ...]) -> pa.ListArray:
    """Return the token ids of synthetic chunks, none longer than the longest given.

    They are in turn a passage of a chunk, halves of two chunks, and a chunk with random tokens of the sample in place of some.

    What all chunks begin and end with, such as special tokens and a prompt, stays in place. One chunk, or equal ones, give none.
    """
    chunks: list[Ids] = [each.values.to_numpy() for each in token_ids]
    prefix = _common_start(chunks)
    suffix = _common_start([chunk[prefix:][::-1] for chunk in chunks])
    bodies = [body for body in (chunk[prefix : len(chunk) - suffix] for chunk in chunks) if len(body)]
    if not bodies or len(chunks) < 2:
        return token_ids.slice(0, 0)
    rng, tokens, longest = np.random.default_rng(seed), np.concatenate(bodies), max(map(len, bodies))

    def passage(body: Ids) -> Ids:
        least = min(LEAST_TOKENS, len(body))
        length = rng.integers(least, max(least, int(MOST_OF_CHUNK * len(body))) + 1)
        start = rng.integers(len(body) - length + 1)
        return body[start : start + length]

    def half(body: Ids) -> Ids:
        start = rng.integers(len(body) // 2 + 1)
        return body[start : start + (len(body) + 1) // 2]

    def join(body: Ids) -> Ids:
        return np.concatenate([half(body), half(bodies[rng.integers(len(bodies))])])[:longest]

    def swap(body: Ids) -> Ids:
        return np.where(rng.random(len(body)) < SWAPPED, tokens[rng.integers(len(tokens), size=len(body))], body)

    kinds: tuple[Callable[[Ids], Ids], ...] = (passage, join, swap)
    start, end = chunks[0][:prefix], chunks[0][len(chunks[0]) - suffix :]
    made = [np.concatenate([start, kinds[number % 3](bodies[rng.integers(len(bodies))]), end]) for number in range(count)]
    return pa.array(made, token_ids.type)


def _common_start(rows: list[Ids]) -> int:
    """Return how many values all rows begin with."""
    first = rows[0][: min(map(len, rows))]
    differs = np.flatnonzero(np.any([row[: len(first)] != first for row in rows], axis=0))
    return int(differs[0]) if len(differs) else len(first)

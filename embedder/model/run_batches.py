"""Rows of token ids → batches queued on the device, and their vectors copied to the host; half the token budget where memory runs out.

N = rows, U = distinct rows, W = components of a row. With late chunking these rows are chunks, several of which a pass computes.
"""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from embedder.core.errors import ModelError
from embedder.model.batches import Batch, BatchLayout, move
from embedder.model.late_chunking import Spans
from embedder.model.results import Encoded
from embedder.model.runtime import set_threads

logger = logging.getLogger("embedder")

Forward = Callable[[Batch], Tensor]
"""A batch → W components for each of its rows."""


@dataclass(frozen=True, slots=True)
class Queued:
    """Batches queued on a device, which may still run them."""

    rows_UW: Tensor  # noqa: N815
    """On the host, in the order of the distinct rows; complete once the copy is done."""
    distinct: "Distinct"
    num_batches: int
    padded_tokens: int
    token_budget: int
    copied: torch.cuda.Event | None

    def fetch(self) -> Encoded:
        """Wait for the device, and return the vectors. Nothing else waits."""
        if self.copied is not None:
            self.copied.synchronize()
        rows_UW, distinct = self.rows_UW.numpy(), self.distinct
        rows_NW = rows_UW if distinct.place_N is None else rows_UW[distinct.place_N]
        return Encoded(rows_NW, self.padded_tokens, self.token_budget, len(rows_NW) - len(rows_UW), distinct.copied_tokens)


@dataclass(frozen=True, slots=True)
class Distinct:
    """Rows of token ids, equal ones once."""

    values: np.ndarray
    starts_U: np.ndarray  # noqa: N815
    lengths_U: np.ndarray  # noqa: N815
    place_N: np.ndarray | None  # noqa: N815
    """Each given row's place among the distinct ones; None: all differ."""
    copied_tokens: int
    spans: Spans | None = None
    """Of late chunking: then `starts_U` and `lengths_U` are those of passes, and `place_N` is the place of each chunk."""

    @property
    def num_vectors(self) -> int:
        """Vectors to compute."""
        return len(self.lengths_U) if self.spans is None else len(self.spans.lengths_N)

    def list_vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the places of the vectors that these rows compute, in order."""
        return rows if self.spans is None else self.spans.list_chunks(rows)


def find_distinct_passes(token_ids: pa.ListArray, spans: Spans) -> Distinct:
    """Find the first of equal passes with equal spans."""
    values, offsets = token_ids.values.to_numpy(), token_ids.offsets.to_numpy()
    first: dict[tuple[bytes, ...], int] = {}
    originals = []
    for number, (start, stop) in enumerate(pairwise(offsets)):
        own = slice(spans.chunks_S[number], spans.chunks_S[number + 1])
        key = values[start:stop].tobytes(), spans.starts_N[own].tobytes(), spans.lengths_N[own].tobytes()
        originals.append(first.setdefault(key, number))
    kept_U, place_P = np.unique(np.array(originals, np.int64), return_inverse=True)
    distinct = spans.take(kept_U)
    copied_tokens = int(spans.lengths_N.sum() - distinct.lengths_N.sum())
    return Distinct(values, offsets[kept_U], np.diff(offsets)[kept_U], distinct.list_chunks(place_P), copied_tokens, distinct)


def find_distinct(token_ids: pa.ListArray) -> Distinct:
    """Find the first of equal rows. Ids are compared as bytes, in place: 3 ms for 8,192 rows of 80 tokens."""
    values, offsets = token_ids.values.to_numpy(), token_ids.offsets.to_numpy()
    lengths = np.diff(offsets)
    bounds = pa.py_buffer(offsets.astype(np.int64) * values.itemsize)
    rows = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lengths), [None, bounds, pa.py_buffer(values)])
    encoded = rows.dictionary_encode()
    if len(encoded.dictionary) == len(lengths):
        return Distinct(values, offsets[:-1], lengths, None, 0)
    place_N = encoded.indices.to_numpy()
    first_U = np.unique(place_N, return_index=True)[1]
    return Distinct(values, offsets[first_U], lengths[first_U], place_N, int(lengths.sum() - lengths[first_U].sum()))


def queue_rows(
    layout: BatchLayout,
    device: torch.device,
    token_ids: pa.ListArray,
    token_budget: int,
    width: int,
    forward: Forward,
    spans: Spans | None = None,
) -> Queued:
    """Queue the distinct rows on the device. If a batch does not fit into memory, halve the budget, down to one row a batch."""
    assert token_ids.null_count == 0
    rows = find_distinct(token_ids) if spans is None else find_distinct_passes(token_ids, spans)
    longest = int(rows.lengths_U.max(initial=1))
    # allocated once and outside of the retries: a smaller budget does not make it smaller
    vectors_UW = _allocate(rows.num_vectors, width, device)
    while True:
        try:
            tokens_of_batches = _run_batches(layout, device, rows, token_budget, vectors_UW, forward)
            break
        except torch.OutOfMemoryError as error:
            if token_budget <= longest:
                raise ModelError(
                    f"compute.device={device.type}: out of memory on one sequence of {longest} tokens ({error}); "
                    "lower chunking.max_tokens or embedding.depth, or give each actor more memory"
                ) from error
        # outside of the handler, because the error keeps the batch that did not fit in memory
        token_budget = max(longest, token_budget // 2)
        logger.warning("out of memory on %s; token budget lowered to %d", device.type, token_budget)
        torch.cuda.empty_cache()
    rows_UW, copied = _queue_copy(vectors_UW)
    return Queued(rows_UW, rows, len(tokens_of_batches), sum(tokens_of_batches), token_budget, copied)


def _allocate(num_rows: int, width: int, device: torch.device) -> Tensor:
    try:
        return torch.empty((num_rows, width), dtype=torch.float32, device=device)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"compute.device={device.type}: out of memory on the vectors of {num_rows} chunks, {4 * num_rows * width:,} bytes ({error}); "
            "lower source.rows_per_unit or compute.token_budget, or give each actor more memory"
        ) from error


def _run_batches(
    layout: BatchLayout, device: torch.device, distinct: Distinct, token_budget: int, vectors_UW: Tensor, forward: Forward
) -> list[int]:
    """Run all batches, write their vectors in the order of the rows, and return the tokens of each."""
    batches = layout.plan(distinct.lengths_U, token_budget)
    vectors = [distinct.list_vectors(rows) for rows in batches]
    stops = np.cumsum([len(places) for places in vectors])
    order_U = move(np.concatenate([*vectors, np.zeros(0, np.int64)]), device)

    def run_batch(number: int) -> int:
        rows = batches[number]
        with torch.inference_mode():
            batch = layout.collect(distinct.values, distinct.starts_U[rows], distinct.lengths_U[rows])
            pooled = batch if distinct.spans is None else distinct.spans.pick(batch, rows)
            vectors_UW.index_copy_(0, order_U[stops[number] - len(vectors[number]) : stops[number]], forward(pooled))
        return batch.num_tokens

    return list(_map_batches(run_batch, len(batches), device))


def _map_batches(run_batch: Callable[[int], int], num_batches: int, device: torch.device) -> Iterable[int]:
    """Run the batches: in sequence on a GPU; on a CPU one a thread, 1.2 to 1.3 x as fast as all threads on each batch."""
    num_threads = min(torch.get_num_threads(), num_batches)
    if device.type != "cpu" or num_threads < 2:
        return map(run_batch, range(num_batches))
    with ThreadPoolExecutor(num_threads, initializer=set_threads, initargs=(1,)) as pool:
        return list(pool.map(run_batch, range(num_batches)))


def _queue_copy(vectors_UW: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Queue the copy to the host behind the last batch. If fetch queued it, it would wait for batches of other threads too."""
    if not vectors_UW.is_cuda:
        return vectors_UW, None
    rows_UW = torch.empty(vectors_UW.shape, dtype=torch.float32, pin_memory=True)
    rows_UW.copy_(vectors_UW, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    copied.record()
    return rows_UW, copied

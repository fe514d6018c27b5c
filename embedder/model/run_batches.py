"""Rows of token ids → batches queued on the device, and their vectors copied to the host; half the token budget where memory runs out.

N = rows, W = components of a row.
"""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from embedder.core.errors import ModelError
from embedder.model.batches import Batch, BatchLayout, move
from embedder.model.results import Encoded
from embedder.model.runtime import set_threads

logger = logging.getLogger("embedder")

Forward = Callable[[Batch], Tensor]
"""A batch → W components for each of its rows."""


@dataclass(frozen=True, slots=True)
class Queued:
    """Batches queued on a device, which may still run them."""

    rows_NW: Tensor  # noqa: N815
    """On the host, in the order of the rows given; complete once the copy is done."""
    num_batches: int
    padded_tokens: int
    token_budget: int
    copied: torch.cuda.Event | None

    def fetch(self) -> Encoded:
        """Wait for the device, and return the vectors. Nothing else waits."""
        if self.copied is not None:
            self.copied.synchronize()
        return Encoded(self.rows_NW.numpy(), self.padded_tokens, self.token_budget)


def queue_rows(
    layout: BatchLayout, device: torch.device, token_ids: pa.ListArray, token_budget: int, width: int, forward: Forward
) -> Queued:
    """Queue all rows on the device. If a batch does not fit into memory, halve the budget and repeat, down to one row a batch."""
    assert token_ids.null_count == 0
    longest = int(np.diff(token_ids.offsets.to_numpy()).max(initial=1))
    # allocated once and outside of the retries: a smaller budget does not make it smaller
    vectors_NW = _allocate(len(token_ids), width, device)
    while True:
        try:
            tokens_of_batches = _run_batches(layout, device, token_ids, token_budget, vectors_NW, forward)
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
    return _queue_copy(vectors_NW, len(tokens_of_batches), sum(tokens_of_batches), token_budget)


def _allocate(num_rows: int, width: int, device: torch.device) -> Tensor:
    try:
        return torch.empty((num_rows, width), dtype=torch.float32, device=device)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"compute.device={device.type}: out of memory on the vectors of {num_rows} chunks, {4 * num_rows * width:,} bytes ({error}); "
            "lower source.rows_per_unit or compute.token_budget, or give each actor more memory"
        ) from error


def _run_batches(
    layout: BatchLayout, device: torch.device, token_ids: pa.ListArray, token_budget: int, vectors_NW: Tensor, forward: Forward
) -> list[int]:
    """Run all batches, write their vectors in the order of the rows, and return the tokens of each."""
    values, offsets = token_ids.values.to_numpy(), token_ids.offsets.to_numpy()
    lengths = np.diff(offsets)
    batches = layout.plan(lengths, token_budget)
    stops = np.cumsum([len(rows) for rows in batches])
    order_N = move(np.concatenate([*batches, np.zeros(0, np.int64)]), device)

    def run_batch(number: int) -> int:
        rows = batches[number]
        with torch.inference_mode():
            batch = layout.collect(values, offsets[rows], lengths[rows])
            vectors_NW.index_copy_(0, order_N[stops[number] - len(rows) : stops[number]], forward(batch))
        return batch.num_tokens

    return list(_map_batches(run_batch, len(batches), device))


def _map_batches(run_batch: Callable[[int], int], num_batches: int, device: torch.device) -> Iterable[int]:
    """Run the batches: in sequence on a GPU; on a CPU one a thread, 1.2 to 1.3 x as fast as all threads on each batch."""
    num_threads = min(torch.get_num_threads(), num_batches)
    if device.type != "cpu" or num_threads < 2:
        return map(run_batch, range(num_batches))
    with ThreadPoolExecutor(num_threads, initializer=set_threads, initargs=(1,)) as pool:
        return list(pool.map(run_batch, range(num_batches)))


def _queue_copy(vectors_NW: Tensor, num_batches: int, padded_tokens: int, token_budget: int) -> Queued:
    """Queue the copy to the host behind the last batch. If fetch queued it, it would wait for batches of other threads too."""
    if not vectors_NW.is_cuda:
        return Queued(vectors_NW, num_batches, padded_tokens, token_budget, None)
    rows_NW = torch.empty(vectors_NW.shape, dtype=torch.float32, pin_memory=True)
    rows_NW.copy_(vectors_NW, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    copied.record()
    return Queued(rows_NW, num_batches, padded_tokens, token_budget, copied)

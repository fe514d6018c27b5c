"""Chunks that are pooled from the token states of a longer pass.

P = passes, N = chunks, B = chunks of a batch, T = tokens of these chunks, H = hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from embedder.model.batches import Batch, PackedBatch, move
from embedder.model.varlen_attention import Segments

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Spans:
    """The tokens of each chunk within its pass."""

    chunks_S: npt.NDArray[np.int64]  # noqa: N815
    """The first chunk of each pass, and the end of the last."""
    starts_N: Int32s  # noqa: N815
    lengths_N: Int32s  # noqa: N815

    def list_chunks(self, passes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the chunks of these passes, in their order."""
        return np.concatenate([np.arange(self.chunks_S[each], self.chunks_S[each + 1]) for each in passes])

    def take(self, passes: npt.NDArray[np.int64]) -> "Spans":
        """Return the spans of these passes alone."""
        chunks = self.list_chunks(passes)
        sizes = self.chunks_S[passes + 1] - self.chunks_S[passes]
        return Spans(np.cumsum([0, *sizes]), self.starts_N[chunks], self.lengths_N[chunks])

    def pick(self, batch: Batch, passes: npt.NDArray[np.int64]) -> "LateBatch":
        """Return the chunks of a batch of these passes."""
        spans, device = self.take(passes), batch.lengths_B.device
        lengths, offsets = spans.lengths_N.astype(np.int64), np.cumsum([0, *spans.lengths_N])
        owners = np.repeat(np.arange(len(passes)), np.diff(spans.chunks_S))
        places = np.arange(offsets[-1]) + np.repeat(spans.starts_N - offsets[:-1], lengths)
        tokens_T = batch.first_B[move(np.repeat(owners, lengths), device)] + move(places, device)
        segments = Segments(move(offsets.astype(np.int32), device), int(lengths.max()), is_causal=False)
        ids_1T, positions_1T = (each.reshape(1, -1)[:, tokens_T] for each in (batch.token_ids, batch.places))
        return LateBatch(ids_1T, positions_1T, move(lengths, device), segments, batch, tokens_T)


@dataclass(frozen=True, slots=True)
class LateBatch(PackedBatch):
    """The chunks of a batch of passes: run as the passes, and pooled, by the mean alone, as chunks end to end."""

    passes: Batch
    tokens_T: Tensor  # noqa: N815
    """Places of the chunks' tokens among all that are computed."""

    def inputs(self) -> Mapping[str, Any]:
        """Return those of the passes."""
        return self.passes.inputs()

    def sum_tokens(self, hidden: Tensor) -> Tensor:
        """Add up each chunk's states."""
        return PackedBatch.sum_tokens(self, hidden.flatten(0, 1)[self.tokens_T].unsqueeze(0))


def read_passes(chunks: pa.Table) -> tuple[pa.ListArray, Spans | None]:
    """CHUNKS or LATE_CHUNKS → the token ids of each pass, and the spans of its chunks; None: each pass is one chunk."""
    if not chunks.num_rows:
        return pa.array([], chunks.schema.field("token_ids").type), None
    token_ids = chunks["token_ids"].combine_chunks()
    if "first_token" not in chunks.schema.names:
        return token_ids, None
    opening = np.flatnonzero(np.diff(token_ids.offsets.to_numpy()))
    spans = Spans(np.append(opening, chunks.num_rows), chunks["first_token"].to_numpy(), chunks["num_tokens"].to_numpy())
    return token_ids.take(pa.array(opening)), spans

"""A sample of the chunks that a run embeds: those whose token ids have the smallest hashes.

It depends neither on the order of units nor on actors or retries, and equal chunks count once.
"""

from hashlib import blake2b
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedder.core.fidelity import SAMPLE_CHUNKS
from embedder.core.quantization import Ranges, restore
from embedder.core.spec import EmbeddingSpec
from embedder.pipeline.rows import to_ipc
from embedder.table.vectors import Codes, vector_column

SAMPLE = pa.schema([("hash", pa.uint64()), ("token_ids", pa.list_(pa.int32())), ("vector", pa.list_(pa.float32()))])
"""`vector` is the published one, dequantized."""
PERSON = b"embedder.sample"
"""Seed of the hash."""


class ChunkSampler:
    """Draws the candidates of an actor's units: at most 64 of the first unit, and ever fewer.

    A chunk of the run's sample is among the 64 smallest of all that its actor saw, so each call with its unit draws it, a repeated one too.
    """

    def __init__(self, spec: EmbeddingSpec, ranges: Ranges | None) -> None:
        self._spec, self._ranges, self._smallest = spec, ranges, np.zeros(0, np.uint64)

    def draw(self, token_ids: pa.ListArray, codes_NX: Codes) -> bytes:
        """Return the candidates among a unit's chunks as SAMPLE in Arrow IPC, empty if there are none."""
        if not len(token_ids):
            return b""
        hashes_U, rows_U = np.unique(hash_chunks(token_ids), return_index=True)
        # if two threads do this at once, one of their bounds is lost, and a later unit draws more than it must
        self._smallest = smallest = np.union1d(self._smallest, hashes_U)[:SAMPLE_CHUNKS]
        count = int(np.searchsorted(hashes_U, smallest[-1], side="right"))
        if not count:
            return b""
        vectors_UD = restore(codes_NX[rows_U[:count]], self._spec.quantization, self._ranges)
        columns = [pa.array(hashes_U[:count]), token_ids.take(pa.array(rows_U[:count])), vector_column(vectors_UD)]
        return to_ipc(pa.table(columns, names=SAMPLE.names).cast(SAMPLE))


def hash_chunks(token_ids: pa.ListArray) -> npt.NDArray[np.uint64]:
    """Return a hash of each row's ids, uniform over 64 bits."""
    data = memoryview(token_ids.values.to_numpy().astype("<i4", copy=False).tobytes())
    bounds = (4 * token_ids.offsets.to_numpy().astype(np.int64)).tolist()
    digests = (blake2b(data[start:stop], digest_size=8, person=PERSON).digest() for start, stop in pairwise(bounds))
    return np.frombuffer(b"".join(digests), "<u8")


def merge_samples(*samples: pa.Table) -> pa.Table:
    """Return the rows of SAMPLE with the smallest hashes, equal chunks once; other columns stay."""
    joined = pa.concat_tables(samples)
    _, first = np.unique(joined["hash"].to_numpy(), return_index=True)
    return joined.take(pa.array(first[:SAMPLE_CHUNKS]))

"""Vectors that a table already has for a text: found by content hash among parts that a run is about to remove."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedder.core.schema import LEADING, VECTORS
from embedder.core.spec import Quantization
from embedder.core.storage import Location, map_threads
from embedder.table.parts import part_file

Int64s = npt.NDArray[np.int64]

REUSED = pa.schema([("document", pa.int32()), *(LEADING.field(name) for name in LEADING.names[1:])])
"""Chunks as CHUNKS has them, their vectors in one more column; `document` is the row of the document that asked."""

_HEAD = ("content_hash", "chunk", "num_chunks")


@dataclass(frozen=True, slots=True)
class PreviousParts:
    """Where to find the rows of a text: an index of 20 bytes a document, sorted by the first 8 bytes of the hash."""

    names: tuple[str, ...]
    hashes: npt.NDArray[np.uint64]
    part: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    num_rows: npt.NDArray[np.int32]

    def find(self, content_hashes: pa.ChunkedArray) -> Int64s:
        """Give each hash's place in the index, −1 where there is none."""
        if not len(self.hashes):
            return np.full(len(content_hashes), -1)
        wanted = to_uint64(content_hashes)
        place = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where(self.hashes[place] == wanted, place, -1)


NO_PREVIOUS = PreviousParts((), np.zeros(0, np.uint64), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int32))
"""An index in which nothing is found."""


def index_parts(names: Sequence[str], folder: Location) -> PreviousParts:
    """Read the hash of every document of these parts: three small columns, no text and no vectors."""
    heads = map_threads(lambda name: _read_columns(folder, name, _HEAD), list(names))
    hashes, parts, rows, counts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)], [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for number, head in enumerate(heads):
        first = np.flatnonzero(head["chunk"].to_numpy() == 0)
        hashes.append(to_uint64(head["content_hash"].take(pa.array(first))))
        parts.append(np.full(len(first), number, np.int32))
        rows.append(first.astype(np.int32))
        counts.append(head["num_chunks"].to_numpy()[first].astype(np.int32))
    every = np.concatenate(hashes)
    order = np.argsort(every, kind="stable")
    return PreviousParts(tuple(names), every[order], *(np.concatenate(each)[order] for each in (parts, rows, counts)))


def take_reusable(content_hashes: pa.ChunkedArray, previous: PreviousParts, folder: Location, quantization: Quantization) -> pa.Table:
    """Content hashes of documents → REUSED with their `embedding`: the chunks and vectors of those that are known, in order of document."""
    places = previous.find(content_hashes)
    known = np.flatnonzero(places >= 0)
    schema = REUSED.append(pa.field("embedding", VECTORS[quantization]))
    pieces = [schema.empty_table()]
    for number in np.unique(previous.part[places[known]]):
        documents = known[previous.part[places[known]] == number]
        pieces.append(_take_rows(documents, content_hashes, previous, previous.names[number], folder).cast(schema))
    reused = pa.concat_tables(pieces)
    return reused.take(pc.sort_indices(reused, [("document", "ascending"), ("chunk", "ascending")]))


def _take_rows(documents: Int64s, content_hashes: pa.ChunkedArray, previous: PreviousParts, name: str, folder: Location) -> pa.Table:
    """Read of one part the row groups that hold these documents, and take their rows, the whole hash compared."""
    columns = (*REUSED.names[1:], "embedding")
    places = previous.find(content_hashes.take(pa.array(documents)))
    counts = previous.num_rows[places]
    wanted = (
        np.repeat(previous.row[places].astype(np.int64), counts) + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    )
    owner = pa.array(np.repeat(documents, counts).astype(np.int32))
    taken = _read_rows(folder, name, (*columns, "content_hash"), wanted)
    same = pc.equal(taken["content_hash"], content_hashes.take(owner))
    return pa.table([owner, *(taken[each] for each in columns)], names=["document", *columns]).filter(same)


def _read_columns(folder: Location, name: str, columns: Sequence[str]) -> pa.Table:
    with part_file(folder, name).open_input(narrow=True) as file:
        return pq.read_table(file, columns=list(columns))


def _read_rows(folder: Location, name: str, columns: Sequence[str], wanted: Int64s) -> pa.Table:
    """Take rows of a part by their numbers: one that was merged is much larger than what a unit asks of it."""
    with part_file(folder, name).open_input(narrow=True) as source:
        file = pq.ParquetFile(source)
        sizes = np.array([file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)], np.int64)
        firsts = np.cumsum(sizes) - sizes
        group = np.searchsorted(firsts, wanted, side="right") - 1
        needed, place = np.unique(group, return_inverse=True)
        table = file.read_row_groups(needed.tolist(), columns=list(columns))
    starts = np.cumsum(sizes[needed]) - sizes[needed]
    return table.take(pa.array(wanted - firsts[group] + starts[place]))


def to_uint64(content_hashes: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """Read the first 8 bytes of each 16-byte hex hash as a number."""
    data = bytes.fromhex("".join(content_hashes.to_pylist()))
    return np.frombuffer(data, ">u8")[::2].astype(np.uint64)

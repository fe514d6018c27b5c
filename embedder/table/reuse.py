"""Finds vectors that a table already has for a text, by content hash, among parts that a run is about to remove."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedder.core.schema import LEADING, VECTORS
from embedder.core.spec import Quantization
from embedder.core.storage import Location, map_threads
from embedder.table.diff import find_sorted
from embedder.table.parts import open_parquet, part_file

Int64s = npt.NDArray[np.int64]

REUSED = pa.schema([("document", pa.int32()), *(LEADING.field(name) for name in LEADING.names[1:])])
"""Chunks as in CHUNKS; their vectors are in one more column. `document` is the row of the document in the unit."""

_HEAD = ("content_hash", "chunk", "num_chunks")


@dataclass(frozen=True, slots=True)
class PreviousParts:
    """Index of texts to rows: 20 bytes a document, sorted by the first 8 bytes of the hash."""

    names: tuple[str, ...]
    hashes: npt.NDArray[np.uint64]
    part: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    num_rows: npt.NDArray[np.int32]

    def find(self, content_hashes: pa.ChunkedArray) -> Int64s:
        """Return each hash's position in the index, −1 if absent."""
        return find_sorted(self.hashes, to_uint64(content_hashes))


NO_PREVIOUS = PreviousParts((), np.zeros(0, np.uint64), *[np.zeros(0, np.int32)] * 3)
"""An empty index."""


def index_parts(names: Sequence[str], table: Location) -> PreviousParts:
    """Read the hash of every document of these parts: three small columns, no text and no vectors."""
    columns = [(NO_PREVIOUS.hashes, NO_PREVIOUS.part, NO_PREVIOUS.row, NO_PREVIOUS.num_rows)]
    for number, head in enumerate(map_threads(lambda name: _read_head(table, name), list(names))):
        first = np.flatnonzero(head["chunk"].to_numpy() == 0)
        counts = head["num_chunks"].to_numpy()[first].astype(np.int32)
        hashes = to_uint64(head["content_hash"].take(pa.array(first)))
        columns.append((hashes, np.full(len(first), number, np.int32), first.astype(np.int32), counts))
    hashes, *others = (np.concatenate(each) for each in zip(*columns, strict=True))
    order = np.argsort(hashes, kind="stable")
    return PreviousParts(tuple(names), hashes[order], *(each[order] for each in others))


def take_reusable(content_hashes: pa.ChunkedArray, previous: PreviousParts, table: Location, quantization: Quantization) -> pa.Table:
    """Content hashes of documents → REUSED with `embedding`: chunks and vectors of the known ones, in order of document."""
    places = previous.find(content_hashes)
    known = np.flatnonzero(places >= 0)
    schema = REUSED.append(pa.field("embedding", VECTORS[quantization]))
    taken = [schema.empty_table()]
    for number in np.unique(previous.part[places[known]]):
        documents = known[previous.part[places[known]] == number]
        taken.append(_take_documents(documents, places[documents], content_hashes, previous, table).cast(schema))
    reused = pa.concat_tables(taken)
    return reused.take(pc.sort_indices(reused, [("document", "ascending"), ("chunk", "ascending")]))


def _take_documents(
    documents: Int64s, places: Int64s, content_hashes: pa.ChunkedArray, previous: PreviousParts, table: Location
) -> pa.Table:
    """Read the rows of these documents, all of one part; keep those whose whole hash is equal."""
    columns = (*REUSED.names[1:], "embedding")
    counts = previous.num_rows[places].astype(np.int64)
    # each document's rows follow one another: 0, 1, … counted from its first row
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = np.repeat(previous.row[places].astype(np.int64), counts) + within
    owner = pa.array(np.repeat(documents, counts).astype(np.int32))
    taken = _read_rows(table, previous.names[previous.part[places[0]]], (*columns, "content_hash"), wanted)
    same = pc.equal(taken["content_hash"], content_hashes.take(owner))
    return pa.table([owner, *(taken[each] for each in columns)], names=["document", *columns]).filter(same)


def _read_head(table: Location, name: str) -> pa.Table:
    with open_parquet(part_file(table, name), narrow=True) as file:
        return file.read(columns=list(_HEAD))


def _read_rows(table: Location, name: str, columns: Sequence[str], wanted: Int64s) -> pa.Table:
    """Read rows of a part by number, from the row groups that hold them: a merged part is much larger than a unit needs."""
    with open_parquet(part_file(table, name), narrow=True) as file:
        sizes = np.array([file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)], np.int64)
        firsts = np.cumsum(sizes) - sizes
        group = np.searchsorted(firsts, wanted, side="right") - 1
        needed, place = np.unique(group, return_inverse=True)
        rows = file.read_row_groups(needed.tolist(), columns=list(columns))
    starts = np.cumsum(sizes[needed]) - sizes[needed]
    return rows.take(pa.array(wanted - firsts[group] + starts[place]))


def to_uint64(content_hashes: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """Return the first 8 bytes of each 16-byte hex hash as a number."""
    data = bytes.fromhex("".join(content_hashes.to_pylist()))
    return np.frombuffer(data, ">u8")[::2].astype(np.uint64)

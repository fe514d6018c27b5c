"""Finds vectors that a table already has for a text, by content hash, in any part."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedder.core.schema import LEADING, VECTORS
from embedder.core.spec import Quantization
from embedder.core.storage import Location, map_threads
from embedder.core.units import PartName
from embedder.table.diff import find_sorted
from embedder.table.hash_index import HashIndex, Names, Uint64s, to_uint64
from embedder.table.parts import ROW_GROUP_ROWS, open_parquet, part_file

Int64s = npt.NDArray[np.int64]

REUSED = pa.schema([("document", pa.int32()), *(LEADING.field(name) for name in LEADING.names[1:])])
"""Chunks as in CHUNKS; their vectors are in one more column. `document` is the row of the document in the unit."""

MOST_PARTS = 256
"""Parts that a unit takes vectors from."""
DOCUMENTS_PER_COPY = 1_000
"""Documents of a part for each that a unit copies: reading a row group takes a CPU as long as computing about 1 in 1,000 of its vectors."""

_HEAD = ("content_hash", "chunk", "num_chunks")


@dataclass(frozen=True, slots=True)
class PreviousParts:
    """Index of texts to rows: 20 bytes a document, sorted by the first 8 bytes of the hash."""

    names: tuple[str, ...]
    hashes: Uint64s
    part: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    num_rows: npt.NDArray[np.int32]

    def find(self, content_hashes: pa.ChunkedArray) -> Int64s:
        """Return each hash's position in the index, −1 if absent."""
        return find_sorted(self.hashes, to_uint64(content_hashes))


NO_PREVIOUS = PreviousParts((), np.zeros(0, np.uint64), *[np.zeros(0, np.int32)] * 3)
"""An empty index."""


def index_parts(names: Sequence[str], table: Location, wanted: Uint64s | None = None) -> PreviousParts:
    """Read the hashes of the documents of these parts, or the wanted among them: three small columns, no text and no vectors."""
    columns = [(NO_PREVIOUS.hashes, NO_PREVIOUS.part, NO_PREVIOUS.row, NO_PREVIOUS.num_rows)]
    for number, (hashes, first, counts) in enumerate(map_threads(lambda name: _read_head(table, name, wanted), list(names))):
        columns.append((hashes, np.full(len(first), number, np.int32), first, counts))
    hashes, *others = (np.concatenate(each) for each in zip(*columns, strict=True))
    order = np.argsort(hashes, kind="stable")
    return PreviousParts(tuple(names), hashes[order], *(each[order] for each in others))


@dataclass(frozen=True, slots=True)
class Known:
    """Vectors that the units of one task may take."""

    previous: Collection[str]
    """Parts that its shard wrote before."""
    indexed: PreviousParts
    """Their documents, if the index may lack them."""
    index: HashIndex


def open_known(previous: Sequence[str], index: HashIndex, table: Location) -> Known:
    """Index a shard's previous parts, unless the index is whole and has them, or is empty since they are of another space."""
    return Known(previous, NO_PREVIOUS if index.share == 1 else index_parts(previous, table), index)


def take_known(content_hashes: pa.ChunkedArray, known: Known, table: Location, quantization: Quantization) -> pa.Table:
    """Return `take_reusable` of the shard's previous parts and, for documents that they lack, of the parts that the index finds."""
    reused = take_reusable(content_hashes, known.indexed, table, quantization)
    left = np.setdiff1d(np.arange(len(content_hashes)), reused["document"].to_numpy())
    hashes_left = content_hashes.take(pa.array(left))
    wanted = np.unique(to_uint64(hashes_left))
    others = choose_parts(known.index.find(wanted), known.index.share, known.previous)
    if not others:
        return reused
    found = take_reusable(hashes_left, index_parts(others, table, wanted), table, quantization)
    document = pa.array(left[found["document"].to_numpy()].astype(np.int32))
    return pa.concat_tables([reused, found.set_column(0, REUSED.field("document"), document)])


def choose_parts(found: Names, share: float, previous: Collection[str] = ()) -> list[str]:
    """Return the shard's previous parts and those that pay, the most copies first; `found` names a part for each copy, or is empty."""
    names, counts = np.unique(found[found != b""], return_counts=True)
    parts = [PartName.parse(name.decode()) for name in names]
    sizes = np.array([min(part.stop_row - part.first_row, ROW_GROUP_ROWS) if part else 0 for part in parts])
    pays = (counts * DOCUMENTS_PER_COPY >= share * sizes) | np.isin(names, np.array([*previous], "S"))
    order = np.argsort(-counts, kind="stable")
    return [name.decode() for name in names[order[pays[order]]][:MOST_PARTS]]


def take_reusable(content_hashes: pa.ChunkedArray, previous: PreviousParts, table: Location, quantization: Quantization) -> pa.Table:
    """Content hashes of documents → REUSED with `embedding`: chunks and vectors of the known ones, in order of document."""
    places = previous.find(content_hashes)
    known = np.flatnonzero(places >= 0)
    schema = REUSED.append(pa.field("embedding", VECTORS[quantization]))
    parts = previous.part[places[known]]
    documents = [known[parts == number] for number in np.unique(parts)]
    taken = map_threads(lambda each: _take_documents(each, places[each], content_hashes, previous, table).cast(schema), documents, 4)
    reused = pa.concat_tables([schema.empty_table(), *taken])
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


def _read_head(table: Location, name: str, wanted: Uint64s | None) -> tuple[Uint64s, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return the hash, the first row and the number of rows of each wanted document."""
    with open_parquet(part_file(table, name), narrow=True) as file:
        head = file.read(columns=list(_HEAD))
    first = np.flatnonzero(head["chunk"].to_numpy() == 0)
    hashes = to_uint64(head["content_hash"])[first]
    kept = slice(None) if wanted is None else np.isin(hashes, wanted)
    return hashes[kept], first[kept].astype(np.int32), head["num_chunks"].to_numpy()[first][kept].astype(np.int32)


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

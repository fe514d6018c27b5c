"""Rows → documents and quarantined records. The definition of a valid record, for every format."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedder.core.schema import DOCUMENTS, QUARANTINE, Reason
from embedder.source.formats.rows import EXCERPT_CHARS, Reading, Refusals, Rows


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """Consecutive records of a shard, the valid ones apart from the others."""

    first_row: int
    num_rows: int
    documents: pa.Table
    """schema.DOCUMENTS and the metadata."""
    quarantined: pa.Table
    """schema.QUARANTINE."""
    text_bytes: npt.NDArray[np.int64]
    """By record, quarantined ones included."""

    def slice(self, start: int, stop: int) -> "CheckedRows":
        """Return the records from start to stop, counted from the first of these."""
        first, last = self.first_row + start, self.first_row + stop
        documents, quarantined = (_between(table, first, last) for table in (self.documents, self.quarantined))
        return CheckedRows(first, stop - start, documents, quarantined, self.text_bytes[start:stop])


def _between(table: pa.Table, first: int, last: int) -> pa.Table:
    start, stop = np.searchsorted(table["row"].to_numpy(), [first, last])
    return table.slice(int(start), int(stop - start))


class SeenIds:
    """The ids of a shard so far, 8 bytes each. Among a million ids, two collide with a probability of 1 in 37 million.

    An id belongs to the first record that has it, even if that record is quarantined. A slice of a shard therefore needs only the
    ids before it.
    """

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.int64]] = []

    def claim(self, ids: pa.Array) -> list[int]:
        """Add ids and return the positions of those that were seen before."""
        positions = np.flatnonzero(pc.greater(pc.binary_length(ids), 0).fill_null(False).to_numpy(False))
        hashes = hash_ids(ids.take(pa.array(positions)))
        unique, first = np.unique(hashes, return_index=True)
        taken = self._contains(hashes)
        self._add(unique[~taken[first]])
        repeated = np.ones(len(hashes), bool)
        repeated[first] = False
        return [int(position) for position in positions[repeated | taken]]

    def _contains(self, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        found = np.zeros(len(hashes), bool)
        for run in self._runs:
            at = np.searchsorted(run, hashes)
            found |= run[np.minimum(at, len(run) - 1)] == hashes
        return found

    def _add(self, fresh: npt.NDArray[np.int64]) -> None:
        """Add a sorted run. Each run stays at least twice as long as the next, so that a shard costs O(n log n)."""
        if not len(fresh):
            return
        self._runs.append(fresh)
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]))]


def hash_ids(ids: pa.Array) -> npt.NDArray[np.int64]:
    """Return 64 bits an id that are equal in every process, unlike Python's hash, so that a rare collision is reproducible."""
    return np.frombuffer(b"".join(each.digest() for each in _hash(ids, 8)), "<i8")


def check_rows(rows: Rows, reading: Reading, seen: SeenIds) -> CheckedRows:
    """Separate valid records from others. Only the first reason is kept, in the order unreadable, text, id."""
    refused, num_rows = rows.refused, len(rows.texts)
    texts = rows.texts
    if refused:
        # a refused record has no text, even if some of its text columns were readable
        texts = _without(texts, list(refused))
    text_bytes = pc.binary_length(texts).fill_null(0).to_numpy().astype(np.int64)
    if len(too_large := np.flatnonzero(text_bytes > reading.source.max_record_bytes)):
        # a format that reads whole columns finds such a text only now
        for position in too_large.tolist():
            refused[position] = (Reason.TOO_LARGE, texts[position].as_py()[:EXCERPT_CHARS])
        texts = _without(texts, too_large)
        text_bytes[too_large] = 0
    _refuse_texts(texts, refused)
    if rows.ids is not None:
        _refuse_ids(rows.ids, texts, refused, seen)
    kept = np.arange(num_rows) if rows.kept is None else rows.kept
    row_numbers = pa.array(rows.first_row + kept)
    uri = pa.repeat(reading.shard.uri, num_rows)
    ids = pc.binary_join_element_wise(uri, row_numbers.cast(pa.string()), "#") if rows.ids is None else rows.ids
    columns = [ids, texts, hash_texts(texts), uri, row_numbers, *rows.metadata]
    records = pa.Table.from_arrays(columns, schema=pa.schema([*DOCUMENTS, *reading.metadata]))
    positions = sorted(refused)
    is_valid = np.ones(num_rows, bool)
    is_valid[positions] = False
    documents = records.filter(pa.array(is_valid)) if positions else records
    num_read = num_rows if rows.kept is None else rows.num_read
    bytes_read = np.zeros(num_read, np.int64)
    bytes_read[kept] = text_bytes
    return CheckedRows(rows.first_row, num_read, documents, _quarantine(records, refused, positions), bytes_read)


def _without(texts: pa.Array, positions: Sequence[int] | npt.NDArray[np.int64]) -> pa.Array:
    """Return texts with nulls at these positions."""
    return pc.if_else(pa.array(np.isin(np.arange(len(texts)), positions)), pa.scalar(None, pa.string()), texts)


def _refuse_texts(texts: pa.Array, refused: Refusals) -> None:
    for position in np.flatnonzero(texts.is_null().to_numpy(False)).tolist():
        refused.setdefault(position, (Reason.NULL_TEXT, None))
    blank = pc.or_(pc.equal(pc.binary_length(texts), 0), pc.utf8_is_space(texts))
    for position in np.flatnonzero(blank.fill_null(False).to_numpy(False)).tolist():
        refused.setdefault(position, (Reason.EMPTY_TEXT, texts[position].as_py()[:EXCERPT_CHARS]))


def _refuse_ids(ids: pa.Array, texts: pa.Array, refused: Refusals, seen: SeenIds) -> None:
    missing = pc.equal(pc.binary_length(ids), 0).fill_null(True).to_numpy(False)
    by_position = [(position, Reason.MISSING_ID) for position in np.flatnonzero(missing).tolist()]
    by_position += [(position, Reason.DUPLICATE_ID) for position in seen.claim(ids)]
    by_position = [(position, reason) for position, reason in by_position if position not in refused]
    met = texts.take(pa.array([position for position, _ in by_position], pa.int64()))
    excerpts = pc.utf8_slice_codeunits(met, 0, EXCERPT_CHARS).to_pylist()
    for (position, reason), excerpt in zip(by_position, excerpts, strict=True):
        refused[position] = (reason, excerpt)


def _quarantine(records: pa.Table, refused: Refusals, positions: list[int]) -> pa.Table:
    met = records.select(["shard", "row", "doc_id"]).take(pa.array(positions, pa.int64()))
    reasons, excerpts = [str(refused[position][0]) for position in positions], [refused[position][1] for position in positions]
    return pa.table([*met.columns, pa.array(reasons, pa.string()), pa.array(excerpts, pa.string())], schema=QUARANTINE)


def hash_texts(texts: pa.Array) -> pa.Array:
    """Return the blake2b hash of each text's UTF-8, 16 bytes in hex, without a Python string for each text."""
    return pa.array([each.hexdigest() for each in _hash(texts, 16)], pa.string())


def _hash(texts: pa.Array, digest_bytes: int) -> Iterator[blake2b]:
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets or b"", np.int32)[texts.offset : texts.offset + len(texts) + 1].tolist()
    view = memoryview(data or b"")
    return (blake2b(view[start:stop], digest_size=digest_bytes) for start, stop in pairwise(ends))

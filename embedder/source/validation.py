"""Rows, read but unchecked → documents and quarantined records. One place decides what a valid record is, for every format."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedder.config.source import SourceConfig
from embedder.core.schema import DOCUMENTS, QUARANTINE, Reason
from embedder.core.units import Shard
from embedder.source.metadata_values import excerpt_value

EXCERPT_CHARS = 200
Refusals = dict[int, tuple[Reason, str | None]]
"""By position: why a record is quarantined, and the start of what was met."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a format's reader needs to know: which shard, which columns, and for a slice which row groups."""

    shard: Shard
    compression: str | None
    source: SourceConfig
    metadata: pa.Schema
    row_groups: tuple[int, int] | None = None
    first_row: int = 0


@dataclass(slots=True)
class Rows:
    """Consecutive records of a shard, as columns; a text is null where there is none."""

    first_row: int
    texts: pa.Array
    ids: pa.Array | None
    """None: documents are named by shard uri and row."""
    metadata: list[pa.Array]
    refused: Refusals = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """Consecutive records of a shard, valid ones and others apart."""

    first_row: int
    num_rows: int
    documents: pa.Table
    quarantined: pa.Table
    text_bytes: npt.NDArray[np.int64]
    """By record, quarantined ones included."""

    def slice(self, start: int, stop: int) -> "CheckedRows":
        """Take the records from start to stop, counted from the first of these."""
        first, last = self.first_row + start, self.first_row + stop
        documents, quarantined = (_between(table, first, last) for table in (self.documents, self.quarantined))
        return CheckedRows(first, stop - start, documents, quarantined, self.text_bytes[start:stop])


def _between(table: pa.Table, first: int, last: int) -> pa.Table:
    start, stop = np.searchsorted(table["row"].to_numpy(), [first, last])
    return table.slice(int(start), int(stop - start))


class SeenIds:
    """The ids of a shard so far, 8 bytes each: of a million, two are taken for one with a chance of 1 in 37 million.

    An id belongs to the first record that carries it, whatever becomes of that record: so a slice of a shard need look at the
    ids before it and at nothing else.
    """

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.int64]] = []

    def claim(self, ids: pa.Array) -> list[int]:
        """Add these ids, and give the positions of those that were taken."""
        named = [(position, stable_hash(value)) for position, value in enumerate(ids.to_pylist()) if value]
        positions, hashes = np.array(named, np.int64).reshape(-1, 2).T
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
        """Keep sorted runs, each at least twice as long as the next, so that adding costs O(n log n) over a shard."""
        if not len(fresh):
            return
        self._runs.append(fresh)
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]))]


def stable_hash(text: str) -> int:
    """Return 64 bits that are equal in every process, unlike Python's hash, so that a rare collision is reproducible."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def check_rows(rows: Rows, reading: Reading, seen: SeenIds) -> CheckedRows:
    """Tell valid records from others: a first reason stands, in the order unreadable, text, id."""
    refused = rows.refused
    if refused:
        # of several parts, others may have been readable: a refused record has no text all the same
        rows.texts = pc.if_else(
            pa.array([position in refused for position in range(len(rows.texts))]), pa.scalar(None, pa.string()), rows.texts
        )
    _refuse_texts(rows)
    if rows.ids is not None:
        _refuse_ids(rows, rows.ids, seen)
    kept = np.ones(len(rows.texts), bool)
    kept[list(refused)] = False
    mask = None if not refused else pa.array(kept)
    row_numbers = pa.array(np.arange(rows.first_row, rows.first_row + len(kept)))
    columns = [_doc_ids(rows, row_numbers, reading.shard.uri), rows.texts, row_numbers, *rows.metadata]
    doc_ids, texts, row_numbers, *metadata = (column if mask is None else column.filter(mask) for column in columns)
    documents = [doc_ids, texts, hash_texts(texts), pa.repeat(pa.scalar(reading.shard.uri), len(texts)), row_numbers, *metadata]
    lengths = pc.binary_length(rows.texts).fill_null(0).to_numpy().astype(np.int64)
    schema = pa.schema([*DOCUMENTS, *reading.metadata])
    return CheckedRows(rows.first_row, len(kept), pa.Table.from_arrays(documents, schema=schema), _quarantine(rows, reading), lengths)


def _refuse_texts(rows: Rows) -> None:
    if rows.texts.null_count:
        for position in np.flatnonzero(rows.texts.is_null().to_numpy(False)).tolist():
            rows.refused.setdefault(position, (Reason.NULL_TEXT, None))
    blank = pc.or_(pc.equal(pc.binary_length(rows.texts), 0), pc.utf8_is_space(rows.texts))
    for position in np.flatnonzero(blank.fill_null(False).to_numpy(False)).tolist():
        rows.refused.setdefault(position, (Reason.EMPTY_TEXT, rows.texts[position].as_py()[:EXCERPT_CHARS]))


def _refuse_ids(rows: Rows, ids: pa.Array, seen: SeenIds) -> None:
    missing = pc.equal(pc.binary_length(ids), 0).fill_null(True).to_numpy(False)
    by_position = [(position, Reason.MISSING_ID) for position in np.flatnonzero(missing).tolist()]
    by_position += [(position, Reason.DUPLICATE_ID) for position in seen.claim(ids)]
    for position, reason in by_position:
        if position not in rows.refused:
            rows.refused[position] = (reason, rows.texts[position].as_py()[:EXCERPT_CHARS])


def _doc_ids(rows: Rows, row_numbers: pa.Array, uri: str) -> pa.Array:
    if rows.ids is not None:
        return rows.ids
    return pc.binary_join_element_wise(pa.scalar(uri), row_numbers.cast(pa.string()), "#")


def _quarantine(rows: Rows, reading: Reading) -> pa.Table:
    if not rows.refused:
        return QUARANTINE.empty_table()
    names = _doc_ids(rows, pa.array(np.arange(rows.first_row, rows.first_row + len(rows.texts))), reading.shard.uri)
    found = [(position, *rows.refused[position]) for position in sorted(rows.refused)]
    uri, first_row = reading.shard.uri, rows.first_row
    records = [(uri, first_row + position, names[position].as_py(), str(reason), met) for position, reason, met in found]
    return pa.Table.from_pylist([dict(zip(QUARANTINE.names, record, strict=True)) for record in records], schema=QUARANTINE)


def hash_texts(texts: pa.Array) -> pa.Array:
    """Hash each text's UTF-8, blake2b of 16 bytes in hex, without making a Python string of it."""
    _, offsets, data = texts.buffers()
    if not len(texts):
        return pa.array([], pa.string())
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].tolist()
    view = memoryview(data) if data else memoryview(b"")
    return pa.array([blake2b(view[start:stop], digest_size=16).hexdigest() for start, stop in pairwise(ends)], pa.string())


def join_texts(parts: list[pa.Array]) -> pa.Array:
    """Join by one space what is there; null only if every part is."""
    if len(parts) == 1:
        return parts[0]
    none = pa.scalar(None, pa.string())
    first, *others = [pc.if_else(pc.equal(pc.binary_length(part), 0), none, part) for part in parts]
    # pyarrow 26 leaves a row out if all that is joined in it is null
    never_all_null = pc.if_else(_all_null([first, *others]), "", first)
    joined = pc.binary_join_element_wise(never_all_null, *others, " ", null_handling="skip")
    return pc.if_else(_all_null(parts), none, joined)


def _all_null(columns: list[pa.Array]) -> pa.Array:
    return reduce(pc.and_, [column.is_null() for column in columns])


def text_id(value: Any) -> str:
    """Name a document by a string or number: 7 and 7.0 are both "7". Anything else raises ValueError."""
    if isinstance(value, str):
        value.encode()
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError("not a string or a number")
    return str(int(value)) if value == value // 1 else repr(value)


def excerpt(value: str | bytes) -> str:
    """Cut to an excerpt that is valid UTF-8, whatever was met."""
    text = value[: 4 * EXCERPT_CHARS].decode(errors="replace") if isinstance(value, bytes) else value
    return text[:EXCERPT_CHARS].encode(errors="replace").decode()


def misfit_refuser(refused: Refusals, name: str, type_: pa.DataType) -> Callable[[int, object], None]:
    """Make what `values` calls for a metadata value that does not fit its type."""

    def refuse(position: int, value: object) -> None:
        refused.setdefault(position, (Reason.METADATA_TYPE, excerpt(f"{name}={excerpt_value(value)} is not {type_}")))

    return refuse

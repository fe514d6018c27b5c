"""A task → its units: documents and quarantined records in source order, cut at positions that depend on content alone."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO

import numpy as np
import pyarrow as pa

from embedder.config.source import SourceConfig
from embedder.core.errors import SourceError, StorageError
from embedder.core.schema import DOCUMENTS, QUARANTINE
from embedder.core.units import Shard, Task
from embedder.source.decompression import damage_explained, open_each, open_shard
from embedder.source.formats.parquet import read_ids_before
from embedder.source.formats.registry import FileFormat, encoding_of, number_records
from embedder.source.formats.rows import Reading, Rows, Slice
from embedder.source.selection import read_rows
from embedder.source.validation import CheckedRows, SeenIds, check_rows

UNIT_TEXT_BYTES = 64 << 20
"""A unit ends with the record that brings its text to 64 MiB; a worker holds a small multiple of that in memory."""
SLICE_BYTES = 128 << 20
"""A slice of a large parquet shard holds at least 128 MiB: many seconds of reading, so that opening it does not matter."""
MOST_NARROW_GROUPS = 128
"""If a slice has at most this many row groups, only the ids before it are fetched. Row groups are otherwise below 1 MiB, and a request
for each takes longer than reading everything."""


@dataclass(frozen=True, slots=True)
class SourceUnit:
    """Consecutive records of a task. Rows are counted over the task's key, quarantined ones included."""

    first_row: int
    stop_row: int
    last: bool
    documents: pa.Table
    """schema.DOCUMENTS and the metadata."""
    quarantined: pa.Table
    """schema.QUARANTINE."""


def read_units(task: Task, source: SourceConfig, metadata: pa.Schema) -> Iterator[SourceUnit]:
    """Read a task's shards in order; an empty task is one empty unit. An invalid record is a quarantined row. Raise SourceError if a
    shard cannot be read to its end or has changed: the final unit is yielded only after all shards were read and found unchanged."""
    try:
        yield from _cut_units(_read_task(task, source, metadata), task, source.rows_per_unit, metadata)
    except StorageError as error:
        raise SourceError(str(error)) from error


def slice_shard(shard: Shard, source: SourceConfig) -> list[Slice]:
    """Return the slices of a large shard; [] if its format, whatever its name, cannot be split."""
    encoding = encoding_of(shard, source.format)
    if encoding is None or encoding.format.slice is None:
        return []
    with open_shard(shard, source) as file:
        return number_records(encoding.format.slice(file, shard.size_bytes, SLICE_BYTES), shard)


def _read_task(task: Task, source: SourceConfig, metadata: pa.Schema) -> Iterator[CheckedRows]:
    for shard, file in open_each(task.shards, source):
        encoding = encoding_of(shard, source.format)
        if encoding is None:
            raise SourceError(f"{shard.uri}: its suffix names no known format; set source.format")
        reading = Reading(shard, encoding.compression, source, metadata, task.row_groups, task.first_row if task.row_groups else 0)
        seen = SeenIds()
        if task.row_groups and task.row_groups[0] and source.id_column:
            narrow = task.row_groups[1] - task.row_groups[0] <= MOST_NARROW_GROUPS
            with open_shard(shard, source, narrow) as before:
                _claim_ids_before(encoding.format, before, reading, seen)
        for rows in _explained(read_rows(encoding.format, file, reading), shard):
            yield check_rows(rows, reading, seen)


def _claim_ids_before(format_: FileFormat, file: IO[bytes], reading: Reading, seen: SeenIds) -> None:
    """Take the ids of the records before a slice; with a filter, only those of records that pass, which needs all of their columns."""
    if not reading.shard.row_filter:
        for ids in read_ids_before(file, reading):
            seen.claim(ids)
        return
    assert reading.row_groups is not None
    for rows in read_rows(format_, file, replace(reading, row_groups=(0, reading.row_groups[0]), first_row=0)):
        check_rows(rows, reading, seen)


def _explained(batches: Iterator[Rows], shard: Shard) -> Iterator[Rows]:
    with damage_explained(shard.uri):
        yield from batches


def _cut_units(batches: Iterator[CheckedRows], task: Task, rows_per_unit: int, metadata: pa.Schema) -> Iterator[SourceUnit]:
    """Cut at a number of records or bytes of text, whichever comes first. A full unit waits for the next record: it may be the last."""
    held: list[CheckedRows] = []
    first_row, num_rows, text_bytes = task.first_row, 0, 0
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            if num_rows >= rows_per_unit or text_bytes >= UNIT_TEXT_BYTES:
                yield _join(held, first_row, num_rows, False, metadata)
                held, first_row, num_rows, text_bytes = [], first_row + num_rows, 0, 0
            totals = text_bytes + np.cumsum(batch.text_bytes[start:])
            taken = min(batch.num_rows - start, rows_per_unit - num_rows, int(np.searchsorted(totals, UNIT_TEXT_BYTES)) + 1)
            held.append(batch.slice(start, start + taken))
            start, num_rows, text_bytes = start + taken, num_rows + taken, int(totals[taken - 1])
    yield _join(held, first_row, num_rows, task.ends, metadata)


def _join(held: list[CheckedRows], first_row: int, num_rows: int, last: bool, metadata: pa.Schema) -> SourceUnit:
    schema = pa.schema([*DOCUMENTS, *metadata])
    documents = pa.concat_tables([schema.empty_table(), *(batch.documents for batch in held)]).combine_chunks()
    quarantined = pa.concat_tables([QUARANTINE.empty_table(), *(batch.quarantined for batch in held)]).combine_chunks()
    return SourceUnit(first_row, first_row + num_rows, last, documents, quarantined)

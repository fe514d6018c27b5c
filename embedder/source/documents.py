"""A task → its units: documents and quarantined records, streamed in source order and cut where content alone decides."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TypeVar

import numpy as np
import pyarrow as pa

from embedder.config.source import SourceConfig
from embedder.core.errors import SourceError, StorageError
from embedder.core.schema import DOCUMENTS, QUARANTINE
from embedder.core.storage import Store
from embedder.core.units import Shard, Task
from embedder.source.decompression import damage_explained, open_each
from embedder.source.formats.csv_rows import read_csv
from embedder.source.formats.jsonl import read_jsonl
from embedder.source.formats.parquet import read_footer, read_ids_before, read_parquet, slice_row_groups
from embedder.source.formats.records import read_text
from embedder.source.shards import ShardFormat, shard_format
from embedder.source.validation import CheckedRows, Reading, Rows, SeenIds, check_rows

T = TypeVar("T")

UNIT_TEXT_BYTES = 64 << 20
"""A unit ends with the record that brings its text to 64 MiB: what a worker holds in memory, a few times over."""
SLICE_BYTES = 128 << 20
"""A slice of a large parquet shard holds at least 128 MiB: many seconds of reading, so that opening it does not count."""
MOST_NARROW_GROUPS = 128
"""Row groups of a slice, up to which the ids of those before it are fetched without what lies between: of groups below 1 MiB, a
request for each takes longer than reading all."""

READERS: dict[ShardFormat, Callable[[IO[bytes], Reading], Iterator[Rows]]] = {
    "parquet": read_parquet,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "text": read_text,
}


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
    """Read a task's shards in order; an empty task is one empty unit. A bad record is a quarantined row. SourceError if a shard
    cannot be read to its end or is not the one that was listed: the final unit comes only once all shards are read and found unchanged."""
    try:
        yield from _cut_units(_read_task(task, source, metadata), task, source.rows_per_unit, metadata)
    except StorageError as error:
        raise SourceError(str(error)) from error


def slice_parquet(shard: Shard, source: SourceConfig) -> list[tuple[int, int, int]]:
    """Cut a large parquet shard by its footer: (first row group, stop row group, first row) of each slice."""
    try:
        with Store(shard.uri, source.storage_options).open_input() as file, damage_explained(shard.uri):
            return slice_row_groups(read_footer(file)[1], shard.size_bytes, SLICE_BYTES)
    except StorageError as error:
        raise SourceError(str(error)) from error


def _read_task(task: Task, source: SourceConfig, metadata: pa.Schema) -> Iterator[CheckedRows]:
    for shard, file in open_each(task.shards, source.storage_options):
        encoding = shard_format(shard.uri, source.format)
        if encoding is None:
            raise SourceError(f"{shard.uri}: its suffix says no format; set source.format")
        reading = Reading(shard, encoding.compression, source, metadata, task.row_groups, task.first_row if task.row_groups else 0)
        seen = SeenIds()
        if task.row_groups and task.row_groups[0] and source.id_column:
            narrow = task.row_groups[1] - task.row_groups[0] <= MOST_NARROW_GROUPS
            with Store(shard.uri, source.storage_options).open_input(narrow) as before:
                for ids in _explained(read_ids_before(before, reading), shard):
                    seen.claim(ids)
        for rows in _explained(READERS[encoding.format](file, reading), shard):
            yield check_rows(rows, reading, seen)


def _explained(items: Iterator[T], shard: Shard) -> Iterator[T]:
    with damage_explained(shard.uri):
        yield from items


def _cut_units(pieces: Iterator[CheckedRows], task: Task, rows_per_unit: int, metadata: pa.Schema) -> Iterator[SourceUnit]:
    """Cut at so many records or so much text, whichever comes first; a full unit waits for the next record, for it may be the last."""
    held: list[CheckedRows] = []
    first_row, num_rows, text_bytes = task.first_row, 0, 0
    for piece in pieces:
        start = 0
        while start < piece.num_rows:
            if num_rows >= rows_per_unit or text_bytes >= UNIT_TEXT_BYTES:
                yield _join(held, first_row, num_rows, False, metadata)
                held, first_row, num_rows, text_bytes = [], first_row + num_rows, 0, 0
            totals = text_bytes + np.cumsum(piece.text_bytes[start:])
            taken = min(piece.num_rows - start, rows_per_unit - num_rows, int(np.searchsorted(totals, UNIT_TEXT_BYTES)) + 1)
            held.append(piece.slice(start, start + taken))
            start, num_rows, text_bytes = start + taken, num_rows + taken, int(totals[taken - 1])
    yield _join(held, first_row, num_rows, task.ends, metadata)


def _join(held: list[CheckedRows], first_row: int, num_rows: int, last: bool, metadata: pa.Schema) -> SourceUnit:
    schema = pa.schema([*DOCUMENTS, *metadata])
    documents = pa.concat_tables([schema.empty_table(), *(piece.documents for piece in held)]).combine_chunks()
    quarantined = pa.concat_tables([QUARANTINE.empty_table(), *(piece.quarantined for piece in held)]).combine_chunks()
    return SourceUnit(first_row, first_row + num_rows, last, documents, quarantined)

"""Records as Python objects → Rows, for JSON, CSV and text files."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa

from embedder.core.errors import SourceError
from embedder.core.schema import Reason
from embedder.source.decompression import read_blocks
from embedder.source.formats.rows import Columns, Reading, Refusals, Rows, convert_ids, excerpt, join_texts, misfit_refuser
from embedder.source.metadata_values import build_column, excerpt_value

BATCH_RECORDS = 1024
BATCH_BYTES = 4 << 20

_UNREAD = (Reason.MALFORMED, Reason.UNDECODABLE)

Getter = Callable[[Any], Any]
"""Returns a column's value from a record."""


@dataclass(frozen=True, slots=True)
class Records:
    """Consecutive records; a refused one is a `placeholder` whose columns are all None."""

    records: list[Any] = field(default_factory=list)
    refused: Refusals = field(default_factory=dict)

    def refuse_large(self, start: bytes, placeholder: Any) -> None:
        """Add a record that is longer than allowed."""
        self.refuse(Reason.TOO_LARGE, start, placeholder)

    def refuse(self, reason: Reason, met: str | bytes, placeholder: Any) -> None:
        """Add a record that cannot be read."""
        self.refused[len(self.records)] = (reason, excerpt(met))
        self.records.append(placeholder)


def batch_by_size(items: Iterable[tuple[Any, int]]) -> Iterator[list[Any]]:
    """Group (item, bytes) pairs, so that memory is bounded by a batch or by one large item."""
    batch: list[Any] = []
    size_bytes = 0
    for item, item_bytes in items:
        batch.append(item)
        size_bytes += item_bytes
        if len(batch) >= BATCH_RECORDS or size_bytes >= BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def check_getter(get: Getter, key: str, reading: Reading, missing: Any = None) -> Getter:
    """Return a getter that takes a column from the shard's folder, or checks the record's own value against it."""
    if not reading.has_constant(key):
        return get
    constant = reading.constant(key)

    def get_checked(record: Any) -> Any:
        value = get(record)
        if value is missing:
            return constant
        reading.check_constant(key, [value])
        return value

    return get_checked


def to_rows(batches: Iterable[Records], columns: Columns[Getter], reading: Reading) -> Iterator[Rows]:
    """Convert records to columns; refuse a record whose text, id or metadata has the wrong type."""
    first_row = 0
    for batch in batches:
        records, refused = batch.records, batch.refused
        texts = join_texts([_texts([get(record) for record in records], refused) for get in columns.texts])
        ids = None if columns.id is None else convert_ids([columns.id(record) for record in records], refused)
        metadata = [
            build_column([get(record) for record in records], column.type, misfit_refuser(refused, column))
            for get, column in zip(columns.metadata, reading.metadata, strict=True)
        ]
        yield Rows(first_row, texts, ids, metadata, refused)
        first_row += len(records)


def _texts(values: list[Any], refused: Refusals) -> pa.Array:
    # pyarrow takes bytes for text
    if bytes not in map(type, values):
        with suppress(pa.ArrowException, UnicodeError):
            return pa.array(values, pa.string())
    for position, value in enumerate(values):
        if isinstance(value, str) and value.encode(errors="replace").decode() != value:
            refused.setdefault(position, (Reason.UNDECODABLE, excerpt(value)))
        elif value is not None and not isinstance(value, str):
            refused.setdefault(position, (Reason.NOT_TEXT, excerpt(excerpt_value(value))))
    return pa.array([None if position in refused else value for position, value in enumerate(values)], pa.string())


def refuse_broken(batches: Iterable[Rows], uri: str) -> Iterator[Rows]:
    """Pass rows on; raise SourceError at the end if more than half of the records could not be parsed or decoded.

    Such a shard is damaged as a whole: its rows in the table are better than its remains. The end of a shard is early enough, since
    no unit of a shard is published before its last one.
    """
    num_records = num_unread = 0
    first: tuple[int, str | None] | None = None
    for rows in batches:
        unread = [position for position, (reason, _) in rows.refused.items() if reason in _UNREAD]
        num_records, num_unread = num_records + len(rows.texts), num_unread + len(unread)
        if unread and first is None:
            position = min(unread)
            first = rows.first_row + (position if rows.kept is None else int(rows.kept[position])), rows.refused[position][1]
        yield rows
    if first and 2 * num_unread > num_records:
        example = f"the first is record {first[0]}: {first[1]!r}"
        raise SourceError(f"{uri}: {num_unread} of {num_records} records cannot be parsed ({example}); replace it and run again")


def _constant_getter(value: str | None) -> Getter:
    return lambda _: value


def read_text(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read a file as one document. Its metadata is that of its folder, or null; so is its id, if it is wanted."""
    most_bytes = reading.source.max_record_bytes
    blocks: list[bytes] = []
    size_bytes = 0
    for block in read_blocks(file, reading.compression):
        size_bytes += len(block)
        if size_bytes <= most_bytes or not blocks:
            blocks.append(block)
    data = b"".join(blocks)
    records = Records()
    if size_bytes > most_bytes:
        records.refuse_large(data, None)
    else:
        try:
            records.records.append(data.decode())
        except UnicodeDecodeError:
            records.refuse(Reason.UNDECODABLE, data, None)
    keys = reading.source.metadata_columns
    metadata = [_constant_getter(reading.constant(keys[name]) if name in keys else None) for name in reading.metadata.names]
    id_ = _constant_getter(reading.constant(reading.source.id_column)) if reading.source.id_column else None
    columns: Columns[Getter] = Columns([lambda text: text], id_, metadata)
    yield from to_rows([records], columns, reading)

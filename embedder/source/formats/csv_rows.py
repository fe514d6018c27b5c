"""CSV with a header → Rows. Every value is text, unless the metadata's type says otherwise: then an empty field is null."""

import csv
from collections.abc import Iterator
from operator import itemgetter
from typing import IO

import pyarrow as pa
import pyarrow.types as is_

from embedder.core.errors import SourceError
from embedder.core.schema import Reason
from embedder.source.decompression import read_blocks, read_lines
from embedder.source.formats.records import Getter, Getters, Records, batch_by_size, to_rows
from embedder.source.validation import EXCERPT_CHARS, Reading, Rows

FIELD_CHARS = 64 << 20
"""A longer field is refused: a quote that is never closed must not take the rest of the shard into memory."""


class _Lines:
    """The lines of a CSV as its parser takes them, with the start of the record that they are part of."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self.record = ""
        self.num_chars = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            # bytes that are not UTF-8 stay recognisable in their field, and are refused only if that field is read
            text = line.decode(errors="surrogateescape") + "\n"
            self.num_chars += len(text)
            if len(self.record) < EXCERPT_CHARS:
                self.record += text[:EXCERPT_CHARS]
            yield text


def read_header(file: IO[bytes], compression: str | None) -> list[str] | None:
    """Read the names of the columns; None from an empty file, [] from one whose first line is no header."""
    parser = csv.reader(iter(_Lines(read_lines(read_blocks(file, compression)))), strict=True)
    try:
        return next((names for names in parser if names), None)
    except csv.Error:
        return []


def read_csv(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read records under a header; an empty file has none. A row is a record's number: blank lines are no records and are not counted."""
    csv.field_size_limit(FIELD_CHARS)
    lines = _Lines(read_lines(read_blocks(file, reading.compression)))
    parser = csv.reader(iter(lines), strict=True)
    try:
        header = next((names for names in parser if names), [])
    except csv.Error as error:
        raise SourceError(f"{reading.shard.uri}: no CSV header in its first line ({error}): {lines.record[:EXCERPT_CHARS]!r}") from error
    if not header:
        return
    getters = _getters(header, reading)
    batches = batch_by_size(_read_records(parser, lines))
    yield from to_rows((_to_records(batch, len(header)) for batch in batches), getters, reading)


_Record = list[str] | str
"""The fields, or the start of a record that the parser cannot follow."""


def _read_records(parser: Iterator[list[str]], lines: _Lines) -> Iterator[tuple[_Record, int]]:
    while True:
        lines.record, lines.num_chars = "", 0
        try:
            record = next(parser)
        except StopIteration:
            return
        except csv.Error:
            yield lines.record, len(lines.record)
        else:
            if record:
                yield record, lines.num_chars


def _to_records(batch: list[_Record], num_fields: int) -> Records:
    records = Records()
    placeholder = [None] * num_fields
    for record in batch:
        if isinstance(record, str):
            records.refuse(Reason.MALFORMED, record, placeholder)
        elif len(record) != num_fields:
            records.refuse(Reason.MALFORMED, f"{len(record)} fields, not {num_fields}: {','.join(record)[:EXCERPT_CHARS]}", placeholder)
        else:
            records.records.append(record)
    return records


def _getters(header: list[str], reading: Reading) -> Getters:
    source, uri = reading.source, reading.shard.uri

    def position(key: str, setting: str) -> int:
        if header.count(key) != 1:
            problem = "no column" if key not in header else f"{header.count(key)} columns"
            raise SourceError(f"{uri}: {problem} {key!r} (found: {', '.join(header)}); set source.{setting}")
        return header.index(key)

    def metadata(name: str, type_: pa.DataType) -> Getter:
        get: Getter = itemgetter(position(source.metadata_columns[name], "metadata_columns"))
        return get if is_.is_string(type_) else lambda record: get(record) or None

    return Getters(
        texts=tuple(itemgetter(position(key, "text_columns")) for key in source.text_columns),
        id=itemgetter(position(source.id_column, "id_column")) if source.id_column else None,
        metadata=tuple(metadata(column.name, column.type) for column in reading.metadata),
    )

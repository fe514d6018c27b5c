"""CSV with a header → Rows. Values are text unless a metadata type is set; an empty field is then null."""

import csv
from collections.abc import Iterator
from operator import itemgetter
from typing import IO

import pyarrow as pa
import pyarrow.types as is_

from embedder.core.errors import SourceError
from embedder.core.schema import Reason
from embedder.source.decompression import read_blocks, read_lines
from embedder.source.formats.records import Getter, Records, batch_by_size, to_rows
from embedder.source.formats.rows import EXCERPT_CHARS, Columns, Reading, ReadSamples, Rows, ShardColumns

FIELD_CHARS = 64 << 20
"""Longer fields are refused, so that an unclosed quote does not read the rest of the shard into memory."""


class _Parser:
    """Parses records; keeps the start and size of the current one for error reports."""

    def __init__(self, file: IO[bytes], compression: str | None) -> None:
        csv.field_size_limit(FIELD_CHARS)
        self._lines = read_lines(read_blocks(file, compression))
        self._parser = csv.reader(self._read_text(), strict=True)
        self.record = ""
        self.num_chars = 0

    def _read_text(self) -> Iterator[str]:
        for line in self._lines:
            # bytes that are not UTF-8 become surrogates, which are refused only if their column is read
            text = line.decode(errors="surrogateescape") + "\n"
            self.num_chars += len(text)
            if len(self.record) < EXCERPT_CHARS:
                self.record += text[:EXCERPT_CHARS]
            yield text

    def read_header(self) -> list[str]:
        """Return the column names, [] if the file is empty; csv.Error if the first line is not CSV."""
        return next((names for names in self._parser if names), [])

    def read_records(self) -> Iterator[tuple[list[str] | str, int]]:
        """Yield each record's fields, or the excerpt of one that cannot be parsed, with its size. Skip blank lines."""
        while True:
            self.record, self.num_chars = "", 0
            try:
                record = next(self._parser)
            except StopIteration:
                return
            except csv.Error:
                yield self.record, len(self.record)
            else:
                if record:
                    yield record, self.num_chars


def inspect_csv(read_samples: ReadSamples) -> list[ShardColumns]:
    """Return the columns of the sampled shards; empty shards are left out."""
    headers = read_samples(_sample_header)
    return [ShardColumns(uri, names, dict.fromkeys(names, pa.string()).get, "untyped") for uri, names in headers if names is not None]


def _sample_header(file: IO[bytes], compression: str | None) -> list[str] | None:
    try:
        return _Parser(file, compression).read_header() or None
    except csv.Error:
        return []


def read_csv(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read records below a header. A row is a record's number; blank lines are not counted."""
    parser = _Parser(file, reading.compression)
    try:
        header = parser.read_header()
    except csv.Error as error:
        raise SourceError(f"{reading.shard.uri}: no CSV header in its first line ({error}): {parser.record[:EXCERPT_CHARS]!r}") from error
    if header:
        batches = batch_by_size(parser.read_records())
        yield from to_rows((_to_records(batch, len(header)) for batch in batches), _find_columns(header, reading), reading)


def _to_records(batch: list[list[str] | str], num_fields: int) -> Records:
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


def _find_columns(header: list[str], reading: Reading) -> Columns[Getter]:
    def find(key: str, setting: str) -> Getter:
        if header.count(key) != 1:
            problem = "no column" if key not in header else f"{header.count(key)} columns"
            raise SourceError(f"{reading.shard.uri}: {problem} {key!r} (found: {', '.join(header)}); set source.{setting}")
        return itemgetter(header.index(key))

    found: Columns[Getter] = reading.find_columns(find)
    typed = zip(found.metadata, reading.metadata, strict=True)
    return Columns(found.texts, found.id, [get if is_.is_string(column.type) else _null_if_empty(get) for get, column in typed])


def _null_if_empty(get: Getter) -> Getter:
    return lambda record: get(record) or None

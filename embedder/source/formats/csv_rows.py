"""CSV or TSV with a header → Rows. Values are text unless a metadata type is set; an empty field is then null."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as is_

from embedder.core.errors import SourceError
from embedder.source.decompression import read_blocks
from embedder.source.formats.arrow_columns import ArrowColumn, CheckedColumn, ConstantColumn, read_batches
from embedder.source.formats.csv_records import CsvRecords, Refused
from embedder.source.formats.records import Getter, Records, batch_by_size, check_getter, refuse_broken, to_rows
from embedder.source.formats.rows import Columns, Reading, ReadSamples, Rows, ShardColumns, name_some

SAMPLE_RECORD_BYTES = 64 << 20
"""A longer header is not sampled."""
_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_NAMED = {",": "csv", "\t": "tsv"}


def inspect_csv(delimiter: str, read_samples: ReadSamples) -> list[ShardColumns]:
    """Return the columns of the sampled shards; empty shards are left out."""
    headers = read_samples(partial(_sample_header, delimiter))
    return [ShardColumns(uri, names, dict.fromkeys(names, pa.string()).get, "untyped") for uri, names in headers if names is not None]


def _sample_header(delimiter: str, file: IO[bytes], reading: Reading) -> list[str] | None:
    return CsvRecords(read_blocks(file, reading.compression), SAMPLE_RECORD_BYTES, delimiter).read_header() or None


def read_csv(delimiter: str, file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read records below a header. A row is a record's number; blank lines are not counted.

    Raise SourceError if most records cannot be parsed, and EOFError if the last record is cut off.
    """
    records = CsvRecords(read_blocks(file, reading.compression), reading.source.max_record_bytes, delimiter)
    if header := records.read_header():
        exact, plain = _find_columns(header, delimiter, reading), _find_plain(header, reading)
        wanted = sorted({int(column.name) for column in plain if column.path})
        rows = _read_rows(records.read(len(header), wanted), len(header), exact, plain, reading)
        yield from refuse_broken(_number_rows(rows), reading.shard.uri)


def _read_rows(
    records: Iterator[tuple[list[str] | Refused | pa.RecordBatch, int]],
    num_fields: int,
    exact: Columns[Getter],
    plain: Columns[ArrowColumn],
    reading: Reading,
) -> Iterator[Rows]:
    for is_plain, items in groupby(records, lambda item: isinstance(item[0], pa.RecordBatch)):
        if is_plain:
            yield from read_batches((batch for batch, _ in items), plain, reading)
        else:
            yield from to_rows((_to_records(batch, num_fields) for batch in batch_by_size(items)), exact, reading)


def _number_rows(batches: Iterable[Rows]) -> Iterator[Rows]:
    first_row = 0
    for rows in batches:
        yield replace(rows, first_row=first_row)
        first_row += len(rows.texts)


def _to_records(batch: list[list[str] | Refused], num_fields: int) -> Records:
    records = Records()
    placeholder = [None] * num_fields
    for record in batch:
        if isinstance(record, Refused):
            records.refuse(record.reason, record.met, placeholder)
        else:
            records.records.append(record)
    return records


def _find_columns(header: list[str], delimiter: str, reading: Reading) -> Columns[Getter]:
    def find(key: str, setting: str) -> Getter:
        if key not in header and reading.may_lack(key):
            return check_getter(lambda _: None, key, reading)
        if header.count(key) != 1:
            problem = "no column" if key not in header else f"{header.count(key)} columns"
            raise SourceError(f"{reading.shard.uri}: {problem} {key!r} (found: {name_some(header)}); {_advise(header, delimiter, setting)}")
        return check_getter(itemgetter(header.index(key)), key, reading)

    found: Columns[Getter] = reading.find_columns(find)
    typed = zip(found.metadata, reading.metadata, strict=True)
    return Columns(found.texts, found.id, [get if is_.is_string(column.type) else _null_if_empty(get) for get, column in typed])


def _advise(header: list[str], delimiter: str, setting: str) -> str:
    found = next((mark for mark in _DELIMITERS if len(header) == 1 and mark != delimiter and mark in header[0]), None)
    if found is None:
        return f"set {setting}"
    advice = f"set source.format={_NAMED[found]!r}" if found in _NAMED else "convert it"
    return f"its columns are separated by {_DELIMITERS[found]}, and only {_DELIMITERS[delimiter]} are read: {advice}"


def _null_if_empty(get: Getter) -> Getter:
    return lambda record: get(record) or None


@dataclass(frozen=True, slots=True)
class _TypedColumn(ArrowColumn):
    """A column of which an empty field is null."""

    column: ArrowColumn

    def take(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the column's values in a batch."""
        values = self.column.take(batch)
        return pc.if_else(pc.equal(pc.binary_length(values), 0), pa.scalar(None, pa.string()), values)


def _find_plain(header: list[str], reading: Reading) -> Columns[ArrowColumn]:
    """Return the columns of a plain block that `_find_columns` finds in a record."""

    def find(key: str, _: str) -> ArrowColumn:
        if key not in header:
            return ConstantColumn(key, (), pa.string(), reading.constant(key))
        path = (str(header.index(key)),)
        return CheckedColumn(key, path, pa.string(), reading) if reading.has_constant(key) else ArrowColumn(key, path, pa.string())

    found = reading.find_columns(find)
    typed = zip(found.metadata, reading.metadata, strict=True)
    metadata = [each if is_.is_string(column.type) else _TypedColumn(each.key, each.path, each.type, each) for each, column in typed]
    return Columns(found.texts, found.id, metadata)

"""Record batches → Rows, as whole columns. Python handles single values only if one of them is invalid."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as is_

from embedder.core.errors import SourceError
from embedder.core.schema import Reason
from embedder.source.formats.rows import (
    Columns,
    Reading,
    ReadSamples,
    Refusals,
    Rows,
    ShardColumns,
    convert_ids,
    excerpt,
    join_texts,
    misfit_refuser,
)
from embedder.source.metadata_casts import cast_column
from embedder.source.metadata_types import find_refused, is_id, is_text, name_type
from embedder.source.table_files import find_column

BATCH_ROWS = 4096
BATCH_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class ArrowColumn:
    """A column, or a field of a nested column, by its names from the top."""

    key: str
    path: tuple[str, ...]
    type: pa.DataType

    @property
    def name(self) -> str:
        """As pyarrow names it in a file."""
        return ".".join(self.path)

    def take(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the column's values in a batch."""
        top = batch.column(self.path[0])
        values = pc.struct_field(top, list(self.path[1:])) if len(self.path) > 1 else top
        return _to_string(values) if is_.is_string(self.type) and is_.is_binary(values.type) else values


@dataclass(frozen=True, slots=True)
class ConstantColumn(ArrowColumn):
    """A column that the file does not have: one text, or null, in all rows."""

    value: str | None = None

    def take(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the column's values in a batch."""
        return pa.repeat(pa.scalar(self.value, pa.string()), batch.num_rows)


@dataclass(frozen=True, slots=True)
class CheckedColumn(ArrowColumn):
    """A column of the file that its folder or log names too."""

    reading: Reading

    def take(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the column's values in a batch."""
        values = ArrowColumn.take(self, batch)
        self.reading.check_constant(self.key, values.to_pylist())
        return values


def inspect_declared(find_schema: Callable[[IO[bytes]], pa.Schema], read_samples: ReadSamples) -> list[ShardColumns]:
    """Return the columns of each sampled shard, whose file states their types."""
    return list_columns(read_samples(lambda file, _: find_schema(file)))


def list_columns(schemas: Iterable[tuple[str, pa.Schema]]) -> list[ShardColumns]:
    """Return the columns of each shard's schema."""
    return [ShardColumns(uri, schema.names, partial(_find_type, schema), "declared") for uri, schema in schemas]


def _find_type(schema: pa.Schema, key: str) -> pa.DataType | None:
    found = find_field(schema, key)
    return found[1] if found else None


def find_field(schema: pa.Schema, key: str) -> tuple[tuple[str, ...], pa.DataType] | None:
    """Find a column by name or by a dotted path into structs; a column whose name contains the dot takes precedence."""
    if schema.names.count(key) == 1:
        return (key,), schema.field(key).type
    first, *others = key.split(".")
    if not others or schema.names.count(first) != 1:
        return None
    type_ = schema.field(first).type
    for name in others:
        if not is_.is_struct(type_) or type_.get_field_index(name) < 0:
            return None
        type_ = type_.field(name).type
    return (first, *others), type_


def find_columns(schema: pa.Schema, reading: Reading, stored: pa.Schema | None = None) -> Columns[ArrowColumn]:
    """Return the columns to read; SourceError if one is missing, or has a type that cannot be what it is wanted for.

    `stored`: the fields as the file has them, if the shard's table may say which of them a column is.
    """
    shard, uri = reading.shard, reading.shard.uri

    def find(key: str, setting: str) -> ArrowColumn:
        if shard.columns and stored is not None:
            path = find_column(stored, key, shard)
            return ArrowColumn(key, path, _type_at(schema, path)) if path else ConstantColumn(key, (), pa.string(), reading.constant(key))
        found = find_field(schema, key)
        if found is None and reading.may_lack(key) and key not in schema.names:
            return ConstantColumn(key, (), pa.string(), reading.constant(key))
        if found is None:
            count = schema.names.count(key)
            problem = f"{count} columns" if count else "no column"
            raise SourceError(f"{uri}: {problem} {key!r} (found: {', '.join(schema.names)}); set {setting}")
        return CheckedColumn(key, *found, reading) if reading.has_constant(key) else ArrowColumn(key, *found)

    columns = reading.find_columns(find)
    check_types(columns, uri)
    return columns


def _type_at(schema: pa.Schema, path: tuple[str, ...]) -> pa.DataType:
    type_ = schema.field(path[0]).type
    for name in path[1:]:
        type_ = type_.field(name).type
    return type_


def check_types(columns: Columns[ArrowColumn], uri: str) -> None:
    """Raise SourceError for a column of a type that cannot be what it is wanted for."""
    for column in columns.texts:
        if not is_text(column.type):
            raise SourceError(f"{uri}: column {column.key!r} is {name_type(column.type)}, not text; set source.text_columns")
    if columns.id is not None and not is_id(columns.id.type):
        raise SourceError(f"{uri}: column {columns.id.key!r} is {name_type(columns.id.type)}, not text or a number; set source.id_column")
    for column in columns.metadata:
        if refused := find_refused(column.type):
            raise SourceError(f"{uri}: column {column.key!r} is {refused}, which no metadata can hold; set source.metadata_columns")


def read_batches(batches: Iterable[pa.RecordBatch], columns: Columns[ArrowColumn], reading: Reading) -> Iterator[Rows]:
    """Convert batches of any size: small ones are joined, and large ones are read a bounded part at a time."""
    first_row = 0
    for batch in join_batches(map(decode, batches)):
        step_rows = max(1, min(BATCH_ROWS, BATCH_BYTES * batch.num_rows // max(batch.nbytes, 1)))
        for start in range(0, batch.num_rows, step_rows):
            part = batch.slice(start, step_rows)
            yield to_rows(part, columns, reading, first_row)
            first_row += part.num_rows


def join_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches of at least BATCH_ROWS or BATCH_BYTES, except for the last."""
    held: list[pa.RecordBatch] = []
    num_rows = size_bytes = 0
    for batch in batches:
        held.append(batch)
        num_rows, size_bytes = num_rows + batch.num_rows, size_bytes + batch.nbytes
        if num_rows >= BATCH_ROWS or size_bytes >= BATCH_BYTES:
            yield held[0] if len(held) == 1 else pa.concat_batches(held)
            held, num_rows, size_bytes = [], 0, 0
    if num_rows:
        yield held[0] if len(held) == 1 else pa.concat_batches(held)


def decode(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch without dictionaries, so that its bytes are those of its values."""
    plain = [column.dictionary_decode() if is_.is_dictionary(column.type) else column for column in batch.columns]
    return pa.record_batch(plain, batch.schema.names)


def top_names(columns: Columns[ArrowColumn], schema: pa.Schema) -> list[str]:
    """Return the top-level columns to read; the first of the file if none is needed but for the number of rows."""
    return list(dict.fromkeys(column.path[0] for column in columns if column.path)) or schema.names[:1]


def to_rows(batch: pa.RecordBatch, columns: Columns[ArrowColumn], reading: Reading, first_row: int) -> Rows:
    """Convert one batch of bounded size."""
    refused: Refusals = {}
    texts = join_texts([_texts(column.take(batch), refused) for column in columns.texts])
    ids = None if columns.id is None else take_ids(columns.id.take(batch), refused)
    metadata = [
        cast_column(column.take(batch), field.type, misfit_refuser(refused, field))
        for column, field in zip(columns.metadata, reading.metadata, strict=True)
    ]
    return Rows(first_row, texts, ids, metadata, refused)


def _to_string(column: pa.Array) -> pa.Array:
    """Cast to text without a check of its bytes."""
    return pc.cast(column, options=pc.CastOptions(target_type=pa.string(), allow_invalid_utf8=True))


def _texts(column: pa.Array, refused: Refusals) -> pa.Array:
    texts = _to_string(column)
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        values = texts.cast(pa.binary()).to_pylist()
        return pa.array([_decode(value, refused, position) for position, value in enumerate(values)], pa.string())
    return texts


def _decode(value: bytes | None, refused: Refusals, position: int) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        refused.setdefault(position, (Reason.UNDECODABLE, excerpt(value or b"")))
        return None


def take_ids(column: pa.Array, refused: Refusals) -> pa.Array:
    """Return ids as text; refuse those that are not text or a number."""
    if is_text(column.type):
        return _texts(column, refused)
    if isinstance(column.type, pa.UuidType):
        return pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
    return convert_ids(column.to_pylist(), refused) if is_.is_floating(column.type) else column.cast(pa.string())

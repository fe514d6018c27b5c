"""Parquet → Rows, by row group and as whole columns. Python handles single values only if one of them is invalid."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as is_

from embedder.core.errors import SourceError
from embedder.core.schema import Reason
from embedder.source.formats.parquet_bounds import can_pass, read_bounds
from embedder.source.formats.parquet_types import find_int96, find_schema, is_exact
from embedder.source.formats.rows import (
    Columns,
    Reading,
    ReadSamples,
    Refusals,
    Rows,
    ShardColumns,
    Slice,
    convert_ids,
    excerpt,
    join_texts,
    misfit_refuser,
)
from embedder.source.metadata_casts import cast_column
from embedder.source.metadata_types import find_refused, is_id, is_text, name_type
from embedder.source.table_files import Rows as Deleted
from embedder.source.table_files import find_column, unpack_rows

BATCH_ROWS = 4096
BATCH_BYTES = 16 << 20
STEP_ROWS = 64
"""Rows decoded at a time. A dictionary can repeat a value of megabytes in every row, which no size in the footer shows."""
BUFFERED_BYTES = 512 << 20
"""A shard with larger row groups is read through buffers, which is slower, instead of a column chunk at a time."""
_BUFFER_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Column:
    """A column, or a field of a nested column, by its names from the top."""

    key: str
    path: tuple[str, ...]
    type: pa.DataType

    @property
    def name(self) -> str:
        """As pyarrow names it in a file."""
        return ".".join(self.path)

    def take(self, batch: pa.RecordBatch) -> pa.Array:
        """Return its values."""
        top = batch.column(self.path[0])
        values = pc.struct_field(top, list(self.path[1:])) if len(self.path) > 1 else top
        return _to_string(values) if is_.is_string(self.type) and is_.is_binary(values.type) else values


@dataclass(frozen=True, slots=True)
class _Constant(Column):
    """A column that the file does not have: one text, or null, in all rows."""

    value: str | None = None

    def take(self, batch: pa.RecordBatch) -> pa.Array:
        return pa.repeat(pa.scalar(self.value, pa.string()), batch.num_rows)


@dataclass(frozen=True, slots=True)
class _Checked(Column):
    """A column of the file that its folder or log names too."""

    reading: Reading

    def take(self, batch: pa.RecordBatch) -> pa.Array:
        values = Column.take(self, batch)
        self.reading.check_constant(self.key, values.to_pylist())
        return values


def inspect_parquet(read_samples: ReadSamples) -> list[ShardColumns]:
    """Return the columns of each sampled shard."""
    schemas = read_samples(lambda file, _: find_schema(_open(file)))
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


def read_parquet(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read the columns of a shard, or of the row groups of a slice."""
    shard = _open(file)
    schema = find_schema(shard)
    columns = _find_columns(schema, shard.schema_arrow, reading)
    groups = range(*reading.row_groups) if reading.row_groups else range(shard.num_row_groups)
    buffer_bytes = _BUFFER_BYTES if max(_share_bytes(shard.metadata, reading.shard.size_bytes), default=0) > BUFFERED_BYTES else 0
    if buffer_bytes:
        shard = _open(file, shard.metadata, buffer_bytes)
    keys = [column.name for column in columns if not isinstance(column, _Constant)] or schema.names[:1]
    int96 = find_int96(shard, [column.name for column in columns.metadata if not isinstance(column, _Constant)])
    # one decoding cannot show that it overflowed
    others = [_open(file, shard.metadata, buffer_bytes, unit) for unit in ("ms", "ns")] if int96 else []
    left_out = _leave_out(file, columns, reading)
    first_row = reading.first_row
    for group, num_rows, deleted in _find_deleted(shard, groups, reading):
        if group in left_out:
            yield _nothing(first_row, num_rows - len(deleted), reading)
            first_row += num_rows - len(deleted)
            continue
        times = [each.read_row_group(group, int96, use_threads=False).take(np.delete(np.arange(num_rows), deleted)) for each in others]
        start_row = first_row
        for batch in _drop(_read_group(shard, group, keys), deleted):
            rows = to_rows(batch, columns, reading, first_row)
            if times:
                same_rows = [each.slice(first_row - start_row, batch.num_rows).combine_chunks().to_batches()[0] for each in times]
                _refuse_int96([batch, *same_rows], int96, columns, rows, reading)
            yield rows
            first_row += batch.num_rows


def _leave_out(file: IO[bytes], columns: Columns[Column], reading: Reading) -> set[int]:
    """Return the row groups of which no record can pass the filter."""
    if reading.tested is None:
        return set()
    where, schema = reading.tested
    flat = {column.key: column for column in columns.metadata if type(column) is Column and len(column.path) == 1}
    flat = {key: column for key, column in flat.items() if key in schema.names}
    bounds = read_bounds(file, {column.name: (column.type, schema.field(key).type) for key, column in flat.items()})
    by_key = ({key: found[column.name] for key, column in flat.items() if column.name in found} for found in bounds)
    return {group for group, found in enumerate(by_key) if not can_pass(where, found)}


def _find_deleted(shard: pq.ParquetFile, groups: range, reading: Reading) -> Iterator[tuple[int, int, Deleted]]:
    """Yield each row group, its number of rows and those of them that its table deleted."""
    deleted = unpack_rows(reading.shard.deleted)
    start_row = sum(shard.metadata.row_group(group).num_rows for group in range(groups.start)) if len(deleted) else 0
    for group in groups:
        num_rows = shard.metadata.row_group(group).num_rows
        start, stop = np.searchsorted(deleted, [start_row, start_row + num_rows])
        yield group, num_rows, deleted[start:stop] - start_row
        start_row += num_rows


def _drop(batches: Iterator[pa.RecordBatch], deleted: Deleted) -> Iterator[pa.RecordBatch]:
    """Yield batches without deleted rows, which are counted from the first batch on."""
    first_row = 0
    for batch in batches:
        is_kept = np.isin(np.arange(first_row, first_row + batch.num_rows), deleted, invert=True) if len(deleted) else np.array([True])
        first_row += batch.num_rows
        if is_kept.any():
            yield batch if is_kept.all() else batch.filter(pa.array(is_kept))


def _nothing(first_row: int, num_rows: int, reading: Reading) -> Rows:
    """Return records that are all left out."""
    ids = pa.array([], pa.string()) if reading.source.id_column else None
    metadata = [pa.array([], field.type) for field in reading.metadata]
    return Rows(first_row, pa.array([], pa.string()), ids, metadata, kept=np.array([], np.int64), num_read=num_rows)


def _refuse_int96(batches: Sequence[pa.RecordBatch], keys: Sequence[str], columns: Columns[Column], rows: Rows, reading: Reading) -> None:
    for column, field in zip(columns.metadata, reading.metadata, strict=True):
        times = [column.take(batch) for batch in batches] if column.name in keys else []
        if times and not is_exact(*times):
            refuse = misfit_refuser(rows.refused, field)
            for position in range(len(times[0])):
                if not is_exact(*(each.slice(position, 1) for each in times)):
                    refuse(position, "INT96 finer than a microsecond or out of range")


def read_ids_before(file: IO[bytes], reading: Reading) -> Iterator[pa.Array]:
    """Read the ids of the row groups before a slice, and no other column."""
    shard = _open(file)
    schema = find_schema(shard)
    column = _find_columns(schema, shard.schema_arrow, reading).id
    if column is not None and reading.row_groups:
        keys = schema.names[:1] if isinstance(column, _Constant) else [column.name]
        for group, _, deleted in _find_deleted(shard, range(reading.row_groups[0]), reading):
            for batch in _drop(_read_group(shard, group, keys), deleted):
                yield _ids(column.take(batch), {})


def slice_row_groups(file: IO[bytes], size_bytes: int, least_bytes: int) -> list[Slice]:
    """Split a file of `size_bytes` at row groups into slices of at least `least_bytes` on storage."""
    metadata = _open(file).metadata
    slices = [(0, metadata.num_row_groups, 0)]
    slice_bytes = row = 0
    for index, group_bytes in enumerate(_share_bytes(metadata, size_bytes)):
        if slice_bytes >= least_bytes:
            slices[-1:] = [(slices[-1][0], index, slices[-1][2]), (index, metadata.num_row_groups, row)]
            slice_bytes = 0
        slice_bytes += group_bytes
        row += metadata.row_group(index).num_rows
    if len(slices) > 1 and slice_bytes < least_bytes:
        slices[-2:] = [(slices[-2][0], metadata.num_row_groups, slices[-2][2])]
    return slices


def _share_bytes(metadata: pq.FileMetaData, size_bytes: int) -> list[int]:
    """Divide the shard's bytes among its row groups by uncompressed size. Exact sizes are those of the columns, but pyarrow 26 aborts
    the process if a column of a damaged footer is accessed."""
    sizes = [max(metadata.row_group(index).total_byte_size, 0) for index in range(metadata.num_row_groups)]
    return [size * size_bytes // max(sum(sizes), 1) for size in sizes]


def _open(file: IO[bytes], metadata: pq.FileMetaData | None = None, buffer_bytes: int = 0, int96: str = "us") -> pq.ParquetFile:
    """Open a file; pages with a wrong checksum fail. INT96 is read as microseconds: pyarrow's nanoseconds wrap around in 2262."""
    return pq.ParquetFile(
        file, metadata=metadata, buffer_size=buffer_bytes, coerce_int96_timestamp_unit=int96, page_checksum_verification=True
    )


def _find_columns(schema: pa.Schema, stored: pa.Schema, reading: Reading) -> Columns[Column]:
    """Find columns by their types in `schema`, and those of a table with field ids by their fields in `stored`."""
    shard, uri = reading.shard, reading.shard.uri

    def find(key: str, setting: str) -> Column:
        if shard.columns:
            path = find_column(stored, key, shard)
            return Column(key, path, _type_at(schema, path)) if path else _Constant(key, (), pa.string(), reading.constant(key))
        found = find_field(schema, key)
        if found is None and reading.is_absent(key) and key not in schema.names:
            return _Constant(key, (), pa.string(), reading.constant(key))
        if found is None:
            count = schema.names.count(key)
            problem = f"{count} columns" if count else "no column"
            raise SourceError(f"{uri}: {problem} {key!r} (found: {', '.join(schema.names)}); set source.{setting}")
        return _Checked(key, *found, reading) if reading.has_constant(key) else Column(key, *found)

    columns = reading.find_columns(find)
    check_types(columns, uri)
    return columns


def check_types(columns: Columns[Column], uri: str) -> None:
    """Raise SourceError for a column of a type that it cannot have."""
    for column in columns.texts:
        if not is_text(column.type):
            raise SourceError(f"{uri}: column {column.key!r} is {name_type(column.type)}, not text; set source.text_columns")
    if columns.id is not None and not is_id(columns.id.type):
        raise SourceError(f"{uri}: column {columns.id.key!r} is {name_type(columns.id.type)}, not text or a number; set source.id_column")
    for column in columns.metadata:
        if refused := find_refused(column.type):
            raise SourceError(f"{uri}: column {column.key!r} is {refused}, which no metadata can hold; set source.metadata_columns")


def _type_at(schema: pa.Schema, path: tuple[str, ...]) -> pa.DataType:
    type_ = schema.field(path[0]).type
    for name in path[1:]:
        type_ = type_.field(name).type
    return type_


def _read_group(shard: pq.ParquetFile, group: int, keys: list[str]) -> Iterator[pa.RecordBatch]:
    """Read batches of bounded size; raise OSError if a row group has fewer rows than its footer states."""
    metadata, num_read = shard.metadata.row_group(group), 0
    row_bytes = metadata.total_byte_size // max(metadata.num_rows, 1)
    step_rows = max(1, min(STEP_ROWS, BATCH_BYTES // max(row_bytes, 1)))
    held: list[pa.RecordBatch] = []
    size_bytes = num_rows = 0
    for step in shard.iter_batches(step_rows, row_groups=[group], columns=keys, use_threads=False):
        # decoded, so that its bytes are those of its values
        plain = [column.dictionary_decode() if is_.is_dictionary(column.type) else column for column in step.columns]
        batch = pa.record_batch(plain, step.schema.names)
        held.append(batch)
        size_bytes, num_rows = size_bytes + batch.nbytes, num_rows + batch.num_rows
        if num_rows >= BATCH_ROWS or size_bytes >= BATCH_BYTES:
            yield _join(held)
            held, num_read, size_bytes, num_rows = [], num_read + num_rows, 0, 0
    if num_rows:
        yield _join(held)
    if num_read + num_rows != metadata.num_rows:
        raise OSError(f"row group {group} holds {num_read + num_rows} rows, its footer states {metadata.num_rows}")


def _join(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def to_rows(batch: pa.RecordBatch, columns: Columns[Column], reading: Reading, first_row: int) -> Rows:
    """Convert the rows of a batch, quarantining those of a wrong text, id or metadata value."""
    refused: Refusals = {}
    texts = join_texts([_texts(column.take(batch), refused) for column in columns.texts])
    ids = None if columns.id is None else _ids(columns.id.take(batch), refused)
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


def _ids(column: pa.Array, refused: Refusals) -> pa.Array:
    if is_text(column.type):
        return _texts(column, refused)
    if isinstance(column.type, pa.UuidType):
        return pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
    return convert_ids(column.to_pylist(), refused) if is_.is_floating(column.type) else column.cast(pa.string())

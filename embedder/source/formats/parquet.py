"""Parquet → Rows, by row group."""

from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedder.source.formats.arrow_columns import (
    BATCH_BYTES,
    ArrowColumn,
    ConstantColumn,
    decode,
    find_columns,
    join_batches,
    take_ids,
    to_rows,
)
from embedder.source.formats.parquet_bounds import can_pass, read_bounds
from embedder.source.formats.parquet_types import find_int96, find_schema, is_exact
from embedder.source.formats.rows import Columns, Reading, Rows, Slice, misfit_refuser
from embedder.source.table_files import Rows as Deleted
from embedder.source.table_files import unpack_rows

STEP_ROWS = 64
"""Rows decoded at a time. A dictionary can repeat a value of megabytes in every row, which no size in the footer shows."""
BUFFERED_BYTES = 512 << 20
"""A shard with larger row groups is read through buffers, which is slower, instead of a column chunk at a time."""
_BUFFER_BYTES = 4 << 20


def parquet_schema(file: IO[bytes]) -> pa.Schema:
    """Return the columns of a file."""
    return find_schema(_open(file))


def read_parquet(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read the columns of a shard, or of the row groups of a slice."""
    shard = _open(file)
    schema = find_schema(shard)
    columns = find_columns(schema, reading, shard.schema_arrow)
    groups = range(*reading.row_groups) if reading.row_groups else range(shard.num_row_groups)
    buffer_bytes = _BUFFER_BYTES if max(_share_bytes(shard.metadata, reading.shard.size_bytes), default=0) > BUFFERED_BYTES else 0
    if buffer_bytes:
        shard = _open(file, shard.metadata, buffer_bytes)
    keys = [column.name for column in columns if not isinstance(column, ConstantColumn)] or schema.names[:1]
    int96 = find_int96(shard, [column.name for column in columns.metadata if not isinstance(column, ConstantColumn)])
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


def _leave_out(file: IO[bytes], columns: Columns[ArrowColumn], reading: Reading) -> set[int]:
    """Return the row groups of which no record can pass the filter."""
    if reading.tested is None:
        return set()
    where, schema = reading.tested
    flat = {column.key: column for column in columns.metadata if type(column) is ArrowColumn and len(column.path) == 1}
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


def _refuse_int96(
    batches: Sequence[pa.RecordBatch], keys: Sequence[str], columns: Columns[ArrowColumn], rows: Rows, reading: Reading
) -> None:
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
    column = find_columns(schema, reading, shard.schema_arrow).id
    if column is not None and reading.row_groups:
        keys = schema.names[:1] if isinstance(column, ConstantColumn) else [column.name]
        for group, _, deleted in _find_deleted(shard, range(reading.row_groups[0]), reading):
            for batch in _drop(_read_group(shard, group, keys), deleted):
                yield take_ids(column.take(batch), {})


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


def _read_group(shard: pq.ParquetFile, group: int, keys: list[str]) -> Iterator[pa.RecordBatch]:
    """Read batches of bounded size; raise OSError if a row group has fewer rows than its footer states."""
    metadata, num_read = shard.metadata.row_group(group), 0
    row_bytes = metadata.total_byte_size // max(metadata.num_rows, 1)
    step_rows = max(1, min(STEP_ROWS, BATCH_BYTES // max(row_bytes, 1)))
    steps = shard.iter_batches(step_rows, row_groups=[group], columns=keys, use_threads=False)
    for batch in join_batches(map(decode, steps)):
        num_read += batch.num_rows
        yield batch
    if num_read != metadata.num_rows:
        raise OSError(f"row group {group} holds {num_read} rows, its footer states {metadata.num_rows}")

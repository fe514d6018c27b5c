"""Arrow IPC, as a file (Feather of version 2) or as a stream → Rows, by record batch. The bytes decide which, not the name."""

import io
from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from embedder.source.contents import require_mark
from embedder.source.decompression import read_start
from embedder.source.formats.arrow_columns import find_columns, read_batches, top_names
from embedder.source.formats.rows import Reading, Rows

_FILE, _STREAM = b"ARROW1\0", b"\xff\xff\xff\xff"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_AS_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}


def arrow_schema(file: IO[bytes]) -> pa.Schema:
    """Return the columns of a file."""
    return _open(file).schema


def read_arrow(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read the columns of a shard. Raise OSError if a stream has no end mark: its writer was stopped, or it is truncated."""
    schema = arrow_schema(file)
    columns = find_columns(schema, reading)
    file.seek(0)
    shard = _open(file, [schema.names.index(name) for name in top_names(columns, schema)])
    yield from read_batches(map(_check, _read(shard, file)), columns, reading)


def _open(file: IO[bytes], fields: list[int] | None = None) -> pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader:
    options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
    opened = pa.ipc.open_file if require_mark(read_start(file), "an Arrow file", _FILE, _STREAM) == _FILE else pa.ipc.open_stream
    return opened(file, options=options)


def _read(shard: pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader, file: IO[bytes]) -> Iterator[pa.RecordBatch]:
    if isinstance(shard, pa.ipc.RecordBatchFileReader):
        yield from map(shard.get_batch, range(shard.num_record_batches))
        return
    yield from shard
    file.seek(-len(_END_OF_STREAM), io.SEEK_END)
    if file.read() != _END_OF_STREAM:
        raise EOFError("the mark that ends an Arrow stream is missing")


def _check(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Raise ArrowInvalid for buffers that a reader would leave: the format has no checksums. Bytes of texts are checked later."""
    for column in batch.columns:
        (column.view(_AS_BYTES[column.type]) if column.type in _AS_BYTES else column).validate(full=True)
    return batch

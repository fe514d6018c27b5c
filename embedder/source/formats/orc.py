"""ORC → Rows, by stripe. A time outside the years 1677 to 2262 breaks its shard: pyarrow reads only nanoseconds."""

from collections.abc import Iterator
from typing import IO

import pyarrow as pa
from pyarrow.orc import ORCFile

from embedder.source.contents import require_mark
from embedder.source.decompression import read_start
from embedder.source.formats.arrow_columns import find_columns, read_batches, top_names
from embedder.source.formats.rows import Reading, Rows


def orc_schema(file: IO[bytes]) -> pa.Schema:
    """Return the columns of a file."""
    return _open(file).schema


def _open(file: IO[bytes]) -> ORCFile:
    require_mark(read_start(file), "an ORC file", b"ORC")
    return ORCFile(file)


def read_orc(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read the columns of a shard; raise OSError if its stripes hold fewer rows than its footer states."""
    shard = _open(file)
    columns = find_columns(shard.schema, reading)
    yield from read_batches(_read_stripes(shard, top_names(columns, shard.schema)), columns, reading)


def _read_stripes(shard: ORCFile, names: list[str]) -> Iterator[pa.RecordBatch]:
    # pyarrow takes a dot in a name for a field of a struct
    wanted = None if any("." in name for name in shard.schema.names) else names
    num_rows = 0
    for number in range(shard.nstripes):
        stripe = shard.read_stripe(number, wanted)
        num_rows += stripe.num_rows
        yield stripe
    if num_rows != shard.nrows:
        raise OSError(f"its stripes hold {num_rows} rows, its footer states {shard.nrows}")

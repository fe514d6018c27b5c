"""Avro → Rows, by block, through Arrow columns of the types that the file states.

A union of several types besides null, a duration and a record inside itself have no column: they are refused by name. A time that
Python cannot hold, outside the years 1 to 9999, breaks its shard.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import fastavro
import pyarrow as pa
import pyarrow.types as is_

from embedder.source.contents import require_mark
from embedder.source.decompression import read_start
from embedder.source.formats.arrow_columns import find_columns, read_batches, top_names
from embedder.source.formats.rows import Reading, Rows
from embedder.source.metadata_types import name_refused

_PRIMITIVES = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
    "enum": pa.string(),
    "fixed": pa.binary(),
}
_LOGICAL = {
    ("int", "date"): pa.date32(),
    ("int", "time-millis"): pa.time32("ms"),
    ("long", "time-micros"): pa.time64("us"),
    ("long", "timestamp-millis"): pa.timestamp("ms", "UTC"),
    ("long", "timestamp-micros"): pa.timestamp("us", "UTC"),
    ("long", "local-timestamp-millis"): pa.timestamp("ms"),
    ("long", "local-timestamp-micros"): pa.timestamp("us"),
    ("string", "uuid"): pa.uuid(),
}
"""Logical types that fastavro decodes. As the specification has it, any other is ignored."""
_REFUSED = {"duration", "timestamp-nanos", "local-timestamp-nanos"}
"""Their plain numbers and bytes would be taken for values of another unit."""


def avro_schema(file: IO[bytes]) -> pa.Schema:
    """Return the columns of a file."""
    return _open(file)[1]


def read_avro(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read the columns of a shard. A file that ends after a whole block is whole: the format has no footer."""
    shard, schema = _open(file)
    columns = find_columns(schema, reading)
    wanted = pa.schema([schema.field(name) for name in top_names(columns, schema)])
    yield from read_batches((_to_batch(records, wanted) for records in _read_blocks(shard)), columns, reading)


@contextmanager
def _damage_named() -> Iterator[None]:
    """Raise OSError for the errors, of many classes, that fastavro and the decoders of its codecs raise for a damaged file."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _open(file: IO[bytes]) -> tuple[Iterator[Any], pa.Schema]:
    require_mark(read_start(file), "an Avro file", b"Obj\x01")
    with _damage_named():
        # bytes that are not UTF-8 become surrogates, which are refused only if their column is read
        shard = fastavro.block_reader(file, handle_unicode_errors="surrogateescape")
        return shard, _to_schema(fastavro.parse_schema(shard.writer_schema))


def _read_blocks(shard: Iterator[Any]) -> Iterator[list[dict[str, Any]]]:
    while True:
        with _damage_named():
            block = next(shard, None)
            records = list(block or ())
            if block and block.bytes_.read(1):
                raise ValueError(f"a block holds more than the {block.num_records} records that it states")
        if block is None:
            return
        yield records


def _to_batch(records: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    return pa.record_batch([_to_array([record[field.name] for record in records], field.type) for field in schema], schema=schema)


def _to_array(values: list[Any], type_: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, type_)
    except UnicodeError:
        return pa.array(_to_bytes(values), _bytes_type(type_)).view(type_)


def _to_bytes(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="surrogateescape")
    if isinstance(value, dict):
        return {name: _to_bytes(each) for name, each in value.items()}
    return list(map(_to_bytes, value)) if isinstance(value, list) else value


def _bytes_type(type_: pa.DataType) -> pa.DataType:
    if is_.is_string(type_):
        return pa.binary()
    if is_.is_list(type_):
        return pa.list_(_bytes_type(type_.value_type))
    if is_.is_struct(type_):
        return pa.struct([pa.field(field.name, _bytes_type(field.type)) for field in type_])
    return type_


def _to_schema(schema: Any) -> pa.Schema:
    if not (isinstance(schema, dict) and schema["type"] == "record"):
        raise OSError("its schema is not a record")
    named: dict[str, pa.DataType] = {}
    return pa.schema([pa.field(field["name"], _to_type(field["type"], named)) for field in schema["fields"]])


def _to_type(schema: Any, named: dict[str, pa.DataType]) -> pa.DataType:
    """Return the type of a schema; `named` holds those of the records, enums and fixed types met so far."""
    if isinstance(schema, str):
        return _PRIMITIVES.get(schema) or named[schema]
    if isinstance(schema, list):
        types = [_to_type(branch, named) for branch in schema if branch != "null"]
        return types[0] if len(types) == 1 else pa.null() if not types else name_refused(f"union of {', '.join(map(str, types))}", "avro")
    kind, logical, name = schema["type"], schema.get("logicalType"), schema.get("name", "")
    if kind == "array":
        return pa.list_(_to_type(schema["items"], named))
    if kind == "map":
        return pa.map_(pa.string(), _to_type(schema["values"], named))
    if kind == "record":
        named[name] = name_refused("recursive record", "avro")
        named[name] = pa.struct([pa.field(field["name"], _to_type(field["type"], named)) for field in schema["fields"]])
    elif not isinstance(kind, str):
        return _to_type(kind, named)
    elif logical in _REFUSED:
        named[name] = name_refused(logical, "avro")
    elif logical == "decimal" and kind in ("bytes", "fixed"):
        digits, scale = schema["precision"], schema.get("scale", 0)
        named[name] = (pa.decimal128 if digits <= 38 else pa.decimal256)(digits, scale)
    else:
        named[name] = _LOGICAL.get((kind, logical)) or _PRIMITIVES.get(kind) or named[kind]
    return named[name]

"""Parquet's own types → Arrow's, where pyarrow reads other values or loses the type: INT96, ENUM, INTERVAL and VARIANT."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as is_

from embedder.source.metadata_types import is_any_list, name_refused

_REPLACED = {"ENUM": pa.string(), "INTERVAL": name_refused("INTERVAL")}
"""By logical or converted type. pyarrow 26 reads the bytes of both as binary."""
_VARIANT = ("metadata", "value", "typed_value")


def find_schema(shard: pq.ParquetFile) -> pa.Schema:
    """Return the columns of a file: ENUM as string, and a stand-in that no column can be made of for INTERVAL and VARIANT."""
    leaves = (shard.schema.column(position) for position in range(len(shard.schema)))
    return pa.schema([pa.field(field.name, _replace(field.type, leaves)) for field in shard.schema_arrow])


def _replace(type_: pa.DataType, leaves: Iterator[pq.ColumnSchema]) -> pa.DataType:
    """Take one leaf for each scalar type: parquet and Arrow order them alike."""
    if is_.is_struct(type_):
        fields = [pa.field(field.name, _replace(field.type, leaves)) for field in type_]
        names = [field.name for field in fields]
        is_variant = (
            names[:2] == list(_VARIANT[:2]) and set(names) <= set(_VARIANT) and all(is_.is_binary(each.type) for each in fields[:2])
        )
        return name_refused("VARIANT") if is_variant else pa.struct(fields)
    if is_any_list(type_):
        inner = _replace(type_.value_type, leaves)
        return type_ if inner == type_.value_type else pa.list_(inner)
    if is_.is_map(type_):
        return pa.map_(_replace(type_.key_type, leaves), _replace(type_.item_type, leaves))
    leaf = next(leaves, None)
    annotations = () if leaf is None else (leaf.converted_type, leaf.logical_type.type)
    return next((_REPLACED[name] for name in annotations if name in _REPLACED), type_)


def find_int96(shard: pq.ParquetFile, keys: Sequence[str]) -> list[str]:
    """Return those of the columns that hold INT96, at any level."""
    leaves = (shard.schema.column(position) for position in range(len(shard.schema)))
    tops = {leaf.path.split(".")[0] for leaf in leaves if leaf.physical_type == "INT96"}
    return [key for key in dict.fromkeys(keys) if key.split(".")[0] in tops]


def is_exact(microseconds: pa.Array, milliseconds: pa.Array, nanoseconds: pa.Array) -> bool:
    """Return whether INT96 times, decoded in three units, are whole microseconds that did not overflow.

    pyarrow decodes INT96 modulo 2^64. Milliseconds cannot overflow, and nanoseconds are compared modulo 2^64.
    """
    for times in zip(*map(_times, (microseconds, milliseconds, nanoseconds)), strict=True):
        micros, millis, nanos = (each.cast(pa.int64()).drop_null().to_numpy() for each in times)
        # times of other parquet types have one unit in all three
        is_int96 = times[0].type != times[1].type
        if is_int96 and not (np.array_equal(micros // 1000, millis) and np.array_equal(micros * 1000, nanos)):
            return False
    return True


def _times(column: pa.Array) -> list[pa.Array]:
    if is_.is_struct(column.type):
        return [times for values in column.flatten() for times in _times(values)]
    if is_any_list(column.type):
        return _times(column.flatten())
    if is_.is_map(column.type):
        entries = column.take(pa.array(range(len(column)))) if column.offset else column
        return _times(entries.keys) + _times(entries.items)
    return [column] if is_.is_timestamp(column.type) else []

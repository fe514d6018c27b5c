"""Arrow columns of a file → columns of a declared type. A value that does not fit exactly becomes null and is reported to the caller.

A UUID becomes its canonical text, and text becomes other types as in JSON. Only a double may lose digits, in a float32 column. A date or
time outside the years 1 to 9999 is refused: most readers of a Delta table cannot represent it.
"""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import starmap
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as is_

from embedder.source.metadata_types import find_refused, is_any_list, is_text
from embedder.source.metadata_values import MISFITS, Refuse, cast_texts, converter

_LOSSY = (
    (is_.is_timestamp, is_.is_date),
    (is_.is_integer, is_.is_boolean),
    (is_.is_floating, is_.is_boolean),
    (is_.is_floating, is_.is_decimal),
    (is_.is_decimal, is_.is_floating),
)
"""Casts in which pyarrow silently loses a part of a value. It refuses all others, except for a double in a float32 column."""
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_FIRST_SECOND = int(datetime(1, 1, 1, tzinfo=UTC).timestamp())
_STOP_SECOND = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) + 86_400


def can_cast(type_: pa.DataType, target: pa.DataType) -> bool:
    """Return whether values of a type may fit a target."""
    if find_refused(type_):
        return False
    try:
        pc.cast(pa.array([], type_), target)
    except pa.ArrowException:
        return False
    return True


def cast_column(column: pa.Array, type_: pa.DataType, refuse: Refuse) -> pa.Array:
    """Cast an Arrow column."""
    try:
        return _cast(column, type_)
    except MISFITS:
        kept = [_cast_one(column.slice(position, 1), type_, refuse, position) for position in range(len(column))]
        return pa.concat_arrays(kept) if kept else pa.array([], type_)


def _cast_one(value: pa.Array, type_: pa.DataType, refuse: Refuse, position: int) -> pa.Array:
    try:
        # a copy: validating the slice of a list or struct also validates the values around it
        return _cast(value.take(pa.array([0])), type_)
    except MISFITS:
        refuse(position, _describe(value))
        return pa.nulls(1, type_)


def _describe(value: pa.Array) -> object:
    try:
        temporal = is_.is_temporal(value.type)
        return value.cast(pa.string())[0].as_py() if temporal else value[0].as_py()
    except UnicodeError:
        return "bytes that are not UTF-8"
    except MISFITS:
        return str(value.type)


def _cast(column: pa.Array, type_: pa.DataType) -> pa.Array:
    if is_.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _loses(column, type_):
        raise pa.ArrowInvalid(f"{type_} cannot hold all of a value")
    leaves = list(_pair_leaves(column.type, type_))
    if any(starmap(_reads_text, leaves)):
        is_plain = is_.is_string(column.type) or is_.is_large_string(column.type)
        if is_plain and (found := cast_texts(column, type_)) is not None:
            return found
        convert = converter(type_)
        return pa.array([convert(value) for value in column.to_pylist()], type_)
    if any(starmap(_writes_uuid, leaves)):
        return pa.array(_uuids_to_text(column.to_pylist()), type_)
    if _has_list_view(column.type):
        # pyarrow 26 casts list views to invalid arrays
        return pa.array(column.to_pylist(), type_)
    same = column if column.type == type_ else pc.cast(column, type_)
    same.validate(full=True)
    return same


def _loses(column: pa.Array, type_: pa.DataType) -> bool:
    """Return whether a cast would silently drop a struct's field, or a value that a cast back does not restore."""
    source = column.type
    if is_.is_struct(source) and is_.is_struct(type_):
        fields = [(values, type_.get_field_index(field.name)) for field, values in zip(source, column.flatten(), strict=True)]
        return any(values.null_count < len(values) if at < 0 else _loses(values, type_.field(at).type) for values, at in fields)
    if is_any_list(source) and is_any_list(type_):
        return _loses(column.flatten(), type_.value_type)
    if is_.is_map(source) and is_.is_map(type_):
        # of this slice alone: `keys` and `items` are those of the whole array
        entries = column.take(pa.array(range(len(column)))) if column.offset else column
        return _loses(entries.keys, type_.key_type) or _loses(entries.items, type_.item_type)
    if (is_.is_date(source) or is_.is_timestamp(source)) and not is_.is_integer(type_):
        return _outside_calendar(column) or (source != type_ and _loses_in_cast(column, type_))
    return source != type_ and _loses_in_cast(column, type_)


def _loses_in_cast(column: pa.Array, type_: pa.DataType) -> bool:
    if is_.is_floating(column.type) and is_.is_float32(type_):
        return not pc.is_finite(column.cast(type_)).equals(pc.is_finite(column))
    if is_.is_time(column.type) and is_.is_string(type_):
        # pyarrow writes 24:00 as "<value out of range: …>"
        return bool(pc.any(pc.starts_with(column.cast(type_), "<")).as_py())
    if any(source(column.type) and target(type_) for source, target in _LOSSY):
        return not column.cast(type_).cast(column.type).equals(column)
    return False


def _outside_calendar(column: pa.Array) -> bool:
    """Return whether a date or time is not in the years 1 to 9999."""
    if is_.is_date32(column.type):
        first, stop = (second // 86_400 for second in (_FIRST_SECOND, _STOP_SECOND))
        numbers = column.cast(pa.int32())
    else:
        factor = _PER_SECOND["ms" if is_.is_date(column.type) else column.type.unit]
        first, stop = _FIRST_SECOND * factor, _STOP_SECOND * factor
        numbers = column.cast(pa.int64())
    least, most = pc.min_max(numbers).values()
    return least.is_valid and not first <= least.as_py() <= most.as_py() < stop


def _pair_leaves(source: pa.DataType, type_: pa.DataType) -> Iterator[tuple[pa.DataType, pa.DataType]]:
    """Yield each scalar type within a type, and its target."""
    if is_.is_struct(source) and is_.is_struct(type_):
        for field in source:
            if (at := type_.get_field_index(field.name)) >= 0:
                yield from _pair_leaves(field.type, type_.field(at).type)
    elif is_any_list(source) and is_any_list(type_):
        yield from _pair_leaves(source.value_type, type_.value_type)
    elif is_.is_map(source) and is_.is_map(type_):
        yield from _pair_leaves(source.key_type, type_.key_type)
        yield from _pair_leaves(source.item_type, type_.item_type)
    else:
        yield source, type_


def _reads_text(source: pa.DataType, type_: pa.DataType) -> bool:
    """Return whether a cast would parse text, which pyarrow does by rules of its own: it reads 0x10, nan and 1e400."""
    if is_.is_null(source):
        return False
    return is_text(source) and not (is_text(type_) or is_.is_binary(type_))


def _writes_uuid(source: pa.DataType, type_: pa.DataType) -> bool:
    """Return whether a cast would take a UUID's bytes for text. Tables made before UUIDs were text hold the bytes."""
    return isinstance(source, pa.UuidType) and is_.is_string(type_)


def _uuids_to_text(value: Any) -> Any:
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, dict):
        return {name: _uuids_to_text(each) for name, each in value.items()}
    return type(value)(map(_uuids_to_text, value)) if isinstance(value, list | tuple) else value


def _has_list_view(type_: pa.DataType) -> bool:
    if is_.is_list_view(type_) or is_.is_large_list_view(type_):
        return True
    return any(_has_list_view(type_.field(position).type) for position in range(type_.num_fields))

"""Metadata values → Arrow columns of a declared type. A value that does not fit becomes null and is reported to the caller."""

import json
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as is_

from embedder.source.metadata_types import is_any_list

Convert = Callable[[Any], Any]
Refuse = Callable[[int, object], None]
"""Called with the position of a value that does not fit, and the value or its text."""

MISFITS = (ValueError, TypeError, ArithmeticError, RecursionError, pa.ArrowException)
_LOSSY = (
    (is_.is_timestamp, is_.is_date),
    (is_.is_integer, is_.is_boolean),
    (is_.is_floating, is_.is_boolean),
    (is_.is_floating, is_.is_decimal),
    (is_.is_decimal, is_.is_floating),
)
"""Casts in which pyarrow silently loses a part of a value. It refuses all others; a float may be kept in fewer digits."""
_BOOLS = {"true": True, "false": False, "1": True, "0": False}


def build_column(values: Sequence[Any], type_: pa.DataType, refuse: Refuse) -> pa.Array:
    """Convert JSON or CSV values: numbers, dates and bools also from their text, and any value to text."""
    convert = _nullable(_converter(type_))
    try:
        return pa.array([convert(value) for value in values], type_)
    except MISFITS:
        return pa.array([_convert_one(value, convert, type_, refuse, position) for position, value in enumerate(values)], type_)


def _convert_one(value: Any, convert: Convert, type_: pa.DataType, refuse: Refuse, position: int) -> Any:
    try:
        converted = convert(value)
        pa.scalar(converted, type_)
    except MISFITS:
        refuse(position, value)
        return None
    return converted


def cast_column(column: pa.Array, type_: pa.DataType, refuse: Refuse) -> pa.Array:
    """Cast an Arrow column. Only times finer than a microsecond, which a Delta table cannot hold, are truncated."""
    try:
        return _cast(column, type_)
    except (pa.ArrowException, UnicodeError):
        kept = [_cast_one(column.slice(position, 1), type_, refuse, position) for position in range(len(column))]
        return pa.concat_arrays(kept) if kept else pa.array([], type_)


def _cast(column: pa.Array, type_: pa.DataType) -> pa.Array:
    if _loses(column, type_):
        raise pa.ArrowInvalid(f"{type_} cannot hold all of a value")
    if _has_list_view(column.type):
        # pyarrow 26 casts list views to invalid arrays
        return pa.array(column.to_pylist(), type_)
    same = column if column.type == type_ else pc.cast(column, options=pc.CastOptions(target_type=type_, allow_time_truncate=True))
    same.validate(full=True)
    return same


def _cast_one(value: pa.Array, type_: pa.DataType, refuse: Refuse, position: int) -> pa.Array:
    try:
        # a copy: validating the slice of a list or struct also validates the values around it
        return _cast(value.take(pa.array([0])), type_)
    except (pa.ArrowException, UnicodeError):
        try:
            refuse(position, value[0].as_py())
        except UnicodeError:
            refuse(position, "bytes that are not UTF-8")
        return pa.nulls(1, type_)


def _loses(column: pa.Array, type_: pa.DataType) -> bool:
    """Return whether a cast would silently drop a struct's field, or a value that a cast back does not restore."""
    if column.type == type_:
        return False
    if is_.is_struct(column.type) and is_.is_struct(type_):
        fields = [(values, type_.get_field_index(field.name)) for field, values in zip(column.type, column.flatten(), strict=True)]
        return any(values.null_count < len(values) if at < 0 else _loses(values, type_.field(at).type) for values, at in fields)
    if is_any_list(column.type) and is_any_list(type_):
        return _loses(column.flatten(), type_.value_type)
    if is_.is_map(column.type) and is_.is_map(type_):
        return _loses(column.items, type_.item_type)
    if any(source(column.type) and target(type_) for source, target in _LOSSY):
        return not column.cast(type_).cast(column.type).equals(column)
    return False


def _has_list_view(type_: pa.DataType) -> bool:
    if is_.is_list_view(type_) or is_.is_large_list_view(type_):
        return True
    return any(_has_list_view(type_.field(position).type) for position in range(type_.num_fields))


def excerpt_value(value: object) -> str:
    """Return a value as JSON, or as Python's repr if JSON cannot represent it."""
    try:
        return json.dumps(value, ensure_ascii=False)[:150]
    except (TypeError, ValueError, RecursionError):
        return repr(value)[:150]


def _converter(type_: pa.DataType) -> Convert:
    """Return a function from a JSON value to a value that pyarrow accepts for the type; it raises one of MISFITS."""
    if is_.is_struct(type_):
        return _to_struct({field.name: _nullable(_converter(field.type)) for field in type_})
    if is_.is_map(type_):
        return _to_map(_nullable(_converter(type_.item_type)))
    if is_.is_list(type_):
        return _to_list(_nullable(_converter(type_.value_type)))
    return next((convert for check, convert in _SCALARS if check(type_)), lambda value: value)


def _nullable(convert: Convert) -> Convert:
    return lambda value: None if value is None else convert(value)


def _to_struct(fields: dict[str, Convert]) -> Convert:
    def to_struct(value: Any) -> dict[str, Any]:
        # pyarrow would silently drop a key that the type lacks
        if not isinstance(value, dict) or not value.keys() <= fields.keys():
            raise TypeError("not an object of these keys")
        return {name: fields[name](each) for name, each in value.items()}

    return to_struct


def _to_map(convert: Convert) -> Convert:
    return lambda value: {name: convert(each) for name, each in _require(value, dict).items()}


def _to_list(convert: Convert) -> Convert:
    return lambda value: [convert(each) for each in _require(value, list)]


def _require(value: Any, kind: type) -> Any:
    return value if isinstance(value, kind) else _refuse(value)


def _not_bool(convert: Convert) -> Convert:
    return lambda value: _refuse(value) if isinstance(value, bool) else convert(value)


def _refuse(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} does not fit")


def _to_string(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _to_int(value: Any) -> int:
    return _refuse(value) if isinstance(value, float) and not value.is_integer() else int(value)


def _to_bool(value: Any) -> bool:
    found = value if isinstance(value, bool) else _BOOLS.get(_require(value, str).strip().lower())
    return _refuse(value) if found is None else found


_SCALARS: tuple[tuple[Callable[[pa.DataType], bool], Convert], ...] = (
    (is_.is_string, _to_string),
    (is_.is_integer, _not_bool(_to_int)),
    (is_.is_floating, _not_bool(float)),
    (is_.is_boolean, _to_bool),
    # ISO 8601, in UTC unless it has a zone. A number is refused: its unit and epoch are unknown
    (is_.is_timestamp, datetime.fromisoformat),
    (is_.is_date, date.fromisoformat),
    (is_.is_decimal, _not_bool(lambda value: Decimal(str(value)))),
    (is_.is_binary, lambda value: _require(value, str).encode()),
)

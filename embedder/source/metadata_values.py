"""Metadata values → Arrow columns of a declared type; a value that does not fit becomes null and is told to the caller."""

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
_SILENT = (
    (is_.is_timestamp, is_.is_date),
    (is_.is_integer, is_.is_boolean),
    (is_.is_floating, is_.is_boolean),
    (is_.is_floating, is_.is_decimal),
    (is_.is_decimal, is_.is_floating),
)
"""From what to what pyarrow casts values that it cannot keep, all others it refuses; a float may be kept in fewer digits."""
_TRUTH = {"true": True, "false": False, "1": True, "0": False}


def build_column(values: Sequence[Any], type_: pa.DataType, refuse: Refuse) -> pa.Array:
    """Convert Python values, as JSON and CSV give them: numbers, dates and truth also from their text, anything to text."""
    convert = _converter(type_)
    try:
        return pa.array([None if value is None else convert(value) for value in values], type_)
    except MISFITS:
        return pa.array([_convert_one(value, convert, type_, refuse, position) for position, value in enumerate(values)], type_)


def _convert_one(value: Any, convert: Convert, type_: pa.DataType, refuse: Refuse, position: int) -> Any:
    if value is None:
        return None
    try:
        converted = convert(value)
        pa.scalar(converted, type_)
    except MISFITS:
        refuse(position, value)
        return None
    return converted


def cast_column(column: pa.Array, type_: pa.DataType, refuse: Refuse) -> pa.Array:
    """Cast an Arrow column; no value is changed but times finer than a microsecond, which a Delta table cannot hold."""
    try:
        return _cast(column, type_)
    except (pa.ArrowException, UnicodeError):
        kept = [_cast_one(column.slice(position, 1), type_, refuse, position) for position in range(len(column))]
        return pa.concat_arrays(kept) if kept else pa.array([], type_)


def _cast(column: pa.Array, type_: pa.DataType) -> pa.Array:
    if _loses(column, type_):
        raise pa.ArrowInvalid(f"{type_} cannot hold all of a value")
    if _has_list_view(column.type):
        # the cast from list views in pyarrow 26 gives arrays that are not valid
        return pa.array(column.to_pylist(), type_)
    same = column if column.type == type_ else pc.cast(column, options=pc.CastOptions(target_type=type_, allow_time_truncate=True))
    same.validate(full=True)
    return same


def _cast_one(value: pa.Array, type_: pa.DataType, refuse: Refuse, position: int) -> pa.Array:
    try:
        # a copy: the slice of a list or struct still validates the values around it
        return _cast(value.take(pa.array([0])), type_)
    except (pa.ArrowException, UnicodeError):
        refuse(position, _describe(value))
        return pa.nulls(1, type_)


def _describe(value: pa.Array) -> object:
    try:
        return value[0].as_py()
    except UnicodeError:
        return "bytes that are not UTF-8"


def _loses(column: pa.Array, type_: pa.DataType) -> bool:
    """Say whether a cast would drop something without a word: a struct's field, or what no cast back brings again."""
    if column.type == type_:
        return False
    if is_.is_struct(column.type) and is_.is_struct(type_):
        places = [(values, type_.get_field_index(field.name)) for field, values in zip(column.type, column.flatten(), strict=True)]
        return any(values.null_count < len(values) if at < 0 else _loses(values, type_.field(at).type) for values, at in places)
    if is_any_list(column.type) and is_any_list(type_):
        return _loses(column.flatten(), type_.value_type)
    if is_.is_map(column.type) and is_.is_map(type_):
        return _loses(column.items, type_.item_type)
    if any(source(column.type) and target(type_) for source, target in _SILENT):
        return not column.cast(type_).cast(column.type).equals(column)
    return False


def _has_list_view(type_: pa.DataType) -> bool:
    if is_.is_list_view(type_) or is_.is_large_list_view(type_):
        return True
    return any(_has_list_view(type_.field(position).type) for position in range(type_.num_fields))


def excerpt_value(value: object) -> str:
    """Show a value as JSON, or as Python does where JSON has no form for it."""
    try:
        return json.dumps(value, ensure_ascii=False)[:150]
    except (TypeError, ValueError, RecursionError):
        return repr(value)[:150]


def _converter(type_: pa.DataType) -> Convert:
    """Build what turns one JSON value into what pyarrow takes for the type; it raises one of MISFITS."""
    if is_.is_struct(type_):
        return _to_struct({field.name: _converter(field.type) for field in type_})
    if is_.is_map(type_):
        return _to_map(_converter(type_.item_type))
    if is_.is_list(type_):
        return _to_list(_converter(type_.value_type))
    return next((convert for check, convert in _SCALARS if check(type_)), _unchanged)


def _to_list(convert: Convert) -> Convert:
    def to_list(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise TypeError("not a list")
        return [None if each is None else convert(each) for each in value]

    return to_list


def _to_struct(fields: dict[str, Convert]) -> Convert:
    """Refuse a key that the type lacks: pyarrow would drop it without a word."""

    def to_struct(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not value.keys() <= fields.keys():
            raise TypeError("not an object of these keys")
        return {name: None if each is None else fields[name](each) for name, each in value.items()}

    return to_struct


def _to_map(convert: Convert) -> Convert:
    def to_map(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypeError("not an object")
        return {name: None if each is None else convert(each) for name, each in value.items()}

    return to_map


def _to_string(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise TypeError("not an integer")
    return int(value)


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError("not a number")
    return float(value)


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    truth = _TRUTH.get(value.strip().lower()) if isinstance(value, str) else None
    return _refuse(value) if truth is None else truth


def _to_timestamp(value: Any) -> datetime:
    """ISO 8601; without a zone it is UTC. A number is refused: its unit and epoch are unknown."""
    return datetime.fromisoformat(value)


def _to_date(value: Any) -> date:
    return date.fromisoformat(value)


def _to_decimal(value: Any) -> Decimal:
    return _refuse(value) if isinstance(value, bool) else Decimal(str(value))


def _to_bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else _refuse(value)


def _refuse(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} does not fit")


def _unchanged(value: Any) -> Any:
    return value


_SCALARS: tuple[tuple[Callable[[pa.DataType], bool], Convert], ...] = (
    (is_.is_string, _to_string),
    (is_.is_integer, _to_int),
    (is_.is_floating, _to_float),
    (is_.is_boolean, _to_bool),
    (is_.is_timestamp, _to_timestamp),
    (is_.is_date, _to_date),
    (is_.is_decimal, _to_decimal),
    (is_.is_binary, _to_bytes),
)

"""JSON and CSV values → Arrow columns of a declared type. A value that does not fit becomes null and is reported to the caller.

A number in text is what SQL reads: a sign, ASCII digits, one point, an exponent, blanks around it. `1_000`, `0x10`, `nan` and `inf` are
not numbers. An integer is kept exactly or refused; a fraction is rounded to the nearest value of a floating-point column.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as is_

from embedder.source.metadata_types import TIMESTAMP, is_double

Convert = Callable[[Any], Any]
Refuse = Callable[[int, object], None]
"""Called with the position of a value that does not fit, and the value or its text."""
Number = int | float | Decimal

MISFITS = (ValueError, TypeError, ArithmeticError, RecursionError, pa.ArrowException)
_MOST_EXACT = 2**53
"""From here on a float may stand for an integer that its text did not name."""
_MOST_DIGITS = 80
"""No column holds integers or decimals of more digits: 1e999999999 is refused before it is written out."""
_BOOLS = {"true": True, "false": False, "1": True, "0": False}
_BLANKS = " \t"
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DATE = re.compile(r"[0-9W-]+")
# Python also accepts any letter between date and time, and drops digits beyond a microsecond
_TIMESTAMP = re.compile(r"[0-9W-]+([T ][0-9:]+([.,][0-9]{1,6}0*)?(Z|[+-][0-9:]+)?)?")


_PLAIN = (
    (pa.int64(), pa.int64(), r"-?[0-9]{1,18}"),
    (pa.float64(), pa.float64(), r"-?([1-9][0-9]{0,14}(\.[0-9]{1,15})?|0\.[0-9]{0,14}[1-9][0-9]{0,9})|0(\.0)?"),
    (pa.date32(), pa.date32(), r"[12][0-9]{3}-[0-9]{2}-[0-9]{2}"),
    (TIMESTAMP, TIMESTAMP, r"[12][0-9]{3}-[0-9]{2}-[0-9]{2}[T ]([0-9]{2}:){2}[0-9]{2}(\.[0-9]{1,6})?(Z|[+-](0[0-9]|1[0-4]):[0-5][0-9])"),
    (TIMESTAMP, pa.timestamp("us"), r"[12][0-9]{3}-[0-9]{2}-[0-9]{2}[T ]([0-9]{2}:){2}[0-9]{2}(\.[0-9]{1,6})?"),
)
"""Types, and texts in which pyarrow, casting first to the second type, reads the value of `converter`."""


def cast_texts(texts: pa.Array, type_: pa.DataType) -> pa.Array | None:
    """Return a column of text as another type; None if one of the texts is for `converter` to decide."""
    for target, first, pattern in _PLAIN:
        if target == type_ and pc.all(pc.match_substring_regex(texts, f"^({pattern})$")).as_py() is not False:
            with suppress(pa.ArrowInvalid):
                return texts.cast(first).cast(type_)
    return None


def build_column(values: Sequence[Any], type_: pa.DataType, refuse: Refuse) -> pa.Array:
    """Convert JSON or CSV values: numbers, dates and bools also from their text, and any value to text."""
    convert = converter(type_)
    try:
        if set(map(type, values)) <= {str, type(None)}:
            texts = pa.array(values, pa.string())
            found = texts if is_.is_string(type_) else cast_texts(texts, type_)
            if found is not None:
                return found
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


def excerpt_value(value: object) -> str:
    """Return a value as JSON, or as Python's repr if JSON cannot represent it."""
    try:
        return to_json_text(value)[:150]
    except (TypeError, ValueError, RecursionError):
        return repr(value)[:150]


def to_json_text(value: Any) -> str:
    """Return a value as JSON text, a Decimal with all of its digits; TypeError if JSON cannot represent it."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:
        if isinstance(value, Decimal):
            return str(value)
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {to_json_text(each)}" for name, each in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(to_json_text, value)) + "]"
        raise


def converter(type_: pa.DataType) -> Convert:
    """Return a function from a JSON value to a value that pyarrow accepts for the type, null to null; it raises one of MISFITS."""
    convert = _converter(type_)
    return lambda value: None if value is None else convert(value)


def _converter(type_: pa.DataType) -> Convert:
    if is_.is_struct(type_):
        return _to_struct({field.name: converter(field.type) for field in type_})
    if is_.is_map(type_):
        return _to_map(converter(type_.item_type))
    if is_.is_list(type_):
        return _to_list(converter(type_.value_type))
    return next((convert for check, convert in _SCALARS if check(type_)), lambda value: value)


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


def _refuse(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} does not fit")


def _to_string(value: Any) -> str:
    return value if isinstance(value, str) else to_json_text(value)


def _to_number(value: Any) -> Number:
    """Return a number or the number that a text states; an int if it has neither a point nor an exponent."""
    if isinstance(value, str):
        found = _NUMBER.fullmatch(value.strip(_BLANKS)) or _refuse(value)
        value = Decimal(found[0]) if set(found[0]) & set(".eE") else int(found[0])
    if isinstance(value, bool) or not isinstance(value, Number):
        return _refuse(value)  # type: ignore[no-any-return]
    if isinstance(value, int) or (math.isfinite(value) if isinstance(value, float) else value.is_finite()):
        return value
    return _refuse(value)  # type: ignore[no-any-return]


def _to_int(value: Any) -> int:
    number = _to_number(value)
    fits = abs(number) <= _MOST_EXACT if isinstance(number, float) else isinstance(number, int) or number.adjusted() < _MOST_DIGITS
    return int(number) if fits and number == int(number) else _refuse(value)


def _to_double(value: Any) -> float:
    number = _to_number(value)
    return float(number) if is_double(number) else _refuse(value)


def _to_single(value: Any) -> float:
    number, found = _to_number(value), _to_double(value)
    with np.errstate(over="ignore", under="ignore"):
        single = float(np.float32(found))
    fits = single == number if isinstance(number, int) else math.isfinite(single) and bool(single) == bool(found)
    return single if fits else _refuse(value)


def _to_decimal(value: Any) -> Decimal:
    number = _to_number(value)
    exact = Decimal(repr(number)) if isinstance(number, float) else Decimal(number)
    return exact if exact.adjusted() < _MOST_DIGITS else _refuse(value)


def _to_bool(value: Any) -> bool:
    found = value if isinstance(value, bool) else _BOOLS.get(_require(value, str).strip(_BLANKS).lower())
    return _refuse(value) if found is None else found


def _to_timestamp(value: Any) -> datetime:
    moment = datetime.fromisoformat(value if _TIMESTAMP.fullmatch(_require(value, str)) else _refuse(value))
    # OverflowError if the year in UTC is not in 1 to 9999
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _to_date(value: Any) -> date:
    return date.fromisoformat(value if _DATE.fullmatch(_require(value, str)) else _refuse(value))


_SCALARS: tuple[tuple[Callable[[pa.DataType], bool], Convert], ...] = (
    (is_.is_string, _to_string),
    (is_.is_integer, _to_int),
    (is_.is_float64, _to_double),
    (is_.is_floating, _to_single),
    (is_.is_boolean, _to_bool),
    # ISO 8601, in UTC unless it has a zone. A number is refused: its unit and epoch are unknown
    (is_.is_timestamp, _to_timestamp),
    (is_.is_date, _to_date),
    (is_.is_decimal, _to_decimal),
    (is_.is_binary, lambda value: value if isinstance(value, bytes) else _require(value, str).encode()),
)

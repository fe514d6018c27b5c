"""Types of metadata: config names → Arrow, and JSON values or Arrow types → types of a Delta table."""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.types as is_

from embedder.core.errors import ConfigError

TIMESTAMP = pa.timestamp("us", "UTC")
MOST_FIELDS = 64
"""Objects with more distinct keys count as dictionaries, and are kept as JSON text."""
MOST_NESTED = 8

_ALIASES = ("string", "bool", "int8", "int16", "int32", "int64", "float", "float32", "double", "float64", "date32", "binary")
_NAMED: dict[str, pa.DataType] = {name: pa.type_for_alias(name) for name in _ALIASES} | {"timestamp": TIMESTAMP, "date": pa.date32()}
_WIDENED: dict[pa.DataType, pa.DataType] = {
    pa.null(): pa.string(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.float16(): pa.float32(),
    pa.date64(): pa.date32(),
}

_Checks = tuple[Callable[[pa.DataType], bool], ...]
_SAME: _Checks = (is_.is_boolean, is_.is_signed_integer, is_.is_floating, is_.is_date32)
_NUMBERS: _Checks = (is_.is_signed_integer, is_.is_floating, is_.is_decimal128)
_STRINGS: _Checks = (is_.is_string, is_.is_large_string, is_.is_string_view)
_BINARIES: _Checks = (is_.is_binary, is_.is_large_binary, is_.is_binary_view, is_.is_fixed_size_binary)
_LISTS: _Checks = (is_.is_list, is_.is_large_list, is_.is_fixed_size_list, is_.is_list_view, is_.is_large_list_view)
_EXTENSIONS: _Checks = (lambda type_: isinstance(type_, pa.BaseExtensionType),)
_JSON_SCALARS: _Checks = (*_NUMBERS, is_.is_boolean, is_.is_string)


def parse_type(name: str) -> pa.DataType:
    """Return the type of a name in the config, such as `list<int64>`."""
    compact = re.sub(r"\s", "", name).lower()
    if nested := re.fullmatch(r"list<(?:item:|element:)?(.+)>", compact):
        return pa.list_(parse_type(nested[1]))
    if compact not in _NAMED:
        raise ConfigError(f"{name!r} is not a type; choose {', '.join(_NAMED)} or list<…> of one")
    return _NAMED[compact]


def name_of(type_: pa.DataType) -> str | None:
    """Return the name by which `parse_type` knows a type; None if it has none."""
    if is_.is_list(type_):
        inner = name_of(type_.value_type)
        return f"list<{inner}>" if inner else None
    return next((name for name, named in _NAMED.items() if named == type_), None)


def name_refused(name: str, format_: str = "parquet") -> pa.DataType:
    """Return a stand-in for a format's type that Arrow does not have: no column can be made of it, and messages name it."""
    return pa.opaque(pa.null(), name, format_)


def find_refused(type_: pa.DataType) -> str | None:
    """Return the name of the first type, at any level, whose values are not known; None if there is none."""
    if isinstance(type_, pa.OpaqueType):
        return f"{type_.vendor_name}'s {type_.type_name}"
    inner = (find_refused(type_.field(position).type) for position in range(type_.num_fields))
    return next((found for found in inner if found), None)


def name_type(type_: pa.DataType) -> str:
    """Return a type's name for a message."""
    return find_refused(type_) or str(type_)


def is_text(type_: pa.DataType) -> bool:
    """Return whether a column can be read as text; an all-null column and one of JSON can."""
    if is_.is_dictionary(type_):
        return is_text(type_.value_type)
    if isinstance(type_, pa.JsonType):
        return True
    return is_.is_null(type_) or _any(type_, _STRINGS)


def is_id(type_: pa.DataType) -> bool:
    """Return whether a column can hold document ids: text, UUIDs or numbers, but no decimals with a fraction: 1.0 and 1.00 are one."""
    if is_text(type_) or isinstance(type_, pa.UuidType):
        return True
    return _any(type_, (is_.is_integer, is_.is_floating)) or bool(is_.is_decimal(type_) and type_.scale == 0)


def is_any_list(type_: pa.DataType) -> bool:
    """Return whether a column holds lists, in any layout."""
    return _any(type_, _LISTS)


def infer_type(values: Sequence[Any], depth: int = 0) -> pa.DataType:
    """Return the type that holds all of these values of JSON or SQLite; string, for their JSON text, if no other type does."""
    kinds = {type(value) for value in values} - {type(None)}
    present = [value for value in values if value is not None]
    if kinds == {list} and depth < MOST_NESTED:
        return pa.list_(infer_type([each for value in present for each in value], depth + 1))
    if kinds == {dict} and depth < MOST_NESTED:
        names = list(dict.fromkeys(name for value in present for name in value))
        if 0 < len(names) <= MOST_FIELDS and _can_be_fields(names):
            return pa.struct([(name, infer_type([value.get(name) for value in present], depth + 1)) for name in names])
    if kinds == {int}:
        return pa.int64() if all(-(2**63) <= value < 2**63 for value in present) else pa.string()
    if kinds and kinds <= {int, float, Decimal}:
        return pa.float64() if all(map(is_double, present)) else pa.string()
    if kinds == {bytes}:
        return pa.binary()
    return pa.null() if not kinds else pa.bool_() if kinds == {bool} else pa.string()


def is_double(number: float | Decimal) -> bool:
    """Return whether a double holds an integer exactly, or the nearest value to a fraction without over- or underflow."""
    try:
        found = float(number)
    except OverflowError:
        return False
    if isinstance(number, int):
        return int(found) == number
    return isinstance(number, float) or (abs(found) != float("inf") and bool(found) == bool(number))


def to_delta_type(type_: pa.DataType) -> pa.DataType:
    """Return the type that holds these values in a Delta table, at every level; ConfigError if there is none."""
    if type_ in _WIDENED:
        return _WIDENED[type_]
    for checks, convert in _CONVERTED:
        if _any(type_, checks):
            return convert(type_)
    raise ConfigError(f"{type_} has no counterpart in a Delta table; set source.metadata_types, or leave it out")


def unify_types(types: Sequence[pa.DataType]) -> pa.DataType:
    """Return the Delta type that holds the values of all these types, as `infer_type` does for values; ConfigError if there is none.

    Null yields to any type, structs get the fields of all, numbers widen, and numbers beside text become text.
    """
    present = [type_ for type_ in types if not is_.is_null(type_)]
    found = list(dict.fromkeys(map(to_delta_type, present)))
    if len(found) <= 1:
        return found[0] if found else pa.string()
    for checks, unify in _UNIFIED:
        if all(_any(type_, checks) for type_ in present):
            return to_delta_type(unify(present))
    if set(found) == {pa.date32(), TIMESTAMP}:
        return TIMESTAMP
    if all(_any(type_, _JSON_SCALARS) for type_ in found) and any(not _any(type_, _NUMBERS) for type_ in found):
        return pa.string()
    try:
        unified = pa.unify_schemas([pa.schema([("", type_)]) for type_ in found], promote_options="permissive")
    except pa.ArrowException as error:
        raise ConfigError(f"no type holds all of {', '.join(map(str, found))}") from error
    return to_delta_type(unified.field(0).type)


def _any(type_: pa.DataType, checks: _Checks) -> bool:
    return any(check(type_) for check in checks)


def _can_be_fields(names: Sequence[str]) -> bool:
    """Return whether a Delta table can hold a struct of these fields: it does not distinguish names by case."""
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        return False
    return len({name.lower() for name in names}) == len(names)


def _to_decimal(type_: pa.DataType) -> pa.DataType:
    if type_.precision > 38 or type_.scale < 0:
        raise ConfigError(
            f"{type_} has no counterpart in a Delta table (38 digits, no negative scale); set source.metadata_types to string"
        )
    return pa.decimal128(type_.precision, type_.scale)


def _to_plain(type_: pa.BaseExtensionType) -> pa.DataType:
    """A UUID becomes its text; any other extension type is the type of its storage."""
    if refused := find_refused(type_):
        raise ConfigError(f"{refused} has no counterpart in a Delta table; leave it out")
    if isinstance(type_, pa.UuidType):
        return pa.string()
    return pa.bool_() if isinstance(type_, pa.Bool8Type) else to_delta_type(type_.storage_type)


def _to_struct(type_: pa.StructType) -> pa.DataType:
    if type_.num_fields == 0:
        raise ConfigError(f"{type_} has no fields, which a Delta table cannot hold; leave it out")
    if not _can_be_fields([field.name for field in type_]):
        raise ConfigError(f"{type_} has field names that differ only in case, which a Delta table cannot hold; leave it out")
    return pa.struct([pa.field(field.name, to_delta_type(field.type)) for field in type_])


def _unify_structs(types: list[pa.StructType]) -> pa.DataType:
    by_name: dict[str, list[pa.DataType]] = {}
    for field in (field for type_ in types for field in type_):
        by_name.setdefault(field.name, []).append(field.type)
    return pa.struct([(name, unify_types(each)) for name, each in by_name.items()])


def _unify_maps(types: list[pa.MapType]) -> pa.DataType:
    return pa.map_(unify_types([type_.key_type for type_ in types]), unify_types([type_.item_type for type_ in types]))


_CONVERTED: tuple[tuple[_Checks, Callable[[pa.DataType], pa.DataType]], ...] = (
    (_EXTENSIONS, _to_plain),
    (_SAME, lambda type_: type_),
    (_STRINGS, lambda _: pa.string()),
    (_BINARIES, lambda _: pa.binary()),
    (_LISTS, lambda type_: pa.list_(to_delta_type(type_.value_type))),
    ((is_.is_decimal,), _to_decimal),
    ((is_.is_timestamp,), lambda _: TIMESTAMP),
    ((is_.is_dictionary, is_.is_run_end_encoded), lambda type_: to_delta_type(type_.value_type)),
    ((is_.is_struct,), _to_struct),
    ((is_.is_map,), lambda type_: pa.map_(to_delta_type(type_.key_type), to_delta_type(type_.item_type))),
)
_UNIFIED: tuple[tuple[_Checks, Callable[[list[Any]], pa.DataType]], ...] = (
    (_LISTS, lambda types: pa.list_(unify_types([type_.value_type for type_ in types]))),
    ((is_.is_struct,), _unify_structs),
    ((is_.is_map,), _unify_maps),
)

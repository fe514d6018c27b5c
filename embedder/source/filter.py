"""A filter such as `topic = 'x' and year > 2000` → a tree checked against a table's columns, for pyarrow and for stores.

    filter      = all { "or" all }             all   = item { "and" item }
    item        = "not" item | "(" filter ")" | column test
    test        = ("=" | "!=" | "<" | "<=" | ">" | ">=") value | ["not"] "in" "(" value { "," value } ")"
                | "is" ["not"] "null" | ["not"] "has" value
    value       = 'text' | number | true | false

`has` tests whether a list contains a value. Dates and times are texts in ISO format. As in SQL, a row whose value is null
passes only `is null`. `not` is pushed down to the tests, so that stores without it, or with other null rules, agree.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder.core.errors import ConfigError
from embedder.source.metadata_values import MISFITS, converter

Operator = Literal["=", "!=", "<", "<=", ">", ">="]
Value = str | int | float | bool | datetime | date

_OPPOSITE: dict[str, Operator] = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_SYNONYMS: dict[str, Operator] = {each: each for each in _OPPOSITE.values()} | {"==": "=", "<>": "!="}
_KERNELS: dict[str, Callable[..., Any]] = {
    "=": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Compare:
    """A column compared with one value."""

    column: str
    operator: Operator
    value: Value


@dataclass(frozen=True, slots=True)
class OneOf:
    """A column that has one of the values, or, negated, another value."""

    column: str
    values: tuple[Value, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class IsNull:
    """A column without a value, or, negated, with one."""

    column: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Has:
    """A list that contains a value, or, negated, a list that does not."""

    column: str
    value: Value
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Tests that must all pass, or at least one of them."""

    joined_by: Literal["and", "or"]
    parts: tuple["Filter", ...]


Filter = Compare | OneOf | IsNull | Has | Group

_KEYWORDS = frozenset({"and", "or", "not", "in", "is", "null", "has", "true", "false"})
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"""
    r"""|(?P<quoted>"(?:[^"]|"")+")|(?P<name>[^\W\d]\w*)|(?P<sign><=|>=|!=|<>|==|[=<>(),]))"""
)


def negate(where: Filter) -> Filter:
    """Return the filter that passes the rows this one does not, except for rows that neither passes because of a null."""
    if isinstance(where, Group):
        return Group("or" if where.joined_by == "and" else "and", tuple(map(negate, where.parts)))
    if isinstance(where, Compare):
        return replace(where, operator=_OPPOSITE[where.operator])
    return replace(where, negated=not where.negated)


def parse_filter(text: str, schema: pa.Schema, setting: str = "--filter ") -> Filter:
    """Parse a filter over these columns; ConfigError names the position and the valid columns, and begins with `setting`."""
    parser = _Parser(text, _tokenize(text, setting), schema, setting)
    found = parser.read_any()
    if parser.kind != "end":
        raise parser.wrong("and, or, or the end")
    return found


def names_in(text: str, setting: str) -> list[str]:
    """Return the columns that a filter names, each once, before their types are known; a column named like a keyword is quoted."""
    found = []
    for kind, token, _ in _tokenize(text, setting):
        if kind == "quoted" or (kind == "name" and token.lower() not in _KEYWORDS):
            found.append(_unquote(token) if kind == "quoted" else token)
    return list(dict.fromkeys(found))


def _unquote(token: str) -> str:
    return token[1:-1].replace('""', '"')


def _tokenize(text: str, setting: str) -> list[tuple[str, str, int]]:
    tokens, place = [], 0
    while text[place:].strip():
        found = _TOKEN.match(text, place)
        if found is None:
            raise ConfigError(f"{setting}{text!r}: cannot read it from {text[place:].strip()[:20]!r} on; put texts in '…'")
        assert found.lastgroup is not None
        tokens.append((found.lastgroup, found[found.lastgroup], found.start(found.lastgroup)))
        place = found.end()
    return [*tokens, ("end", "", len(text))]


class _Parser:
    """Reads tokens from left to right."""

    def __init__(self, text: str, tokens: list[tuple[str, str, int]], schema: pa.Schema, setting: str) -> None:
        self.text, self.tokens, self.schema, self.setting, self.place = text, tokens, schema, setting, 0

    @property
    def kind(self) -> str:
        return self.tokens[self.place][0]

    @property
    def token(self) -> str:
        return self.tokens[self.place][1]

    def wrong(self, expected: str) -> ConfigError:
        found = "its end" if self.kind == "end" else f"{self.token!r} (character {self.tokens[self.place][2] + 1})"
        return self.refuse(f"{expected} expected, found {found}; e.g. topic = 'x' and year > 2000")

    def refuse(self, problem: str) -> ConfigError:
        return ConfigError(f"{self.setting}{self.text!r}: {problem}")

    def take(self, *words: str) -> str | None:
        """Return and pass a keyword or sign, if it is next."""
        word = self.token.lower()
        if self.kind not in ("name", "sign") or word not in words:
            return None
        self.place += 1
        return word

    def need(self, word: str) -> None:
        if self.take(word) is None:
            raise self.wrong(repr(word))

    def read_any(self) -> Filter:
        return self._join("or", self.read_all)

    def read_all(self) -> Filter:
        return self._join("and", self.read_item)

    def _join(self, word: Literal["and", "or"], read: Callable[[], Filter]) -> Filter:
        parts = [read()]
        while self.take(word):
            parts.append(read())
        return parts[0] if len(parts) == 1 else Group(word, tuple(parts))

    def read_item(self) -> Filter:
        if self.take("not"):
            return negate(self.read_item())
        if self.take("("):
            inner = self.read_any()
            self.need(")")
            return inner
        return self.read_test(self.read_column())

    def read_column(self) -> pa.Field:
        if self.kind not in ("name", "quoted"):
            raise self.wrong("a column")
        name = _unquote(self.token) if self.kind == "quoted" else self.token
        known = [each for each in self.schema.names if each != "embedding"]
        if name not in known:
            raise self.refuse(f"no column {name!r}; there are {', '.join(known)}")
        self.place += 1
        return self.schema.field(name)

    def read_test(self, column: pa.Field) -> Filter:
        if self.take("is"):
            negated = self.take("not") is not None
            self.need("null")
            return IsNull(column.name, negated)
        negated = self.take("not") is not None
        if self.take("has"):
            return Has(column.name, self.read_value(column, is_list=True), negated)
        if self.take("in"):
            self.need("(")
            values = [self.read_value(column)]
            while self.take(","):
                values.append(self.read_value(column))
            self.need(")")
            return OneOf(column.name, tuple(values), negated)
        sign = None if negated else self.take(*_SYNONYMS)
        if sign is None:
            raise self.wrong("a comparison, in, is null or has")
        return Compare(column.name, _SYNONYMS[sign], self.read_value(column))

    def read_value(self, column: pa.Field, is_list: bool = False) -> Value:
        """Read a value in the type of the column, or of the values of its lists."""
        kind, token = self.kind, self.token
        if pa.types.is_list(column.type) != is_list:
            advice = f"ask it with {column.name} has 'x'" if pa.types.is_list(column.type) else "has is for lists"
            raise self.refuse(f"{column.name} is {column.type}; {advice}")
        if not (kind in ("text", "number") or token.lower() in ("true", "false")):
            raise self.wrong("a value")
        value = convert(kind, token, column.type.value_type if is_list else column.type)
        if value is None:
            raise self.refuse(f"{token} is not a value of column {column.name}, which is {column.type}")
        self.place += 1
        return value


def convert(kind: str, token: str, wanted: pa.DataType) -> Value | None:
    """Return a token in the type of a column; None if it does not fit."""
    is_text = pa.types.is_string(wanted) or pa.types.is_large_string(wanted)
    text = token[1:-1].replace("''", "'")
    try:
        if kind == "name":
            return token.lower() == "true" if pa.types.is_boolean(wanted) else None
        if kind == "number":
            return _to_integer(token, wanted) if pa.types.is_integer(wanted) else _to_float(token) if pa.types.is_floating(wanted) else None
        if pa.types.is_date(wanted) or pa.types.is_timestamp(wanted):
            found: Value = converter(wanted)(text)
            return found
    except MISFITS:
        return None
    return text if is_text else None


def _to_float(number: str) -> float | None:
    """Return a number to compare with floats; None beyond their range, where it would be infinity."""
    value = float(number)
    return value if math.isfinite(value) else None


def _to_integer(number: str, wanted: pa.DataType) -> int | float | None:
    """Return a number to compare with integers; None outside the range of their type, where stores disagree."""
    value = int(number) if re.fullmatch(r"[-+]?\d+", number) else float(number)
    bits = wanted.bit_width
    low, stop = (-(1 << bits - 1), 1 << bits - 1) if pa.types.is_signed_integer(wanted) else (0, 1 << bits)
    if not low <= value < stop:
        return None
    return int(value) if int(value) == value else value


def columns_of(where: Filter) -> list[str]:
    """Return the columns that a filter reads, each once."""
    if isinstance(where, Group):
        return list(dict.fromkeys(name for part in where.parts for name in columns_of(part)))
    return [where.column]


def passes(where: Filter, rows: pa.RecordBatch) -> np.ndarray:
    """Return, for each row, whether it passes."""
    if isinstance(where, Group):
        join = np.logical_and if where.joined_by == "and" else np.logical_or
        return np.asarray(join.reduce([passes(part, rows) for part in where.parts]))
    column = rows[where.column]
    if isinstance(where, IsNull):
        mask = pc.is_valid(column) if where.negated else pc.is_null(column)
    elif isinstance(where, Has):
        mask = _lists_with(column, where)
    elif isinstance(where, OneOf):
        # no integer equals a float with a fraction, and is_in would truncate it
        values = [each for each in where.values if not (isinstance(each, float) and pa.types.is_integer(column.type))]
        among = pc.is_in(column, value_set=pa.array(values, column.type))
        mask = pc.and_(pc.invert(among) if where.negated else among, pc.is_valid(column))
    else:
        mask = _KERNELS[where.operator](column, _scalar(where.value, column.type))
    return np.asarray(pc.fill_null(mask, False))


def _scalar(value: Value, wanted: pa.DataType) -> pa.Scalar:
    return pa.scalar(value) if isinstance(value, float) else pa.scalar(value, wanted)


def _lists_with(column: pa.ListArray, where: Has) -> pa.Array:
    found = pc.fill_null(pc.equal(pc.list_flatten(column), _scalar(where.value, column.type.value_type)), False)
    holds = np.zeros(len(column), dtype=np.bool_)
    holds[pc.list_parent_indices(column).filter(found).to_numpy()] = True
    return pc.and_(pa.array(holds != where.negated), pc.is_valid(column))

"""A filter such as `topic = 'x' and year > 2000` → a tree checked against a table's columns, for pyarrow and for stores.

    filter      = all { "or" all }             all   = item { "and" item }
    item        = "not" item | "(" filter ")" | column test
    test        = ("=" | "!=" | "<" | "<=" | ">" | ">=") value | ["not"] "in" "(" value { "," value } ")"
                | "is" ["not"] "null" | ["not"] "has" value
    value       = 'text' | number | true | false

`has` asks a list for a value. Dates and times are texts in ISO format. As in SQL, a row whose value is null passes no test
but `is null`. `not` is pushed down to the tests, so that stores without it, or with another idea of null, agree.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder.core.errors import ConfigError

Operator = Literal["=", "!=", "<", "<=", ">", ">="]
Value = str | int | float | bool | datetime | date

_OPPOSITE: dict[str, Operator] = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


@dataclass(frozen=True, slots=True)
class Compare:
    """A column beside one value."""

    column: str
    operator: Operator
    value: Value

    def negate(self) -> "Compare":
        """Give the test that passes what this one does not, nulls apart."""
        return replace(self, operator=_OPPOSITE[self.operator])


@dataclass(frozen=True, slots=True)
class OneOf:
    """A column among values, or, negated, not among them."""

    column: str
    values: tuple[Value, ...]
    negated: bool = False

    def negate(self) -> "OneOf":
        """Give the opposite."""
        return replace(self, negated=not self.negated)


@dataclass(frozen=True, slots=True)
class IsNull:
    """A column without a value, or, negated, with one."""

    column: str
    negated: bool = False

    def negate(self) -> "IsNull":
        """Give the opposite."""
        return replace(self, negated=not self.negated)


@dataclass(frozen=True, slots=True)
class Has:
    """A list that holds a value, or, negated, a list that does not."""

    column: str
    value: Value
    negated: bool = False

    def negate(self) -> "Has":
        """Give the opposite."""
        return replace(self, negated=not self.negated)


@dataclass(frozen=True, slots=True)
class Group:
    """Tests of which all must pass, or any."""

    joined_by: Literal["and", "or"]
    parts: tuple["Filter", ...]

    def negate(self) -> "Group":
        """Give the opposite."""
        return Group("or" if self.joined_by == "and" else "and", tuple(part.negate() for part in self.parts))


Filter = Compare | OneOf | IsNull | Has | Group

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"""
    r"""|(?P<quoted>"(?:[^"]|"")+")|(?P<name>[^\W\d]\w*)|(?P<sign><=|>=|!=|<>|==|[=<>(),]))"""
)


def parse_filter(text: str, schema: pa.Schema) -> Filter:
    """Read a filter over these columns; what it gets wrong is refused with the columns there are."""
    parser = _Parser(text, _tokenize(text), schema)
    found = parser.read_any()
    if parser.kind != "end":
        raise parser.wrong("and, or, or the end")
    return found


def _tokenize(text: str) -> list[tuple[str, str, int]]:
    tokens, place = [], 0
    while text[place:].strip():
        found = _TOKEN.match(text, place)
        if found is None:
            rest = text[place:].strip()
            raise ConfigError(f"--filter {text!r}: cannot read it from {rest[:20]!r} on; texts stand in '…'")
        assert found.lastgroup is not None
        tokens.append((found.lastgroup, found[found.lastgroup], found.start(found.lastgroup)))
        place = found.end()
    return [*tokens, ("end", "", len(text))]


class _Parser:
    """Reads tokens from left to right."""

    def __init__(self, text: str, tokens: list[tuple[str, str, int]], schema: pa.Schema) -> None:
        self.text, self.tokens, self.schema, self.place = text, tokens, schema, 0

    @property
    def kind(self) -> str:
        return self.tokens[self.place][0]

    def wrong(self, expected: str) -> ConfigError:
        kind, token, start = self.tokens[self.place]
        met = "its end" if kind == "end" else f"{token!r} (character {start + 1})"
        return ConfigError(f"--filter {self.text!r}: {expected} expected, found {met}; e.g. topic = 'x' and year > 2000")

    def take(self, *words: str) -> str | None:
        """Go past a keyword or sign, if it is next."""
        kind, token, _ = self.tokens[self.place]
        if kind in ("name", "sign") and token.lower() in words:
            self.place += 1
            return token.lower()
        return None

    def need(self, word: str) -> None:
        if self.take(word) is None:
            raise self.wrong(repr(word))

    def read_any(self) -> Filter:
        parts = [self.read_all()]
        while self.take("or"):
            parts.append(self.read_all())
        return parts[0] if len(parts) == 1 else Group("or", tuple(parts))

    def read_all(self) -> Filter:
        parts = [self.read_item()]
        while self.take("and"):
            parts.append(self.read_item())
        return parts[0] if len(parts) == 1 else Group("and", tuple(parts))

    def read_item(self) -> Filter:
        if self.take("not"):
            return self.read_item().negate()
        if self.take("("):
            inner = self.read_any()
            self.need(")")
            return inner
        return self.read_test(self.read_column())

    def read_column(self) -> pa.Field:
        kind, token, _ = self.tokens[self.place]
        if kind not in ("name", "quoted"):
            raise self.wrong("a column")
        name = token[1:-1].replace('""', '"') if kind == "quoted" else token
        known = [each for each in self.schema.names if each != "embedding"]
        if name not in known:
            raise ConfigError(f"--filter {self.text!r}: no column {name!r}; there are {', '.join(known)}")
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
        sign = None if negated else self.take("=", "==", "!=", "<>", "<", "<=", ">", ">=")
        if sign is None:
            raise self.wrong("a comparison, in, is null or has")
        operators: dict[str, Operator] = {"==": "=", "<>": "!="}
        return Compare(column.name, operators.get(sign, sign), self.read_value(column))  # type: ignore[arg-type]

    def read_value(self, column: pa.Field, is_list: bool = False) -> Value:
        """Read a value and give it the type of the column, or of what the column's lists hold."""
        kind, token, _ = self.tokens[self.place]
        if pa.types.is_list(column.type) != is_list:
            advice = f"ask it with {column.name} has 'x'" if pa.types.is_list(column.type) else "has is for lists"
            raise ConfigError(f"--filter {self.text!r}: {column.name} is {column.type}; {advice}")
        if not (kind in ("text", "number") or token.lower() in ("true", "false")):
            raise self.wrong("a value")
        value = convert(kind, token, column.type.value_type if is_list else column.type)
        if value is None:
            raise ConfigError(f"--filter {self.text!r}: {token} is no value for column {column.name}, which is {column.type}")
        self.place += 1
        return value


def convert(kind: str, token: str, wanted: pa.DataType) -> Value | None:
    """Give a token the type of a column; None where it does not fit."""
    text = token[1:-1].replace("''", "'") if kind == "text" else None
    number = token if kind == "number" else None
    try:
        if pa.types.is_string(wanted) or pa.types.is_large_string(wanted):
            return text
        if pa.types.is_boolean(wanted):
            return None if kind != "name" else token.lower() == "true"
        if pa.types.is_integer(wanted):
            return None if number is None else _to_integer(number, wanted)
        if pa.types.is_floating(wanted):
            return None if number is None else float(number)
        if pa.types.is_date(wanted):
            return None if text is None else date.fromisoformat(text)
        if pa.types.is_timestamp(wanted):
            moment = None if text is None else datetime.fromisoformat(text)
            return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)
    except ValueError:
        return None
    return None


def _to_integer(number: str, wanted: pa.DataType) -> int | float | None:
    """Read a number to be held beside integers; None beyond what their type holds, of which stores think differently."""
    value = int(number) if re.fullmatch(r"[-+]?\d+", number) else float(number)
    bits = wanted.bit_width
    low, stop = (-(1 << bits - 1), 1 << bits - 1) if pa.types.is_signed_integer(wanted) else (0, 1 << bits)
    if not low <= value < stop:
        return None
    return int(value) if int(value) == value else value


_KERNELS: dict[str, Callable[..., Any]] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def columns_of(where: Filter) -> list[str]:
    """List the columns that a filter reads, each once."""
    if isinstance(where, Group):
        return list(dict.fromkeys(name for part in where.parts for name in columns_of(part)))
    return [where.column]


def passes(where: Filter, rows: pa.RecordBatch) -> np.ndarray:
    """Say for each row whether it passes."""
    if isinstance(where, Group):
        join = np.logical_and if where.joined_by == "and" else np.logical_or
        masks = [passes(part, rows) for part in where.parts]
        return np.asarray(join.reduce(masks))
    column = rows[where.column]
    if isinstance(where, IsNull):
        mask = pc.is_valid(column) if where.negated else pc.is_null(column)
    elif isinstance(where, Has):
        mask = _lists_holding(column, where)
    elif isinstance(where, OneOf):
        # a float beside integers is none of them, and would be cut to one
        values = [each for each in where.values if not (isinstance(each, float) and pa.types.is_integer(column.type))]
        among = pc.is_in(column, value_set=pa.array(values, column.type))
        mask = pc.and_(pc.invert(among) if where.negated else among, pc.is_valid(column))
    else:
        mask = _KERNELS[where.operator](column, _scalar(where.value, column.type))
    return np.asarray(pc.fill_null(mask, False))


def _scalar(value: Value, wanted: pa.DataType) -> pa.Scalar:
    return pa.scalar(value) if isinstance(value, float) else pa.scalar(value, wanted)


def _lists_holding(column: pa.ListArray, where: Has) -> pa.Array:
    found = pc.fill_null(pc.equal(pc.list_flatten(column), _scalar(where.value, column.type.value_type)), False)
    holds = np.zeros(len(column), dtype=np.bool_)
    holds[pc.list_parent_indices(column).filter(found).to_numpy()] = True
    return pc.and_(pa.array(holds != where.negated), pc.is_valid(column))

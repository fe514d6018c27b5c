"""Render a filter as a store's SQL: columns quoted, values as literals of their type."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime

from embedder.source.filter import Compare, Filter, Group, Has, IsNull, Value


@dataclass(frozen=True, slots=True)
class Dialect:
    """Differences between the stores' SQL."""

    quote: str
    """Quote around a column's name."""
    timestamp: str
    """Template of a timestamp, from ISO format."""
    has: str
    """Template of a test whether a list contains a value."""
    number: str = "{}"
    """Template of a floating-point number."""


def render_sql(where: Filter, dialect: Dialect) -> str:
    """Return a filter as an SQL condition."""
    if isinstance(where, Group):
        return "(" + f" {where.joined_by.upper()} ".join(render_sql(part, dialect) for part in where.parts) + ")"
    column = quote_name(where.column, dialect.quote)
    literal: Callable[[Value], str] = lambda value: render_value(value, dialect)  # noqa: E731
    if isinstance(where, IsNull):
        return f"{column} IS {'NOT ' if where.negated else ''}NULL"
    if isinstance(where, Compare):
        return f"{column} {'<>' if where.operator == '!=' else where.operator} {literal(where.value)}"
    if isinstance(where, Has):
        holds = dialect.has.format(column=column, value=literal(where.value))
        return f"({column} IS NOT NULL AND NOT ({holds}))" if where.negated else holds
    return f"{column} {'NOT ' if where.negated else ''}IN ({', '.join(map(literal, where.values))})"


def render_value(value: Value, dialect: Dialect) -> str:
    """Return a value as an SQL literal."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, datetime):
        return dialect.timestamp.format(value.isoformat(sep=" "))
    if isinstance(value, date):
        return f"DATE '{value.isoformat()}'"
    if isinstance(value, float):
        return dialect.number.format(repr(value))
    return quote_text(value) if isinstance(value, str) else repr(value)


def quote_text(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str, quote: str = '"') -> str:
    """Return a name as an SQL identifier."""
    return quote + name.replace(quote, quote * 2) + quote

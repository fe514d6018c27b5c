"""Rows as JSON-like objects, for stores that keep metadata beside a vector and not in columns."""

import math
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa


def to_payloads(rows: pa.Table) -> list[dict[str, Any]]:
    """Give each row's values by name, every name present; times in RFC 3339, and null for what JSON has no word for."""
    return [{name: to_json_value(value) for name, value in row.items()} for row in rows.to_pylist()]


def to_json_value(value: Any, clean: Callable[[str], str | None] | None = None) -> Any:
    """Turn a value of Arrow's into one of JSON's; `clean` goes over every text."""
    if isinstance(value, str):
        return clean(value) if clean else value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [to_json_value(each, clean) for each in value]
    if isinstance(value, dict):
        return {name: to_json_value(each, clean) for name, each in value.items()}
    if isinstance(value, datetime):
        return to_rfc3339(value)
    return value.isoformat() if isinstance(value, date) else str(value)


def to_rfc3339(moment: datetime) -> str:
    """Write a point in time; naive ones are UTC, as in the table."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()

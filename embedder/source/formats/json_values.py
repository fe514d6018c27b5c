"""JSON text → Python values without a silent loss: no digit of a number, and no key that an object has twice."""

import json
from decimal import Decimal
from typing import Any

_EXACT_CHARS = 16
"""A double holds any 15 digits; a literal of 16 characters has a point or an exponent among them."""
_SAFE_RANGE = (1e-290, 1e290)
_MOST_DIGITS = 767
"""No double has more significant digits."""


class RepeatedKeyError(ValueError):
    """An object that has a key twice: parsers differ in which value they keep."""


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise RepeatedKeyError(f"key {repeated[:50]!r} {names.count(repeated)} times")
    return found


def _to_number(literal: str) -> float | Decimal:
    """Return a float if the literal is its shortest form or its value in as many digits; else a Decimal."""
    found = float(literal)
    if len(literal) <= _EXACT_CHARS and _SAFE_RANGE[0] < abs(found) < _SAFE_RANGE[1]:
        return found
    try:
        exact = Decimal(literal)
    except ArithmeticError as error:
        raise ValueError(f"number {literal[:50]} is out of range") from error
    num_digits = len(exact.as_tuple().digits)
    is_float = num_digits <= _MOST_DIGITS and exact in (Decimal(repr(found)), Decimal(f"{found:.{num_digits - 1}e}"))
    return found if is_float else exact


parse_json = json.JSONDecoder(object_pairs_hook=_to_object, parse_float=_to_number).decode
"""Return the value of a JSON text: its objects, arrays, strings, ints, floats and Decimals. ValueError or RecursionError if it is not
JSON, if it has a key twice, or if an integer has more than 4,300 digits."""

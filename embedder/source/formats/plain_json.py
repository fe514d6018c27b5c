"""Texts of JSON objects → dicts, where orjson provably returns what `parse_json` returns, in a third of its time."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

_QUOTE, _COLON, _BACKSLASH, _SPACE = b'":\\ '
_SPACED_COLON = re.compile(rb'"[ \t\r\n]+:')
_NUMBER = re.compile(rb"[ \t\r\n]*([0-9.eE+-]+)")
_INEXACT = 1 << 60


def count_pairs(texts: Sequence[bytes]) -> list[int]:
    """Return for each text at least as many pairs as its objects have: its quotes that a colon follows and no single backslash precedes."""
    data = b"\n".join([*texts, b""])
    chars_N = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(chars_N == _QUOTE)
    following = chars_N[quotes + 1]
    quotes = quotes[(following == _COLON) | (following <= _SPACE)]
    quotes = quotes[(chars_N[quotes - 1] != _BACKSLASH) | (chars_N[quotes - 2] == _BACKSLASH)]
    is_spaced = chars_N[quotes + 1] != _COLON
    spaced = [at for at in quotes[is_spaced].tolist() if _SPACED_COLON.match(data, at)]
    stops = np.cumsum([len(text) + 1 for text in texts])
    counted = np.searchsorted(stops, np.concatenate([quotes[~is_spaced], np.array(spaced, np.int64)]), side="right")
    found: list[int] = np.bincount(counted, minlength=len(texts)).tolist()
    return found


def parse_plain(text: bytes, num_pairs: int) -> dict[str, Any] | None:
    """Return the object of a text that has at most `num_pairs` pairs.

    None if `parse_json` must decide: the text is not of one object, may have a key twice, or has a number that a float may not hold.
    """
    try:
        found = orjson.loads(text)
        if type(found) is not dict or _count_keys(found, text) != num_pairs:
            return None
    except (orjson.JSONDecodeError, RecursionError):
        return None
    return found


def _count_keys(found: dict[str, Any], text: bytes) -> int:
    num_keys = len(found)
    for key, value in found.items():
        kind = type(value)
        if kind is dict or kind is list or (kind is float and not _is_shortest(key, value, text)):
            num_keys += _count_nested(value)
    return num_keys


def _count_nested(value: Any) -> int:
    if type(value) is dict:
        return len(value) + sum(map(_count_nested, value.values()))
    if type(value) is list:
        return sum(map(_count_nested, value))
    return _INEXACT if type(value) is float else 0


def _is_shortest(key: str, number: float, text: bytes) -> bool:
    """Return whether the key's number is written as Python writes it. Objects inside may have the key, but no float: all are refused."""
    if not (key.isascii() and key.isidentifier()):
        return False
    at = text.find(f'"{key}":'.encode())
    literal = _NUMBER.match(text, at + len(key) + 3) if at >= 0 else None
    return literal is not None and literal[1] == repr(number).encode()

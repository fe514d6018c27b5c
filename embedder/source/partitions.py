"""Folders such as year=2024/lang=de → columns of the shards below them, with types that hold for all shards alike."""

import re
from collections.abc import Iterable
from datetime import date
from urllib.parse import unquote

import pyarrow as pa

from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError
from embedder.source.filter import names_in

NULL = "__HIVE_DEFAULT_PARTITION__"
"""How Hive and Spark name the folder of rows without a value."""

Constants = tuple[tuple[str, str | None], ...]
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def find_keys(source: SourceConfig) -> frozenset[str]:
    """Return all columns of the source that the settings use."""
    ids = [source.id_column] if source.id_column else []
    filtered = names_in(source.filter, "source.filter=") if source.filter else []
    return frozenset([*source.text_columns, *ids, *source.metadata_columns.values(), *filtered])


def parse_folders(uri: str, keys: Iterable[str]) -> Constants:
    """Return the wanted columns that the names of a file's folders give; ConfigError if two folders name one."""
    if "=" not in uri:
        return ()
    wanted, found = set(keys), dict[str, str | None]()
    for folder in uri.split("/")[:-1]:
        name, sign, text = folder.partition("=")
        name = _unescape(name)
        if not sign or name not in wanted:
            continue
        value = None if text == NULL else _unescape(text)
        if found.setdefault(name, value) != value:
            raise ConfigError(f"{uri}: two of its folders name {name!r} ({found[name]!r} and {value!r}); rename one, or narrow source.uri")
    return tuple(sorted(found.items()))


def _unescape(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


def infer_types(constants: Iterable[Constants]) -> dict[str, pa.DataType]:
    """Return the type of each column: integer or date if all values of all shards are, else text."""
    values: dict[str, set[str | None]] = {}
    for pairs in set(constants):
        for name, value in pairs:
            values.setdefault(name, set()).add(value)
    return {name: _infer(found - {None}) for name, found in values.items()}


def _infer(values: set[str | None]) -> pa.DataType:
    texts = [value for value in values if value is not None]
    if texts and all(_INTEGER.fullmatch(text) and -(1 << 63) <= int(text) < 1 << 63 for text in texts):
        return pa.int64()
    return pa.date32() if texts and all(map(_is_date, texts)) else pa.string()


def _is_date(text: str) -> bool:
    try:
        return _DATE.fullmatch(text) is not None and date.fromisoformat(text) is not None
    except ValueError:
        return False

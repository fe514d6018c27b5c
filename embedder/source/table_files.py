"""Facts of a table's log about its files, for every table format: rows that were deleted, and columns under other names."""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as is_

from embedder.config.source import SourceConfig
from embedder.core.columns import Shards
from embedder.core.errors import ConfigError, SourceError
from embedder.core.units import Shard
from embedder.source.partitions import find_keys

Rows = npt.NDArray[np.int64]
Place = Sequence[tuple[int | None, Sequence[str]]]
"""A column, from the top: a field id at each level, and the names that stand for it in a file without ids, or, for None, in every file."""

FIELD_ID = b"PARQUET:field_id"
"""Key in the metadata of a field of a file, as pyarrow names it."""


@dataclass(frozen=True, slots=True)
class TableFiles:
    """The files of one version of a table, and its columns."""

    words: str
    """The format and the version."""
    schema: pa.Schema
    shards: Shards


def refuse_columns(source: SourceConfig, schema: pa.Schema, where: str) -> None:
    """Raise ConfigError for columns that the table does not have, although its older files may."""
    missing = sorted(key for key in find_keys(source) if key not in schema.names and key.split(".")[0] not in schema.names)
    if missing:
        raise ConfigError(f"{where} has no column {', '.join(map(repr, missing))} (found: {', '.join(schema.names)})")


def pack_rows(rows: Rows) -> str:
    """Return ascending row numbers as text: a bit for each row of the file, compressed."""
    if not len(rows):
        return ""
    is_deleted = np.zeros(rows[-1] + 1, np.bool_)
    is_deleted[rows] = True
    return base64.b85encode(zlib.compress(np.packbits(is_deleted).tobytes())).decode()


def unpack_rows(packed: str) -> Rows:
    """Return the row numbers that `pack_rows` packed."""
    bits = np.frombuffer(zlib.decompress(base64.b85decode(packed)) if packed else b"", np.uint8)
    return np.flatnonzero(np.unpackbits(bits))


def list_fields(schema: pa.Schema, path: Sequence[str]) -> list[pa.Field]:
    """Return the fields on the way to a column, from the top."""
    found: list[pa.Field] = []
    for name in path:
        fields = list(found[-1].type) if found else list(schema)
        found.append(next(each for each in fields if each.name == name))
    return found


def pack_columns(places: Mapping[str, Place]) -> str:
    """Return the places of columns as text."""
    return json.dumps(places, sort_keys=True)


def find_column(file: pa.Schema, key: str, shard: Shard) -> tuple[str, ...] | None:
    """Return the names that lead to a column of the table in a file; None if the file does not have it.

    Raise SourceError if neither the file nor its table says which column is which.
    """
    place: Place = json.loads(shard.columns)[key]
    has_ids = all(field_id is not None for field_id, _ in place) and any(field.metadata and FIELD_ID in field.metadata for field in file)
    if not has_ids and not all(names for _, names in place):
        raise SourceError(f"{shard.uri}: has no field ids, and its table does not map names to them; rewrite the file")
    path: list[str] = []
    fields = list(file)
    for field_id, names in place:
        is_wanted = [_has_id(field, field_id) if has_ids else field.name in names for field in fields]
        if sum(is_wanted) != 1:
            return None
        found = fields[is_wanted.index(True)]
        path.append(found.name)
        fields = list(found.type) if is_.is_struct(found.type) else []
    return tuple(path)


def _has_id(field: pa.Field, field_id: int | None) -> bool:
    return bool(field.metadata) and field.metadata.get(FIELD_ID) == str(field_id).encode()

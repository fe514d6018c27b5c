"""Read a table's rows, part by part, in the form of stores: with one id per row, and vectors as fixed-size lists."""

import base64
import json
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location
from embedder.table.parts import open_parquet, part_file
from embedder.table.vectors import CODES, column_codes, num_codes

ROW_ID = "row_id"
NAMESPACE = uuid.UUID("6f1b3a52-5d0c-5c8e-9a3e-2f7f6f0f4b11")
"""Namespace of the version 5 UUIDs that identify rows in stores."""

BATCH_ROWS = 8_192
"""12 MB of 384-dim vectors; a load holds a few such batches."""


def row_id_of(shard: str, doc_id: str, chunk: int) -> str:
    """Return the id of a row, from its shard too, since document ids are unique within a shard only."""
    return str(uuid.uuid5(NAMESPACE, json.dumps([shard, doc_id, chunk])))


def row_ids_of(keys: pa.Table) -> list[str]:
    """Return the ids of rows by their columns `shard`, `doc_id` and `chunk`."""
    columns = (keys[name].to_pylist() for name in ("shard", "doc_id", "chunk"))
    return [row_id_of(*key) for key in zip(*columns, strict=True)]


def store_schema(schema: pa.Schema, spec: EmbeddingSpec) -> pa.Schema:
    """Return the columns of store rows: `row_id`, then the table's, the vector as a fixed-size list, bits as bytes."""
    fields = [pa.field(ROW_ID, pa.string()), *(field for field in schema if field.name != "embedding")]
    value_type = pa.from_numpy_dtype(np.dtype(CODES[spec.quantization]))
    return pa.schema([*fields, pa.field("embedding", pa.list_(value_type, num_codes(spec)))])


def to_store_rows(rows: pa.Table, spec: EmbeddingSpec) -> pa.Table:
    """Convert rows of the table to rows of store_schema."""
    schema = store_schema(rows.schema, spec)
    columns = {name: rows[name] for name in rows.schema.names}
    columns[ROW_ID] = pa.array(row_ids_of(rows), pa.string())
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(column_codes(rows["embedding"]).reshape(-1)), num_codes(spec))
    return pa.table([columns[name] for name in schema.names], schema=schema)


def vectors_of(rows: pa.Table) -> npt.NDArray[Any]:
    """Return the vectors of store rows as one array of shape (rows, values per vector)."""
    values: npt.NDArray[Any] = rows["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(rows.num_rows, rows.schema.field("embedding").type.list_size)


def read_parts(folder: Location, names: Sequence[str], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of parts in batches, with the table's columns."""
    for name in names:
        with open_parquet(part_file(folder, name)) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS, columns=schema.names):
                yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)


def split_rows(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Split tables into slices of at most BATCH_ROWS; drop empty ones."""
    for table in tables:
        for first in range(0, table.num_rows, BATCH_ROWS):
            yield table.slice(first, BATCH_ROWS)


def to_bytes(values: npt.NDArray[np.generic]) -> list[bytes]:
    """Return each row of an array as bytes."""
    data, size = np.ascontiguousarray(values).tobytes(), values.shape[1] * values.itemsize
    return [data[first : first + size] for first in range(0, len(data), size)]


def to_payloads(rows: pa.Table) -> list[dict[str, Any]]:
    """Return rows as JSON values by name: times in RFC 3339, decimals as text, bytes in base64, null for NaN and infinity."""
    return [{name: to_json_value(value) for name, value in row.items()} for row in rows.to_pylist()]


def to_json_value(value: Any, clean: Callable[[str], str | None] | None = None) -> Any:
    """Convert a value from Arrow to a JSON value; `clean` is applied to every text."""
    if isinstance(value, str):
        return clean(value) if clean else value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list) and value and all(isinstance(each, tuple) for each in value):
        return _from_map(value, clean)
    if isinstance(value, list | tuple):
        return [to_json_value(each, clean) for each in value]
    if isinstance(value, dict):
        return {to_json_value(name, clean): to_json_value(each, clean) for name, each in value.items()}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime):
        return to_rfc3339(value)
    return value.isoformat() if isinstance(value, date) else str(value)


def _from_map(pairs: list[tuple[Any, Any]], clean: Callable[[str], str | None] | None) -> Any:
    """Return a map as an object; as a list of pairs if a key is not text or is repeated."""
    converted = [[to_json_value(each, clean) for each in pair] for pair in pairs]
    is_object = all(isinstance(name, str) for name, _ in pairs) and len({name for name, _ in converted}) == len(pairs)
    return dict(converted) if is_object else converted


def to_rfc3339(moment: datetime) -> str:
    """Return a time in RFC 3339; naive times are UTC, as in the table."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()

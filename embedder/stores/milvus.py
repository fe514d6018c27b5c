"""Milvus: a collection of typed fields, on a server or in a file of Milvus Lite."""

import json
import os
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from embedder.core.errors import ConfigError, StorageError
from embedder.core.redaction import mask_text
from embedder.core.spec import Quantization
from embedder.search.exact import Hit
from embedder.source.filter import Compare, Filter, Group, Has, IsNull, Value
from embedder.stores.config import MilvusConfig
from embedder.stores.fitting import Mask, find_long, find_not_json, find_null_items
from embedder.stores.rows import ROW_ID, store_schema, to_json_value, to_payloads, to_rfc3339, vectors_of
from embedder.stores.vector_store import STATE_NAME, Loaded, Vector

MOST_BYTES = 65_535
"""Limit of a VARCHAR; a longer text is cut at a character."""
MOST_ITEMS = 4_096
"""Limit of an ARRAY."""
BATCH_ROWS = 1_000
"""Rows per request: 1.5 MB of 384-dim vectors, far below the server's limit of 64 MB."""
NUM_LISTS, NUM_PROBED = 1_024, 32
"""IVF_FLAT: lists, and lists probed per search."""
LEAST_CANDIDATES = 100
"""Candidates per HNSW search."""

_VECTORS: dict[Quantization, DataType] = {
    "none": DataType.FLOAT_VECTOR,
    "int8": DataType.INT8_VECTOR,
    "binary": DataType.BINARY_VECTOR,
}
_INDEXES = {"auto": "AUTOINDEX", "hnsw": "HNSW", "ivf_flat": "IVF_FLAT", "flat": "FLAT"}
_KEYWORDS = frozenset({"and", "or", "not", "in", "like", "is", "null", "true", "false", "exists"})


class MilvusStore:
    """A collection. Rows are written by primary key, so a repeated write changes nothing; the state is a second collection."""

    quantizations: frozenset[Quantization] = frozenset({"none", "int8", "binary"})

    def __init__(self, config: MilvusConfig) -> None:
        self.config, self.place = config, f"{mask_text(config.uri)}: Milvus collection {config.name!r}"
        try:
            self.client = MilvusClient(config.uri, token=os.environ.get("MILVUS_TOKEN", ""))
        except (MilvusException, OSError) as error:
            problem = f"{config.uri}: Milvus cannot be opened ({error}); is it running, or in use by another?"
            raise StorageError(mask_text(problem)) from error

    def exists(self) -> bool:
        """Return whether the collection exists."""
        return bool(self.client.has_collection(self.config.name))

    def loaded(self) -> Loaded | None:
        """Read the state."""
        if not self.client.has_collection(STATE_NAME):
            return None
        self.client.load_collection(STATE_NAME)
        found = self.client.get(STATE_NAME, ids=[self.config.name], output_fields=["loaded"], consistency_level="Strong")
        return Loaded.from_json(found[0]["loaded"]) if found else None

    def record(self, loaded: Loaded) -> None:
        """Flush earlier writes, then write the state by name; ConfigError if a filter could not name a column."""
        unnamed = [name for name in loaded.schema.names if not name.isidentifier() or name.lower() in _KEYWORDS]
        if unnamed:
            raise ConfigError(
                f"{self.place}: a filter cannot name column {unnamed[0]!r}: Milvus takes letters, digits and _, and no keyword; "
                "embed it under another name: source.metadata_columns takes {new name: column}"
            )
        if self.exists():
            self.client.flush(self.config.name)
        if not self.client.has_collection(STATE_NAME):
            schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("name", DataType.VARCHAR, max_length=64, is_primary=True)
            schema.add_field("loaded", DataType.VARCHAR, max_length=MOST_BYTES)
            schema.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)  # Milvus refuses a collection without a vector
            self.client.create_collection(STATE_NAME, schema=schema, index_params=self._index("nothing", "FLAT", "L2"))
        self.client.upsert(STATE_NAME, [{"name": self.config.name, "loaded": loaded.to_json(), "nothing": [0.0, 0.0]}])
        self.client.flush(STATE_NAME)

    def create(self, loaded: Loaded) -> None:
        """Replace the collection by an empty one with typed fields and a declared index, which Milvus builds as rows arrive."""
        self.client.drop_collection(self.config.name)
        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
        for field in store_schema(loaded.schema, loaded.spec):
            if field.name == "embedding":
                schema.add_field("embedding", _VECTORS[loaded.spec.quantization], dim=loaded.spec.dim)
            else:
                schema.add_field(field.name, **field_options(field) | _key_options(field))
        metric = "HAMMING" if loaded.spec.quantization == "binary" else "IP"
        kind = "AUTOINDEX" if loaded.spec.quantization != "none" else _INDEXES[self.config.index]
        try:
            self.client.create_collection(self.config.name, schema=schema, index_params=self._index("embedding", kind, metric))
        except MilvusException as error:
            raise ConfigError(
                f"{self.place}: this Milvus refuses the columns ({error.message}); a server may take what Lite does not"
            ) from error

    def _params(self, kind: str) -> dict[str, int]:
        hnsw = {"M": self.config.m, "efConstruction": self.config.ef_construction}
        return {"HNSW": hnsw, "IVF_FLAT": {"nlist": NUM_LISTS}}.get(kind, {})

    def _index(self, column: str, kind: str, metric: str) -> Any:
        prepared = self.client.prepare_index_params()
        prepared.add_index(column, index_type=kind, metric_type=metric, params=self._params(kind))
        return prepared

    def _search_params(self, top: int) -> dict[str, int]:
        """Return search parameters with more candidates than results, which recall needs."""
        if self.config.index == "ivf_flat":
            return {"nprobe": NUM_PROBED}
        return {"ef": max(LEAST_CANDIDATES, 2 * top)} if self.config.index == "hnsw" else {}

    def find_unfit(self, rows: pa.Table, /) -> dict[str, Mask]:
        """Find values beyond the limits of VARCHAR, ARRAY and JSON."""
        found: dict[str, Mask] = {}
        for field in rows.schema:
            kind = field_options(field)["datatype"]
            reason = f"{field.name} exceeds {MOST_BYTES:,} bytes"
            if kind == DataType.ARRAY:
                found[f"{reason} or {MOST_ITEMS:,} items"] = find_long(rows[field.name], MOST_BYTES, MOST_ITEMS)
            elif kind == DataType.VARCHAR and field.name != "text":
                found[reason] = find_long(rows[field.name], MOST_BYTES, MOST_ITEMS)
            elif kind == DataType.JSON and field.name != "embedding":
                sizes = [len(json.dumps(to_json_value(value)).encode()) for value in rows[field.name].to_pylist()]
                found[reason] = np.array(sizes) > MOST_BYTES
        return found

    def find_altered(self, rows: pa.Table, /) -> dict[str, Mask]:
        """Find texts that are cut, nulls in lists, NaN and infinity."""
        names = [field.name for field in rows.schema if field.name not in (ROW_ID, "embedding")]
        found = find_not_json(rows, names)
        if "text" in names:
            found[f"text cut at {MOST_BYTES:,} bytes"] = find_long(rows["text"], MOST_BYTES, MOST_ITEMS)
        lists = [name for name in names if _element_type(rows.schema.field(name).type)]
        return found | {f"nulls left out of {name}": find_null_items(rows[name]) for name in lists}

    def append(self, rows: Iterator[pa.Table]) -> None:
        """Insert rows."""
        for each in rows:
            for first in range(0, each.num_rows, BATCH_ROWS):
                self.client.insert(self.config.name, to_entities(each.slice(first, BATCH_ROWS)))

    def upsert(self, rows: Iterator[pa.Table]) -> None:
        """Write rows by primary key."""
        for each in rows:
            for first in range(0, each.num_rows, BATCH_ROWS):
                self.client.upsert(self.config.name, to_entities(each.slice(first, BATCH_ROWS)))

    def delete(self, row_ids: list[str]) -> None:
        """Delete by primary key."""
        for first in range(0, len(row_ids), BATCH_ROWS):
            self.client.delete(self.config.name, ids=row_ids[first : first + BATCH_ROWS])

    def count(self) -> int:
        """Count the rows."""
        self.client.load_collection(self.config.name)
        found = self.client.query(self.config.name, filter="", output_fields=["count(*)"], consistency_level="Strong")
        return int(found[0]["count(*)"])

    def build_index(self) -> str:
        """Rebuild the index if the settings name another, and return its name; Milvus keeps it up to date."""
        found = self.client.describe_index(self.config.name, "embedding")
        kind = _INDEXES[self.config.index]
        differs = found["index_type"] != kind or any(
            str(found.get(name, value)) != str(value) for name, value in self._params(kind).items()
        )
        if self.config.index != "auto" and differs and self._is_float():
            self.client.release_collection(self.config.name)
            self.client.drop_index(self.config.name, "embedding")
            self.client.create_index(self.config.name, self._index("embedding", kind, "IP"))
            found = self.client.describe_index(self.config.name, "embedding")
        return f"index {found['index_type']}"

    def _is_float(self) -> bool:
        fields = self.client.describe_collection(self.config.name)["fields"]
        return any(field["name"] == "embedding" and field["type"] == DataType.FLOAT_VECTOR for field in fields)

    def search(self, query_D: Vector, top: int, where: Filter | None) -> list[Hit]:
        """Search by inner product, binary vectors by equal bits."""
        self.client.load_collection(self.config.name)  # Lite unloads it when a process ends
        binary = query_D.dtype == np.uint8
        fields = [field["name"] for field in self.client.describe_collection(self.config.name)["fields"]]
        found = self.client.search(
            self.config.name,
            [query_D.tobytes() if binary else query_D],
            filter=render_expression(where) if where is not None else "",
            limit=top,
            output_fields=[name for name in fields if name not in (ROW_ID, "embedding")],
            search_params={"metric_type": "HAMMING" if binary else "IP", "params": self._search_params(top)},
            consistency_level="Strong",
        )
        bits = 8 * len(query_D)
        return [Hit(bits - hit["distance"] if binary else hit["distance"], dict(hit["entity"])) for hit in found[0]]

    def close(self) -> None:
        """Close the client."""
        self.client.close()


def field_options(field: pa.Field) -> dict[str, Any]:
    """Return Milvus's type of a column; JSON if it has none."""
    if inner := _element_type(field.type):
        return {"datatype": DataType.ARRAY, "element_type": inner, "max_capacity": MOST_ITEMS, **_length(inner), "nullable": True}
    kind = _scalar_type(field.type) or (DataType.TIMESTAMPTZ if pa.types.is_timestamp(field.type) else DataType.JSON)
    return {"datatype": kind, **_length(kind), "nullable": True}


def _key_options(field: pa.Field) -> dict[str, Any]:
    return {"is_primary": True, "nullable": False, "max_length": 36} if field.name == ROW_ID else {}


def _length(kind: DataType) -> dict[str, int]:
    return {"max_length": MOST_BYTES} if kind == DataType.VARCHAR else {}


def _element_type(arrow: pa.DataType) -> DataType | None:
    return _scalar_type(arrow.value_type) if pa.types.is_list(arrow) else None


def _scalar_type(arrow: pa.DataType) -> DataType | None:
    # decimals and bytes as text: Milvus parses a text in a JSON column, and a decimal would become a float
    if any(check(arrow) for check in (pa.types.is_string, pa.types.is_date, pa.types.is_decimal, pa.types.is_binary)):
        return DataType.VARCHAR
    if pa.types.is_boolean(arrow):
        return DataType.BOOL
    if pa.types.is_integer(arrow):
        return DataType.INT64
    return DataType.DOUBLE if pa.types.is_floating(arrow) else None


def to_entities(rows: pa.Table) -> list[dict[str, Any]]:
    """Return rows for Milvus: no null in an ARRAY, and texts of at most MOST_BYTES."""
    vectors_ND = vectors_of(rows)
    plain = rows.drop_columns(["embedding"])
    arrays = [field.name for field in plain.schema if _element_type(field.type)]
    entities = to_payloads(plain)
    for entity, vector_D in zip(entities, vectors_ND, strict=True):
        entity |= {name: [each for each in entity[name] if each is not None] for name in arrays if entity[name] is not None}
        entity["embedding"] = vector_D.tobytes() if vector_D.dtype == np.uint8 else vector_D
        if len(entity.get("text") or "") > MOST_BYTES // 4:
            entity["text"] = entity["text"].encode()[:MOST_BYTES].decode(errors="ignore")
    return entities


def render_expression(where: Filter) -> str:
    """Return a filter as Milvus's expression. Null never passes, which Milvus itself does not promise."""
    if isinstance(where, Group):
        return "(" + f" {where.joined_by} ".join(render_expression(part) for part in where.parts) + ")"
    column = where.column
    if isinstance(where, IsNull):
        return f"{column} is {'not ' if where.negated else ''}null"
    if isinstance(where, Compare):
        test = f"{column} {'==' if where.operator == '=' else where.operator} {_literal(where.value)}"
    elif isinstance(where, Has):
        test = f"{'not ' if where.negated else ''}array_contains({column}, {_literal(where.value)})"
    else:
        test = f"{column} {'not ' if where.negated else ''}in [{', '.join(map(_literal, where.values))}]"
    return f"({column} is not null and {test})"


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return f"ISO '{to_rfc3339(value)}'"
    if isinstance(value, date):
        return f"'{value.isoformat()}'"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


STORE = MilvusStore
ERRORS = (MilvusException, OSError)

"""Qdrant: a collection of points with metadata as payload, on a server or in the client's local mode."""

import os
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from typing import Any

import pyarrow as pa
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from embedder.core.errors import ConfigError, StorageError
from embedder.core.redaction import mask_text
from embedder.core.spec import Quantization
from embedder.search.exact import Hit
from embedder.source.filter import Compare, Filter, Group, IsNull, OneOf, Value
from embedder.stores.config import QdrantConfig
from embedder.stores.fitting import Mask, find_not_json
from embedder.stores.rows import ROW_ID, to_payloads, to_rfc3339, vectors_of
from embedder.stores.vector_store import STATE_NAME, Loaded, Vector

BATCH_POINTS = 1_000
"""Points per request: 1.5 MB of 384-dim vectors, far below the server's limit of 32 MB."""
INDEXING_THRESHOLD_KB = 10_000
"""Qdrant's default: larger segments get an HNSW graph. 0 during a first load."""

_RANGES: dict[str, str] = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


class QdrantStore:
    """A collection. Points are written by id, so a repeated write changes nothing; the state is the collection's metadata."""

    quantizations: frozenset[Quantization] = frozenset({"none"})

    def __init__(self, config: QdrantConfig) -> None:
        self.config, self.place = config, f"{mask_text(str(config.url or config.path))}: Qdrant collection {config.name!r}"
        self.is_local = config.path is not None
        try:
            if config.path is not None:
                self.client = QdrantClient(path=config.path)
            else:
                self.client = QdrantClient(url=config.url, api_key=os.environ.get("QDRANT_API_KEY"))
            self.client.get_collections()
        except (ApiException, OSError, RuntimeError, ValueError) as error:
            problem = f"{config.url or config.path}: Qdrant cannot be opened ({error}); is it running, or in use by another?"
            raise StorageError(mask_text(problem)) from error

    def exists(self) -> bool:
        """Return whether the collection exists."""
        return self.client.collection_exists(self.config.name)

    def loaded(self) -> Loaded | None:
        """Read the state."""
        if not self.exists():
            return None
        metadata = self.client.get_collection(self.config.name).config.metadata or {}
        return Loaded.from_json(metadata[STATE_NAME]) if STATE_NAME in metadata else None

    def record(self, loaded: Loaded) -> None:
        """Write the state into the collection's metadata; the first record creates the collection."""
        if self.exists():
            self.client.update_collection(self.config.name, metadata={STATE_NAME: loaded.to_json()})
        else:
            self.create(loaded)

    def create(self, loaded: Loaded) -> None:
        """Replace the collection by an empty one with its state; no graph is built before the first load ends."""
        self.client.delete_collection(self.config.name)
        self.client.create_collection(
            self.config.name,
            vectors_config=models.VectorParams(
                size=loaded.spec.dim,
                distance=models.Distance.DOT,
                datatype=models.Datatype(self.config.datatype),
                on_disk=not self.is_local,
            ),
            hnsw_config=models.HnswConfigDiff(m=self.config.m, ef_construct=self.config.ef_construction),
            optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0),
            metadata={STATE_NAME: loaded.to_json()},
        )
        if not self.is_local:
            self._index_payload(loaded.schema)

    def _index_payload(self, schema: pa.Schema) -> None:
        """Index the metadata that can be filtered; the server builds its filterable graph from these indexes."""
        for field in schema:
            kind = payload_type(field.type.value_type if pa.types.is_list(field.type) else field.type)
            if field.name not in ("embedding", "text", "content_hash") and kind is not None:
                self.client.create_payload_index(self.config.name, payload_key(field.name), kind)

    def find_unfit(self, _: pa.Table, /) -> dict[str, Mask]:
        """Find no rows: a payload is any JSON."""
        return {}

    def find_altered(self, rows: pa.Table, /) -> dict[str, Mask]:
        """Find NaN and infinity, which JSON cannot hold."""
        return find_not_json(rows, rows.schema.names)

    def append(self, rows: Iterator[pa.Table]) -> None:
        """Write points by id."""
        self.upsert(rows)

    def upsert(self, rows: Iterator[pa.Table]) -> None:
        """Write points by id."""
        for each in rows:
            for first in range(0, each.num_rows, BATCH_POINTS):
                self._write(each.slice(first, BATCH_POINTS))

    def _write(self, rows: pa.Table) -> None:
        points = models.Batch(
            ids=rows[ROW_ID].to_pylist(),
            vectors=vectors_of(rows).tolist(),
            payloads=to_payloads(rows.drop_columns([ROW_ID, "embedding"])),
        )
        self.client.upsert(self.config.name, points, wait=True)

    def delete(self, row_ids: list[str]) -> None:
        """Delete by id."""
        self.client.delete(self.config.name, models.PointIdsList(points=list(row_ids)), wait=True)

    def count(self) -> int:
        """Count the points."""
        return self.client.count(self.config.name, exact=True).count

    def build_index(self) -> str:
        """Let the server build its graph, and rebuild it if the settings changed; from then on it does so by itself."""
        if self.is_local:
            return "no index, exact search (local mode)"
        self.client.update_collection(
            self.config.name,
            optimizers_config=models.OptimizersConfigDiff(indexing_threshold=INDEXING_THRESHOLD_KB),
            hnsw_config=models.HnswConfigDiff(m=self.config.m, ef_construct=self.config.ef_construction),
        )
        return f"index hnsw, {self.client.get_collection(self.config.name).status.value}"

    def search(self, query_D: Vector, top: int, where: Filter | None) -> list[Hit]:
        """Search by inner product with Qdrant's filter."""
        found = self.client.query_points(
            self.config.name,
            query=query_D.tolist(),
            query_filter=render_filter(where) if where is not None else None,
            limit=top,
            with_payload=True,
        )
        return [Hit(point.score, dict(point.payload or {})) for point in found.points]

    def close(self) -> None:
        """Close the client."""
        self.client.close()


def payload_type(arrow: pa.DataType) -> models.PayloadSchemaType | None:
    """Return the index type of a payload field; None if it cannot be filtered."""
    if pa.types.is_string(arrow):
        return models.PayloadSchemaType.KEYWORD
    if pa.types.is_boolean(arrow):
        return models.PayloadSchemaType.BOOL
    if pa.types.is_integer(arrow):
        return models.PayloadSchemaType.INTEGER
    if pa.types.is_floating(arrow):
        return models.PayloadSchemaType.FLOAT
    return models.PayloadSchemaType.DATETIME if pa.types.is_timestamp(arrow) or pa.types.is_date(arrow) else None


def payload_key(column: str) -> str:
    """Return a column as Qdrant's payload path: a dot enters an object, so names with spaces or dots are quoted."""
    if '"' in column:
        raise ConfigError(f"column {column!r}: Qdrant cannot address it; embed it under another name (source.metadata_columns)")
    return column if column.isidentifier() else f'"{column}"'


def render_filter(where: Filter) -> models.Filter:
    """Return a filter in Qdrant's form."""
    if isinstance(where, Group):
        parts: Any = [render_filter(part) for part in where.parts]
        return models.Filter(must=parts) if where.joined_by == "and" else models.Filter(should=parts)
    null = models.IsNullCondition(is_null=models.PayloadField(key=payload_key(where.column)))
    if isinstance(where, IsNull):
        return models.Filter(must_not=[null]) if where.negated else models.Filter(must=[null])
    if isinstance(where, Compare) and where.operator in _RANGES:
        return models.Filter(must=[_range(where.column, {_RANGES[where.operator]: where.value})])
    values = where.values if isinstance(where, OneOf) else (where.value,)
    equal: Any = [_equal(where.column, value) for value in values]
    negated = where.operator == "!=" if isinstance(where, Compare) else where.negated
    return models.Filter(must_not=[*equal, null]) if negated else models.Filter(should=equal)


def _equal(column: str, value: Value) -> models.FieldCondition:
    if isinstance(value, str | bool | int):
        return models.FieldCondition(key=payload_key(column), match=models.MatchValue(value=value))
    return _range(column, {"gte": value, "lte": value})


def _range(column: str, bounds: dict[str, Any]) -> models.FieldCondition:
    key, value = payload_key(column), next(iter(bounds.values()))
    if isinstance(value, str | bool):
        raise ConfigError(f"--filter: {column}: Qdrant does not order texts; compare them with = or in")
    if isinstance(value, date) and not isinstance(value, datetime):
        bounds = {name: datetime.combine(each, time(), UTC) for name, each in bounds.items()}
    if isinstance(value, date):
        return models.FieldCondition(key=key, range=models.DatetimeRange(**{name: to_rfc3339(each) for name, each in bounds.items()}))
    return models.FieldCondition(key=key, range=models.Range(**bounds))


STORE = QdrantStore
ERRORS = (ApiException, OSError)

"""LanceDB: a folder on local disk or S3 that applications read directly."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import BTree, HnswSq, IvfFlat, IvfPq

from embedder.core.delta_options import delta_options
from embedder.core.errors import StorageError
from embedder.core.redaction import mask_text
from embedder.core.spec import Quantization
from embedder.search.exact import Hit
from embedder.source.filter import Filter
from embedder.stores.config import LanceConfig
from embedder.stores.filter_sql import Dialect, quote_text, render_sql
from embedder.stores.fitting import Mask
from embedder.stores.rows import ROW_ID, store_schema
from embedder.stores.vector_store import STATE_NAME, Loaded, Vector

# Lance refuses a bare 2000.5 in a comparison with integers
_DIALECT = Dialect("`", "timestamp '{}'", "array_has({column}, {value})", "CAST({} AS double)")
_STATE = pa.schema([("name", pa.string()), ("loaded", pa.string())])
_INDEXES: Mapping[str, Any] = {"ivf_hnsw_sq": HnswSq, "ivf_pq": IvfPq, "ivf_flat": IvfFlat}

INDEXED_ROWS = 50_000
"""Rows from which `auto` builds an index: a scan of 50,000 vectors of 384 dims takes about 10 ms."""
DELETED_IDS = 2_000
"""Ids per delete condition; each condition is one commit."""
KEPT_VERSIONS = timedelta(days=1)
"""Age up to which versions of the Lance table are kept for readers that opened them."""


class LanceStore:
    """A Lance table. Every write is a commit of its own; the state is a second table."""

    quantizations: frozenset[Quantization] = frozenset({"none", "binary"})
    """Lance stores int8 too, but its client converts every query to float32, which the server then refuses."""

    def __init__(self, config: LanceConfig) -> None:
        self.config, self.place = config, f"{mask_text(config.uri)}: LanceDB table {config.name!r}"
        try:
            self.db = lancedb.connect(config.uri, storage_options=_storage_options(config))
        except (OSError, RuntimeError, ValueError) as error:
            problem = f"{config.uri}: cannot be opened as a LanceDB database ({error}); check the path and credentials"
            raise StorageError(mask_text(problem)) from error

    def exists(self) -> bool:
        """Return whether the table exists."""
        return self.config.name in self._names()

    def _names(self) -> list[str]:
        names: list[str] = []
        page = self.db.list_tables(limit=1000)
        while True:
            names += page.tables
            if not page.page_token:
                return names
            page = self.db.list_tables(limit=1000, page_token=page.page_token)

    def loaded(self) -> Loaded | None:
        """Read the state."""
        if self._state_name not in self._names():
            return None
        rows = self.db.open_table(self._state_name).to_arrow().to_pylist()
        return Loaded.from_json(rows[0]["loaded"]) if rows else None

    @property
    def _state_name(self) -> str:
        return f"{STATE_NAME}_{self.config.name}"

    def record(self, loaded: Loaded) -> None:
        """Overwrite the state, in one commit."""
        rows = pa.table({"name": [self.config.name], "loaded": [loaded.to_json()]}, schema=_STATE)
        self.db.create_table(self._state_name, rows, mode="overwrite").optimize(cleanup_older_than=KEPT_VERSIONS)

    def create(self, loaded: Loaded) -> None:
        """Replace the table by an empty one."""
        schema = store_schema(loaded.schema, loaded.spec)
        self.db.create_table(self.config.name, schema=schema, mode="overwrite")

    def find_unfit(self, _: pa.Table, /) -> dict[str, Mask]:
        """Find no rows: each type has a counterpart."""
        return {}

    def find_altered(self, _: pa.Table, /) -> dict[str, Mask]:
        """Find no rows."""
        return {}

    def append(self, rows: Iterator[pa.Table]) -> None:
        """Stream all rows into one commit."""
        table = self._table()
        batches = (batch for each in rows for batch in each.to_batches())
        table.add(pa.RecordBatchReader.from_batches(table.schema, batches))

    def upsert(self, rows: Iterator[pa.Table]) -> None:
        """Merge by row id, one commit per batch."""
        table = self._table()
        for each in rows:
            table.merge_insert(ROW_ID).when_matched_update_all().when_not_matched_insert_all().execute(each)

    def delete(self, row_ids: list[str]) -> None:
        """Delete by row id."""
        table = self._table()
        for first in range(0, len(row_ids), DELETED_IDS):
            table.delete(f"{ROW_ID} IN ({', '.join(map(quote_text, row_ids[first : first + DELETED_IDS]))})")

    def count(self) -> int:
        """Count the rows."""
        return int(self._table().count_rows())

    def build_index(self) -> str:
        """Index row ids once and vectors as the settings ask, add new rows to both, and compact files."""
        table = self._table()
        present = {column: index for index in table.list_indices() for column in index.columns}
        built = next(
            (kind for kind, each in _INDEXES.items() if "embedding" in present and present["embedding"].index_type == each.__name__), "none"
        )
        binary = table.schema.field("embedding").type.value_type == pa.uint8()
        kind: str = self.config.index
        if kind == "auto":
            kind = built if built != "none" or table.count_rows() < INDEXED_ROWS else "ivf_hnsw_sq"
        if binary and kind != "none":
            kind = "ivf_flat"
        if ROW_ID not in present and table.count_rows():
            table.create_index(ROW_ID, config=BTree())
        if kind == "none" != built:
            table.drop_index(present["embedding"].name)
        elif kind != built:
            table.create_index("embedding", config=_INDEXES[kind](distance_type="hamming" if binary else "dot"))
        table.optimize(cleanup_older_than=KEPT_VERSIONS)
        return "no index, exact search" if kind == "none" else f"index {kind}"

    def search(self, query_D: Vector, top: int, where: Filter | None) -> list[Hit]:
        """Search by inner product, binary vectors by equal bits; the filter is applied first."""
        table, binary = self._table(), query_D.dtype == np.uint8
        query = table.search(query_D, vector_column_name="embedding").distance_type("hamming" if binary else "dot").limit(top)
        if where is not None:
            query = query.where(render_sql(where, _DIALECT), prefilter=True)
        columns = [name for name in table.schema.names if name not in (ROW_ID, "embedding")]
        found = query.select([*columns, "_distance"]).to_arrow().to_pylist()
        return [Hit(len(query_D) * 8 - row["_distance"] if binary else 1 - row["_distance"], _without(row, "_distance")) for row in found]

    def close(self) -> None:
        """Do nothing: the client holds no connection."""

    def _table(self) -> Any:
        return self.db.open_table(self.config.name)


def _storage_options(config: LanceConfig) -> dict[str, str]:
    """Return the S3 endpoint and credentials of the environment, updated by the settings."""
    return delta_options(config.uri, {}) | config.storage_options


def _without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


STORE = LanceStore
ERRORS = (RuntimeError, OSError)

"""DuckDB: rows and vectors in one file."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from embedder.core.errors import ConfigError, StorageError
from embedder.core.retry import one_line
from embedder.core.spec import Quantization
from embedder.search.exact import Hit
from embedder.source.filter import Filter
from embedder.stores.config import DuckdbConfig
from embedder.stores.filter_sql import Dialect, quote_name, render_sql
from embedder.stores.fitting import Mask
from embedder.stores.rows import ROW_ID, store_schema
from embedder.stores.vector_store import STATE_NAME, Loaded, Vector

_DIALECT = Dialect('"', "TIMESTAMPTZ '{}'", "list_contains({column}, {value})")


class DuckdbStore:
    """A table of a DuckDB file. Everything between two records is one transaction.

    The file is opened read-only, which any number of processes may do at once, until something is recorded.
    """

    quantizations: frozenset[Quantization] = frozenset({"none", "int8"})

    def __init__(self, config: DuckdbConfig) -> None:
        self.config, self.place = config, f"{config.path}: DuckDB table {config.name!r}"
        self.table = quote_name(config.name)
        self.connection = self._connect(writes=False)
        self.writes = False

    def _connect(self, writes: bool) -> duckdb.DuckDBPyConnection:
        is_there = Path(self.config.path).exists()
        try:
            connection = duckdb.connect(self.config.path, read_only=not writes) if is_there or writes else duckdb.connect()
        except duckdb.IOException as error:
            raise StorageError(f"{self.config.path}: cannot be opened ({one_line(error)}); is another process writing to it?") from error
        connection.execute("SET TimeZone = 'UTC'")
        if self.config.index == "hnsw":
            _load_vss(connection)
        return connection

    def exists(self) -> bool:
        """Return whether the table exists."""
        return self._has(self.config.name)

    def _has(self, table: str) -> bool:
        return bool(self.connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = ?", [table]).fetchall())

    def loaded(self) -> Loaded | None:
        """Read the state."""
        if not self._has(STATE_NAME):
            return None
        found = self.connection.execute(f"SELECT loaded FROM {STATE_NAME} WHERE name = ?", [self.config.name]).fetchall()
        return Loaded.from_json(found[0][0]) if found else None

    def record(self, loaded: Loaded) -> None:
        """Write the state and commit."""
        if not self.writes:
            self._begin_writing()
            self.connection.execute(f"CREATE TABLE IF NOT EXISTS {STATE_NAME} (name VARCHAR PRIMARY KEY, loaded VARCHAR NOT NULL)")
        self.connection.execute(f"INSERT OR REPLACE INTO {STATE_NAME} VALUES (?, ?)", [self.config.name, loaded.to_json()])
        self.connection.commit()
        self.connection.begin()

    def _begin_writing(self) -> None:
        self.connection.close()
        self.connection, self.writes = self._connect(writes=True), True
        self.connection.begin()

    def create(self, loaded: Loaded) -> None:
        """Replace the table by an empty one with DuckDB's types for the Arrow columns."""
        self._run("CREATE OR REPLACE TABLE {table} AS SELECT * FROM new_rows", store_schema(loaded.schema, loaded.spec).empty_table())

    def find_unfit(self, _: pa.Table, /) -> dict[str, Mask]:
        """Find no rows: each type has a counterpart."""
        return {}

    def find_altered(self, _: pa.Table, /) -> dict[str, Mask]:
        """Find no rows."""
        return {}

    def append(self, rows: Iterator[pa.Table]) -> None:
        """Insert from Arrow."""
        for each in rows:
            self._run("INSERT INTO {table} SELECT * FROM new_rows", each)

    def upsert(self, rows: Iterator[pa.Table]) -> None:
        """Delete and insert."""
        for each in rows:
            self._run(f"DELETE FROM {{table}} WHERE {ROW_ID} IN (SELECT {ROW_ID} FROM new_rows)", each)
            self._run("INSERT INTO {table} SELECT * FROM new_rows", each)

    def delete(self, row_ids: list[str]) -> None:
        """Delete by row id."""
        self._run(f"DELETE FROM {{table}} WHERE {ROW_ID} IN (SELECT {ROW_ID} FROM new_rows)", pa.table({ROW_ID: row_ids}))

    def _run(self, statement: str, rows: pa.Table) -> None:
        """Run a statement with Arrow rows registered as new_rows."""
        self.connection.register("new_rows", rows)
        self.connection.execute(statement.format(table=self.table))
        self.connection.unregister("new_rows")

    def count(self) -> int:
        """Count the rows."""
        return int(self.connection.execute(f"SELECT count(*) FROM {self.table}").fetchall()[0][0])

    def build_index(self) -> str:
        """Build HNSW if it is asked for and missing; DuckDB keeps it up to date."""
        if self.config.index == "none":
            return "no index, exact search"
        name = f"{self.config.name}_hnsw"
        if not self.connection.execute("SELECT 1 FROM duckdb_indexes() WHERE index_name = ?", [name]).fetchall():
            if not self.writes:
                self._begin_writing()
            self.connection.execute(f"CREATE INDEX {quote_name(name)} ON {self.table} USING HNSW (embedding) WITH (metric = 'ip')")
            self.connection.commit()
            self.connection.begin()
        return "index hnsw"

    def search(self, query_D: Vector, top: int, where: Filter | None) -> list[Hit]:
        """Order by inner product; HNSW serves searches without a filter."""
        vectors = "embedding" if query_D.dtype == np.float32 else f"embedding::FLOAT[{len(query_D)}]"
        # the index serves this form only, which is as fast without one
        distance = f"array_negative_inner_product({vectors}, ?::FLOAT[{len(query_D)}])"
        condition = f"WHERE {render_sql(where, _DIALECT)}" if where is not None else ""
        columns = f"* EXCLUDE ({ROW_ID}, embedding), {distance} AS _distance"
        query = f"SELECT {columns} FROM {self.table} {condition} ORDER BY _distance LIMIT {top}"
        found = self.connection.sql(query, params=[query_D.tolist()]).to_arrow_table().to_pylist()
        return [Hit(-row.pop("_distance"), row) for row in found]

    def close(self) -> None:
        """Roll back what was not recorded."""
        if self.writes:
            self.connection.rollback()
        self.connection.close()


def _load_vss(connection: duckdb.DuckDBPyConnection) -> None:
    try:
        connection.execute("LOAD vss")
        connection.execute("SET hnsw_enable_experimental_persistence = true")
    except duckdb.Error as error:
        message = f"duckdb.index='hnsw': the extension vss cannot be loaded ({one_line(error)})"
        raise ConfigError(f"{message}; run INSTALL vss in DuckDB once, or choose index: none") from error


STORE = DuckdbStore
ERRORS = (duckdb.Error,)

"""PostgreSQL with pgvector: rows are written by binary COPY, vectors in pgvector's binary format."""

import math
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from psycopg.rows import dict_row

from embedder.core.errors import ConfigError, StorageError
from embedder.core.redaction import mask_text
from embedder.core.retry import one_line
from embedder.core.spec import Quantization
from embedder.search.exact import Hit
from embedder.source.filter import Filter
from embedder.stores.config import PgvectorConfig
from embedder.stores.filter_sql import Dialect, render_sql
from embedder.stores.fitting import Mask, find_not_json, find_nul
from embedder.stores.rows import ROW_ID, store_schema, to_bytes, to_json_value, vectors_of
from embedder.stores.vector_store import STATE_NAME, Loaded, Vector

LOCK_SECONDS = 5.0
"""Time for the server to notice that a connection closed and to release its lock."""
LEAST_PROBES = 10
"""IVFFlat lists probed per search: pgvector's default of 1 found 3 of the ten nearest among 30 lists of random vectors."""
_DIALECT = Dialect('"', "timestamptz '{}'", "{value} = ANY({column})")
_MOST_DIMS = {"vector": 2_000, "halfvec": 4_000, "bit": 64_000}
"""Limits of HNSW and IVFFlat."""
_OPERATORS = {"vector": "vector_ip_ops", "halfvec": "halfvec_ip_ops", "bit": "bit_hamming_ops"}

_SCALARS: list[tuple[Callable[[pa.DataType], bool], str]] = [
    (pa.types.is_string, "text"),
    (pa.types.is_large_string, "text"),
    (pa.types.is_boolean, "bool"),
    (pa.types.is_int8, "int2"),
    (pa.types.is_int16, "int2"),
    (pa.types.is_uint8, "int2"),
    (pa.types.is_int32, "int4"),
    (pa.types.is_uint16, "int4"),
    (pa.types.is_integer, "int8"),
    (pa.types.is_float32, "float4"),
    (pa.types.is_floating, "float8"),
    (pa.types.is_timestamp, "timestamptz"),
    (pa.types.is_date, "date"),
]


class PgvectorStore:
    """A table of a PostgreSQL database. Everything between two records is one transaction."""

    quantizations: frozenset[Quantization] = frozenset({"none", "binary"})

    def __init__(self, config: PgvectorConfig) -> None:
        self.config = config
        self.table, self.index = sql.Identifier(config.name), sql.Identifier(f"{config.name}_embedding")
        try:
            self.connection = psycopg.connect(config.dsn)
        except psycopg.Error as error:
            # libpq quotes a part of a connection string that it cannot parse
            reason = one_line(error) if isinstance(error, psycopg.OperationalError) else "not a connection string"
            raise StorageError(f"pgvector.dsn={mask_text(config.dsn)!r}: no connection ({reason}); check it and PGPASSWORD") from error
        self.place = f"{self.connection.info.host}/{self.connection.info.dbname}: pgvector table {config.name!r}"

    def exists(self) -> bool:
        """Return whether the table exists."""
        return self._exists(self.config.name)

    def _exists(self, table: str) -> bool:
        return bool(self._one("SELECT to_regclass(quote_ident(%s)) IS NOT NULL", table))

    def loaded(self) -> Loaded | None:
        """Read the state."""
        if not self._exists(STATE_NAME):
            return None
        found = self._one(f"SELECT loaded FROM {STATE_NAME} WHERE name = %s", self.config.name)
        return Loaded.from_json(found) if found else None

    def record(self, loaded: Loaded) -> None:
        """Write the state and commit; a second load at the same time is refused."""
        self._lock()
        self.connection.execute(f"CREATE TABLE IF NOT EXISTS {STATE_NAME} (name text PRIMARY KEY, loaded text NOT NULL)")
        statement = f"INSERT INTO {STATE_NAME} VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET loaded = excluded.loaded"
        self.connection.execute(statement, (self.config.name, loaded.to_json()))
        self.connection.commit()

    def _lock(self) -> None:
        """Take the table's lock, which is held until the connection closes; wait for a load that just ended."""
        deadline = time.monotonic() + LOCK_SECONDS
        while not self._one("SELECT pg_try_advisory_lock(hashtext(%s))", f"{STATE_NAME}.{self.config.name}"):
            if time.monotonic() > deadline:
                raise StorageError(f"{self.place}: another load is running; wait until it ends")
            time.sleep(0.1)

    def create(self, loaded: Loaded) -> None:
        """Replace the table by an empty one, and create the extension if it is missing."""
        schema = store_schema(loaded.schema, loaded.spec)
        kind = "bit" if loaded.spec.quantization == "binary" else self.config.type
        types = [f"{kind}({loaded.spec.dim})" if field.name == "embedding" else column_type(field) for field in schema]
        columns = [sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(each)) for field, each in zip(schema, types, strict=True)]
        try:
            self.connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.Error as error:
            raise StorageError(
                f"{self.place}: the extension vector is missing ({one_line(error)}); install pgvector on the server"
            ) from error
        self.connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self.table))
        self.connection.execute(sql.SQL("CREATE TABLE {} ({})").format(self.table, sql.SQL(", ").join(columns)))
        # vectors do not compress, and inline storage saves a lookup per row; longer rows still fall back to TOAST
        self.connection.execute(sql.SQL("ALTER TABLE {} ALTER COLUMN embedding SET STORAGE PLAIN").format(self.table))

    def find_unfit(self, _: pa.Table, /) -> dict[str, Mask]:
        """Find no rows: values have no limit below 256 MiB."""
        return {}

    def find_altered(self, rows: pa.Table, /) -> dict[str, Mask]:
        """Find NUL in text, and NaN and infinity in jsonb."""
        names = [field.name for field in rows.schema if field.name not in (ROW_ID, "embedding")]
        nul = {f"NUL became U+FFFD in {name}": find_nul(rows[name]) for name in names}
        return nul | find_not_json(rows, [name for name in names if column_type(rows.schema.field(name)) == "jsonb"])

    def append(self, rows: Iterator[pa.Table]) -> None:
        """COPY into the table without an index, which would be filled row by row."""
        self._drop_index()
        self._copy(self.table, rows)

    def upsert(self, rows: Iterator[pa.Table]) -> None:
        """COPY into a temporary table, then replace rows, in the transaction that the next record ends."""
        self.connection.execute(sql.SQL("CREATE TEMP TABLE new_rows (LIKE {}) ON COMMIT DROP").format(self.table))
        self._copy(sql.Identifier("new_rows"), rows)
        self.connection.execute(sql.SQL("DELETE FROM {} WHERE row_id IN (SELECT row_id FROM new_rows)").format(self.table))
        self.connection.execute(sql.SQL("INSERT INTO {} SELECT * FROM new_rows").format(self.table))

    def delete(self, row_ids: list[str]) -> None:
        """Delete by row id."""
        self.connection.execute(sql.SQL("DELETE FROM {} WHERE row_id = ANY(%s::uuid[])").format(self.table), (row_ids,))

    def count(self) -> int:
        """Count the rows."""
        return int(self._one(sql.SQL("SELECT count(*) FROM {}").format(self.table)))

    def build_index(self) -> str:
        """Index row ids, and vectors as the settings ask; PostgreSQL keeps both up to date."""
        name = sql.Identifier(f"{self.config.name}_row_id")
        self.connection.execute(sql.SQL("CREATE UNIQUE INDEX IF NOT EXISTS {} ON {} (row_id)").format(name, self.table))
        kind, dim = self._stored_type()
        if self.config.index == "none":
            self._drop_index()
        elif dim > _MOST_DIMS[kind]:
            self.connection.rollback()
            raise ConfigError(f"{self.place}: {dim} dims of {kind} exceed the index's limit ({_MOST_DIMS[kind]:,}); choose index: none")
        else:
            self._create_index(kind)
        self.connection.commit()
        return "no index, exact search" if self.config.index == "none" else f"index {self.config.index} on {kind}"

    def _create_index(self, kind: str) -> None:
        built, present = self._built_index()
        if self.config.index == "ivfflat":
            # lists follow the rows of the first build: growth alone does not rebuild the index
            wanted = {"lists": present.get("lists") or max(1, min(self.count() // 1000, 32_768))}
        else:
            wanted = {"m": self.config.m, "ef_construction": self.config.ef_construction}
        if (built, present) == (self.config.index, wanted):
            return
        self._drop_index()
        options = ", ".join(f"{name} = {value}" for name, value in wanted.items())
        statement = f"CREATE INDEX {{}} ON {{}} USING {self.config.index} (embedding {_OPERATORS[kind]}) WITH ({options})"
        self.connection.execute(sql.SQL(statement).format(self.index, self.table))

    def search(self, query_D: Vector, top: int, where: Filter | None) -> list[Hit]:
        """Order by inner product, binary vectors by equal bits; with a filter the index scans until enough rows pass."""
        kind, dim = self._stored_type()
        if kind == "bit":
            query, operator = "".join(f"{byte:08b}" for byte in query_D.tolist()), "<~>"
        else:
            query, operator = "[" + ",".join(map(repr, query_D.astype(np.float64).tolist())) + "]", "<#>"
        columns = [sql.Identifier(name) for name in self._columns() if name not in (ROW_ID, "embedding")]
        condition = f"WHERE {render_sql(where, _DIALECT)}" if where is not None else ""
        for sign in "%{}":  # % is psycopg's placeholder, braces are its composer's
            condition = condition.replace(sign, sign * 2)
        statement = f"SELECT {{}}, embedding {operator} %s::{kind}({dim}) AS _distance FROM {{}} {condition} ORDER BY _distance LIMIT %s"
        self.connection.execute(f"SET hnsw.ef_search = {max(self.config.ef_search, min(top, 1000))}")
        self.connection.execute("SET hnsw.iterative_scan = strict_order")
        lists = self._built_index()[1].get("lists", 0)
        self.connection.execute(f"SET ivfflat.probes = {max(LEAST_PROBES, math.isqrt(lists))}")
        self.connection.execute("SET ivfflat.iterative_scan = relaxed_order")  # IVFFlat has no strict order, so rows are sorted below
        with self.connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(sql.SQL(statement).format(sql.SQL(", ").join(columns), self.table), (query, top))
            found = sorted(cursor.fetchall(), key=itemgetter("_distance"))
        return [Hit(dim - row.pop("_distance") if kind == "bit" else -row.pop("_distance"), row) for row in found]

    def close(self) -> None:
        """Roll back what was not recorded."""
        self.connection.rollback()
        self.connection.close()

    def _one(self, statement: Any, *values: Any) -> Any:
        found = self.connection.execute(statement, values).fetchone()
        return found[0] if found else None

    def _drop_index(self) -> None:
        self.connection.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(self.index))

    def _built_index(self) -> tuple[str, dict[str, int]]:
        """Read kind and parameters of the vectors' index; kind is none if it is missing."""
        statement = """SELECT concat_ws(' ', amname, array_to_string(reloptions, ' ')) FROM pg_class
            JOIN pg_am ON pg_am.oid = relam WHERE pg_class.oid = to_regclass(%s)"""
        kind, *options = str(self._one(statement, self.index.as_string(self.connection)) or "none").split()
        return kind, {name: int(value) for name, value in (option.split("=") for option in options)}

    def _columns(self) -> list[str]:
        found = self.connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(self.table))
        return [column.name for column in found.description or ()]

    def _stored_type(self) -> tuple[str, int]:
        """Read the type of stored vectors (vector, halfvec or bit) and their components."""
        statement = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'embedding'"
        kind, _, size = str(self._one(statement, self.table.as_string(self.connection))).partition("(")
        return kind, int(size.rstrip(")"))

    def _copy(self, table: sql.Identifier, rows: Iterator[pa.Table]) -> None:
        kind, dim = self._stored_type()
        with self.connection.cursor() as cursor, cursor.copy(sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(table)) as copy:
            types: list[str] | None = None
            for each in rows:
                if types is None:
                    types = ["bytea" if field.name in (ROW_ID, "embedding") else column_type(field) for field in each.schema]
                    copy.set_types(types)
                columns = [to_values(field.name, each, kind, dim) for field in each.schema]
                for row in zip(*columns, strict=True):
                    copy.write_row(row)


def column_type(field: pa.Field) -> str:
    """Return PostgreSQL's type of a column; jsonb if it has none."""
    if field.name == ROW_ID:
        return "uuid"
    if pa.types.is_list(field.type):
        inner = _scalar_type(field.type.value_type)
        return f"{inner}[]" if inner else "jsonb"
    return _scalar_type(field.type) or "jsonb"


def _scalar_type(arrow: pa.DataType) -> str | None:
    return next((name for fits, name in _SCALARS if fits(arrow)), None)


def to_values(name: str, rows: pa.Table, kind: str, dim: int) -> list[Any]:
    """Return a column's values for psycopg: vectors and ids in PostgreSQL's binary form, texts without NUL."""
    if name == "embedding":
        return encode_vectors(vectors_of(rows), kind, dim)
    column, field = rows[name], rows.schema.field(name)
    if name == ROW_ID:
        return [uuid.UUID(each).bytes for each in column.to_pylist()]
    if pa.types.is_string(field.type):
        return list(pc.replace_substring(column, "\x00", "\ufffd").to_pylist())
    if column_type(field) == "jsonb":
        return [to_json_value(each, _without_nul) for each in column.to_pylist()]
    if pa.types.is_list(field.type) and pa.types.is_string(field.type.value_type):
        return [each and [_without_nul(text) for text in each] for each in column.to_pylist()]
    return list(column.to_pylist())


def _without_nul(text: str | None) -> str | None:
    """Replace NUL, which PostgreSQL refuses, by U+FFFD, so that offsets stay valid."""
    return text and text.replace("\x00", "\ufffd")


def encode_vectors(vectors_ND: Any, kind: str, dim: int) -> list[bytes]:
    """Return vectors in pgvector's binary form: a header of sizes, then big-endian components, or bits."""
    if kind == "bit":
        head, body = struct.pack(">i", dim), to_bytes(vectors_ND)
    else:
        head, body = struct.pack(">hh", dim, 0), to_bytes(vectors_ND.astype(">f4" if kind == "vector" else ">f2"))
    return [head + each for each in body]


STORE = PgvectorStore
ERRORS = (psycopg.Error,)

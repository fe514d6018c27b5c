"""A PostgreSQL table as a source → ranges of its keys as shards, and their rows. The only module here that imports psycopg.

A range starts at each key whose hash is a multiple of ROWS_PER_SHARD. So an insert, edit or delete changes one range and moves no
other, whether keys are dense, sparse or random; if it adds or removes such a key, one range is split or two are joined.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import IO, Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.types as is_

from embedder.config.source import SourceConfig
from embedder.core.columns import Shards
from embedder.core.errors import ConfigError, EmptySourceError, SourceError, StorageError
from embedder.core.retry import one_line, with_retries
from embedder.core.spec import digest
from embedder.core.units import Shard
from embedder.source.formats.arrow_columns import BATCH_BYTES, ArrowColumn, check_types, to_rows
from embedder.source.formats.rows import Reading, Rows, misfit_refuser
from embedder.source.partitions import find_keys
from embedder.source.table_files import TableFiles

try:
    import psycopg
    from psycopg import sql
except ImportError as error:
    raise ConfigError(
        "source.format=postgres: needs the package psycopg, which is not installed; pip install '.[postgres]' from the checkout"
    ) from error

Connection = psycopg.Connection[Any]

ROWS_PER_SHARD = 16_384
"""On average."""
_BATCH_ROWS = 1024
_REFUSED = re.compile("FATAL|no password|does not support")
_BUSY = re.compile("starting up|shutting down|recovery mode|too many|connection slots")
"""Of the refusals by a server, those that pass."""
_KEYS = {"smallint": "bigint", "integer": "bigint", "bigint": "bigint", "uuid": "uuid", "text": "text", "character varying": "text"}
_SIZED = ("text", "character varying", "bytea")
_NATIVE = {
    "boolean": pa.bool_(),
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "bytea": pa.binary(),
}
_AS_TEXT = {
    "text": pa.string(),
    "character varying": pa.string(),
    "character": pa.string(),
    "enum": pa.string(),
    "json": pa.json_(),
    "jsonb": pa.json_(),
    "uuid": pa.uuid(),
    "date": pa.date32(),
    "timestamp without time zone": pa.timestamp("us"),
    "timestamp with time zone": pa.timestamp("us", "UTC"),
}
"""Fetched as text, which is exact: Python has no infinite date, none before the year 1 and no NaN of a decimal column."""
_SNAPSHOT = "SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO'; SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex'"
"""Settings by which a value always has the same text, and so a row the same hash."""
_FIND_TABLE = """
SELECT c.oid, n.nspname, c.relname, c.relkind IN ('v', 'f'), now()::timestamptz(0)::text FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s) AND c.relkind IN ('r', 'p', 'm', 'v', 'f')"""
_FIND_COLUMNS = """
SELECT a.attname, CASE t.typtype WHEN 'e' THEN 'enum' WHEN 'd' THEN format_type(t.typbasetype, t.typtypmod)
ELSE format_type(t.oid, a.atttypmod) END FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
_FIND_INDEXES = """
SELECT a.attname, i.indisprimary AND i.indnkeyatts = 1 FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid
AND a.attnum = i.indkey[0] WHERE i.indrelid = %s AND i.indisvalid AND i.indpred IS NULL"""
_LIST_RANGES = """
SELECT max(label), count(*), sum(hash)::text, sum(size)::bigint, count(*) FILTER (WHERE key IS NULL OR is_repeated) FROM (
    SELECT *, key = lag(key) OVER keys AS is_repeated, count(label) OVER keys AS number FROM (
        SELECT {key} AS key, {hash} AS hash, {size} AS size,
        CASE WHEN hashtextextended({key}::text COLLATE "C", 0) % {rows} = 0 THEN {key}::text END AS label FROM {table}
    ) AS hashed WINDOW keys AS (ORDER BY key)
) AS numbered GROUP BY number ORDER BY number"""


@dataclass(frozen=True, slots=True)
class _Range:
    """Rows of a table whose keys are at least `lower` and less than `upper`, as text; None: unbounded."""

    table: tuple[str, str]
    key: str
    key_type: str
    types: dict[str, str]
    """Types of the wanted columns, as PostgreSQL writes them."""
    watermark: str | None
    lower: str | None = None
    upper: str | None = None

    def hash_row(self) -> sql.Composable:
        """Return the expression of a row's hash: of its key, and of its watermark or else all wanted columns."""
        names = [self.key, *([self.watermark] if self.watermark else self.types)]
        return sql.SQL('hashtextextended(ROW({})::text COLLATE "C", 0)').format(sql.SQL(", ").join(map(sql.Identifier, names)))

    def version(self, num_rows: int, total: str | None) -> str:
        """Return the version of rows by the sum of their hashes."""
        return digest(self.types, self.watermark, num_rows, total)

    def select(self, expressions: sql.Composable) -> sql.Composed:
        """Return the query for these expressions over the rows of the range."""
        bounds = [(operator, bound) for operator, bound in ((">=", self.lower), ("<", self.upper)) if bound is not None]
        key, type_ = sql.Identifier(self.key), sql.SQL(self.key_type)
        tests = [sql.SQL("{} {} {}::{}").format(key, sql.SQL(operator), sql.Literal(bound), type_) for operator, bound in bounds]
        where = sql.SQL(" AND ").join([sql.SQL("true"), *tests])
        return sql.SQL("SELECT {} FROM {} WHERE {}").format(expressions, sql.Identifier(*self.table), where)


def list_postgres_ranges(source: SourceConfig) -> tuple[TableFiles, str]:
    """List the ranges of a table as shards in order of uri, and return the table's name; one scan of the wanted columns on the server.

    Raise ConfigError for a wrong table, key, column or permission, EmptySourceError without rows, StorageError without a connection.
    """
    where = f"source.uri={source.uri!r}"
    try:
        with _open_snapshot(source) as connection:
            return _list_ranges(source, connection)
    except psycopg.ProgrammingError as error:
        # libpq quotes a part of a connection string that it cannot parse
        reason = one_line(error) if error.sqlstate else "not a connection string"
        raise ConfigError(f"{where}: table {source.table!r} cannot be read ({reason}); correct the settings, or grant SELECT") from error
    except (psycopg.Error, ConnectionError) as error:
        advice = "check the server, and PGPASSWORD or PGPASSFILE"
        raise StorageError(f"{where}: table {source.table!r} cannot be listed ({one_line(error)}); {advice}") from error


@contextmanager
def _open_snapshot(source: SourceConfig) -> Iterator[Connection]:
    """Open a connection on which all queries see the rows of one moment."""
    with with_retries(lambda: _connect(source.uri), source.uri) as connection:
        connection.isolation_level, connection.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
        connection.execute(_SNAPSHOT)
        yield connection


def _connect(uri: str) -> Connection:
    try:
        return psycopg.connect(uri, client_encoding="utf8")
    except psycopg.OperationalError as error:
        if not _REFUSED.search(str(error)) or _BUSY.search(str(error)):
            raise ConnectionError(str(error)) from error
        raise


def _list_ranges(source: SourceConfig, connection: Connection) -> tuple[TableFiles, str]:
    where = f"source.table={source.table!r}"
    found = connection.execute(_FIND_TABLE, [source.table]).fetchone()
    if found is None:
        raise ConfigError(f"{where}: {source.uri} has no such table or view; give schema.table, names in capitals in double quotes")
    oid, schema, name, is_view, moment = found
    columns = dict(connection.execute(_FIND_COLUMNS, [oid]).fetchall())
    wanted = sorted(find_keys(source))
    named = (each for each in (*wanted, source.key_column, source.watermark_column) if each)
    if missing := [each for each in named if each not in columns]:
        raise ConfigError(f"{where} has no column {', '.join(map(repr, missing))} (found: {', '.join(columns)})")
    types = {each: columns[each] for each in wanted}
    if unread := [f"{each} is {type_}" for each, type_ in types.items() if find_type(type_) is None]:
        raise ConfigError(f"{where}: {', '.join(unread)}, which is not read; cast it in a view, such as {unread[0].split()[0]}::text")
    key = _choose_key(source, is_view, connection.execute(_FIND_INDEXES, [oid]).fetchall(), where)
    key_type = _KEYS.get(_plain(columns[key]))
    if key_type is None:
        raise ConfigError(f"{where}: key {key!r} is {columns[key]}; set source.key_column to an integer, text or uuid")
    whole = _Range((schema, name), key, key_type, types, source.watermark_column)
    place = f"postgresql://{urlsplit(source.uri).netloc.rpartition('@')[2]}/{connection.info.dbname}/{schema}.{name}"
    query = sql.SQL(_LIST_RANGES).format(
        key=sql.Identifier(key), rows=ROWS_PER_SHARD, hash=whole.hash_row(), size=_size_row(types), table=sql.Identifier(*whole.table)
    )
    ranges = connection.execute(query).fetchall()
    if not ranges:
        raise EmptySourceError(f"{where}: {place} has no rows")
    if wrong := sum(each[4] for each in ranges):
        raise ConfigError(f"{where}: {wrong:,} rows have no {key!r}, or that of another row; set source.key_column to a unique column")
    shards = []
    for (lower, num_rows, total, size_bytes, _), (upper, *_) in pairwise([*ranges, (None,)]):
        part = _Range(whole.table, key, key_type, types, whole.watermark, lower, upper)
        uri = f"{place}/{'start' if lower is None else 'from-' + quote(lower, safe='')}"
        fragment = json.dumps(asdict(part))
        shards.append(Shard(uri, part.version(num_rows, total), size_bytes, num_rows=num_rows, is_logged=True, fragment=fragment))
    arrow = pa.schema([(each, find_type(type_)) for each, type_ in types.items()])
    return TableFiles(f"as of {moment}", arrow, Shards.of(sorted(shards, key=lambda each: each.uri))), place


def _choose_key(source: SourceConfig, is_view: bool, indexes: list[tuple[str, bool]], where: str) -> str:
    """Return the column of the settings, or the primary key; ConfigError if a range of it could only be found by reading the table."""
    key = source.key_column or next((name for name, is_primary in indexes if is_primary), None)
    if key is None:
        raise ConfigError(f"{where} has no primary key of one column; set source.key_column to a unique column with an index")
    if not is_view and key not in {name for name, _ in indexes}:
        raise ConfigError(f"source.key_column={key!r}: {source.table} has no index that starts with it; create one")
    return key


def _plain(type_: str) -> str:
    """Return a type without its length or precision."""
    return re.sub(r"\(.*?\)", "", type_)


def find_type(name: str) -> pa.DataType | None:
    """Return the Arrow type of a type as PostgreSQL writes it; None if its values are not read."""
    if name.endswith("[]"):
        plain = _plain(name.removesuffix("[]"))
        inner = _NATIVE.get(plain) or (pa.string() if plain in ("text", "character varying") else None)
        return pa.list_(inner) if inner else None
    if found := re.fullmatch(r"numeric\((\d+),(\d+)\)", name):
        precision, scale = map(int, found.groups())
        return pa.decimal128(precision, scale) if scale <= precision <= 38 else None
    return _NATIVE.get(name) or _AS_TEXT.get(_plain(name))


def _size_row(types: dict[str, str]) -> sql.Composable:
    """Return the expression of a row's bytes; neither function reads a value that is stored apart."""
    functions = ((each, "octet_length" if _plain(type_) in _SIZED else "pg_column_size") for each, type_ in types.items())
    sizes = [sql.SQL("coalesce({}({}), 0)").format(sql.SQL(function), sql.Identifier(each)) for each, function in functions]
    return sql.SQL("({})::bigint").format(sql.SQL(" + ").join(sizes))


def read_postgres(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read the rows of a range in order of key. `file` is empty: its position shows how much of the shard was read.

    Raise SourceError if the rows are not those that were listed: their version is computed in the snapshot that they are read from.
    """
    shard = reading.shard
    part = _Range(**{**json.loads(shard.fragment), "table": tuple(json.loads(shard.fragment)["table"])})

    def find(key: str, _: str) -> ArrowColumn:
        type_ = find_type(part.types[key])
        assert type_ is not None, key
        return ArrowColumn(key, (key,), type_)

    columns = reading.find_columns(find)
    check_types(columns, shard.uri)
    types = {column.key: column.type for column in columns}
    fields = {column.key: field for column, field in zip(columns.metadata, reading.metadata, strict=True)}
    lists = [name for name, type_ in types.items() if is_.is_list(type_)]
    batch_rows = max(1, min(_BATCH_ROWS, BATCH_BYTES * (shard.num_rows or 1) // max(shard.size_bytes, 1)))
    try:
        with _open_snapshot(reading.source) as connection, connection.cursor(name="rows") as cursor:
            counts = sql.SQL("count(*), sum({})::text").format(part.hash_row())
            now = part.version(*connection.execute(part.select(counts)).fetchall()[0])
            if now != shard.version:
                raise SourceError(
                    f"{shard.uri}: changed while it was read (listed as version {shard.version}, now version {now}); run again"
                )
            chosen = sql.SQL(", ").join(_select(name, part.types[name], reading) for name in types)
            cursor.execute(part.select(chosen) + sql.SQL(" ORDER BY {}").format(sql.Identifier(*part.table, part.key)))
            first_row = 0
            while records := cursor.fetchmany(batch_rows):
                file.seek(shard.size_bytes * (first_row + len(records)) // max(shard.num_rows or 1, 1))
                values = dict(zip(types, map(list, zip(*records, strict=True)), strict=True))
                # an array may have several dimensions, which its type does not state and no list column holds
                arrays = [(name, row, value) for name in lists for row, value in enumerate(values[name])]
                nested = [(name, row, value) for name, row, value in arrays if value and isinstance(value[0], list)]
                for name, row, _ in nested:
                    values[name][row] = None
                batch = pa.record_batch({name: pa.array(values[name], _stored_type(part.types[name])) for name in types})
                rows = to_rows(batch, columns, reading, first_row)
                for name, row, value in nested:
                    misfit_refuser(rows.refused, fields[name])(row, value)
                yield rows
                first_row += len(records)
    except (psycopg.Error, ConnectionError) as error:
        raise SourceError(f"{shard.uri}: cannot be read ({one_line(error)}); check the table and the server, and run again") from error


def _select(name: str, type_: str, reading: Reading) -> sql.Composable:
    """Return the expression that fetches a column; of a text that is too large, a little more than is allowed."""
    if _stored_type(type_) != pa.string():
        return sql.Identifier(name)
    whole = sql.SQL("{}::text").format(sql.Identifier(name))
    is_text = name in reading.source.text_columns
    return sql.SQL("left({}, {})").format(whole, reading.source.max_record_bytes + 1) if is_text else whole


def _stored_type(type_: str) -> pa.DataType:
    """Return the Arrow type of values as they are fetched."""
    found = find_type(type_)
    return found if type_ in _NATIVE or (found and is_.is_list(found)) else pa.string()

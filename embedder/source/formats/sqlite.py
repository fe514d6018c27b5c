"""SQLite → Rows, by row: a column may hold values of several types. Bytes that are not UTF-8 become surrogates, which are refused."""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from operator import itemgetter
from typing import IO, Any

import pyarrow as pa

from embedder.core.errors import ConfigError, SourceError
from embedder.source.contents import require_mark
from embedder.source.decompression import read_start
from embedder.source.formats import database_files as files
from embedder.source.formats.records import Getter, Records, batch_by_size, check_getter, to_rows
from embedder.source.formats.rows import Reading, ReadSamples, Rows, ShardColumns, name_some
from embedder.source.metadata_types import infer_type

_OLDEST = (3, 37)
_ROWID = ("rowid", "_rowid_", "oid")
"""Names of a row's number. A column of such a name hides it."""
_DAMAGE = "***"
"""Begins a report on the file's structure. Values that break a constraint are also reported, and are read."""
_NEVER = object()


def inspect_sqlite(read_samples: ReadSamples) -> list[ShardColumns]:
    """Return the columns of each sampled file, with the types of its first values."""
    samples = files.inspect_tables(_sample, read_samples)
    return [ShardColumns(uri, list(types), types.get, "sampled") for uri, types in samples]


def _sample(file: IO[bytes], reading: Reading) -> dict[str, pa.DataType]:
    with _open(file, reading) as (connection, table):
        batch = next(_read_batches(connection, table.select(table.names)), [])
        return {name: infer_type([row[at] for row in batch]) for at, name in enumerate(table.names)}


def read_sqlite(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read the columns of a shard. Raise OSError if its structure is damaged: values have no checksums."""
    with _open(file, reading) as (connection, table):
        [(report,)] = connection.execute("PRAGMA quick_check(1)")
        if report.startswith(_DAMAGE):
            raise OSError(report)
        wanted: dict[str, int] = {}

        def find(key: str, setting: str) -> Getter:
            if key in table.names:
                return check_getter(itemgetter(wanted.setdefault(key, len(wanted))), key, reading, _NEVER)
            if not reading.may_lack(key):
                raise SourceError(f"{reading.shard.uri}: no column {key!r} (found: {name_some(table.names)}); set {setting}")
            return check_getter(lambda _: None, key, reading)

        columns = reading.find_columns(find)
        num_rows = files.count_rows(connection, table, reading)
        batches = _read_batches(connection, table.select(wanted or table.names[:1]))
        yield from files.follow(to_rows(map(Records, batches), columns, reading), num_rows, file, reading)


@contextmanager
def _open(file: IO[bytes], reading: Reading) -> Iterator[tuple[sqlite3.Connection, files.Table]]:
    if sqlite3.sqlite_version_info < _OLDEST:
        raise ConfigError(f"source.format=sqlite: needs SQLite 3.37 or newer, this Python has {sqlite3.sqlite_version}; use a newer Python")
    require_mark(read_start(file), "an SQLite database", b"SQLite format 3\0")
    with ExitStack() as stack:
        stack.enter_context(files.errors_explained(sqlite3.Error))
        path, _ = stack.enter_context(files.open_local(file, reading, files.SQLITE_LOGS))
        # immutable: no lock is taken and no file made beside it; a commit that would be missed or torn shows in a log or the version
        uri = f"{path.as_uri()}?mode=ro&immutable=1"
        connection = stack.enter_context(closing(sqlite3.connect(uri, uri=True, check_same_thread=False)))
        connection.text_factory = lambda value: value.decode(errors="surrogateescape")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        [(size_bytes,)] = connection.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        if path.stat().st_size < size_bytes:
            # its last page would be filled up with zeros
            raise EOFError(f"{path.stat().st_size:,} of {size_bytes:,} bytes are there")
        yield connection, files.choose_table(connection, _list_tables(connection), reading)


def _list_tables(connection: sqlite3.Connection) -> dict[str, files.Table]:
    found = connection.execute("SELECT name, type, wr FROM pragma_table_list WHERE schema = 'main' ORDER BY name").fetchall()
    return {
        name: files.Table(files.quote(name), _find_order(connection, name, kind, bool(without_rowid)))
        for name, kind, without_rowid in found
        if kind != "shadow" and not name.startswith("sqlite_")
    }


def _find_order(connection: sqlite3.Connection, name: str, kind: str, without_rowid: bool) -> str | None:
    """Return the columns that number a table's rows; None if it has none."""
    if kind == "view":
        return None
    columns = connection.execute(f"PRAGMA table_xinfo({files.quote(name)})").fetchall()
    if without_rowid:
        keys = sorted((place, column) for _, column, _, _, _, place, _ in columns if place)
        return ", ".join(files.quote(column) for _, column in keys)
    taken = {column.lower() for _, column, *_ in columns}
    return next((rowid for rowid in _ROWID if rowid not in taken), None)


def _read_batches(connection: sqlite3.Connection, query: str) -> Iterator[list[Any]]:
    rows = connection.execute(query)
    return batch_by_size((row, sum(len(value) for value in row if isinstance(value, str | bytes))) for row in rows)

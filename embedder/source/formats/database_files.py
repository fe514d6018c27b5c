"""Files of SQLite and DuckDB → a path on local disk for the engine, and the table whose rows are read, always in the same order."""

import io
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError, SourceError
from embedder.core.storage import READ_BLOCK_BYTES, Location
from embedder.source.formats.rows import Reading, ReadSamples, Rows, name_some

T = TypeVar("T")

SQLITE_LOGS = ("-wal", "-journal")
DUCKDB_LOGS = (".wal",)
"""Ends of the names of files beside a database's: commits that are not in it yet, or that would have to be undone in it."""


class _TableError(SourceError):
    """A file without the table to read."""


class Connection(Protocol):
    """A connection of either engine. DuckDB runs no other query before all rows of one are fetched."""

    def execute(self, query: str, /) -> Any:
        """Run a query and return its cursor."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table or view of a file."""

    sql: str
    """Its quoted name."""
    order: str | None
    """Columns by which its rows are read, empty for the order of storage; None: the settings must name one, as for a view."""
    names: tuple[str, ...] = ()
    """Its columns."""

    def select(self, names: Iterable[str]) -> str:
        """Return the query for columns of its rows, in order."""
        columns = ", ".join(map(quote, names))
        return f"SELECT {columns} FROM {self.sql}" + (f" ORDER BY {self.order}" if self.order else "")


def quote(name: str) -> str:
    """Return an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def find_log(uri: str, source: SourceConfig, ends: Iterable[str]) -> str | None:
    """Return the name, size and version of a log that lies beside a database and is not empty; None if there is none."""
    # by both names: SQLite names a log by the file that a link leads to
    places = dict.fromkeys((uri, Location(uri, source.storage_options).open().place))
    logs = (Location(place + end, source.storage_options).open().info() for place in places for end in ends)
    return next((f"{log.uri} ({log.size_bytes:,} bytes, version {log.version})" for log in logs if log and log.size_bytes), None)


@contextmanager
def open_local(file: IO[bytes], reading: Reading, log_ends: Iterable[str]) -> Iterator[tuple[Path, Path]]:
    """Yield a path of the file on local disk, that of a copy unless it lies there, and a folder for the engine's temporary files.

    Raise SourceError if a log beside the file holds commits that it lacks.
    """
    uri, source = reading.shard.uri, reading.source
    if log := find_log(uri, source, log_ends):
        raise SourceError(f"{uri}: commits that it lacks are in {log}; close the programs that write it, or checkpoint it, and run again")
    store = Location(uri, source.storage_options).open()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(store.path)
        # a small shard was read to memory, and its version compared, before
        if not store.is_local or isinstance(file, io.BytesIO):
            path = Path(folder, "copy")
            with path.open("wb") as copy:
                shutil.copyfileobj(file, copy, READ_BLOCK_BYTES)
        yield path, Path(folder)


@contextmanager
def errors_explained(kind: type[Exception]) -> Iterator[None]:
    """Raise OSError for the errors of an engine."""
    try:
        yield
    except kind as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def choose_table(connection: Connection, tables: Mapping[str, Table], reading: Reading) -> Table:
    """Return the table of the settings, or the only one that is not a view, with its columns and order."""
    source, uri = reading.source, reading.shard.uri
    whole = [name for name, table in tables.items() if table.order is not None]
    name = whole[0] if source.table is None and len(whole) == 1 else source.table
    if name is None or name not in tables:
        problem = f"no table {name!r}" if name else "several tables" if whole else "no table"
        raise _TableError(f"{uri}: {problem} (found: {name_some(tables) or 'none'}); set source.table")
    table, key = tables[name], source.key_column
    empty = connection.execute(f"SELECT * FROM {table.sql} LIMIT 0")
    names = tuple(column[0] for column in empty.description)
    empty.fetchall()
    if key is None and table.order is None:
        raise _TableError(f"{uri}: the rows of view {name!r} have no order; set source.key_column to a unique column")
    if key is not None and key not in names:
        raise _TableError(f"{uri}: {name!r} has no column {key!r} (found: {name_some(names)}); set source.key_column")
    return replace(table, names=names, order=table.order if key is None else quote(key))


def inspect_tables(sample: Callable[[IO[bytes], Reading], T], read_samples: ReadSamples) -> list[tuple[str, T]]:
    """Return samples of files by uri; ConfigError if none of the files has the table to read."""

    def try_sample(file: IO[bytes], reading: Reading) -> T | _TableError:
        try:
            return sample(file, reading)
        except _TableError as error:
            return error

    found = read_samples(try_sample)
    samples = [(uri, each) for uri, each in found if not isinstance(each, _TableError)]
    if found and not samples:
        raise ConfigError(str(found[0][1]))
    return samples


def count_rows(connection: Connection, table: Table, reading: Reading) -> int:
    """Return the number of rows; SourceError if the key of the settings does not order them: it is null or repeated."""
    key = reading.source.key_column
    keys = "*" if key is None else f"DISTINCT {quote(key)}"
    [(num_rows, num_keys)] = connection.execute(f"SELECT count(*), count({keys}) FROM {table.sql}").fetchall()
    if num_keys != num_rows:
        problem = f"{num_rows - num_keys:,} of {num_rows:,} rows have no {key!r}, or that of another row"
        raise SourceError(f"{reading.shard.uri}: {problem}; set source.key_column to a unique column")
    return int(num_rows)


def follow(batches: Iterable[Rows], num_rows: int, file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Pass rows on. The file's position shows how much of it was read. Raise OSError if there are not as many rows as were counted."""
    num_read = 0
    for rows in batches:
        num_read += len(rows.texts)
        file.seek(reading.shard.size_bytes * num_read // max(num_rows, num_read, 1))
        yield rows
    if num_read != num_rows:
        raise OSError(f"{num_read} rows were read, and {num_rows} counted")

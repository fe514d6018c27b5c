"""DuckDB → Rows, by record batch. The file has checksums. Types that Arrow lacks are refused by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import duckdb
import pyarrow as pa

from embedder.source.contents import require_mark
from embedder.source.decompression import read_start
from embedder.source.formats import database_files as files
from embedder.source.formats.arrow_columns import find_columns, list_columns, read_batches, top_names
from embedder.source.formats.rows import Reading, ReadSamples, Rows, ShardColumns
from embedder.source.metadata_types import name_refused

_BATCH_ROWS = 2048
"""Those of DuckDB's vectors, the least that it reads."""
_CONFIG = {"threads": "1", "memory_limit": "1GiB", "enable_external_access": "false", "arrow_lossless_conversion": "true"}
"""A view that reads other files is refused: its rows would change without the file. What Arrow lacks is not converted to something else."""
_VARIANT = name_refused("variant", "DuckDB")
_LIST_TABLES = """
SELECT schema_name, table_name, true FROM duckdb_tables() WHERE NOT internal AND database_name = current_database() UNION ALL
SELECT schema_name, view_name, false FROM duckdb_views() WHERE NOT internal AND database_name = current_database() ORDER BY ALL"""


def inspect_duckdb(read_samples: ReadSamples) -> list[ShardColumns]:
    """Return the columns of each sampled file."""
    return list_columns(files.inspect_tables(_find_schema, read_samples))


def _find_schema(file: IO[bytes], reading: Reading) -> pa.Schema:
    with _open(file, reading) as (connection, table):
        return _to_schema(connection, table)


def read_duckdb(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read the columns of a shard. The rows of a table are in order of insertion, which DuckDB keeps."""
    with _open(file, reading) as (connection, table):
        schema = _to_schema(connection, table)
        columns = find_columns(schema, reading)
        num_rows = files.count_rows(connection, table, reading)
        with connection.sql(table.select(top_names(columns, schema))).to_arrow_reader(_BATCH_ROWS) as batches:
            yield from files.follow(read_batches(batches, columns, reading), num_rows, file, reading)


@contextmanager
def _open(file: IO[bytes], reading: Reading) -> Iterator[tuple[duckdb.DuckDBPyConnection, files.Table]]:
    start = read_start(file)
    # after a checksum
    require_mark(start, "a DuckDB database", start[:8] + b"DUCK")
    with files.errors_explained(duckdb.Error), files.open_local(file, reading, files.DUCKDB_LOGS) as (path, folder):
        config: dict[str, str | bool | int | float | list[str]] = {**_CONFIG, "temp_directory": str(folder)}
        with duckdb.connect(str(path), read_only=True, config=config) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET python_enable_replacements = false")
            found = connection.execute(_LIST_TABLES).fetchall()
            tables = {
                name if schema == "main" else f"{schema}.{name}": files.Table(
                    f"{files.quote(schema)}.{files.quote(name)}", "" if is_table else None
                )
                for schema, name, is_table in found
            }
            yield connection, files.choose_table(connection, tables, reading)


def _to_schema(connection: duckdb.DuckDBPyConnection, table: files.Table) -> pa.Schema:
    with connection.sql(f"SELECT * FROM {table.sql} LIMIT 0").to_arrow_reader(_BATCH_ROWS) as reader:
        fields = list(reader.schema)
    # pyarrow, which does not know the type, would read its struct
    variants = [(field.metadata or {}).get(b"ARROW:extension:name") == b"arrow.parquet.variant" for field in fields]
    return pa.schema([field.with_type(_VARIANT) if is_variant else field for field, is_variant in zip(fields, variants, strict=True)])

"""The formats of shards, one entry each. A new format is one module and one entry."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder.config.source import POSTGRES, Format
from embedder.core.columns import Numbers, Shards
from embedder.core.errors import ConfigError
from embedder.core.units import Shard
from embedder.source.decompression import DECODERS
from embedder.source.formats.arrow_columns import inspect_declared
from embedder.source.formats.arrow_ipc import arrow_schema, read_arrow
from embedder.source.formats.csv_rows import inspect_csv, read_csv
from embedder.source.formats.database_files import DUCKDB_LOGS, SQLITE_LOGS
from embedder.source.formats.jsonl import inspect_jsonl, read_jsonl
from embedder.source.formats.orc import orc_schema, read_orc
from embedder.source.formats.parquet import parquet_schema, read_parquet, slice_row_groups
from embedder.source.formats.records import read_text
from embedder.source.formats.rows import Reading, ReadSamples, Rows, ShardColumns, Slice
from embedder.source.formats.sqlite import inspect_sqlite, read_sqlite
from embedder.source.table_files import unpack_rows


@dataclass(frozen=True, slots=True)
class FileFormat:
    """How shards of one format are recognized and read."""

    suffixes: tuple[str, ...]
    read: Callable[[IO[bytes], Reading], Iterator[Rows]]
    inspect: Callable[[ReadSamples], list[ShardColumns]] | None
    """None: the format has no columns."""
    slice: Callable[[IO[bytes], int, int], list[Slice]] | None = None
    """Splits a file into slices that can be read in any order."""
    is_binary: bool = False
    """Whether the format compresses its own blocks, or is read at random: such a file is never compressed as a whole."""
    has_tables: bool = False
    """Whether the settings name the table to read and its key."""
    logs: tuple[str, ...] = ()
    """Ends of the names of files that may lie beside a shard and hold newer rows."""


def _import(extra: str, function: str) -> Callable[..., Any]:
    """Return a function of the module that is named like the extra it needs; it is imported by the first call."""

    def call(*arguments: Any) -> Any:
        try:
            module = import_module(f"embedder.source.formats.{extra}")
        except ModuleNotFoundError as error:
            problem = f"the format {extra} needs the package {error.name!r}, which is not installed"
            raise ConfigError(f"{problem}; pip install '.[{extra}]' from the checkout") from error
        return getattr(module, function)(*arguments)

    return call


def _import_reader(table: str) -> Callable[[IO[bytes], Reading], Iterator[Rows]]:
    """Return the reader of a kind of table, whose module, for which an extra is needed, is imported by the first call."""

    def read(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
        yield from getattr(import_module(f"embedder.source.{table}_source"), f"read_{table}")(file, reading)

    return read


FORMATS: dict[Format, FileFormat] = {
    "parquet": FileFormat((".parquet",), read_parquet, partial(inspect_declared, parquet_schema), slice_row_groups, is_binary=True),
    "orc": FileFormat((".orc",), read_orc, partial(inspect_declared, orc_schema), is_binary=True),
    "arrow": FileFormat((".arrow", ".feather"), read_arrow, partial(inspect_declared, arrow_schema), is_binary=True),
    "avro": FileFormat((".avro",), _import("avro", "read_avro"), partial(inspect_declared, _import("avro", "avro_schema")), is_binary=True),
    "sqlite": FileFormat((".sqlite", ".sqlite3"), read_sqlite, inspect_sqlite, is_binary=True, has_tables=True, logs=SQLITE_LOGS),
    "duckdb": FileFormat(
        (".duckdb",),
        _import("duckdb", "read_duckdb"),
        _import("duckdb", "inspect_duckdb"),
        is_binary=True,
        has_tables=True,
        logs=DUCKDB_LOGS,
    ),
    "jsonl": FileFormat((".jsonl", ".ndjson", ".json"), read_jsonl, inspect_jsonl),
    "csv": FileFormat((".csv",), partial(read_csv, ","), partial(inspect_csv, ",")),
    "tsv": FileFormat((".tsv",), partial(read_csv, "\t"), partial(inspect_csv, "\t")),
    "warc": FileFormat((".warc", ".wet"), _import("warc", "read_warc"), _import("warc", "inspect_warc")),
    "text": FileFormat((".txt",), read_text, None),
    "lance": FileFormat((), _import_reader("lance"), None),
    "postgres": FileFormat((), _import_reader("postgres"), None, has_tables=True),
}
_OF_TABLES: dict[Format, Format] = {"delta": "parquet", "iceberg": "parquet"}

_BY_SUFFIX = {suffix[1:]: format_ for format_ in FORMATS.values() for suffix in format_.suffixes}
_NEVER_COMPRESSED = [suffix for format_ in FORMATS.values() if format_.is_binary for suffix in format_.suffixes]
KNOWN_SUFFIXES = (
    f"known are .{' .'.join(_BY_SUFFIX)}, each but {' '.join(_NEVER_COMPRESSED)} also with .{' .'.join(DECODERS)}; or set source.format"
)


_END = rf"(?i)(?P<end>[^./]\.*(?:(?:\.[^./]*)?\.(?:{'|'.join(DECODERS)})|\.[^./]*))$"
"""The suffixes that decide a name's encoding, and a character before them, since dots at the start of a name start no suffix."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """The format and compression of a shard."""

    format: FileFormat
    compression: str | None = None


def encoding_of(shard: Shard, wanted: Format) -> Encoding | None:
    """Return the encoding of a listed shard; the files of a table are parquet, whatever their names."""
    if shard.uri.startswith(POSTGRES):
        return Encoding(FORMATS["postgres"])
    return find_encoding(shard.uri, "lance" if shard.fragment else "delta" if shard.is_logged else wanted)


def number_records(slices: list[Slice], shard: Shard) -> list[Slice]:
    """Return slices whose first rows do not count those that the shard's table deleted."""
    deleted = unpack_rows(shard.deleted)
    return [(start, stop, row - int(np.searchsorted(deleted, row))) for start, stop, row in slices]


def find_encoding(uri: str, wanted: Format = "auto") -> Encoding | None:
    """Return the encoding that a shard's suffixes name, or the wanted format; None if there is no such format."""
    # not PurePosixPath.suffixes, which took half of the time of listing a million files
    *_, before, last = ["", "", *uri.rpartition("/")[2].lstrip(".").lower().split(".")[1:]]
    compression = last if last in DECODERS else None
    format_ = _BY_SUFFIX.get(before if compression else last) if wanted == "auto" else FORMATS[_OF_TABLES.get(wanted, wanted)]
    if format_ is None or (format_.is_binary and compression and wanted == "auto"):
        return None
    return Encoding(format_, None if format_.is_binary else compression)


def find_formats(uris: pa.LargeStringArray, wanted: Format = "auto") -> tuple[list[FileFormat | None], Numbers]:
    """Return formats, None for an unknown suffix, and of each uri the place of its format among them, as `find_encoding` finds it."""
    if wanted != "auto":
        return [FORMATS[_OF_TABLES.get(wanted, wanted)]], np.zeros(len(uris), np.int64)
    name = uris[0].as_py().rpartition("/")[2] if len(uris) else ""
    suffix = f".{name.rpartition('.')[2]}"
    if suffix[1:].lower() not in DECODERS and pc.all(pc.ends_with(uris, suffix)).as_py():
        # eight times as fast, for a source of one format
        nameless = pc.match_substring_regex(uris, rf"(?:^|/)\.*{re.escape(suffix)}$")
        if not pc.any(nameless).as_py():
            found = find_encoding(f"a{suffix}")
            return [found.format if found else None], np.zeros(len(uris), np.int64)
    ends = pc.struct_field(pc.extract_regex(uris, _END), "end").dictionary_encode(null_encoding="encode")
    encodings = [find_encoding(end or "") for end in ends.dictionary.to_pylist()]
    return [each.format if each else None for each in encodings], ends.indices.to_numpy().astype(np.int64)


def group_by_format(shards: Shards, wanted: Format) -> dict[FileFormat, Numbers]:
    """Return the rows of the shards of each format, that of the first shard first, as `encoding_of` finds it; all of a table are of one."""
    if len(shards) and (shards.kinds[0].fragment or shards.kinds[0].is_logged or shards[0].uri.startswith(POSTGRES)):
        encoding = encoding_of(shards[0], wanted)
        found, places = [encoding.format if encoding else None], np.zeros(len(shards), np.int64)
    else:
        found, places = find_formats(shards.uris, wanted)
    grouped = {format_: [place for place, each in enumerate(found) if each is format_] for format_ in dict.fromkeys(found) if format_}
    return {format_: np.flatnonzero(np.isin(places, mine)) for format_, mine in grouped.items()}

"""A Delta table as a source → its active files as shards, from its log alone. The only module of this room that imports deltalake.

The log says which files are in the table: its folder also holds rows that were deleted or replaced.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from embedder.config.section import is_ambiguous
from embedder.config.source import SourceConfig
from embedder.core.columns import Shards
from embedder.core.delta_options import delta_options
from embedder.core.errors import ConfigError, StorageError
from embedder.core.retry import is_transient, one_line, with_retries
from embedder.core.spec import digest
from embedder.core.units import Shard
from embedder.source.formats.arrow_columns import find_field
from embedder.source.partitions import find_keys
from embedder.source.table_files import Place, Rows, TableFiles, list_fields, pack_columns, pack_rows, refuse_columns

READ_FEATURES = {"columnMapping", "deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"}
"""Reader features that this reader follows, or that change nothing for it."""


def list_delta_files(source: SourceConfig, root: str) -> TableFiles:
    """List the files of the table at `root`, the newest version or that of the settings, as shards in order of uri.

    Raise ConfigError if the version does not exist or cannot be read exactly, StorageError if the log is unreachable or damaged.
    """
    where = f"source.uri={source.uri!r}"
    if found := is_ambiguous(root):
        raise ConfigError(f"{where}: {found!r} in a Delta table's address is read in different ways; rename the folder")
    delta, time = _open(source, root)
    _refuse_features(delta, root)
    with _explained(root):
        schema = pa.schema(delta.schema().to_arrow())
        adds = pa.table(delta.get_add_actions())
    refuse_columns(source, schema, f"{where}: version {delta.version()}")
    shards = sorted(_list_shards(source, root, adds, schema, delta), key=lambda each: each.uri)
    return TableFiles(f"Delta version {delta.version()} of {_to_text(time)}", schema, Shards.of(shards))


def _open(source: SourceConfig, root: str) -> tuple[DeltaTable, int | None]:
    """Open the table at the version of the settings; return it with the milliseconds since 1970 at which that was committed, if known."""
    options = delta_options(root, source.storage_options)
    with _explained(root):
        delta = with_retries(lambda: DeltaTable(root, storage_options=options), root)
        # of the newest version: for an older one, delta-rs numbers these commits wrongly
        commits = delta.history(1 if source.version is None else None)
    newest = delta.version()
    times = {newest - number: commit.get("timestamp") for number, commit in enumerate(commits)}
    if source.version is None:
        return delta, times.get(newest)
    where = f"source.version={source.version!r}"
    version = source.version if isinstance(source.version, int) else _find_version(times, source.version, f"{where}: {root}")
    if version > newest:
        raise ConfigError(f"{where}: the newest version of {root} is {newest}")
    try:
        with_retries(lambda: delta.load_as_version(version), root)
    except (DeltaError, OSError) as error:
        if is_transient(error):
            raise StorageError(f"{root}: the table cannot be opened ({one_line(error)}); try again") from error
        advice = "its log was cleaned up, or is damaged; choose a later version"
        raise ConfigError(f"{where}: this version of {root} cannot be opened ({one_line(error)}); {advice}") from error
    return delta, times.get(version)


def _find_version(times: Mapping[int, int | None], moment: str, where: str) -> int:
    """Return the version that was the newest at a time; ConfigError if the log does not go so far back, or does not say."""
    wanted = datetime.fromisoformat(moment).timestamp() * 1000
    if unknown := [version for version, time in times.items() if time is None]:
        raise ConfigError(f"{where}: its log has no time for version {max(unknown)}; give the number of a version")
    earlier = [version for version, time in times.items() if time is not None and time <= wanted]
    if not earlier:
        oldest = min(times, default=0)
        raise ConfigError(f"{where}: the oldest version in its log, {oldest}, is of {_to_text(times.get(oldest))}; choose a later time")
    return max(earlier)


def _to_text(time: int | None) -> str:
    return "unknown time" if time is None else datetime.fromtimestamp(time / 1000, UTC).isoformat(timespec="seconds")


@contextmanager
def _explained(root: str) -> Iterator[None]:
    try:
        yield
    except (DeltaError, OSError, pa.ArrowException) as error:
        reason = one_line(error).partition(" 0: <unknown>")[0]
        advice = "check the uri and the credentials in the environment, or restore the damaged file of its log"
        raise StorageError(f"{root}: the table cannot be opened ({reason}); {advice}") from error


def _refuse_features(delta: DeltaTable, root: str) -> None:
    """Raise ConfigError for a table whose rows cannot be read exactly."""
    version = f"{root}: version {delta.version()} of the table"
    unknown = sorted(set(delta.protocol().reader_features or []) - READ_FEATURES)
    if (mode := _mapping_of(delta)) not in ("none", "id", "name"):
        unknown.append(f"column mapping by {mode}")
    if unknown:
        raise ConfigError(f"{version} needs {', '.join(unknown)}, which is not read; export its rows as parquet files")


def _mapping_of(delta: DeltaTable) -> str:
    return delta.metadata().configuration.get("delta.columnMapping.mode") or "none"


def _read_vectors(delta: DeltaTable, paths: list[str]) -> dict[str, Rows]:
    """Return the rows that deletion vectors delete, by path in the log."""
    if "deletionVectors" not in (delta.protocol().reader_features or []):
        return {}
    root = unquote(delta.table_uri).rstrip("/")
    by_uri = {_comparable(_uri_of(root, path)): path for path in paths}
    deleted = {}
    for batch in delta.deletion_vectors():
        for uri, kept in zip(*map(pa.array, batch.columns), strict=True):
            path = by_uri.get(_comparable(unquote(uri.as_py())))
            if path is None:
                raise StorageError(f"{root}: a deletion vector is of {uri}, which is not a file of the table; restore its log")
            deleted[path] = np.flatnonzero(~kept.values.to_numpy(zero_copy_only=False))
    return deleted


def _comparable(uri: str) -> str:
    return "/" + uri.removeprefix("file:").lstrip("/")


def _find_places(source: SourceConfig, delta: DeltaTable, schema: pa.Schema) -> str:
    """Return where files hold the wanted columns, if the table maps their names; empty if it does not."""
    mode = _mapping_of(delta)
    places: dict[str, Place] = {}
    for key in sorted(find_keys(source)) if mode != "none" else []:
        found = find_field(schema, key)
        if found is None:
            raise ConfigError(f"source.uri={source.uri!r}: column {key!r} is within a list or map, which is not read; leave it out")
        place = []
        for field in list_fields(schema, found[0]):
            physical = field.metadata[b"delta.columnMapping.physicalName"].decode()
            place.append((None, [physical]) if mode == "name" else (int(field.metadata[b"delta.columnMapping.id"]), []))
        places[key] = place
    return pack_columns(places) if places else ""


def _list_shards(source: SourceConfig, root: str, adds: pa.Table, schema: pa.Schema, delta: DeltaTable) -> Iterator[Shard]:
    keys = sorted(find_keys(source))
    values = _partition_values(adds, keys, schema)
    optional = tuple(key for key in keys if key not in values)
    places = _find_places(source, delta, schema)
    names, *columns = (adds[name].to_pylist() for name in ("path", "size_bytes", "modification_time", "num_records"))
    with _explained(root):
        deleted = _read_vectors(delta, names)
    for number, (path, size_bytes, modified, num_rows) in enumerate(zip(names, *columns, strict=True)):
        constants = tuple((key, column[number]) for key, column in values.items())
        version = f"{size_bytes}-{modified}-{path.rpartition('/')[2]}"
        shard = Shard(_uri_of(root, path), version, size_bytes, constants, optional, num_rows, is_logged=True)
        if places or path in deleted:
            rows = deleted.get(path, np.array([], np.int64))
            packed = pack_rows(rows)
            live = None if num_rows is None else num_rows - len(rows)
            shard = replace(shard, version=f"{version}-{digest(places, packed)}", num_rows=live, columns=places, deleted=packed)
        yield shard


def _partition_values(adds: pa.Table, keys: list[str], schema: pa.Schema) -> dict[str, list[str | None]]:
    """Return the values of the wanted partition columns as text, by file."""
    if "partition" not in adds.column_names:
        return {}
    partition = adds["partition"].combine_chunks()
    names = [field.name for field in partition.type]
    values: dict[str, list[Any]] = {}
    for key in keys:
        if key not in names:
            continue
        if pa.types.is_binary(schema.field(key).type):
            raise ConfigError(f"source: partition column {key!r} is binary, which is not read; leave it out")
        values[key] = pc.cast(partition.field(key), pa.string()).to_pylist()
    return values


def _uri_of(root: str, path: str) -> str:
    """Return the uri of a path in the log, which is percent-encoded, and relative unless the file belongs to another table."""
    name = unquote(path)
    if name.startswith("file:"):
        return "/" + name.removeprefix("file:").lstrip("/")
    return name if "://" in name or name.startswith("/") else f"{root.rstrip('/')}/{name}"

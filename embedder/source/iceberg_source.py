"""An Iceberg table as a source → the data files of a snapshot as shards, from its manifests. The only module that imports pyiceberg.

Columns are found by field id, so that a column that was renamed, or dropped and added again, has its own values and no others. Rows of
positional deletes and deletion vectors are left out; equality deletes are refused.
"""

import io
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedder.config.source import SourceConfig
from embedder.core.columns import Shards
from embedder.core.errors import ConfigError, EmbedderError, StorageError
from embedder.core.retry import one_line
from embedder.core.spec import digest
from embedder.core.storage import Location, map_threads
from embedder.core.units import Shard
from embedder.source.formats.arrow_columns import find_field
from embedder.source.partitions import Constants, find_keys
from embedder.source.table_files import FIELD_ID, Place, Rows, TableFiles, list_fields, pack_columns, pack_rows, refuse_columns

try:
    from pyiceberg.catalog import load_catalog
    from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError
    from pyiceberg.io import FileIO, InputFile
    from pyiceberg.io.pyarrow import schema_to_pyarrow
    from pyiceberg.manifest import DataFile, FileFormat
    from pyiceberg.schema import Schema
    from pyiceberg.serializers import FromInputFile
    from pyiceberg.table import DataScan, FileScanTask
    from pyiceberg.table.deletion_vector import deletion_vectors_from_puffin_file
    from pyiceberg.table.metadata import TableMetadata
    from pyiceberg.table.puffin import PuffinFile
    from pyiceberg.table.snapshots import Snapshot
    from pyiceberg.transforms import IdentityTransform
except ImportError as error:
    raise ConfigError(
        f"source.format=iceberg: needs the package {error.name!r}, which is not installed; pip install '.[iceberg]' from the checkout"
    ) from error

_METADATA = re.compile(r"(?:v(?P<version>\d+)|(?P<number>\d+)-[0-9a-fA-F-]+)(?:\.gz)?\.metadata\.json(?:\.gz)?")


class _Input(InputFile):
    """A metadata file, read whole by the storage of the source, with its options and retries."""

    def __init__(self, location: str, source: SourceConfig, stated: int | None = None) -> None:
        super().__init__(location)
        self._stated = stated
        self._place = Location(to_uri(location), source.storage_options)

    def __len__(self) -> int:
        found = self._place.open().info()
        return found.size_bytes if found else 0

    def exists(self) -> bool:
        return self._place.open().info() is not None

    def open(self, seekable: bool = True) -> io.BytesIO:  # noqa: ARG002
        with self._place.open().open_input() as file:
            data = file.read()
        if self._stated not in (None, len(data)):
            raise OSError(f"{self.location}: {len(data)} bytes, its list states {self._stated}")
        return io.BytesIO(data)


class _Storage(FileIO):
    """The storage of the source, for reading."""

    def __init__(self, source: SourceConfig) -> None:
        super().__init__()
        self._source = source
        self.stated: dict[str, int] = {}
        """Bytes of each manifest, by the list that names it: one cut after a block would name fewer files."""

    def new_input(self, location: str) -> _Input:
        return _Input(location, self._source, self.stated.get(location))

    def new_output(self, location: str) -> Any:
        raise NotImplementedError(location)

    def delete(self, location: Any) -> None:
        raise NotImplementedError(location)


def to_uri(location: str) -> str:
    """Return a location of a table's metadata as a uri."""
    if location.startswith("file:"):
        return "/" + location.removeprefix("file:").lstrip("/")
    return re.sub(r"^s3[an]://", "s3://", location)


def list_iceberg_files(source: SourceConfig, root: str | None) -> TableFiles:
    """List the data files of a table as shards in order of uri: of its newest snapshot, or that of the settings.

    `root`: its folder or a metadata file; None: source.uri names a table of a catalog. Raise ConfigError if the snapshot does not exist
    or cannot be read exactly, StorageError if metadata is unreachable or damaged.
    """
    with _explained(source):
        storage = _Storage(source)
        location = _ask_catalog(source) if root is None else root if root.endswith((".json", ".json.gz")) else _find_metadata(source, root)
        metadata = FromInputFile.table_metadata(storage.new_input(location))
        snapshot = _find_snapshot(source, metadata)
        scan = DataScan(metadata, storage, snapshot_id=snapshot)
        storage.stated = _list_manifests(storage, scan.snapshot())
        table_schema, tasks = scan.projection(), list(scan.plan_files())
        deleted = _read_deletes(storage, tasks)
    newest = metadata.current_snapshot_id if snapshot is None else snapshot
    found = metadata.snapshot_by_id(newest) if newest is not None else None
    moment = datetime.fromtimestamp(found.timestamp_ms / 1000, UTC).isoformat(timespec="seconds") if found else "no rows yet"
    words = f"Iceberg snapshot {newest} of {moment}"
    schema: pa.Schema = schema_to_pyarrow(table_schema)
    where = f"source.uri={source.uri!r}: {words}"
    refuse_columns(source, schema, where)
    columns = pack_columns(_find_places(source, schema, metadata, table_schema, where))
    with _explained(source):
        shards = []
        for task in tasks:
            constants = _partition_values(source, task.file, metadata, table_schema, where)
            shards.append(_to_shard(task.file, columns, constants, deleted.get(task.file.file_path, np.array([], np.int64)), where))
    return TableFiles(words, schema, Shards.of(sorted(shards, key=lambda each: each.uri)))


@contextmanager
def _explained(source: SourceConfig) -> Iterator[None]:
    try:
        yield
    except EmbedderError:
        raise
    except (NoSuchNamespaceError, NoSuchTableError) as error:
        raise ConfigError(f"source.uri={source.uri!r}: {one_line(error)}; name catalog.namespace.table, or the table's folder") from error
    except Exception as error:  # pyiceberg parses damaged bytes without checks: any error may come out
        if isinstance(error, NotImplementedError) or "does not yet support" in str(error):
            advice = "export its current rows as parquet files in a folder of their own"
            raise ConfigError(f"source.uri={source.uri!r}: the table cannot be read exactly ({one_line(error)}); {advice}") from error
        advice = "check the uri and the credentials, or restore the damaged file of its metadata"
        raise StorageError(f"{source.uri}: the table cannot be opened ({one_line(error)}); {advice}") from error


def _ask_catalog(source: SourceConfig) -> str:
    """Return the metadata file of catalog.namespace.table by pyiceberg's own configuration."""
    name, _, table = source.uri.partition(".")
    try:
        catalog = load_catalog(name)
    except ValueError as error:
        raise ConfigError(f"source.uri={source.uri!r}: {one_line(error)}; configure the catalog for pyiceberg") from error
    return catalog.load_table(table).metadata_location


def _find_metadata(source: SourceConfig, root: str) -> str:
    """Return the newest metadata file of a folder; ConfigError if it has none, or several of the newest number."""
    folder = Location(f"{root.rstrip('/')}/metadata", source.storage_options).open()
    found = {each.uri.rpartition("/")[2]: each.uri for each in folder.list_folder()}
    by_number = defaultdict[int, list[str]](list)
    for name in found:
        if match := _METADATA.fullmatch(name):
            by_number[int(match["version"] or match["number"])].append(name)
    where = f"source.uri={source.uri!r}"
    if not by_number:
        raise ConfigError(f"{where}: no Iceberg table is there; name the folder that holds metadata/, a metadata.json, or catalog.table")
    newest = by_number[max(by_number)]
    if len(newest) > 1 and "version-hint.text" in found:
        hint = _Input(found["version-hint.text"], source).open().read().decode().strip()
        newest = [name for name in newest if name.startswith((f"v{hint}.", f"{hint}.")) or name == hint]
    if len(newest) != 1:
        names = ", ".join(sorted(by_number[max(by_number)]))
        raise ConfigError(f"{where}: several metadata files are the newest ({names}); name one of them, or catalog.namespace.table")
    return found[newest[0]]


def _find_snapshot(source: SourceConfig, metadata: TableMetadata) -> int | None:
    """Return the id of the snapshot that the settings name, None for the newest; ConfigError if the table does not keep it."""
    version = source.version
    where = f"source.version={version!r}: {metadata.location}"
    if version is None:
        return None
    if isinstance(version, int):
        if metadata.snapshot_by_id(version) is None:
            known = ", ".join(str(each.snapshot_id) for each in metadata.snapshots[-8:])
            raise ConfigError(f"{where} has no such snapshot (the last are {known or 'none'}); choose another")
        return version
    wanted = datetime.fromisoformat(version).timestamp() * 1000
    earlier = [entry for entry in metadata.snapshot_log if entry.timestamp_ms <= wanted]
    if not earlier or metadata.snapshot_by_id(earlier[-1].snapshot_id) is None:
        raise ConfigError(f"{where}: its snapshot of that time was expired, or is older than the table; choose a later time")
    return earlier[-1].snapshot_id


def _read_deletes(storage: _Storage, tasks: list[FileScanTask]) -> dict[str, Rows]:
    """Return the rows that are deleted by data file."""
    files = {each.file_path: each for task in tasks for each in task.delete_files}
    found = dict(zip(files, map_threads(lambda each: _read_delete_file(storage, each), list(files.values())), strict=True))
    deleted = {}
    for task in tasks:
        path = task.file.file_path
        rows = [found[each.file_path][path] for each in task.delete_files if path in found[each.file_path]]
        if rows:
            distinct = np.unique(np.concatenate(rows))
            deleted[path] = distinct[distinct < task.file.record_count]
    return deleted


def _read_delete_file(storage: _Storage, file: DataFile) -> dict[str, Rows]:
    content = storage.new_input(file.file_path).open()
    if file.file_format == FileFormat.PUFFIN:
        vectors = deletion_vectors_from_puffin_file(PuffinFile(content.read()))
        return {each.referenced_data_file: each.to_vector().to_numpy().astype(np.int64) for each in vectors}
    if file.file_format != FileFormat.PARQUET:
        raise NotImplementedError(f"{file.file_path}: deletes in {file.file_format}")
    rows = pq.read_table(content, columns=["file_path", "pos"])
    paths = pc.unique(rows["file_path"])
    return {path.as_py(): rows.filter(pc.equal(rows["file_path"], path))["pos"].to_numpy() for path in paths}


def _list_manifests(storage: _Storage, snapshot: Snapshot | None) -> dict[str, int]:
    """Return the bytes of each manifest of a snapshot; raise OSError for a list that was cut to nothing."""
    manifests = snapshot.manifests(storage) if snapshot else []
    files = snapshot.summary["total-data-files"] if snapshot and snapshot.summary else None
    if not manifests and files and int(files):
        raise OSError(f"the snapshot states {files} data files, its list of manifests is empty")
    return {each.manifest_path: each.manifest_length for each in manifests}


def _find_places(source: SourceConfig, schema: pa.Schema, metadata: TableMetadata, table_schema: Schema, where: str) -> dict[str, Place]:
    """Return where each wanted column lies: field ids, and names for files without ids."""
    mapping = metadata.name_mapping()
    names = {field.field_id: list(field.names) for field in _flatten(mapping.root if mapping else [])}
    places: dict[str, Place] = {}
    for key in sorted(find_keys(source)):
        found = find_field(schema, key)
        if found is None:
            raise ConfigError(f"{where} has no column {key!r}, or it is within a list or map (found: {', '.join(schema.names)})")
        ids = [int(field.metadata[FIELD_ID]) for field in list_fields(schema, found[0])]
        place = [(field_id, names.get(field_id, [])) for field_id in ids]
        if any(table_schema.find_field(field_id).initial_default is not None for field_id, _ in place):
            raise ConfigError(f"{where}: column {key!r} has a default for older files, which is not read; leave it out, or rewrite them")
        places[key] = place
    return places


def _flatten(fields: list[Any]) -> Iterator[Any]:
    for field in fields:
        yield field
        yield from _flatten(field.fields or [])


def _to_shard(file: DataFile, columns: str, constants: Constants, rows: Rows, where: str) -> Shard:
    if file.file_format != FileFormat.PARQUET:
        raise ConfigError(f"{where} has files in {file.file_format}, which are not read; rewrite {file.file_path!r} as parquet")
    packed = pack_rows(rows)
    version = f"{file.file_size_in_bytes}-{file.file_path.rpartition('/')[2]}-{digest(columns, packed)}"
    num_rows = file.record_count - len(rows)
    uri = to_uri(file.file_path)
    return Shard(uri, version, file.file_size_in_bytes, constants, (), num_rows, is_logged=True, columns=columns, deleted=packed)


def _partition_values(source: SourceConfig, file: DataFile, metadata: TableMetadata, schema: Schema, where: str) -> Constants:
    """Return the values of wanted columns that the file's partition spec holds as they are, as text."""
    spec = metadata.specs()[file.spec_id]
    values: dict[str, str | None] = {}
    for position, field in enumerate(spec.fields):
        name = schema.find_column_name(field.source_id)
        if name is None or name not in find_keys(source) or not isinstance(field.transform, IdentityTransform):
            continue
        type_ = schema_to_pyarrow(schema.find_type(field.source_id))
        if pa.types.is_large_binary(type_) or pa.types.is_binary(type_) or pa.types.is_fixed_size_binary(type_):
            raise ConfigError(f"{where}: partition column {name!r} is binary, which is not read; leave it out")
        values[name] = pa.scalar(file.partition[position], type_).cast(pa.string()).as_py()
    return tuple(sorted(values.items()))

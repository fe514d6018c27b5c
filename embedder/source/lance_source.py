"""A Lance dataset as a source → the fragments of a version as shards, and their live rows. The only module that imports pylance."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import IO, Any

from embedder.config.source import SourceConfig
from embedder.core.columns import Shards
from embedder.core.delta_options import delta_options
from embedder.core.errors import ConfigError, StorageError
from embedder.core.retry import one_line, with_retries
from embedder.core.spec import digest
from embedder.core.storage import Location
from embedder.core.units import Shard
from embedder.source.formats.arrow_columns import BATCH_BYTES, ArrowColumn, check_types, decode, find_field, to_rows
from embedder.source.formats.rows import Reading, Rows
from embedder.source.partitions import find_keys
from embedder.source.table_files import TableFiles, refuse_columns

try:
    import lance
except ImportError as error:
    raise ConfigError(
        "source.format=lance: needs the package pylance, which is not installed; pip install '.[lance-source]' from the checkout"
    ) from error

_BATCH_ROWS = 1024


def list_lance_fragments(source: SourceConfig, root: str) -> TableFiles:
    """List the fragments of the newest version, or that of the settings, as shards in order of uri.

    Raise ConfigError if the version does not exist, StorageError if the dataset cannot be opened.
    """
    dataset = _open_version(source, root)
    words = f"Lance version {dataset.version}"
    refuse_columns(source, dataset.schema, f"source.uri={source.uri!r}: {words}")
    wanted = {key: _find_ids(dataset, key, f"source.uri={source.uri!r}: {words}") for key in sorted(find_keys(source))}
    shards = (_to_shard(source, root, dataset.version, fragment, wanted) for fragment in dataset.get_fragments())
    return TableFiles(words, dataset.schema, Shards.of(sorted(shards, key=lambda each: each.uri)))


def _open_version(source: SourceConfig, root: str) -> Any:
    options = json.dumps(delta_options(root, source.storage_options))
    where = f"source.version={source.version!r}"
    with _explained(root):
        newest = _open.__wrapped__(root, None, options)
        if source.version is None:
            return newest
        version = source.version
        if not isinstance(version, int):
            # the times of versions are local and have no zone
            moment = datetime.fromisoformat(version).timestamp()
            earlier = [each["version"] for each in newest.versions() if each["timestamp"].timestamp() <= moment]
            if not earlier:
                raise ConfigError(f"{where}: {root} keeps no version of that time; choose a later one")
            version = max(earlier)
        known = [each["version"] for each in newest.versions()]
        if version not in known:
            raise ConfigError(f"{where}: {root} keeps no such version (found: {min(known)} to {max(known)}); choose another")
        return _open(root, version, options)


@lru_cache(maxsize=4)
def _open(root: str, version: int | None, options: str) -> Any:
    return with_retries(lambda: lance.dataset(root, version=version, storage_options=json.loads(options)), root)


@contextmanager
def _explained(root: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise StorageError(f"{root}: the dataset cannot be opened ({one_line(error)}); check the uri and the credentials") from error


def _find_ids(dataset: Any, key: str, where: str) -> list[int]:
    """Return the field ids of a column and of all that is in it."""
    found = find_field(dataset.schema, key)
    if found is None:
        raise ConfigError(f"{where} has no column {key!r}, or it is within a list or map (found: {', '.join(dataset.schema.names)})")
    fields = dataset.lance_schema.fields()
    for name in found[0]:
        field = next(each for each in fields if each.name() == name)
        fields = field.children()
    return [field.id(), *(each.id() for each in _descend(fields))]


def _descend(fields: list[Any]) -> Iterator[Any]:
    for field in fields:
        yield field
        yield from _descend(field.children())


def _to_shard(source: SourceConfig, root: str, version: int, fragment: Any, wanted: dict[str, list[int]]) -> Shard:
    """Return a shard whose version is that of its deleted rows and of the files that hold wanted columns."""
    metadata = fragment.metadata.to_json()
    ids = {each for found in wanted.values() for each in found}
    files = [each for each in metadata["files"] if ids & set(each["fields"])]
    place = {"root": root, "version": version, "id": metadata["id"]}
    sizes = [each["file_size_bytes"] or _stored_bytes(source, f"{root}/data/{each['path']}") for each in metadata["files"]]
    return Shard(
        f"{root.rstrip('/')}/fragments/{metadata['id']}",
        digest(wanted, files, metadata["deletion_file"], metadata.get("overlays")),
        sum(sizes),
        num_rows=fragment.count_rows(),
        is_logged=True,
        fragment=json.dumps(place),
    )


def _stored_bytes(source: SourceConfig, uri: str) -> int:
    found = Location(uri, source.storage_options).open().info()
    return found.size_bytes if found else 0


def read_lance(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read the live rows of a fragment. `file` is empty: its position shows how much of the shard was read."""
    shard, place = reading.shard, json.loads(reading.shard.fragment)
    with _explained(place["root"]):
        dataset = _open(place["root"], place["version"], json.dumps(delta_options(place["root"], reading.source.storage_options)))

    def find(key: str, _: str) -> ArrowColumn:
        found = find_field(dataset.schema, key)
        assert found is not None, key
        return ArrowColumn(key, (".".join(found[0]),), found[1])

    columns = reading.find_columns(find)
    check_types(columns, shard.uri)
    names = list(dict.fromkeys(column.name for column in columns))
    first_row = 0
    fragment = dataset.get_fragment(place["id"])
    for batch in fragment.to_batches(columns=names, batch_size=_BATCH_ROWS, batch_size_bytes=BATCH_BYTES, batch_readahead=1):
        file.seek(shard.size_bytes * (first_row + batch.num_rows) // max(shard.num_rows or 1, 1))
        yield to_rows(decode(batch), columns, reading, first_row)
        first_row += batch.num_rows
    if first_row != shard.num_rows:
        raise OSError(f"{first_row} rows, its manifest states {shard.num_rows}")

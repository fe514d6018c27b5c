"""An Iceberg table as a source: the rows of one snapshot and no others, each column by its field id, as pyiceberg reads them."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestWriterV2,
    write_manifest_list,
)  # fmt: skip
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import StaticTable, Table
from pyiceberg.transforms import BucketTransform, IdentityTransform
from pyiceberg.typedef import Record
from pyiceberg.types import DateType, LongType, NestedField, StringType, StructType
from pyroaring import BitMap

from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError, EmptySourceError, SourceError, StorageError
from embedder.core.units import Task
from embedder.demo.s3_server import S3Server
from embedder.source.documents import read_units, slice_shard
from embedder.source.selection import select_shards
from embedder.source.shards import list_shards
from tests.source.test_delta_source import ROWS, TEMPLATE, listed, refused, rows_of, sort_rows, with_template

SCHEMA = Schema(
    NestedField(1, "id", LongType()),
    NestedField(2, "text", StringType()),
    NestedField(3, "lang", StringType()),
    NestedField(4, "day", DateType()),
)
BY_LANG = PartitionSpec(PartitionField(3, 1000, IdentityTransform(), "lang"), PartitionField(1, 1001, BucketTransform(2), "id_bucket"))
ARROW = pa.schema([("id", pa.int64()), ("text", pa.string()), ("lang", pa.string()), ("day", pa.date32())])


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Table]]:
    """Create tables in a catalog of their own."""
    yield from make_tables(tmp_path, f"file://{tmp_path}/lake")


def make_tables(folder: Path, warehouse: str, **settings: str) -> Iterator[Callable[..., Table]]:
    catalog = SqlCatalog("lake", uri=f"sqlite:///{folder}/catalog.db", warehouse=warehouse, **settings)
    catalog.create_namespace("docs")

    def make_table(name: str = "t", spec: PartitionSpec = PartitionSpec(), rows: pa.Table | None = ROWS, schema: Schema = SCHEMA) -> Table:  # noqa: B008
        table = catalog.create_table(f"docs.{name}", schema, partition_spec=spec)
        if rows is not None:
            table.append(rows.cast(ARROW))
        return table

    yield make_table
    catalog.engine.dispose()


def root_of(table: Table) -> str:
    return table.location().removeprefix("file://")


def rows_by_pyiceberg(table: Table, snapshot: int | None = None) -> list[dict[str, Any]]:
    """Read the same by pyiceberg itself."""
    return sort_rows(table.scan(snapshot_id=snapshot, selected_fields=("id", "text", "lang", "day")).to_arrow())


def test_the_rows_of_each_snapshot_are_those_that_pyiceberg_reads(make: Callable[..., Table]) -> None:
    table = make(spec=BY_LANG)
    table.delete("id = 2")
    table.append(ROWS.slice(0, 2).set_column(0, "id", pa.array([7, 8])).cast(ARROW))
    table.overwrite(ROWS.slice(2, 1).cast(ARROW), overwrite_filter="id = 3")
    for snapshot in table.metadata.snapshots:
        assert rows_of(root_of(table), version=snapshot.snapshot_id) == rows_by_pyiceberg(table, snapshot.snapshot_id)
    newest = rows_by_pyiceberg(table)
    metadata = table.metadata_location.removeprefix("file://")
    assert rows_of(root_of(table)) == rows_of(root_of(table), format="iceberg") == rows_of(metadata) == newest
    assert {row["lang"] for row in newest} == {"de", "en", None, "a/b %2F=é"}


@pytest.mark.s3
def test_a_table_on_s3_is_read_with_the_storage_options_of_the_source(bucket: str, s3_server: S3Server, tmp_path: Path) -> None:
    for make_table in make_tables(tmp_path, bucket, **{"s3.endpoint": s3_server.endpoint}):
        table = make_table(spec=BY_LANG)
        assert rows_of(table.location()) == rows_of(table.metadata_location) == rows_by_pyiceberg(table)


def test_the_columns_of_a_template_are_read_even_from_the_manifest(make: Callable[..., Table]) -> None:
    table = make(spec=BY_LANG)
    assert rows_of(root_of(table), TEMPLATE) == with_template(rows_by_pyiceberg(table))


def test_a_shard_is_a_file_with_size_and_rows_from_the_manifest(make: Callable[..., Table]) -> None:
    table = make(spec=BY_LANG)
    listing = listed(root_of(table))
    assert sum(shard.num_rows or 0 for shard in listing.shards) == 4
    assert all(shard.size_bytes == Path(shard.uri).stat().st_size for shard in listing.shards)
    assert listing.table.startswith(f"{root_of(table)}, Iceberg snapshot {table.current_snapshot().snapshot_id} of 20")
    before = {shard.uri: shard.version for shard in listing.shards}
    table.append(ROWS.slice(0, 1).cast(ARROW))
    after = {shard.uri: shard.version for shard in listed(root_of(table)).shards}
    assert len(after) == len(before) + 1
    assert before.items() < after.items()


def test_identity_partitions_decide_whole_shards_and_other_transforms_do_not(make: Callable[..., Table]) -> None:
    days = PartitionSpec(PartitionField(4, 1000, IdentityTransform(), "day"), PartitionField(3, 1001, BucketTransform(2), "lang_bucket"))
    source = SourceConfig(uri=root_of(make(spec=days)), filter="day = '2024-01-01' or lang = 'en'")
    listing, _ = select_shards(source, list_shards(source))
    assert [shard.constants for shard in listing.shards if not shard.row_filter] == [(("day", "2024-01-01"),)]
    assert len(listing.shards) == 4


def test_a_partition_column_that_a_file_lacks_has_the_value_of_its_partition(make: Callable[..., Table]) -> None:
    table = make(
        spec=PartitionSpec(PartitionField(3, 1000, IdentityTransform(), "lang"), PartitionField(4, 1001, IdentityTransform(), "day"))
    )
    wanted, snapshot = rows_of(root_of(table)), table.current_snapshot().snapshot_id
    for shard in listed(root_of(table)).shards:
        whole = pq.ParquetFile(shard.uri).read()
        pq.write_table(whole.drop_columns(["lang", "day"]), shard.uri)
    with table.update_schema() as update:
        update.rename_column("lang", "language")
    source = SourceConfig(uri=root_of(table), version=snapshot, id_column="id", metadata_columns=["lang", "day"])
    listing = list_shards(source)
    shards = tuple(replace(shard, size_bytes=Path(shard.uri).stat().st_size) for shard in listing.shards)
    units = read_units(Task("0" * 16, "0" * 32, shards), source, pa.schema([("lang", pa.string()), ("day", pa.date32())]))
    found = pa.concat_tables([unit.documents for unit in units]).rename_columns({"doc_id": "id"})
    assert sort_rows(found.select(["id", "text", "lang", "day"])) == wanted


def test_a_column_is_found_by_its_field_id_through_renames_and_drops(make: Callable[..., Table]) -> None:
    meta = StructType(NestedField(6, "url", StringType()), NestedField(7, "old", StringType()))
    schema = Schema(*SCHEMA.fields, NestedField(5, "meta", meta))
    table = make(rows=None, schema=schema)
    nested = pa.array([{"url": f"u{number}", "old": f"o{number}"} for number in range(4)])
    table.append(ROWS.append_column("meta", nested).cast(pa.schema([*ARROW, ("meta", nested.type)])))
    with table.update_schema() as update:
        update.rename_column("lang", "language")
        update.rename_column("meta.old", "address")
        update.delete_column(("meta", "url"))
    with table.update_schema() as update:
        update.rename_column("meta.address", "url")
        update.add_column("lang", StringType())
    found = rows_of(root_of(table), metadata_columns={"language": "language", "lang": "lang", "url": "meta.url"})
    assert [(row["language"], row["lang"], row["url"]) for row in found] == [
        ("de", None, "o0"), ("en", None, "o1"), (None, None, "o2"), ("a/b %2F=é", None, "o3")
    ]  # fmt: skip
    by_pyiceberg = table.scan().to_arrow()
    assert by_pyiceberg["language"].to_pylist() == [row["language"] for row in found]
    assert by_pyiceberg["lang"].to_pylist() == [row["lang"] for row in found]
    assert [row["url"] for row in by_pyiceberg["meta"].to_pylist()] == [row["url"] for row in found]


def test_a_dropped_column_is_named_with_those_that_are_there(make: Callable[..., Table]) -> None:
    table = make()
    with table.update_schema() as update:
        update.delete_column("lang")
    assert "has no column 'lang' (found: id, text, day)" in refused(root_of(table), metadata_columns=["lang"])


def test_a_wanted_column_that_changes_its_field_changes_the_version_of_a_shard(make: Callable[..., Table]) -> None:
    table = make()
    before = listed(root_of(table), metadata_columns=["lang"]).shards[0].version
    with table.update_schema() as update:
        update.add_column("other", StringType())
    assert listed(root_of(table), metadata_columns=["lang"]).shards[0].version == before
    with table.update_schema() as update:
        update.delete_column("lang")
    with table.update_schema() as update:
        update.add_column("lang", StringType())
    assert listed(root_of(table), metadata_columns=["lang"]).shards[0].version != before


def test_a_widened_type_holds_for_older_files(make: Callable[..., Table]) -> None:
    from pyiceberg.types import IntegerType

    table = make(rows=None, schema=Schema(*SCHEMA.fields, NestedField(5, "n", IntegerType())))
    rows = ROWS.append_column("n", pa.array([1, 2, 3, 4], pa.int32()))
    table.append(rows.cast(pa.schema([*ARROW, ("n", pa.int32())])))
    with table.update_schema() as update:
        update.update_column("n", LongType())
    table.append(rows.set_column(4, "n", pa.array([1 << 40] * 4)).cast(pa.schema([*ARROW, ("n", pa.int64())])))
    assert sorted(row["n"] for row in rows_of(root_of(table), metadata_columns=["n"])) == [1, 2, 3, 4, *[1 << 40] * 4]


def test_files_without_ids_are_read_by_the_tables_names(make: Callable[..., Table], tmp_path: Path) -> None:
    table = make(rows=None)
    pq.write_table(ROWS.cast(ARROW), tmp_path / "hive.parquet")
    table.add_files([f"file://{tmp_path}/hive.parquet"])
    assert rows_of(root_of(table)) == rows_by_pyiceberg(table)
    with table.transaction() as change:
        change.remove_properties("schema.name-mapping.default")
    with pytest.raises(SourceError, match=r"hive.parquet: has no field ids"):
        rows_of(root_of(table))


class DeleteWriter(ManifestWriterV2):
    """Writes the manifests that pyiceberg only reads."""

    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


def add_deletes(
    table: Table,
    deletes: Mapping[str, Sequence[int]],
    content: DataFileContent = DataFileContent.POSITION_DELETES,
    number: int = 1,
    format_: FileFormat = FileFormat.PARQUET,
) -> str:
    """Commit a delete file for rows of data files, as other engines do; return the new metadata file."""
    root = Path(root_of(table))
    path = root / "data" / f"deletes-{number}.{format_.lower()}"
    pairs = [(file, row) for file, rows in deletes.items() for row in rows]
    if format_ == FileFormat.PUFFIN:
        path.write_bytes(puffin(deletes))
    else:
        pq.write_table(pa.table({"file_path": [file for file, _ in pairs], "pos": [row for _, row in pairs]}), path)
    snapshot, metadata = table.current_snapshot(), json.loads(Path(table.metadata_location.removeprefix("file://")).read_text())
    new_id, sequence = snapshot.snapshot_id + number, metadata["last-sequence-number"] + 1
    file = DataFile.from_args(
        content=content, file_path=f"file://{path}", file_format=format_, partition=Record(), record_count=len(pairs),
        file_size_in_bytes=path.stat().st_size, equality_ids=[1] if content == DataFileContent.EQUALITY_DELETES else None,
    )  # fmt: skip
    file.spec_id = 0
    manifest = table.io.new_output(f"file://{root}/metadata/deletes-{number}.avro")
    with DeleteWriter(table.spec(), table.schema(), manifest, new_id, "deflate") as writer:
        writer.add_entry(ManifestEntry.from_args(status=ManifestEntryStatus.ADDED, snapshot_id=new_id, data_file=file))
    names = f"file://{root}/metadata/list-{number}.avro"
    with write_manifest_list(2, table.io.new_output(names), new_id, snapshot.snapshot_id, sequence, "deflate") as manifests:
        manifests.add_manifests([*snapshot.manifests(table.io), writer.to_manifest_file()])
    now = metadata["last-updated-ms"] + number
    metadata["snapshots"].append({
        "snapshot-id": new_id, "parent-snapshot-id": snapshot.snapshot_id, "sequence-number": sequence, "timestamp-ms": now,
        "manifest-list": names, "summary": {"operation": "delete"}, "schema-id": metadata["current-schema-id"],
    })  # fmt: skip
    metadata |= {"current-snapshot-id": new_id, "last-sequence-number": sequence, "last-updated-ms": now}
    metadata["refs"] = {"main": {"snapshot-id": new_id, "type": "branch"}}
    written = root / "metadata" / f"{9000 + number:05d}-0000.metadata.json"
    written.write_text(json.dumps(metadata))
    return str(written)


def puffin(deletes: Mapping[str, Sequence[int]]) -> bytes:
    """Return a file of deletion vectors."""
    data, blobs = b"PFA1", []
    for file, rows in deletes.items():
        bitmap = b"\xd1\xd3\x39\x64" + struct.pack("<QI", 1, 0) + BitMap(rows).serialize()
        blob = struct.pack(">I", len(bitmap)) + bitmap + struct.pack(">I", zlib.crc32(bitmap))
        blobs.append({"type": "deletion-vector-v1", "fields": [], "snapshot-id": -1, "sequence-number": -1, "offset": len(data),
                      "length": len(blob), "properties": {"referenced-data-file": file}})  # fmt: skip
        data += blob
    footer = json.dumps({"blobs": blobs}).encode()
    return data + b"PFA1" + footer + struct.pack("<II", len(footer), 0) + b"PFA1"


@pytest.mark.parametrize("format_", [FileFormat.PARQUET, FileFormat.PUFFIN])
def test_rows_of_positional_deletes_and_deletion_vectors_are_no_records(make: Callable[..., Table], format_: FileFormat) -> None:
    table = make(rows=None)
    table.append(ROWS.cast(ARROW))
    table.append(ROWS.set_column(0, "id", pa.array([5, 6, 7, 8])).cast(ARROW))
    one, two = sorted(task.file.file_path for task in table.scan().plan_files())
    before = {shard.uri: shard.version for shard in listed(root_of(table)).shards}
    metadata = add_deletes(table, {one: [0, 2]}, format_=format_)
    assert rows_of(metadata) == rows_by_pyiceberg(StaticTable.from_metadata(metadata))
    assert len(rows_of(metadata)) == 6
    shards = listed(metadata).shards
    assert {shard.uri: shard.num_rows for shard in shards} == {one.removeprefix("file://"): 2, two.removeprefix("file://"): 4}
    assert [before[shard.uri] == shard.version for shard in shards] == [False, True]
    (unit,) = read_units(Task("0" * 16, "0" * 32, shards[:1]), SourceConfig(uri=metadata), pa.schema([]))
    assert (unit.stop_row, unit.documents["row"].to_pylist()) == (2, [0, 1])


def test_slices_and_unread_row_groups_of_a_file_with_deletes_count_its_live_rows(make: Callable[..., Table]) -> None:
    table = make(rows=None)
    with table.transaction() as change:
        change.set_properties({"write.parquet.row-group-limit": "10"})
    rows = {"id": list(range(40)), "text": [f"t{row}" for row in range(40)], "lang": ["de"] * 40, "day": [date(2024, 1, 1)] * 40}
    table.append(pa.table(rows).cast(ARROW))
    (task,) = table.scan().plan_files()
    metadata = add_deletes(table, {task.file.file_path: [3, 10, 11, 39]})
    source = SourceConfig(uri=metadata, id_column="id", filter="id >= 10")
    listing, schema = select_shards(source, list_shards(source))
    (whole,) = read_units(Task("0" * 16, "0" * 32, tuple(listing.shards)), source, schema)
    assert whole.documents["doc_id"].to_pylist() == [str(row) for row in range(12, 39)]
    assert whole.documents["row"].to_pylist() == list(range(9, 36))
    assert whole.stop_row == listing.shards[0].num_rows == 36
    (second,) = read_units(Task("0" * 16, "0" * 32, tuple(listing.shards), (1, 3), 9), source, schema)
    assert second.documents.equals(whole.documents.slice(0, 18))
    assert slice_shard(listing.shards[0], source) == [(0, 4, 0)]


def test_equality_deletes_and_other_file_formats_are_refused_by_name(make: Callable[..., Table]) -> None:
    table = make()
    (task,) = table.scan().plan_files()
    metadata = add_deletes(table, {task.file.file_path: [0]}, DataFileContent.EQUALITY_DELETES)
    assert "does not yet support equality deletes" in refused(metadata)


def test_a_default_for_older_files_is_refused_by_name(make: Callable[..., Table]) -> None:
    table = make()
    path = Path(table.metadata_location.removeprefix("file://"))
    metadata = json.loads(path.read_text())
    metadata["schemas"][-1]["fields"][2]["initial-default"] = "unknown"
    (path.parent / "00009-00.metadata.json").write_text(json.dumps(metadata))
    assert "column 'lang' has a default for older files" in refused(root_of(table), metadata_columns=["lang"])
    assert len(listed(root_of(table)).shards) == 1


def test_a_version_is_a_snapshot_or_the_newest_at_a_time(make: Callable[..., Table]) -> None:
    table = make()
    first = table.current_snapshot()
    table.append(ROWS.slice(0, 1).cast(ARROW))
    moment = datetime.fromtimestamp(first.timestamp_ms / 1000, UTC).isoformat()
    assert listed(root_of(table), version=moment).table == listed(root_of(table), version=first.snapshot_id).table
    assert str(table.current_snapshot().snapshot_id) in listed(root_of(table)).table
    assert "has no such snapshot (the last are " in refused(root_of(table), version=1)
    assert "its snapshot of that time was expired, or is older than the table" in refused(root_of(table), version="2020-01-01")


def test_the_newest_metadata_is_found_by_number_and_hint_or_refused(make: Callable[..., Table]) -> None:
    table = make()
    metadata = Path(root_of(table), "metadata")
    shutil.copy(table.metadata_location.removeprefix("file://"), metadata / "v9.metadata.json")
    shutil.copy(metadata / "v9.metadata.json", metadata / "00009-ab.metadata.json")
    assert "several metadata files are the newest (00009-ab.metadata.json, v9.metadata.json)" in refused(root_of(table))
    (metadata / "version-hint.text").write_text("9\n")
    assert len(listed(root_of(table)).shards) == 1
    shutil.rmtree(metadata)
    assert "no Iceberg table is there" in refused(root_of(table), format="iceberg")


def test_a_table_of_a_catalog_is_named_by_it(make: Callable[..., Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make()
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", f"sqlite:///{tmp_path}/catalog.db")
    import pyiceberg.catalog

    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", pyiceberg.catalog.Config())
    assert rows_of("lake.docs.t", format="iceberg") == rows_by_pyiceberg(table)
    assert "Table does not exist: docs.nope; name catalog.namespace.table" in refused("lake.docs.nope", format="iceberg")


def test_a_table_without_rows_is_an_empty_source_and_a_lost_file_cannot_be_read(make: Callable[..., Table]) -> None:
    with pytest.raises(EmptySourceError, match="Iceberg snapshot None of no rows yet names no file there"):
        listed(root_of(make("empty", rows=None)))
    table = make()
    Path(listed(root_of(table)).shards[0].uri).unlink()
    with pytest.raises(SourceError, match="the table's log names this file, but it is gone"):
        rows_of(root_of(table))


def test_damaged_metadata_is_an_error_and_not_fewer_files(make: Callable[..., Table]) -> None:
    table = make()
    folder = Path(root_of(table), "metadata")
    newest, manifest, manifests = (next(folder.glob(name)) for name in ("00001-*.json", "*-m0.avro", "snap-*.avro"))
    schema_type = manifest.read_bytes().replace(b'"type":"bytes"', b'"type":"byves"').replace(b'"type": "bytes"', b'"type": "byves"')
    cut = [(each, each.read_bytes()[:-40]) for each in (newest, manifest)]
    for path, damaged in (*cut, *((each, avro_header(each)) for each in (manifest, manifests)), (manifest, schema_type)):
        whole = path.read_bytes()
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match="the table cannot be opened"):
            listed(root_of(table))
        path.write_bytes(whole)
    assert len(listed(root_of(table)).shards) == 1


def avro_header(path: Path) -> bytes:
    """Return the start of a file, up to its first block."""
    data = path.read_bytes()
    return data[: data.index(data[-16:]) + 16]


def test_part_of_a_table_is_refused(make: Callable[..., Table]) -> None:
    table = make()
    for uri in (f"{root_of(table)}/data", f"{root_of(table)}/data/*.parquet"):
        assert "name the table's folder to read the rows of its newest version" in refused(uri)
    with pytest.raises(ConfigError, match=r"leave out source\.format='parquet'"):
        listed(root_of(table), format="parquet")

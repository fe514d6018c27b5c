"""A Delta table as a source: the rows of one version and no others, with what its log knows about its files."""

import json
import struct
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from embedder.config.source import SourceConfig
from embedder.core.delta_options import delta_options
from embedder.core.errors import ConfigError, EmptySourceError, SourceError, StorageError
from embedder.core.units import Task
from embedder.source.columns import inspect_source, with_context
from embedder.source.documents import read_units
from embedder.source.shards import Listing, list_shards

ROWS = pa.table(
    {
        "id": [1, 2, 3, 4],
        "text": ["eins", "two", "none", "odd"],
        "lang": ["de", "en", None, "a/b %2F=é"],
        "day": pa.array([date(2024, 1, each) for each in (1, 2, 3, 4)]),
    }
)
COLUMNS: dict[str, Any] = {"id_column": "id", "metadata_columns": ["lang", "day"]}


TEMPLATE = "{lang|none}, {day}: {chunk}"


def rows_of(uri: Path | str, template: str | None = None, **settings: Any) -> list[dict[str, Any]]:
    """Read everything of a source: its ids, texts and metadata, and the columns of the template."""
    source = with_context(SourceConfig(uri=str(uri), **{**COLUMNS, **settings}), template)
    listing = list_shards(source)
    metadata = inspect_source(source, listing.shards, types=listing.types)
    units = list(read_units(Task("0" * 16, "0" * 32, tuple(listing.shards)), source, metadata))
    assert not sum(unit.quarantined.num_rows for unit in units)
    rows = pa.concat_tables([unit.documents for unit in units]).rename_columns({"doc_id": "id"})
    return sort_rows(rows.select(["id", "text", *metadata.names]))


def sort_rows(rows: pa.Table) -> list[dict[str, Any]]:
    """Return rows as dicts with their ids as text."""
    return sorted(({**row, "id": str(row["id"])} for row in rows.to_pylist()), key=repr)


def with_template(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with the columns of TEMPLATE."""
    return [row | {"context:lang|": row["lang"], "context:day": str(row["day"])} for row in rows]


def rows_by_delta(uri: str, version: int | None = None) -> list[dict[str, Any]]:
    """Read the same by deltalake itself."""
    delta = DeltaTable(uri, version=version, storage_options=delta_options(uri, {}))
    return sort_rows(delta.to_pyarrow_table(columns=["id", "text", "lang", "day"]))


def write(location: Path | str, rows: pa.Table = ROWS, **settings: Any) -> None:
    write_deltalake(str(location), rows, storage_options=delta_options(str(location), {}), **settings)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A partitioned table: four rows, then another in place of the first."""
    write(tmp_path / "t", partition_by=["lang", "day"])
    DeltaTable(tmp_path / "t").delete("id = 1")
    write(tmp_path / "t", pa.table({**{name: ROWS[name][:1] for name in ROWS.column_names}, "id": [5]}), mode="append")
    return tmp_path / "t"


def edit_log(table: Path, version: int, **actions: dict[str, Any]) -> None:
    """Change the actions of a commit by kind."""
    path = table / "_delta_log" / f"{version:020d}.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        for kind in set(line) & set(actions):
            line[kind].update(actions[kind])
    path.write_text("\n".join(map(json.dumps, lines)))


def listed(uri: Path | str, **settings: Any) -> Listing:
    return list_shards(SourceConfig.model_validate({"uri": str(uri), **settings}))


def refused(uri: Path | str, **settings: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        listed(uri, **settings)
    return str(raised.value)


def test_the_rows_of_each_version_are_those_that_deltalake_reads(location: str) -> None:
    write(location, partition_by=["lang", "day"])
    delta = DeltaTable(location, storage_options=delta_options(location, {}))
    delta.delete("id = 2")
    delta.update(updates={"text": "'changed'"}, predicate="id = 3")
    delta.optimize.compact()
    write(location, ROWS.slice(0, 2).set_column(0, "id", pa.array([7, 8])), mode="append")
    for version in range(DeltaTable(location, storage_options=delta_options(location, {})).version() + 1):
        assert rows_of(location, version=version) == rows_by_delta(location, version)
    assert rows_of(location) == rows_of(location, format="delta") == rows_by_delta(location)
    assert {row["lang"] for row in rows_of(location)} == {"de", "en", None, "a/b %2F=é"}


def test_the_columns_of_a_template_are_read_even_from_the_log(table: Path, tmp_path: Path) -> None:
    assert rows_of(table, TEMPLATE) == with_template(rows_by_delta(str(table)))
    write(tmp_path / "whole")
    assert rows_of(tmp_path / "whole", TEMPLATE) == with_template(sort_rows(ROWS))


def test_a_log_with_a_checkpoint_and_without_its_old_commits_is_read(table: Path) -> None:
    rows = rows_of(table)
    DeltaTable(table).create_checkpoint()
    for version in (0, 1):
        (table / "_delta_log" / f"{version:020d}.json").unlink()
    assert rows_of(table) == rows == rows_by_delta(str(table))
    assert "cannot be opened" in refused(table, version=0)


def test_a_shard_is_a_file_with_size_time_and_rows_from_the_log(table: Path) -> None:
    listing = listed(table)
    for shard in listing.shards:
        assert (shard.size_bytes, shard.num_rows) == (Path(shard.uri).stat().st_size, 1)
    assert listing.table.startswith(f"{table}, Delta version 2 of 20")
    before = {shard.uri: shard.version for shard in listing.shards}
    write(table, ROWS.slice(0, 1), mode="append")
    (table / "stray.parquet").write_bytes(b"")
    after = {shard.uri: shard.version for shard in listed(table).shards}
    assert len(after) == len(before) + 1
    assert before.items() < after.items()


def test_a_folder_file_or_pattern_in_a_table_is_that_part_of_its_newest_version(table: Path) -> None:
    everything = [shard.uri for shard in listed(table).shards]
    german = [uri for uri in everything if "/lang=de/" in uri]
    assert len(german) == 1
    assert len(list((table / "lang=de").rglob("*.parquet"))) == 2
    for uri in (table / "lang=de", german[0], f"{table}/lang=de/*/*", f"{table}/**/lang=de/**", f"{table}/lang=[d]e/**"):
        assert [shard.uri for shard in listed(uri).shards] == german
    (table.parent / "link").symlink_to(table)
    assert len(listed(table.parent / "link").shards) == len(everything)
    assert listed(table.parent / "link" / "lang=de").shards[0].uri.startswith(f"{table.parent}/link/")
    DeltaTable(table).delete("lang = 'en'")
    with pytest.raises(EmptySourceError, match=r"Delta version 3 of .* names no file there, and 3 elsewhere"):
        listed(table / "lang=en")


def test_a_table_whose_own_folder_looks_like_a_partition_is_read_by_its_log(tmp_path: Path) -> None:
    write(tmp_path / "export=1")
    write(tmp_path / "export=1", mode="overwrite")
    assert len(listed(tmp_path / "export=1").shards) == 1


def test_a_table_without_files_is_an_empty_source(table: Path) -> None:
    DeltaTable(table).delete()
    with pytest.raises(EmptySourceError, match=r"Delta version 3 of \S+ names no file there$"):
        listed(table)


def test_a_file_of_another_table_that_the_log_names_is_read(table: Path) -> None:
    write(table.parent / "clone", ROWS.slice(0, 0), partition_by=["lang", "day"])
    other = next((table / "lang=en").rglob("*.parquet"))
    add = {"path": other.as_uri(), "size": other.stat().st_size, "partitionValues": {"lang": "en", "day": "2024-01-02"}}
    add |= {"modificationTime": 1, "dataChange": True}
    (table.parent / "clone" / "_delta_log" / f"{1:020d}.json").write_text(json.dumps({"add": add}))
    assert rows_of(table.parent / "clone") == [{"id": "2", "text": "two", "lang": "en", "day": date(2024, 1, 2)}]


def test_a_column_that_is_younger_than_a_file_is_null_there(tmp_path: Path) -> None:
    write(tmp_path / "t", ROWS.select(["id", "text"]))
    write(tmp_path / "t", ROWS.slice(1, 1), mode="append", schema_mode="merge")
    rows = rows_of(tmp_path / "t")
    assert [row["lang"] for row in rows if row["id"] == "2"] == ["en", None]
    assert rows == rows_by_delta(str(tmp_path / "t"))
    assert "version 1 has no column 'topic' (found: id, text, lang, day)" in refused(tmp_path / "t", metadata_columns=["topic"])


@pytest.mark.parametrize("type_", [pa.int32(), pa.float64(), pa.bool_(), pa.decimal128(7, 2), pa.timestamp("us", "UTC"), pa.string()])
def test_partition_values_have_the_type_of_their_column(type_: pa.DataType, tmp_path: Path) -> None:
    texts = {pa.bool_(): [True, False, None], pa.string(): ["1", "a b", None]}
    values = pa.array(texts.get(type_, [1, 0, None]), type_)
    write(tmp_path / "t", pa.table({"id": [1, 2, 3], "text": ["a", "b", "c"], "key": values}), partition_by=["key"])
    rows = rows_of(tmp_path / "t", metadata_columns=["key"])
    assert [row["key"] for row in rows] == values.to_pylist()


def test_a_version_is_a_number_or_the_newest_at_a_time(table: Path) -> None:
    for version, time in enumerate(["2024-01-01T00:00:00", "2024-02-01T00:00:00", "2024-03-01T00:00:00"]):
        edit_log(table, version, commitInfo={"timestamp": 1000 * (1704067200 + 86_400 * [0, 31, 60][version])})
        assert f"Delta version {version} of {time}+00:00" in listed(table, version=version).table
        assert f"Delta version {version} of" in listed(table, version=f"{time}Z").table
    assert "Delta version 0 of" in listed(table, version="2024-01-31T23:59:59.999").table
    assert "Delta version 1 of" in listed(table, version=date(2024, 2, 1)).table
    assert "the oldest version in its log, 0, is of 2024-01-01T00:00:00+00:00" in refused(table, version="2023-12-31")
    assert refused(table, version=3).startswith("source.version=3: the newest version of ")


@pytest.mark.parametrize("version", ["yesterday", -1, "2024-13-01", "2999-01-01", True, 1.5])
def test_a_version_that_cannot_be_is_refused_with_the_settings(version: Any) -> None:
    with pytest.raises(ValueError, match="version"):
        SourceConfig.model_validate({"uri": "t", "version": version})


def test_a_version_of_what_is_not_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    assert refused(tmp_path, version=1).startswith("source.version=1: no table is at or above ")
    assert refused(tmp_path, format="delta").startswith("source.format='delta': no table is at or above ")


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        ({"metaData": {"configuration": {"delta.columnMapping.mode": "shape"}}}, "needs column mapping by shape, which is not read"),
        ({"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["variantType"], "writerFeatures": ["variantType"]}},
         "needs variantType, which is not read"),
    ],
)  # fmt: skip
def test_a_table_whose_files_alone_do_not_show_its_rows_is_refused(actions: dict[str, Any], words: str, table: Path) -> None:
    edit_log(table, 0, **actions)
    assert words in refused(table)


def test_rows_of_deletion_vectors_are_no_records(tmp_path: Path) -> None:
    table = tmp_path / "ä t"
    write(table, partition_by=["lang"])
    features = ["deletionVectors"]
    edit_log(table, 0, protocol={"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features})
    write(tmp_path / "plain", partition_by=["lang"])
    assert [shard.deleted for shard in listed(table).shards] == [""] * 4
    before = {shard.uri: shard.version for shard in listed(table).shards}
    # the vector of one deleted row, the first: a 64-bit bitmap in Z85 text
    log = table / "_delta_log" / f"{0:020d}.json"
    lines = log.read_text().splitlines()
    number = next(number for number, line in enumerate(lines) if "lang=a%252Fb" in line and '"add"' in line)
    add = json.loads(lines[number])
    add["add"]["deletionVector"] = vector_of_row_0()
    lines[number] = json.dumps(add)
    log.write_text("\n".join(lines))
    assert rows_of(table) == sort_rows(pa.table(DeltaTable(table).scan(columns=["id", "text", "lang", "day"])))
    assert [row["id"] for row in rows_of(table)] == ["1", "2", "3"]
    after = listed(table).shards
    assert [shard.num_rows for shard in after if shard.version != before[shard.uri]] == [0]


@pytest.mark.parametrize("mode", ["name", "id"])
def test_columns_are_found_by_their_mapping(mode: str, tmp_path: Path) -> None:
    def numbered(field: pa.Field, number: int) -> pa.Field:
        return field.with_metadata({"PARQUET:field_id": str(number)})

    names = ["id", "text", "meta", "lang"]
    meta = pa.array([{"col-5": f"u{row}"} for row in range(4)], pa.struct([numbered(pa.field("col-5", pa.string()), 5)]))
    rows = pa.table([ROWS["id"], ROWS["text"], meta, ROWS["lang"]], ["col-1", "col-2", "text", "lang"])
    write(tmp_path / "t", rows, partition_by=["lang"])
    for file in (tmp_path / "t").rglob("*.parquet"):
        found = pq.ParquetFile(file).read()
        pq.write_table(found.cast(pa.schema([numbered(field, number) for number, field in enumerate(found.schema, 1)])), file)
    log = tmp_path / "t" / "_delta_log" / f"{0:020d}.json"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "t").rglob("*.parquet")}
    for line in lines:
        if "add" in line:
            line["add"]["size"] = sizes[line["add"]["path"].rpartition("/")[2]]
        if "metaData" in line:
            schema = json.loads(line["metaData"]["schemaString"])
            for number, (field, name) in enumerate(zip(schema["fields"], names, strict=True), 1):
                map_field(field, name, number)
            map_field(schema["fields"][2]["type"]["fields"][0], "url", 5)
            settings = {"delta.columnMapping.mode": mode, "delta.columnMapping.maxColumnId": "5"}
            line["metaData"] |= {"schemaString": json.dumps(schema), "configuration": settings}
    log.write_text("\n".join(map(json.dumps, lines)))
    features = ["columnMapping"]
    edit_log(
        tmp_path / "t", 0, protocol={"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features}
    )
    found = rows_of(tmp_path / "t", metadata_columns={"lang": "lang", "url": "meta.url"})
    assert [(row["id"], row["text"], row["url"], row["lang"]) for row in found] == [
        ("1", "eins", "u0", "de"), ("2", "two", "u1", "en"), ("3", "none", "u2", None), ("4", "odd", "u3", "a/b %2F=é")
    ]  # fmt: skip
    by_delta = pa.table(DeltaTable(tmp_path / "t").scan(columns=["id", "text", "meta", "lang"])).to_pylist()
    assert sorted((str(row["id"]), row["text"], row["meta"]["url"], row["lang"]) for row in by_delta) == [
        (row["id"], row["text"], row["url"], row["lang"]) for row in found
    ]


def map_field(field: dict[str, Any], name: str, number: int) -> None:
    """Rename a field of a schema in the log, not in its files."""
    field["metadata"] = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": field["name"]}
    field["name"] = name


def vector_of_row_0() -> dict[str, Any]:
    """Return an inline deletion vector that deletes row 0."""

    # magic number; one 32-bit bitmap under the key 0, with one container of one value
    bitmap = struct.pack("<IQI", 1681511377, 1, 0) + struct.pack("<IIHHIH", 12346, 1, 0, 0, 16, 0)
    padded = bitmap + bytes(-len(bitmap) % 4)
    return {"storageType": "i", "pathOrInlineDv": z85(padded), "sizeInBytes": len(bitmap), "cardinality": 1}


def z85(data: bytes) -> str:
    """Encode four bytes as five characters."""
    alphabet = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    numbers = [int.from_bytes(data[start : start + 4], "big") for start in range(0, len(data), 4)]
    return "".join(alphabet[number // 85**place % 85] for number in numbers for place in (4, 3, 2, 1, 0))


def test_a_file_that_the_log_names_and_that_is_gone_or_another_cannot_be_read(table: Path) -> None:
    lost = Path(next(shard.uri for shard in listed(table).shards if "lang=en" in shard.uri))
    data = lost.read_bytes()
    lost.unlink()
    with pytest.raises(SourceError, match="the table's log names this file, but it is gone: it was vacuumed or deleted"):
        rows_of(table)
    pq.write_table(pa.table({"id": [9], "text": ["another"]}), lost)
    with pytest.raises(SourceError, match=rf"the table's log names {len(data)} bytes \(now \d+ bytes\)"):
        rows_of(table)


def test_a_damaged_log_is_an_error_and_not_an_older_version(table: Path) -> None:
    path = table / "_delta_log" / f"{2:020d}.json"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StorageError, match="the table cannot be opened"):
        listed(table)


def test_a_file_format_in_a_table_is_refused(table: Path) -> None:
    assert "leave out source.format='parquet'" in refused(table, format="parquet")
    assert "name the table's folder to read the rows of its newest version" in refused(table.parent)
    with pytest.raises(ConfigError, match="which would become its own source"):
        list_shards(SourceConfig(uri=f"{table}/lang=de"), {str(table)})

"""`source.filter` decides which records are wanted: whole shards by their folders or log, the others record by record."""

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError, EmptySourceError
from embedder.core.plan import group_shards
from embedder.core.units import Shard, Task
from embedder.source.documents import SourceUnit, read_units
from embedder.source.sampling import sample_documents
from embedder.source.selection import FILTERED, select_shards
from embedder.source.shards import Listing, list_shards

ROWS = [{"id": str(number), "text": f"t{number}", "year": 2000 + number, "lang": "de" if number % 3 else None} for number in range(30)]
CSV = "id,text,year,lang\n" + "".join(f"{row['id']},{row['text']},{row['year']},{row['lang'] or ''}\n" for row in ROWS)


def select(uri: Path | str, condition: str, **settings: Any) -> tuple[SourceConfig, Listing, pa.Schema]:
    source = SourceConfig(uri=str(uri), filter=condition, **settings)
    return source, *select_shards(source, list_shards(source))


def read(uri: Path | str, condition: str, **settings: Any) -> list[SourceUnit]:
    source, listing, metadata = select(uri, condition, **settings)
    return list(read_units(Task("0" * 16, "0" * 32, tuple(listing.shards)), source, metadata))


def ids(units: list[SourceUnit]) -> list[str]:
    return [str(each) for unit in units for each in unit.documents["doc_id"].to_pylist()]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
@pytest.mark.parametrize(
    "condition",
    [
        "year < 2007",
        "lang is null",
        "lang = 'de' and not year in (2001, 2002)",
        "text = 't7' or lang is null and year > 2020",
        "lang != 'de'",
    ],
)
def test_the_records_are_those_that_sql_finds(name: str, condition: str, write_file: Any) -> None:
    path = write_file(name, ROWS)
    units = read(path, condition, id_column="id", metadata_columns={"when": "year"}, rows_per_unit=4)
    rows = pa.Table.from_pylist(ROWS)
    assert ids(units) == [row[0] for row in duckdb.execute(f"select id from rows where {condition}").fetchall()]
    assert [unit.first_row for unit in units[1:]] == [unit.stop_row for unit in units[:-1]]
    assert units[-1].stop_row == rows.num_rows
    for unit in units:
        assert unit.documents.schema.names[-1] == "when"
        assert [2000 + row for row in unit.documents["row"].to_pylist()] == unit.documents["when"].to_pylist()


def test_columns_of_csv_are_text_unless_they_have_a_metadata_type(write_file: Any) -> None:
    path = write_file("a.csv", CSV)
    assert ids(read(path, "year = '2003'", id_column="id")) == ["3"]
    typed = {"metadata_columns": ["year"], "metadata_types": {"year": "int64"}}
    assert ids(read(path, "year > 2027", id_column="id", **typed)) == ["28", "29"]
    with pytest.raises(ConfigError, match=r"^source\.filter='year > 2027': 2027 is not a value of column year, which is string"):
        read(path, "year > 2027")


def test_an_id_of_a_record_that_is_left_out_is_not_taken(write_file: Any) -> None:
    rows = [{"id": "1", "text": "one", "lang": "en"}, {"id": "1", "text": "eins", "lang": "de"}, {"id": "1", "text": "uno", "lang": "de"}]
    (unit,) = read(write_file("a.jsonl", rows), "lang = 'de'", id_column="id")
    assert unit.documents["text"].to_pylist() == ["eins"]
    assert unit.quarantined.select(["row", "reason"]).to_pylist() == [{"row": 2, "reason": "duplicate_id"}]


def test_a_slice_takes_the_ids_of_wanted_records_before_it(write_file: Any) -> None:
    rows = [{"id": str(number % 7), "text": f"t{number}", "lang": "de" if number > 4 else "en"} for number in range(14)]
    path = write_file("a.parquet", rows)  # two row groups of 7
    source, listing, metadata = select(path, "lang = 'de'", id_column="id")
    (whole,) = read_units(Task("0" * 16, "0" * 32, tuple(listing.shards)), source, metadata)
    second = Task("0" * 16, "0" * 32, tuple(listing.shards), (1, 2), 7)
    (unit,) = read_units(second, source, metadata)
    assert ids([whole]) == ["5", "6", "0", "1", "2", "3", "4"]
    assert ids([unit]) == ["0", "1", "2", "3", "4"]


def test_a_record_that_cannot_be_tested_is_quarantined_and_not_left_out(write_file: Any) -> None:
    path = write_file("a.jsonl", '{"text": "a", "year": 2001}\n{broken}\n{"text": "b", "year": "soon"}\n{"text": "c", "year": 1999}\n' * 2)
    types = {"metadata_columns": ["year"], "metadata_types": {"year": "int64"}}
    (unit,) = read(path, "year > 2000", **types)
    assert unit.documents["row"].to_pylist() == [0, 4]
    assert unit.quarantined["row"].to_pylist() == [1, 2, 5, 6]


@pytest.fixture
def folders(write_file: Any, tmp_path: Path) -> Path:
    for year in (2023, 2024):
        for lang in ("de", "en"):
            write_file(f"in/year={year}/lang={lang}/0.jsonl", [{"text": f"{lang}{year}", "good": True}, {"text": "bad", "good": False}])
    return tmp_path / "in"


def test_folders_decide_whole_shards_and_the_rest_is_decided_by_record(folders: Path) -> None:
    _, listing, _ = select(folders, "year >= 2024 and lang = 'de'")
    assert [(shard.uri.removeprefix(f"{folders}/"), shard.row_filter) for shard in listing.shards] == [("year=2024/lang=de/0.jsonl", "")]
    assert listing.ignored[FILTERED].count == 3
    _, listing, _ = select(folders, "lang = 'de' or good = true")
    assert [bool(shard.row_filter) for shard in listing.shards] == [False, True, False, True]
    texts = [text for unit in read(folders, "lang = 'de' or good = true") for text in unit.documents["text"].to_pylist()]
    assert sorted(texts) == ["bad", "bad", "de2023", "de2024", "en2023", "en2024"]
    with pytest.raises(EmptySourceError, match=r"source\.filter='year = 1': no shard of .* passes \(4 are left out\)"):
        select(folders, "year = 1")


def test_a_changed_filter_plans_only_the_shards_that_it_can_change(folders: Path) -> None:
    def versions(condition: str) -> dict[str, str]:
        shards = [Shard(**{**_fields(shard), "size_bytes": 1 << 20}) for shard in select(folders, condition)[1].shards]
        return {task.shards[0].uri: task.version for task in group_shards(shards, "layout", 0)}

    one, two = versions("lang = 'de' or good = true"), versions("lang = 'de' or good = false")
    assert {uri for uri in one if one[uri] == two[uri]} == {uri for uri in one if "lang=de" in uri}
    unfiltered = [Shard(**{**_fields(shard), "size_bytes": 1 << 20}) for shard in list_shards(SourceConfig(uri=str(folders))).shards]
    assert versions("year > 2000") == {task.shards[0].uri: task.version for task in group_shards(unfiltered, "layout", 0)}


def _fields(shard: Shard) -> dict[str, Any]:
    return {name: getattr(shard, name) for name in Shard.__slots__}


def test_a_delta_table_is_filtered_by_its_log_and_by_its_rows(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "t", pa.Table.from_pylist(ROWS), partition_by=["lang"])
    _, listing, _ = select(tmp_path / "t", "lang is null")
    assert [shard.num_rows for shard in listing.shards] == [10]
    assert sorted(ids(read(tmp_path / "t", "lang = 'de' and year < 2005", id_column="id"))) == ["1", "2", "4"]
    with pytest.raises(ConfigError, match="has no column 'nope'"):
        select(tmp_path / "t", "nope = 1")


def test_a_sample_holds_wanted_records_only(write_file: Any) -> None:
    path = write_file("a.parquet", ROWS)
    source, listing, metadata = select(path, "lang is null")
    sample = sample_documents(source, listing, 100, 0, metadata)
    assert (sample.documents.num_rows, sample.records_read) == (10, 30)


@pytest.mark.parametrize("condition", ["year >", "lang = de", "'x'", "text = 1", "nope = 1"])
def test_a_filter_that_cannot_be_read_is_refused_by_its_setting(condition: str, write_file: Any) -> None:
    with pytest.raises(ConfigError, match=r"^source\.filter="):
        select(write_file("a.parquet", ROWS), condition)

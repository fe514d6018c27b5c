"""Folders such as year=2024 give columns to the shards of every format, of one type for all of them."""

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError, SourceError
from embedder.core.units import Shard, Task
from embedder.source.columns import inspect_source
from embedder.source.documents import read_units
from embedder.source.partitions import infer_types, parse_folders
from embedder.source.shards import list_shards

CONTENTS = {
    "parquet": [{"text": "a"}, {"text": "b"}],
    "jsonl": [{"text": "a"}, {"text": "b"}],
    "csv": "text\na\nb\n",
}


def rows_of(path: Path | str, **settings: Any) -> pa.Table:
    source = SourceConfig(uri=str(path), **settings)
    listing = list_shards(source)
    metadata = inspect_source(source, listing.shards, types=listing.types)
    units = list(read_units(Task("0" * 16, "0" * 32, tuple(listing.shards)), source, metadata))
    assert not sum(unit.quarantined.num_rows for unit in units)
    return pa.concat_tables([unit.documents for unit in units])


def test_rows_and_types_are_those_that_duckdb_reads(tmp_path: Path) -> None:
    rows = (
        "select * from (values ('a', 2024, 'de', date '2024-01-31'), ('b', 2025, 'a/b =%2F é', date '2025-02-01'), ('c', -3, null, null))"
    )
    duckdb.sql(f"copy (select * from ({rows}) t(text, year, lang, day)) to '{tmp_path}' (format parquet, partition_by (year, lang, day))")
    found = rows_of(tmp_path, metadata_columns=["year", "lang", "day"])
    relation = duckdb.sql(f"select text, year, lang, day from '{tmp_path}/**/*.parquet' order by text")
    assert relation is not None
    expected = relation.to_arrow_table()
    assert found.select(["text", "year", "lang", "day"]).sort_by("text").to_pylist() == expected.to_pylist()
    assert found.schema.field("year").type == pa.int64()
    assert found.schema.field("day").type == pa.date32()
    assert None in found["lang"].to_pylist()


@pytest.mark.parametrize("suffix", [*CONTENTS, "txt"])
def test_a_shard_of_every_format_has_the_columns_of_its_folders(suffix: str, write_file: Any, tmp_path: Path) -> None:
    for name in ("year=2024/lang=de", "year=2025/lang=__HIVE_DEFAULT_PARTITION__", "_extra=1/year=7/lang=%2F"):
        write_file(f"in/{name}/0.{suffix}", CONTENTS.get(suffix, "a"))
    rows = rows_of(tmp_path / "in", metadata_columns=["year", "lang"])
    assert sorted({(row["year"], row["lang"]) for row in rows.to_pylist()}, key=repr) == [(2024, "de"), (2025, None), (7, "/")]
    if suffix != "txt":
        rows = rows_of(tmp_path / "in", text_columns=["lang", "text"], metadata_types={"y": "string"}, metadata_columns={"y": "year"})
        assert set(rows["text"].to_pylist()) == {"de a", "de b", "a", "b", "/ a", "/ b"}
        assert set(rows["y"].to_pylist()) == {"2024", "2025", "7"}


def test_an_id_may_come_from_a_folder(write_file: Any, tmp_path: Path) -> None:
    write_file("in/doc=x/0.txt", "a")
    write_file("in/doc=y/0.jsonl", [{"text": "b"}])
    write_file("in/doc=z/0.parquet", [{"text": "c"}])
    assert rows_of(tmp_path / "in", id_column="doc")["doc_id"].to_pylist() == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        (["1", "02", "-3"], pa.int64()),
        (["1", None], pa.int64()),
        (["1", "x"], pa.string()),
        (["9223372036854775808"], pa.string()),
        (["1.5"], pa.string()),
        (["2024-01-31", "2024-02-01"], pa.date32()),
        (["2024-01-31", "2024-02-30"], pa.string()),
        (["20240131"], pa.int64()),
        (["٣"], pa.string()),
        ([None], pa.string()),
        ([""], pa.string()),
    ],
)
def test_all_values_decide_a_type(values: list[str | None], type_: pa.DataType) -> None:
    assert infer_types((("k", value),) for value in values) == {"k": type_}


def test_folders_are_parsed_as_they_were_written() -> None:
    assert parse_folders("/d/a=1/b%3Dc=x%2Fy/%FF=2/f=3.parquet", ["a", "b=c", "f", "%FF"]) == (("%FF", "2"), ("a", "1"), ("b=c", "x/y"))
    assert parse_folders("/d/a=1/a=1/f", ["a"]) == (("a", "1"),)
    with pytest.raises(ConfigError, match="two of its folders name 'a' \\('1' and '2'\\)"):
        parse_folders("/d/a=1/a=2/f", ["a"])


@pytest.mark.parametrize("suffix", CONTENTS)
def test_a_column_of_the_file_must_equal_that_of_its_folder(suffix: str, write_file: Any, tmp_path: Path) -> None:
    def write(year: object, folder: str) -> Path:
        content = f"text,year\na,{year}\n" if suffix == "csv" else [{"text": "a", "year": year}]
        return Path(write_file(f"{folder}/year=2024/0.{suffix}", content)).parents[1]

    assert rows_of(write(2024, "equal"), metadata_columns=["year"])["year"].to_pylist() == [2024]
    with pytest.raises(SourceError, match=r"year=2024/0.*: column 'year' holds \"?2023\"?, and its folder names \"2024\"; move the file"):
        rows_of(write(2023, "other"), metadata_columns=["year"])
    assert len(rows_of(tmp_path / "other")) == 1, "a column that is not used is not compared"


def test_folders_that_no_setting_names_leave_a_shard_as_it_was(write_file: Any, tmp_path: Path) -> None:
    path = write_file("in/year=2024/0.jsonl", [{"text": "a"}])
    shard = list_shards(SourceConfig(uri=str(tmp_path / "in"))).shards[0]
    assert shard == Shard(str(path), shard.version, shard.size_bytes)
    assert shard.constants == ()

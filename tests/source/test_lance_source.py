"""A Lance dataset as a source: the live rows of one version, as pylance reads them, a shard a fragment."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from embedder.config.source import SourceConfig
from embedder.core.delta_options import delta_options
from embedder.core.errors import ConfigError, EmptySourceError, SourceError
from embedder.core.units import Shard, Task
from embedder.source.documents import read_units
from embedder.source.sampling import sample_documents
from embedder.source.selection import select_shards
from embedder.source.shards import list_shards
from tests.source.test_delta_source import ROWS, TEMPLATE, listed, refused, rows_of, sort_rows, with_template


def write(uri: Path | str, rows: pa.Table = ROWS, **settings: Any) -> Any:
    return lance.write_dataset(rows, str(uri), storage_options=delta_options(str(uri), {}), **settings)


def rows_by_lance(uri: Path | str, version: int | None = None) -> list[dict[str, Any]]:
    """Read the same by pylance itself."""
    dataset = lance.dataset(str(uri), version=version, storage_options=delta_options(str(uri), {}))
    return sort_rows(dataset.to_table(columns=["id", "text", "lang", "day"]))


def versions_of(uri: Path | str, **settings: Any) -> dict[str, str]:
    return {shard.uri: shard.version for shard in listed(uri, **settings).shards}


def test_the_rows_of_each_version_are_those_that_pylance_reads(location: str) -> None:
    dataset = write(f"{location}/t.lance", max_rows_per_file=2)
    dataset.delete("id = 2")
    dataset.update({"text": "'changed'"}, where="id = 3")
    write(f"{location}/t.lance", ROWS.slice(0, 2).set_column(0, "id", pa.array([7, 8])), mode="append")
    dataset = lance.dataset(f"{location}/t.lance", storage_options=delta_options(location, {}))
    dataset.optimize.compact_files()
    for version in range(1, dataset.latest_version + 1):
        assert rows_of(f"{location}/t.lance", version=version) == rows_by_lance(f"{location}/t.lance", version)
    assert rows_of(f"{location}/t.lance") == rows_of(f"{location}/t.lance", format="lance") == rows_by_lance(f"{location}/t.lance")


def test_the_columns_of_a_template_are_read(tmp_path: Path) -> None:
    write(tmp_path / "t", max_rows_per_file=2).delete("id = 2")
    assert rows_of(tmp_path / "t", TEMPLATE) == with_template(rows_by_lance(tmp_path / "t"))


def test_a_shard_is_a_fragment_and_only_those_that_changed_have_another_version(tmp_path: Path) -> None:
    dataset = write(tmp_path / "t", max_rows_per_file=2)
    listing = listed(tmp_path / "t")
    assert [(shard.uri, shard.num_rows) for shard in listing.shards] == [(f"{tmp_path}/t/fragments/{each}", 2) for each in (0, 1)]
    assert sum(shard.size_bytes for shard in listing.shards) == sum(file.stat().st_size for file in (tmp_path / "t/data").iterdir())
    assert listing.table == f"{tmp_path}/t, Lance version 1"
    before = versions_of(tmp_path / "t")
    dataset.add_columns({"other": "id + 1"})
    assert versions_of(tmp_path / "t") == before
    dataset.delete("id = 1")
    write(tmp_path / "t", ROWS.slice(0, 1).append_column("other", pa.array([2])), mode="append")
    after = versions_of(tmp_path / "t")
    assert [uri.rpartition("/")[2] for uri in after if before.get(uri) != after[uri]] == ["0", "2"]
    assert [shard.num_rows for shard in listed(tmp_path / "t").shards] == [1, 2, 1]


def test_rows_are_in_order_and_numbered_without_deleted_ones(tmp_path: Path) -> None:
    rows = pa.table({"id": list(range(5000)), "text": [f"t{row}" for row in range(5000)]})
    write(tmp_path / "t", rows).delete("id % 10 = 3")
    source = SourceConfig(uri=str(tmp_path / "t"), id_column="id", filter="id >= 4000")
    listing, metadata = select_shards(source, list_shards(source))
    units = list(read_units(Task("0" * 16, "0" * 32, tuple(Shard.from_fields(_fields(each)) for each in listing.shards)), source, metadata))
    assert units[-1].stop_row == 4500
    found = pa.concat_tables([unit.documents for unit in units])
    assert found["doc_id"].to_pylist() == [str(row) for row in range(4000, 5000) if row % 10 != 3]
    assert found["row"].to_pylist() == list(range(3600, 4500))
    sample = sample_documents(source, listing, 100, 0)
    assert (sample.documents.num_rows, sample.bytes_read) == (100, listing.shards[0].size_bytes)


def _fields(shard: Shard) -> dict[str, Any]:
    return {name: getattr(shard, name) for name in Shard.__slots__}


def test_a_renamed_column_and_a_nested_one_have_their_own_values(tmp_path: Path) -> None:
    dataset = write(tmp_path / "t", ROWS.append_column("meta", pa.array([{"url": f"u{row}"} for row in range(4)])))
    dataset.alter_columns({"path": "lang", "name": "language"})
    found = rows_of(tmp_path / "t", metadata_columns={"language": "language", "url": "meta.url"})
    assert [(row["language"], row["url"]) for row in found] == [("de", "u0"), ("en", "u1"), (None, "u2"), ("a/b %2F=é", "u3")]
    assert "has no column 'lang' (found: id, text, language, day, meta)" in refused(tmp_path / "t", metadata_columns=["lang"])
    assert "'id' is int64, not text" in _metadata_refused(tmp_path / "t", text_columns=["id"])


def _metadata_refused(uri: Path, **settings: Any) -> str:
    source = SourceConfig.model_validate({"uri": str(uri), **settings})
    with pytest.raises(ConfigError) as raised:
        select_shards(source, list_shards(source))
    return str(raised.value)


def test_a_version_is_a_number_or_the_newest_at_a_time(tmp_path: Path) -> None:
    write(tmp_path / "t")
    between = datetime.now(UTC).isoformat()
    write(tmp_path / "t", mode="append")
    assert listed(tmp_path / "t", version=between).table.endswith("Lance version 1")
    assert listed(tmp_path / "t").table.endswith("Lance version 2")
    assert "keeps no such version (found: 1 to 2); choose another" in refused(tmp_path / "t", version=9)
    assert "keeps no version of that time" in refused(tmp_path / "t", version="2020-01-01")


def test_a_lost_file_is_a_broken_shard_and_a_dataset_without_rows_an_empty_source(tmp_path: Path) -> None:
    write(tmp_path / "t")
    next((tmp_path / "t/data").iterdir()).unlink()
    with pytest.raises(SourceError, match=r"t/fragments/0: cannot be read to its end \(.*Not found"):
        rows_of(tmp_path / "t")
    write(tmp_path / "empty", ROWS.slice(0, 0))
    with pytest.raises(EmptySourceError, match="Lance version 1 names no file there"):
        listed(tmp_path / "empty")


def test_part_of_a_dataset_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "t")
    assert "name the table's folder to read the rows of its newest version" in refused(tmp_path / "t/data")
    assert "leave out source.format='jsonl'" in refused(tmp_path / "t", format="jsonl")

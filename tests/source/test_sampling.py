"""A sample is random, spread by size and repeatable, and reads only a part of the corpus."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from embedder.config.source import SourceConfig
from embedder.core.errors import ConfigError, SourceError
from embedder.source import sampling
from embedder.source.sampling import Sample, sample_documents
from embedder.source.shards import list_shards
from tests.conftest import WriteShard


def rows(first: int, count: int) -> list[dict[str, Any]]:
    return [{"id": f"d{number}", "text": f"document number {number}", "title": f"title {number}"} for number in range(first, first + count)]


def draw(folder: Path, num_documents: int, seed: int = 0, **source: Any) -> Sample:
    config = SourceConfig(uri=str(folder), id_column="id", **source)
    return sample_documents(config, list_shards(config), num_documents, seed)


@pytest.fixture
def corpus(write_shard: WriteShard, tmp_path: Path) -> Path:
    write_shard(rows(0, 800), "a.jsonl.gz")
    write_shard(rows(800, 200), "b.parquet", row_group_size=20)
    write_shard(rows(1000, 100), "c.csv")
    return tmp_path


def test_a_sample_depends_only_on_its_seed(corpus: Path) -> None:
    first, again, other = draw(corpus, 50), draw(corpus, 50), draw(corpus, 50, seed=1)
    assert first.documents.equals(again.documents)
    assert first.documents["doc_id"].to_pylist() != other.documents["doc_id"].to_pylist()
    assert len(set(first.documents["doc_id"].to_pylist())) == 50


def test_every_shard_contributes_by_its_size(write_shard: WriteShard, tmp_path: Path) -> None:
    for number, count in enumerate([100, 300, 600]):
        write_shard(rows(number * 1000, count), f"{number}.jsonl")
    shards = draw(tmp_path, 100).documents["shard"].to_pylist()
    shares = [sum(shard.endswith(f"{number}.jsonl") for shard in shards) for number in range(3)]
    assert shares == pytest.approx([10, 30, 60], abs=2)


def test_a_small_corpus_is_returned_whole_and_in_order(corpus: Path) -> None:
    sample = draw(corpus, 5000)
    assert sorted(sample.documents["doc_id"].to_pylist()) == sorted(f"d{number}" for number in range(1100))
    positions = list(zip(sample.documents["shard"].to_pylist(), sample.documents["row"].to_pylist(), strict=True))
    assert positions == sorted(positions)
    assert sample.estimate_documents(sample.bytes_read) == 1100


def test_text_files_are_opened_only_as_needed(write_shard: WriteShard, tmp_path: Path) -> None:
    for number in range(200):
        write_shard([f"the text of file {number}"], f"{number:03}.txt")
    config = SourceConfig(uri=str(tmp_path))
    sample = sample_documents(config, list_shards(config), 100, 0)
    assert sample.documents.num_rows == 100
    assert sample.records_read < 130
    assert sample.estimate_documents(sum(shard.size_bytes for shard in list_shards(config).shards)) == pytest.approx(200, rel=0.05)


def test_invalid_documents_are_not_counted(write_shard: WriteShard, tmp_path: Path) -> None:
    write_shard([{"id": f"d{number}", "text": "a text" if number % 2 else ""} for number in range(400)], "a.jsonl")
    sample = draw(tmp_path, 50)
    assert (sample.documents.num_rows, sample.records_read) == (50, 400)
    assert sample.estimate_documents(sample.bytes_read) == 200


def test_parquet_rows_come_from_the_whole_of_a_large_shard(
    write_shard: WriteShard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "LEAST_READ_BYTES", 0)
    write_shard(rows(0, 5000), "a.parquet", row_group_size=50)
    sample = draw(tmp_path, 100)
    assert sample.records_read < 1000
    assert sample.estimate_documents(list_shards(SourceConfig(uri=str(tmp_path))).shards[0].size_bytes) == pytest.approx(5000, rel=0.1)
    numbers = sample.documents["row"].to_numpy()
    assert numbers.max() - numbers.min() > 2500
    assert sample.documents["doc_id"].to_pylist() == [f"d{number}" for number in numbers]


def test_a_sample_has_metadata(corpus: Path) -> None:
    config = SourceConfig(uri=str(corpus), metadata_columns={"heading": "title"})
    sample = sample_documents(config, list_shards(config), 10, 0, pa.schema([("heading", pa.string())]))
    for row in sample.documents.to_pylist():
        assert row["heading"].removeprefix("title ") == row["text"].removeprefix("document number ")


def test_a_broken_shard_is_skipped_unless_all_are_broken(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    (corpus / "broken.parquet").write_bytes(b"PAR1 not really")
    assert draw(corpus, 20).documents.num_rows == 20
    assert "broken.parquet" in caplog.text
    for name in ("a.jsonl.gz", "b.parquet", "c.csv"):
        (corpus / name).unlink()
    with pytest.raises(SourceError, match=r"broken\.parquet"):
        draw(corpus, 20)


def test_a_source_without_any_text_is_refused(write_shard: WriteShard, tmp_path: Path) -> None:
    write_shard([{"id": "1", "text": " "}], "a.jsonl")
    with pytest.raises(ConfigError, match="none of 1 records read can be embedded"):
        draw(tmp_path, 20)
    (tmp_path / "a.jsonl").write_bytes(b"")
    with pytest.raises(ConfigError, match="no record is there"):
        draw(tmp_path, 20)

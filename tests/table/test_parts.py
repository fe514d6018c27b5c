"""A part is written once or not at all, holds exact text spans, and describes itself in its footer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder.core.errors import StorageError
from embedder.core.storage import Location
from embedder.core.units import Part
from embedder.table.parts import assemble_rows, encode_parquet, list_parts, read_part
from embedder.table.vectors import vector_column
from embedder.text.chunking import CHUNKS
from tests.table.conftest import TEXTS, make_chunks, make_documents, make_vectors


def test_rows_hold_the_exact_text_of_their_span() -> None:
    rows = assemble_rows(make_documents(), make_chunks(), make_vectors(6), store_text=True).to_pylist()
    assert [row["text"] for row in rows] == ["one", "two", "drei", "🦊 vier", "fünf", "sechs sieben"]
    for row in rows:
        assert TEXTS[row["row"]][row["start_char"] : row["end_char"]] == row["text"]
    assert rows[0]["origin"] == {"year": 1999, "place": None}
    assert rows[0]["tags"] == ["a", "b"]


def test_text_is_left_out_when_it_is_not_stored() -> None:
    rows = assemble_rows(make_documents(), make_chunks(), make_vectors(6), store_text=False)
    assert rows.schema.names[:7] == ["doc_id", "chunk", "num_chunks", "start_char", "end_char", "num_tokens", "content_hash"]
    assert rows.schema.names[-1] == "embedding"


@pytest.mark.parametrize("store_text", [True, False])
def test_a_large_text_is_not_copied_for_each_of_its_chunks(store_text: bool) -> None:
    text = "word " * 600_000
    starts = list(range(0, len(text), 1_000))
    repeated = {"document": 0, "num_chunks": len(starts), "num_tokens": 3, "truncated": False, "token_ids": [1, 2, 3]}
    columns = {name: [value] * len(starts) for name, value in repeated.items()}
    columns |= {"chunk": list(range(len(starts))), "start_char": starts, "end_char": [start + 1_000 for start in starts]}
    chunks = pa.table({name: columns[name] for name in CHUNKS.names}, schema=CHUNKS)
    # 3,000 copies of it would be 9 GB, and an Arrow text column holds 2
    rows = assemble_rows(make_documents((text,)), chunks, make_vectors(len(starts)), store_text)
    assert rows.num_rows == len(starts)
    assert not store_text or "".join(rows["text"].to_pylist()) == text


def test_vectors_come_back_bit_for_bit() -> None:
    vectors_ND = make_vectors(6)
    column = vector_column(vectors_ND)
    assert np.array_equal(column.flatten().to_numpy().reshape(6, -1), vectors_ND)
    assert len(vector_column(np.zeros((0, 8), np.float32))) == 0


def test_a_unit_without_rows_is_a_part_too(tmp_path: Path) -> None:
    documents = make_documents().slice(0, 0)
    rows = assemble_rows(documents, CHUNKS.empty_table(), np.zeros((0, 8), np.float32), store_text=True)
    assert rows.num_rows == 0
    path = tmp_path / "empty.parquet"
    path.write_bytes(encode_parquet(rows, {}))
    assert pq.read_table(path).schema.equals(rows.schema)


def test_vectors_are_byte_stream_split_under_zstd(tmp_path: Path, write_unit: Callable[..., Part]) -> None:
    part = write_unit()
    group = pq.read_metadata(tmp_path / "table" / part.name).row_group(0)
    column = group.column(group.num_columns - 1)
    assert column.path_in_schema == "embedding.list.element"
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert column.compression == "ZSTD"


def test_the_second_writer_describes_the_part_of_the_first(tmp_path: Path, write_unit: Callable[..., Part]) -> None:
    first = write_unit(seed=1, quarantined=2)
    before = (tmp_path / "table" / first.name).read_bytes()
    second = write_unit(seed=2, quarantined=2)
    assert second == first
    assert (tmp_path / "table" / first.name).read_bytes() == before
    assert [each.name for each in (tmp_path / "table").iterdir() if each.suffix == ".tmp"] == []


def test_a_part_replaces_the_quarantine_file_of_a_worker_that_died_before_its_own(tmp_path: Path, write_unit: Callable[..., Part]) -> None:
    first = write_unit(quarantined=2)
    (tmp_path / "table" / first.name).unlink()
    rejects = tmp_path / "table" / "_quarantine" / first.name
    rejects.write_bytes(encode_parquet(pq.read_table(rejects).slice(1), {}))
    assert write_unit(quarantined=2) == first
    assert pq.read_table(rejects).num_rows == 2


@pytest.mark.parametrize("is_written", [False, True])
def test_a_part_without_rejects_leaves_no_quarantine_file_of_a_worker_that_died(
    tmp_path: Path, write_unit: Callable[..., Part], is_written: bool
) -> None:
    first = write_unit()
    leftover = tmp_path / "table" / "_quarantine" / first.name
    leftover.parent.mkdir()
    leftover.write_bytes(b"of a document that was embedded since")
    if not is_written:
        (tmp_path / "table" / first.name).unlink()
    assert write_unit() == first
    assert not leftover.exists()


def test_a_part_on_storage_is_described_by_its_footer(tmp_path: Path, write_unit: Callable[..., Part]) -> None:
    part = write_unit(quarantined=1)
    folder = Location(str(tmp_path / "table"))
    assert read_part(part.name, folder) == part
    assert [str(name) for name in list_parts(folder)] == [part.name]


def test_a_foreign_parquet_file_is_not_taken_for_a_part(tmp_path: Path, write_unit: Callable[..., Part]) -> None:
    part = write_unit()
    path = tmp_path / "table" / part.name
    foreign = encode_parquet(pq.read_table(path), {})
    path.unlink()
    path.write_bytes(foreign)
    with pytest.raises(StorageError, match="not a part of embedder"):
        read_part(part.name, Location(str(tmp_path / "table")))

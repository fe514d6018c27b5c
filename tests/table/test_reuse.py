"""Vectors of removed parts are found by content hash, wherever the text moved, and never for another text."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedder.table.parts
from embedder.core.storage import Location
from embedder.core.units import Part, PartName
from embedder.table.hash_index import NO_INDEX, open_index, to_uint64
from embedder.table.reuse import MOST_PARTS, NO_PREVIOUS, choose_parts, index_parts, open_known, take_known, take_reusable
from tests.table.conftest import TEXTS, make_vectors
from tests.tables import hash_text

HASHES = [hash_text(text) for text in TEXTS]


def ask(*hashes: str) -> pa.ChunkedArray:
    return pa.chunked_array([list(hashes)], pa.string())


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return Location(str(tmp_path / "table"))


def test_known_texts_return_their_vectors_in_the_order_requested(folder: Location, write_unit: Callable[..., Part]) -> None:
    previous = index_parts([write_unit().name], folder)
    reused = take_reusable(ask(HASHES[2], hash_text("new"), HASHES[0]), previous, folder, "none")
    assert reused["document"].to_pylist() == [0, 0, 2, 2]
    assert reused["chunk"].to_pylist() == [0, 1, 0, 1]
    vectors_ND = np.array(reused["embedding"].to_pylist(), np.float32)
    assert np.array_equal(vectors_ND, make_vectors(6)[[4, 5, 0, 1]])


def test_one_text_may_be_requested_twice_and_be_in_several_parts(folder: Location, write_unit: Callable[..., Part]) -> None:
    previous = index_parts([write_unit(key="a" * 16).name, write_unit(key="b" * 16).name], folder)
    reused = take_reusable(ask(HASHES[1], HASHES[1]), previous, folder, "none")
    assert reused["document"].to_pylist() == [0, 0, 1, 1]


def test_hashes_that_share_only_their_first_half_are_distinguished(folder: Location, write_unit: Callable[..., Part]) -> None:
    previous = index_parts([write_unit().name], folder)
    impostor = HASHES[0][:16] + "0" * 16
    assert previous.find(ask(impostor))[0] >= 0, "the index holds the first half only"
    assert take_reusable(ask(impostor, HASHES[1]), previous, folder, "none")["document"].to_pylist() == [1, 1]


def test_an_empty_index_finds_no_rows(folder: Location) -> None:
    assert take_reusable(ask(*HASHES), NO_PREVIOUS, folder, "none").num_rows == 0
    assert take_reusable(ask(), index_parts([], folder), folder, "none").num_rows == 0


def test_documents_of_any_part_are_found_by_the_index(folder: Location, write_unit: Callable[..., Part]) -> None:
    first, second = write_unit(key="a" * 16), write_unit(key="b" * 16, seed=1)
    index = open_index(folder, {first.name: first.rows}, 1 << 20)
    hashes = ask(hash_text("new"), HASHES[2], HASHES[0][:16] + "0" * 16, HASHES[2])
    reused = take_known(hashes, open_known([], index, folder), folder, "none")
    assert reused["document"].to_pylist() == [1, 1, 3, 3]
    assert np.array_equal(np.array(reused["embedding"].to_pylist(), np.float32), make_vectors(6)[[4, 5, 4, 5]])
    sampled = replace(open_index(folder, {first.name: first.rows}, 0), share=0.5)
    known = open_known([second.name], sampled, folder)
    assert take_known(hashes, known, folder, "none")["document"].to_pylist() == [1, 1, 3, 3], "the shard's own parts are read"
    assert take_known(ask(*HASHES), known, folder, "none").num_rows == 6, "and each document is taken once"


def test_parts_of_another_space_are_not_read(folder: Location, write_unit: Callable[..., Part]) -> None:
    known = open_known([write_unit().name], NO_INDEX, folder)
    assert take_known(ask(*HASHES), known, folder, "none").num_rows == 0


def test_a_part_is_read_if_it_pays_or_is_of_the_same_shard() -> None:
    large, small = (str(PartName("0" * 16, digit * 32, 0, size, True)) for digit, size in (("1", 10_000), ("2", 900)))
    found = np.array([b"", *[large.encode()] * 9, small.encode()])
    assert choose_parts(found, 1.0) == [small]
    assert choose_parts(found, 1.0, [large]) == [large, small]
    assert choose_parts(found, 0.9) == [large, small], "half an index shows half of the copies"
    many = np.array([str(PartName(f"{number:016x}", "0" * 32, 0, 1, True)).encode() for number in range(300)])
    assert len(choose_parts(many, 1.0)) == MOST_PARTS
    assert choose_parts(np.full(3, b"", "S1"), 1.0) == []


def test_the_index_is_sorted_and_small(folder: Location, write_unit: Callable[..., Part]) -> None:
    previous = index_parts([write_unit().name], folder)
    assert np.array_equal(previous.hashes, np.sort(to_uint64(ask(*HASHES))))
    arrays = [getattr(previous, field.name) for field in fields(previous) if field.name != "names"]
    assert sum(array.nbytes for array in arrays) == 20 * len(TEXTS)


def test_only_row_groups_with_requested_rows_are_read(
    folder: Location, write_unit: Callable[..., Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder.table.parts, "ROW_GROUP_ROWS", 2)
    previous = index_parts([write_unit().name], folder)
    read: list[list[int]] = []
    original = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_groups", lambda file, groups, columns: read.append(groups) or original(file, groups, columns=columns)
    )
    reused = take_reusable(ask(HASHES[2], HASHES[0], HASHES[2]), previous, folder, "none")
    assert read == [[0, 2]]
    assert np.array_equal(np.array(reused["embedding"].to_pylist(), np.float32), make_vectors(6)[[4, 5, 0, 1, 4, 5]])

"""The index finds the part of every document; it is a cache, so that a missing, stale, foreign or damaged file costs time and no more."""

import logging
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

import embedder.table.hash_index
from embedder.core.storage import Location
from embedder.table.compact import compact_table
from embedder.table.delta import read_table
from embedder.table.hash_index import HashIndex, choose_files, open_index, read_files, split_parts, to_uint64
from embedder.table.vacuum import vacuum_table
from tests.tables import Corpus, MadeTable

CORPUS: Corpus = {name: [(f"{name}{number}", f"{name} {number}", "x") for number in range(5)] for name in ("large-a", "large-b", "p")}


@pytest.fixture
def made(tmp_path: Path) -> MadeTable:
    table = MadeTable(str(tmp_path / "table"), rows_per_unit=3)
    table.follow(CORPUS)
    return table


def rows_of(made: MadeTable) -> dict[str, int]:
    state = read_table(made.location)
    assert state is not None
    return dict(state.rows)


def open_all(made: MadeTable, most_bytes: int = 1 << 20) -> HashIndex:
    return open_index(made.location, rows_of(made), most_bytes)


def check_finds_all(index: HashIndex, made: MadeTable) -> None:
    """Compare with the parts as another reader sees them."""
    holders = defaultdict[int, set[bytes]](set)
    for name in rows_of(made):
        for value in to_uint64(pq.read_table(Path(made.location.uri, name), columns=["content_hash"])["content_hash"]).tolist():
            holders[value].add(name.encode())
    found = index.find(np.array([*holders], np.uint64)).tolist()
    assert all(name in names for name, names in zip(found, holders.values(), strict=True))
    assert index.find(np.array([0, 1, 2**64 - 1], np.uint64)).tolist() == [b""] * 3


def files_of(made: MadeTable) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(made.location.uri, "_hashes").iterdir()}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the parts that were read for the index."""
    names: list[str] = []
    original = embedder.table.hash_index._read_hashes
    monkeypatch.setattr(embedder.table.hash_index, "_read_hashes", lambda table, name: names.append(name) or original(table, name))
    return names


def test_every_document_is_found_and_each_part_is_read_once(made: MadeTable, read: list[str]) -> None:
    check_finds_all(open_all(made), made)
    assert sorted(read) == sorted(rows_of(made))
    read.clear()
    check_finds_all(open_all(made), made)
    assert read == []
    before = set(rows_of(made))
    made.follow(CORPUS | {"large-c": CORPUS["large-a"]})
    check_finds_all(open_all(made), made)
    assert set(read) == set(rows_of(made)) - before, "only parts that the index lacks"


def test_parts_that_a_compaction_replaced_or_a_restore_brought_back_are_found(made: MadeTable) -> None:
    open_all(made)
    compact_table(made.location, 10_000_000)
    check_finds_all(open_all(made), made)
    made.follow({"p": CORPUS["p"]})
    index = open_all(made)
    assert set(index.find(np.concatenate([file.entries for file in index.files]))) <= {name.encode() for name in rows_of(made)}
    DeltaTable(made.location.uri).restore(0)
    check_finds_all(open_all(made), made)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b"PAR1 of another tool"),
    "of other parts": lambda path: path.write_bytes(path.read_bytes().replace(b"-000000000003-", b"-000000000004-")),
    "flipped in an entry": lambda path: path.write_bytes(path.read_bytes()[:60] + b"?" + path.read_bytes()[61:]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_in_the_log_and_made_anew(made: MadeTable, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    open_all(made)
    [(name, whole)] = files_of(made).items()
    path = Path(made.location.uri, "_hashes", name)
    DAMAGES[damage](path)
    with caplog.at_level(logging.WARNING, "embedder"):
        check_finds_all(open_all(made), made)
    assert (name in caplog.text) == (damage != "missing")
    assert files_of(made) == {name: whole}
    caplog.clear()
    check_finds_all(open_all(made), made)
    assert not caplog.text


def test_a_damaged_part_is_named_and_the_documents_of_others_are_found(made: MadeTable, caplog: pytest.LogCaptureFixture) -> None:
    broken, *others = rows_of(made)
    Path(made.location.uri, broken).write_bytes(b"")
    with caplog.at_level(logging.WARNING, "embedder"):
        index = open_all(made)
    assert broken in caplog.text
    found = index.find(np.concatenate([file.entries for file in index.files]))
    assert set(found.astype(str)) == set(others)


def test_of_a_large_table_the_smallest_hashes_are_loaded(made: MadeTable) -> None:
    whole = open_all(made)
    for index in (open_all(made, 8 * 10), open_all(made, 8 * 10)):
        assert index.share == 10 / sum(rows_of(made).values()) == 1 / 3
        entries = np.sort(np.concatenate([file.entries for file in index.files]))
        assert np.array_equal(entries, np.sort(np.concatenate([file.entries for file in whole.files]))[:5])


def test_small_files_are_replaced_by_one_and_a_vacuum_deletes_them(made: MadeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = dict(CORPUS)
    for number in range(embedder.table.hash_index.MOST_SMALL_FILES + 2):
        corpus |= {f"large-{number}": CORPUS["p"]}
        made.follow(corpus)
        open_all(made)
    stored = read_files(made.location.child("_hashes"))
    needed = choose_files(stored, rows_of(made))
    assert len(needed) < len(stored) == embedder.table.hash_index.MOST_SMALL_FILES + 2
    assert set().union(*(stored[name] for name in needed)) == set(rows_of(made))
    shown = vacuum_table(made.location, 0, insist=True)
    assert {each.name for each in shown.stale if each.kind == "index"} == set(stored) - set(needed)
    assert set(files_of(made)) == set(needed)
    DeltaTable(made.location.uri).vacuum(0, enforce_retention_duration=False, dry_run=False)
    assert set(files_of(made)) == set(needed), "vacuums of other tools leave the folder alone"
    check_finds_all(open_all(made), made)


def test_a_file_holds_a_bounded_number_of_rows(monkeypatch: pytest.MonkeyPatch, made: MadeTable) -> None:
    monkeypatch.setattr(embedder.table.hash_index, "MOST_FILE_ROWS", 6)
    assert list(split_parts("abcd", {"a": 4, "b": 2, "c": 9, "d": 1})) == [["a", "b"], ["c"], ["d"]]
    check_finds_all(open_all(made), made)
    assert len(files_of(made)) > 1


def test_runs_at_once_write_equal_files(made: MadeTable) -> None:
    open_all(made)
    before = files_of(made)
    for path in Path(made.location.uri, "_hashes").iterdir():
        path.unlink()
    open_all(made)
    assert files_of(made) == before


def test_a_table_without_documents_has_an_empty_index(tmp_path: Path) -> None:
    assert open_index(Location(str(tmp_path / "none")), {}, 100).find(np.zeros(2, np.uint64)).tolist() == [b"", b""]

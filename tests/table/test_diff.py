"""The difference between two versions turns the older rows into the newer ones, and reads only parts that differ."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedder.table.diff
from embedder.core.errors import CommitError, ConfigError, VersionGoneError
from embedder.core.schema import VECTORS
from embedder.core.spec import Quantization
from embedder.core.units import PartName
from embedder.table.commits import open_delta
from embedder.table.diff import KEY, Changes, digest_contents, plan_changes, read_changes
from embedder.table.parts import read_batches
from jobs.diff import main
from tests.tables import Corpus, MadeTable

documents = st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["one", "one two", "two one three", " "]), st.sampled_from(["x", None]))
shards = st.lists(documents, max_size=8, unique_by=lambda document: document[0])
corpora = st.dictionaries(st.sampled_from(["large-1", "large-2", "p", "q", "r"]), shards, min_size=1)
CORPUS: Corpus = {
    "large": [("a", "one two", "x"), ("b", "three", "x"), ("c", "four", None)],
    "p": [("a", "five", "x")],
    "q": [("a", "six seven", "x")],
}


@pytest.fixture
def table(tmp_path: Path) -> MadeTable:
    return MadeTable(str(tmp_path / "table"))


def by_key(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(row[name] for name in KEY): {name: row[name] for name in row if name != "row"} for row in rows}


def rows_of(tables: Iterator[Any]) -> list[dict[str, Any]]:
    return [row for table in tables for row in table.to_pylist()]


def describe(changes: Changes) -> tuple[set[str], set[str]]:
    """Return documents upserted and keys deleted, as shard/id/chunk."""
    upserted, deleted = rows_of(changes.upserts), rows_of(changes.deletes)
    return tuple({"/".join(str(row[name]) for name in KEY) for row in rows} for rows in (upserted, deleted))  # type: ignore[return-value]


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=corpora, after=corpora)
def test_the_changes_applied_to_the_older_rows_give_the_newer_rows(table: MadeTable, before: Corpus, after: Corpus) -> None:
    shutil.rmtree(table.uri, ignore_errors=True)
    old, new = table.follow(before), table.follow(after)
    changes = read_changes(table.location, old, new)
    rows, wanted = by_key(table.rows(old)), by_key(table.rows(new))
    upserts, deletes = rows_of(changes.upserts), rows_of(changes.deletes)
    assert len(by_key(upserts)) == len(upserts)
    assert all(rows.get(key) != row for key, row in by_key(upserts).items()), "only rows that differ"
    assert not {tuple(row.values()) for row in deletes} & set(by_key(upserts))
    for row in deletes:
        del rows[tuple(row[name] for name in KEY)]
    assert rows | by_key(upserts) == wanted


def test_unchanged_parts_are_not_read(table: MadeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    old = table.follow(CORPUS)
    new = table.follow({**CORPUS, "large": [*CORPUS["large"][:1], ("b", "other", "x")]})
    read: set[str] = set()
    monkeypatch.setattr(embedder.table.diff, "read_batches", lambda store, columns: read.add(store.uri) or read_batches(store, columns))
    assert describe(read_changes(table.location, old, new)) == ({"large/b/0"}, {"large/c/0"})
    differing = set(table.names(old)) ^ set(table.names(new))
    assert {uri.rsplit("/", 1)[-1] for uri in read} == set(map(str, differing))
    assert len({name.key for name in differing}) == 1


def test_a_row_that_only_moved_within_its_shard_is_unchanged(table: MadeTable) -> None:
    old = table.follow(CORPUS)
    new = table.follow({**CORPUS, "large": [("new", "zero", "x"), *CORPUS["large"]]})
    assert describe(read_changes(table.location, old, new)) == ({"large/new/0"}, set())


def test_metadata_alone_is_a_change(table: MadeTable) -> None:
    old = table.follow(CORPUS)
    new = table.follow({**CORPUS, "p": [("a", "five", "y")]})
    changes = read_changes(table.location, old, new)
    assert describe(changes) == ({"p/a/0"}, set())
    assert [list(known) for _, known in changes.compared()] == [[True]]


def test_a_moved_shard_is_removed_under_its_old_name_and_added_under_the_new(table: MadeTable) -> None:
    old = table.follow(CORPUS)
    new = table.follow({"large": CORPUS["large"], "q": CORPUS["q"], "p-moved": CORPUS["p"]})
    assert describe(read_changes(table.location, old, new)) == ({"p-moved/a/0"}, {"p/a/0"})


def test_a_shard_that_outgrows_its_bucket_keeps_the_rows_it_had(table: MadeTable) -> None:
    grown = [*CORPUS["p"], *((f"n{number}", "more", "x") for number in range(7))]
    old, new = table.follow(CORPUS), table.follow({**CORPUS, "p": grown})
    assert describe(read_changes(table.location, old, new)) == ({f"p/n{number}/0" for number in range(7)}, set())
    back = table.follow(CORPUS)
    assert describe(read_changes(table.location, new, back)) == (set(), {f"p/n{number}/0" for number in range(7)})


def test_every_row_is_new_from_nothing_and_none_between_equal_versions(table: MadeTable) -> None:
    new = table.follow(CORPUS)
    first = read_changes(table.location, None, new)
    assert by_key(rows_of(first.upserts)) == by_key(table.rows())
    assert by_key(rows_of(first.upserts)) == by_key(table.rows()), "a second pass gives the same"
    assert rows_of(first.deletes) == []
    assert read_changes(table.location, new, new).groups == ()


def test_parts_split_differently_are_unchanged() -> None:
    key, (v, w, x) = "a" * 16, (digit * 32 for digit in "123")
    whole = [PartName(key, v, 0, 9, True), PartName(key, w, 0, 2, True)]
    cut = [PartName(key, v, 0, 5, False), PartName(key, v, 5, 9, True), PartName(key, x, 0, 2, True)]
    removed, added = plan_changes(cut, whole)
    assert (list(removed), list(added)) == ([cut[2]], [whole[1]])


def test_versions_that_are_gone_are_refused_before_the_first_row(table: MadeTable) -> None:
    old = table.follow(CORPUS)
    new = table.follow({**CORPUS, "p": [("a", "other", "x")]})
    with pytest.raises(CommitError, match="there is no version 7; the newest is 1"):
        read_changes(table.location, old, 7)
    gone = next(iter(set(table.names(old)) - set(table.names(new))))
    Path(table.uri, str(gone)).unlink()
    with pytest.raises(VersionGoneError, match=f"version 0 can no longer be read: 1 of its parts were vacuumed.*{gone}.*load the table"):
        read_changes(table.location, old, new)
    open_delta(table.location).create_checkpoint()
    Path(table.uri, "_delta_log", f"{0:020d}.json").unlink()
    with pytest.raises(VersionGoneError, match=r"version 0 can no longer be opened.*its log was cleaned up"):
        read_changes(table.location, old, new)


def test_the_job_counts_rows_or_lists_each(table: MadeTable, capsys: pytest.CaptureFixture[str]) -> None:
    table.follow(CORPUS)
    table.follow({"large": [("b", "three", "y"), ("d", "new", "x")], "q": CORPUS["q"]})
    assert main([table.uri, "--from-version", "0"]) == 0
    assert capsys.readouterr().out.split("\n")[:4] == ["versions  0 → 1", "came      1 rows", "changed   1 rows", "left      4 rows"]
    assert main([table.uri, "--from-version", "0", "--to-version", "1", "--rows"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"change": "came", "shard": "large", "doc_id": "d", "chunk": 0} in lines
    assert [line["change"] for line in lines].count("left") == 4
    with pytest.raises(ConfigError, match="versions count from 0"):
        main([table.uri, "--from-version", "-1"])


@pytest.mark.parametrize("bits", [(0, 2), (2, 0)])
def test_tables_with_other_buckets_are_compared_by_shard(table: MadeTable, monkeypatch: pytest.MonkeyPatch, bits: tuple[int, int]) -> None:
    corpus = {"large": CORPUS["large"], **{name: [("a", f"word {name}", "x")] for name in "pqrstu"}}
    for number in bits:
        monkeypatch.setattr("tests.tables.BITS", number)
        table.follow(corpus)
    assert {name.key for name in table.names(0)} != {name.key for name in table.names(1)}
    for old, new in ((0, 1), (1, 0)):
        assert describe(read_changes(table.location, old, new)) == (set(), set())


@pytest.mark.parametrize(
    ("quantization", "vectors"), [("none", [[0.5, 1.0], [0.5, 2.0]]), ("int8", [[5, 1], [5, 2]]), ("binary", [b"\x01", b"\x02"])]
)
def test_vectors_of_every_quantization_are_compared_to_the_bit(quantization: Quantization, vectors: list[Any]) -> None:
    def digest(vector: Any) -> bytes:
        rows = pa.table({"content_hash": ["", ""], "embedding": pa.array([vectors[0], vector], VECTORS[quantization])})
        return bytes(digest_contents(rows.slice(1))[0])

    assert digest(vectors[0]) == digest(vectors[0])
    assert digest(vectors[0]) != digest(vectors[1])

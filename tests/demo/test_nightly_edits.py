"""The edits of the rehearsal, and the folder that follows them."""

import gzip
import json
from pathlib import Path

import pytest

from embedder.demo.corpus import SHARDS, Document
from embedder.demo.nightly_edits import NUM_DELETED, NUM_EDITED, Night, change_corpus, plan_nights

PER_SHARD = 8


@pytest.fixture(scope="module")
def nights() -> list[Night]:
    documents = [Document(f"m{number}.f", "f()", f"Text {number}.", f"m{number}", "function", "http://x") for number in range(400)]
    return plan_nights(documents, PER_SHARD)


def ids(night: Night) -> list[str]:
    return [each.id for shard in night.shards.values() for each in shard]


def test_each_day_makes_its_edits(nights: list[Night]) -> None:
    monday, tuesday, wednesday, thursday = nights
    assert monday.edits == f"4 shards, {4 * PER_SHARD} documents"
    assert len(set(ids(monday))) == 4 * PER_SHARD
    assert set(tuesday.shards) - set(monday.shards) == {SHARDS[7]}
    rewritten = [new for name, shard in monday.shards.items() for old, new in zip(shard, tuesday.shards[name], strict=True) if old != new]
    assert len(rewritten) == NUM_EDITED
    assert set(ids(wednesday)) < set(ids(tuesday))
    assert len(ids(tuesday)) - len(ids(wednesday)) == NUM_DELETED
    (renamed,) = set(wednesday.shards) - set(tuesday.shards)
    assert wednesday.shards[renamed] == tuesday.shards[renamed.removeprefix("archive/")]
    assert thursday.shards == wednesday.shards


def test_a_folder_follows_the_nights_and_only_shards_that_differ_are_written(nights: list[Night], tmp_path: Path) -> None:
    before: dict[str, list[Document]] = {}
    written: set[str] = set()
    for night in nights:
        changed_at = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
        change_corpus(str(tmp_path), before, night.shards)
        before = {name: list(shard) for name, shard in night.shards.items()}
        found = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*.*")}
        assert set(found) == set(night.shards)
        written = {name for name, path in found.items() if changed_at.get(path) != path.stat().st_mtime_ns}
    assert written == set()
    lines = gzip.decompress((tmp_path / SHARDS[0]).read_bytes()).decode().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [each.id for each in nights[-1].shards[SHARDS[0]]]

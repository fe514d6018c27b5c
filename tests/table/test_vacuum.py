"""Vacuum deletes old files that no version within the age needs, and no files that are young or not ours."""

import os
import time
from pathlib import Path

import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

import embedder.core.plan
import embedder.table.parts
from embedder.core.errors import CommitError, ConfigError, StorageError
from embedder.core.listing import Found
from embedder.core.plan import group_shards
from embedder.core.storage import Location, Store
from embedder.table.attempts import Attempts
from embedder.table.kept_samples import keep_sample
from embedder.table.vacuum import kind_of, plan_vacuum, vacuum_table
from tests.table.conftest import CORPUS
from tests.tables import BITS, MadeTable, as_shard

HOUR = 3600
EDITED = {**CORPUS, "large-2": [("a", "five", "y")], "p": [("b", " ", "x")]}


def age(table: MadeTable, hours: float, pattern: str = "**/*") -> None:
    """Set the age of files on local disk."""
    for path in Path(table.uri).glob(pattern):
        if path.is_file():
            moment = path.stat().st_mtime - hours * HOUR
            os.utime(path, (moment, moment))


def files(table: MadeTable) -> set[str]:
    return {found.uri.removeprefix(f"{Store(table.uri).uri}/") for found in Store(table.uri).list_files() if "_delta_log" not in found.uri}


def test_parts_removed_long_ago_are_deleted_and_every_version_within_the_age_stays_readable(tmp_path: Path) -> None:
    table = MadeTable(str(tmp_path / "table"))
    for topic in ("first", "second", "third"):
        table.follow({**CORPUS, "large-2": [("a", "five", topic)]})
        age(table, 100)
    table.follow({**CORPUS, "large-2": [("a", "five", "fourth")]})
    assert vacuum_table(table.location, 301).stale == (), "the first version was still the newest 301 hours ago"
    vacuumed = vacuum_table(table.location, 150)
    assert [each.name for each in vacuumed.stale] == [str(name) for name in set(table.names(0)) - set(table.names(1))]
    assert vacuumed.first_version == 1
    assert [len(table.rows(version)) for version in (1, 2, 3)] == [len(table.rows())] * 3
    with pytest.raises(OSError, match="parquet"):
        table.rows(0)
    assert vacuum_table(table.location, 150).stale == ()
    assert len(vacuum_table(table.location, 1).stale) == 1


def test_a_dry_run_lists_files_and_bytes_and_deletes_none(tmp_path: Path) -> None:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    table.follow(EDITED)
    age(table, 200)
    before = files(table)
    planned = vacuum_table(table.location, 168, dry_run=True)
    assert files(table) == before
    assert planned.stale
    for each in planned.stale:
        assert each.size_bytes == Path(each.uri).stat().st_size
        assert f"{each.size_bytes:,}" in planned.text()
        assert each.uri in planned.text()
    assert "from 1 on stay readable; older ones could no longer be read" in planned.text()
    done = vacuum_table(table.location, 168)
    assert done.stale == planned.stale
    assert files(table) == before - {each.uri.removeprefix(f"{table.uri}/") for each in planned.stale}


def test_an_old_sample_of_a_run_that_was_refused_is_deleted(tmp_path: Path) -> None:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    keep_sample(b"", "0123456789ab", table.location)
    assert vacuum_table(table.location, 1).stale == ()
    age(table, 2)
    assert [(each.kind, each.name) for each in vacuum_table(table.location, 1).stale] == [("sample", "0123456789ab.arrow")]
    assert "_samples/0123456789ab.arrow" not in files(table)


def test_quarantine_files_of_removed_parts_are_deleted(tmp_path: Path) -> None:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    rejected = {file for file in files(table) if file.startswith("_quarantine/")}
    table.follow({"q": CORPUS["q"]})
    age(table, 200)
    vacuum_table(table.location, 168)
    assert rejected
    assert not rejected & files(table)
    assert table.quarantine() == []
    assert files(table) == {str(name) for name in table.names()}


def test_leftovers_of_dead_runs_are_deleted_only_when_old(tmp_path: Path) -> None:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    age(table, 200)
    before = files(table)
    task = group_shards([as_shard("large-9", CORPUS["large"])], "layout", BITS)[0]
    table.write(task, {"large-9": CORPUS["large"]})
    folder = table.location
    Attempts(folder).begin("unit")
    part = table.names()[0]
    for name in (f".{part}.{'0' * 32}.tmp", f"_quarantine/.{part}.{'1' * 32}.tmp", f"_writable-{'2' * 32}"):
        Path(table.uri, name).write_bytes(b"half")
    leftovers = files(table) - before
    assert vacuum_table(table.location, 168).stale == (), "a run may still be writing them"
    age(table, 200)
    vacuumed = vacuum_table(table.location, 168)
    assert {each.uri.removeprefix(f"{table.uri}/") for each in vacuumed.stale} == leftovers
    assert {each.kind for each in vacuumed.stale} == {"part", "quarantine", "temporary", "attempt"}
    assert files(table) == before


def test_files_that_are_not_ours_are_never_deleted(tmp_path: Path) -> None:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    names = ("notes.txt", "part-0000.parquet", "_quarantine/mine.parquet", "_attempts/README", ".hidden", "deep/0.parquet", "x.tmp")
    for name in names:
        path = Path(table.uri, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    age(table, 10_000)
    assert vacuum_table(table.location, 168).stale == ()
    assert set(names) <= files(table)


def test_a_file_of_unknown_age_is_kept() -> None:
    name = f"{'0' * 16}-{'0' * 32}-{0:012d}-{9:012d}-last.parquet"
    assert plan_vacuum([(Found(f"/t/{name}", "", 5, None), False)], set(), 1e12) == ()
    assert len(plan_vacuum([(Found(f"/t/{name}", "", 5, 1.0), False)], set(), 1e12)) == 1


@given(st.text(st.characters(exclude_characters="/\n"), min_size=1))
def test_no_other_name_is_taken_for_ours(name: str) -> None:
    assert kind_of(f"/t/{name}", is_mark=False) is None


def test_an_age_shorter_than_a_run_is_refused_without_insist(tmp_path: Path) -> None:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    with pytest.raises(ConfigError, match=r"--older-than-hours=0.5: would delete parts of a run in progress.*--insist"):
        vacuum_table(table.location, 0.5)
    table.follow(EDITED)
    time.sleep(0.01)
    assert vacuum_table(table.location, 0, insist=True).stale
    assert len(table.rows()) > 0
    with pytest.raises(StorageError, match="no table there"):
        vacuum_table(Location(str(tmp_path / "nothing")), 168)


def test_ages_are_by_the_clock_of_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    table.follow(EDITED)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert vacuum_table(table.location, 168).stale == (), "the local clock, decades ahead, must not count"


@pytest.mark.s3
def test_an_object_store_keeps_young_files_and_those_that_a_version_names(table: MadeTable) -> None:
    table.follow(CORPUS)
    table.follow(EDITED)
    before = files(table)
    assert vacuum_table(table.location, 1).stale == ()
    time.sleep(2.1)  # the clock of an object store has seconds
    vacuumed = vacuum_table(table.location, 1 / HOUR, insist=True)
    assert {each.name for each in vacuumed.stale if each.kind == "part"} == set(map(str, set(table.names(0)) - set(table.names())))
    assert files(table) == before - {each.uri.removeprefix(f"{Store(table.uri).uri}/") for each in vacuumed.stale}
    assert table.rows()


def test_a_run_that_adopted_deleted_parts_is_refused_and_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    table.follow(EDITED)
    age(table, 200)
    planned = embedder.core.plan.plan_work

    def vacuumed_after_planning(*args: object) -> object:
        plan = planned(*args)  # type: ignore[arg-type]
        assert plan.adopt
        monkeypatch.setattr("tests.tables.read_part", lambda name, folder: parts[name])
        parts = {str(name): embedder.table.parts.read_part(str(name), table.location) for name in plan.adopt}
        vacuum_table(table.location, 168)
        return plan

    monkeypatch.setattr("tests.tables.plan_work", vacuumed_after_planning)
    with pytest.raises(CommitError, match=r"parts were deleted during this run.*nothing was published"):
        table.follow(CORPUS)
    monkeypatch.undo()
    table.follow(CORPUS)
    assert len(table.rows()) == len(table.rows(2))


def test_a_scan_that_began_before_later_versions_and_a_vacuum_reads_its_own_version_to_the_end(tmp_path: Path) -> None:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    before = sorted((row["doc_id"], row["text"]) for row in table.rows())
    dataset = DeltaTable(table.uri).to_pyarrow_dataset()
    scan = dataset.scanner(["doc_id", "text"], batch_size=1, batch_readahead=0, fragment_readahead=0).to_batches()
    read = next(scan).to_pylist()
    table.follow(EDITED)
    age(table, 10)
    assert vacuum_table(table.location, 24).stale == (), "the scan may be of any version of the last 24 hours"
    table.follow({**EDITED, "p": []})
    read += [row for batch in scan for row in batch.to_pylist()]
    assert sorted((row["doc_id"], row["text"]) for row in read) == before

"""A compaction changes only files: rows, quarantine, plan and the difference between versions stay the same."""

from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.core.errors import CommitError
from embedder.core.plan import group_shards, plan_work
from embedder.core.storage import Location, Store
from embedder.core.units import PartName, complete_parts
from embedder.table.check import check_table
from embedder.table.commits import open_delta
from embedder.table.compact import compact_table, plan_merges
from embedder.table.delta import Change, commit_table, read_table
from embedder.table.diff import read_changes
from embedder.table.parts import ROW_GROUP_ROWS, list_parts, read_part
from tests.table.conftest import CORPUS
from tests.tables import BITS, SCHEMA, MadeTable, as_shard

MUCH = 10**9


def test_rows_and_quarantine_stay_identical_and_no_work_is_left(table: MadeTable) -> None:
    table.follow(CORPUS)
    rows, rejects, before = (
        table.rows(),
        table.quarantine(),
        table.names(),
    )
    stats = {name.key: [read_part(str(each), table.location).stats for each in before if each.key == name.key] for name in before}
    planned = compact_table(table.location, MUCH, dry_run=True)
    assert table.names() == before
    done = compact_table(table.location, MUCH)
    assert (done.version, done.merges, done.parts_after) == (1, planned.merges, len(table.names()))
    assert len(table.names()) < len(before)
    assert table.rows() == rows
    assert table.quarantine() == rejects
    assert check_table(table.location, deep=True).faults == ()
    for name in table.names():
        part = read_part(str(name), table.location)
        assert part.stats == sum(stats[name.key][1:], stats[name.key][0])
    state = read_table(table.location)
    assert state is not None
    tasks = group_shards([as_shard(name, content) for name, content in CORPUS.items()], "layout", BITS)
    stored = set(list_parts(table.location)) - set(state.parts)
    assert plan_work(tasks, state.parts, list(stored)).is_empty
    assert compact_table(table.location, MUCH).version is None
    changes = read_changes(table.location, 0, 1)
    assert (list(changes.upserts), list(changes.deletes)) == ([], [])


def test_the_change_feed_shows_no_change(table: MadeTable) -> None:
    table.follow(CORPUS)
    version = compact_table(table.location, MUCH).version
    for uri in (table.uri, f"{table.uri}/_quarantine"):
        newest = open_delta(Location(uri)).version()
        with Store(f"{uri}/_delta_log/{newest:020d}.json").open_input() as log:
            actions = [line for line in log.read().decode().splitlines() if '"add"' in line or '"remove"' in line]
        assert actions
        assert all('"dataChange":false' in line for line in actions)
    assert open_delta(table.location).version() == version


def test_a_compaction_and_a_run_at_once_conflict(tmp_path: Path) -> None:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    state = read_table(table.location)
    assert state is not None
    compact_table(table.location, MUCH)
    with pytest.raises(CommitError, match="another run published first"):
        commit_table(table.location, Change((), (), SCHEMA, state.info), state)


def test_the_next_compaction_adopts_the_parts_of_one_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    rows = table.rows()

    def die(*args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("embedder.table.compact.commit_table", die)
    with pytest.raises(KeyboardInterrupt):
        compact_table(table.location, MUCH)
    monkeypatch.undo()
    merged = {path.name: path.stat().st_ino for path in Path(table.uri).glob("*.parquet")}
    assert table.rows() == rows
    compact_table(table.location, MUCH)
    assert {path.name: path.stat().st_ino for path in Path(table.uri).glob("*.parquet")} == merged
    assert table.rows() == rows


def test_merged_parts_are_adopted_if_the_source_returns_to_them(tmp_path: Path) -> None:
    table = MadeTable(str(tmp_path / "table"))
    table.follow(CORPUS)
    compact_table(table.location, MUCH)
    merged = table.names()
    table.follow({"q": CORPUS["q"]})
    table.follow(CORPUS)
    assert table.names() == merged


def test_row_groups_keep_their_size(tmp_path: Path) -> None:
    words = " ".join(["w"] * 300)
    table = MadeTable(str(tmp_path / "table"), rows_per_unit=10)
    table.follow({"large": [(f"d{number}", words, "x") for number in range(60)]})
    rows = table.rows()
    compact_table(table.location, MUCH)
    (name,) = table.names()
    metadata = pq.read_metadata(tmp_path / "table" / str(name))
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert sizes == [ROW_GROUP_ROWS, 18_000 - ROW_GROUP_ROWS]
    assert table.rows() == rows


sizes = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@given(st.lists(sizes, min_size=1, max_size=3), st.integers(2, 120))
def test_merges_join_small_neighbors_and_the_result_cannot_be_merged_again(tasks: list[list[int]], target: int) -> None:
    names: dict[PartName, int] = {}
    for number, task in enumerate(tasks):
        bounds = [10 * place for place in range(len(task) + 1)]
        for size, (first, stop) in zip(task, pairwise(bounds), strict=True):
            names[PartName(f"{number:016d}", "0" * 32, first, stop, stop == bounds[-1])] = size
    by_name = {str(name): size for name, size in names.items()}
    merges = list(plan_merges(names, by_name, target))
    merged = [name for run in merges for name in run]
    assert len(merged) == len(set(merged))
    after = set(names) - set(merged)
    for run in merges:
        assert len(run) > 1
        assert sum(names[name] for name in run) <= target
        assert all(names[name] < target / 2 for name in run)
        assert all(before.stop_row == name.first_row and before.key == name.key for before, name in pairwise(run))
        after.add(PartName(run[0].key, run[0].version, run[0].first_row, run[-1].stop_row, run[-1].last))
    for number in range(len(tasks)):
        chain = [name for name in after if name.key == f"{number:016d}"]
        assert len(complete_parts(chain)) == len(chain)

"""A bucket of small shards goes on without those that cannot be read, unless the table has rows of theirs."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedder.core.plan import group_shards, plan_work
from embedder.core.storage import Location
from embedder.core.units import Part, Shard, Stats, shard_key
from embedder.run.broken_shards import holds_rows, replan_without_broken_shards
from embedder.run.embed import Outcome, choose_change
from embedder.table.delta import read_table
from tests.tables import BITS, MadeTable

ROWS = [("a1", "one two", "x"), ("a2", "three", "y")]


@dataclass(frozen=True)
class Run:
    """As much of a prepared run as planning reads."""

    config: Any
    spec: Any
    metadata: Any
    table: Any
    bucket_bits: int
    plan: Any
    replaces: bool = False


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("embedder.run.broken_shards.layout_of", lambda *_: "layout")
    uri = str(tmp_path / "table")

    def make(names: dict[str, str], committed: dict[str, Any] | None = None) -> Run:
        """Plan shards given by name and version, after a commit of a corpus."""
        if committed:
            MadeTable(uri).follow(committed)
        table = read_table(Location(uri))
        tasks = group_shards([Shard(name, version, 1) for name, version in names.items()], "layout", BITS)
        config = SimpleNamespace(output=SimpleNamespace(uri=uri, storage_options={}))
        return Run(config, None, None, table, BITS, plan_work(tasks, table.parts if table else [], []))

    return make


def names_of(run: Run, key: str) -> list[str]:
    [task] = [each for each in run.plan.read if each.key == key]
    return [shard.uri for shard in task.shards]


SMALL = {f"s{number}": "1" for number in range(12)}


def test_the_others_of_a_bucket_are_planned_without_the_broken(prepare: Any) -> None:
    run = prepare(SMALL)
    keys = [task.key for task in run.plan.read]
    assert len(keys) == 2
    broken = names_of(run, keys[0])[1:3]
    spared = replan_without_broken_shards(run, {keys[0]: broken})
    assert spared is not None
    assert [task.key for task in spared.work.plan.read] == [keys[0]]
    assert names_of(spared.work, keys[0]) == [name for name in names_of(run, keys[0]) if name not in broken]
    assert {task.key for task in spared.whole.plan.read} == set(keys)
    assert names_of(spared.whole, keys[1]) == names_of(run, keys[1])
    assert {task.version for task in spared.whole.plan.read}.isdisjoint({task.version for task in run.plan.read if task.key == keys[0]})


def test_there_is_nothing_to_spare_where_all_are_broken_or_none_is_known_to_be(prepare: Any) -> None:
    run = prepare(SMALL)
    key = run.plan.read[0].key
    assert replan_without_broken_shards(run, {key: names_of(run, key)}) is None
    assert replan_without_broken_shards(run, {key: ()}) is None
    assert replan_without_broken_shards(run, {}) is None


def test_a_bucket_that_holds_rows_of_the_broken_stays_as_it_is(prepare: Any) -> None:
    run = prepare(SMALL, {"s0": ROWS, "s1": ROWS})
    [key] = [task.key for task in run.plan.read if "s0" in [shard.uri for shard in task.shards]]
    folder = Location(run.config.output.uri)
    parts = [name for name in run.table.rows if name.startswith(key)]
    assert holds_rows(parts, ["s0"], folder)
    assert not holds_rows(parts, ["s9"], folder)
    assert replan_without_broken_shards(run, {key: ["s0"]}) is None
    other = next(name for name in names_of(run, key) if name not in ("s0", "s1"))
    assert replan_without_broken_shards(run, {key: [other]}) is not None


def test_what_was_large_before_it_broke_keeps_the_parts_it_had(prepare: Any) -> None:
    run = prepare({"large-a": "2", **SMALL}, {"large-a": ROWS})
    assert [name.key for name in run.plan.remove] == [shard_key("large-a")]
    [task] = [task for task in run.plan.read if "large-a" in [shard.uri for shard in task.shards]]
    spared = replan_without_broken_shards(run, {task.key: ["large-a"]})
    assert spared is not None
    part = Part(f"{task.key}-{'0' * 32}-{0:012d}-{1:012d}-last.parquet", 1, 1, Stats())
    add, remove = choose_change(spared.whole, [part], (), {task.key: ["large-a"]})
    assert (add, remove) == ((part,), ())
    assert choose_change(spared.whole, [part], ())[1] != ()


def test_what_comes_after_takes_the_place_of_what_failed() -> None:
    old, new, other = (Part(f"{key}-{version * 32}-{0:012d}-{1:012d}-last.parquet", 1, 1, Stats()) for key, version in (
        ("a" * 16, "1"), ("a" * 16, "2"), ("b" * 16, "1")))  # fmt: skip
    keys = ["a" * 16, "c" * 16]
    first = Outcome((old, other), dict.fromkeys(keys, "cut off"), {keys[0]: ("s",)}, frozenset(keys), {"x": 1}, seconds=2.0, cost_usd=1.0)
    both = first.merge(Outcome((new,), reasons={"x": 1, "y": 2}, seconds=1.0, cost_usd=0.5), {keys[0]})
    assert both.parts == (other, new)
    assert both.failures == dict.fromkeys(keys, "cut off"), "what could not be read is still said"
    assert both.unread == {keys[1]}
    assert (both.reasons, both.seconds, both.cost_usd) == ({"x": 2, "y": 2}, 3.0, 1.5)

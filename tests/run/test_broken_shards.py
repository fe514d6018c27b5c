"""A bucket of small shards is retried without the shards that cannot be read, unless the table has rows of theirs."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedder.core.plan import group_shards, plan_work
from embedder.core.storage import Location
from embedder.core.units import Part, Shard, Stats, shard_key
from embedder.run.broken_shards import holds_rows, replan_without_broken_shards
from embedder.run.publish import choose_change
from embedder.run.summary import Outcome
from embedder.table.delta import read_table
from tests.tables import BITS, MadeTable

ROWS = [("a1", "one two", "x"), ("a2", "three", "y")]
SMALL = {f"s{number}": "1" for number in range(12)}


@dataclass(frozen=True)
class Run:
    """The parts of a RunPlan that replanning reads."""

    config: Any
    spec: Any
    metadata: Any
    table: Any
    bucket_bits: int
    plan: Any
    replaces: bool = False


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plan shards given by name and version, after a commit of a corpus."""
    monkeypatch.setattr("embedder.run.broken_shards.layout_of", lambda *_: "layout")
    uri = str(tmp_path / "table")

    def make(names: dict[str, str], committed: dict[str, Any] | None = None) -> Run:
        if committed:
            MadeTable(uri).follow(committed)
        table = read_table(Location(uri))
        tasks = group_shards([Shard(name, version, 1) for name, version in names.items()], "layout", BITS)
        config = SimpleNamespace(output=SimpleNamespace(location=Location(uri)))
        return Run(config, None, None, table, BITS, plan_work(tasks, table.parts if table else [], []))

    return make


def names_of(run: Run, key: str) -> list[str]:
    [task] = [each for each in run.plan.read if each.key == key]
    return [shard.uri for shard in task.shards]


def test_a_bucket_is_retried_without_its_broken_shards(prepare: Any) -> None:
    run = prepare(SMALL)
    keys = [task.key for task in run.plan.read]
    assert len(keys) == 2
    broken = names_of(run, keys[0])[1:3]
    retry = replan_without_broken_shards(run, {keys[0]: broken})
    assert retry is not None
    assert [task.key for task in retry.work.plan.read] == [keys[0]]
    assert names_of(retry.work, keys[0]) == [name for name in names_of(run, keys[0]) if name not in broken]
    assert {task.key for task in retry.whole.plan.read} == set(keys)
    assert names_of(retry.whole, keys[1]) == names_of(run, keys[1])
    assert {task.version for task in retry.whole.plan.read}.isdisjoint({task.version for task in run.plan.read if task.key == keys[0]})


def test_a_bucket_is_not_retried_if_all_or_none_of_its_shards_are_broken(prepare: Any) -> None:
    run = prepare(SMALL)
    key = run.plan.read[0].key
    for broken in ({key: names_of(run, key)}, {key: ()}, {}):
        assert replan_without_broken_shards(run, broken) is None


def test_a_bucket_that_holds_rows_of_a_broken_shard_is_not_retried(prepare: Any) -> None:
    run = prepare(SMALL, {"s0": ROWS, "s1": ROWS})
    [key] = [task.key for task in run.plan.read if "s0" in [shard.uri for shard in task.shards]]
    folder = run.config.output.location
    parts = [name for name in run.table.rows if name.startswith(key)]
    assert holds_rows(parts, ["s0"], folder)
    assert not holds_rows(parts, ["s9"], folder)
    assert replan_without_broken_shards(run, {key: ["s0"]}) is None
    other = next(name for name in names_of(run, key) if name not in ("s0", "s1"))
    assert replan_without_broken_shards(run, {key: [other]}) is not None


def test_a_broken_shard_that_was_large_keeps_its_parts(prepare: Any) -> None:
    run = prepare({"large-a": "2", **SMALL}, {"large-a": ROWS})
    assert [name.key for name in run.plan.remove] == [shard_key("large-a")]
    [task] = [task for task in run.plan.read if "large-a" in [shard.uri for shard in task.shards]]
    retry = replan_without_broken_shards(run, {task.key: ["large-a"]})
    assert retry is not None
    part = Part(f"{task.key}-{'0' * 32}-{0:012d}-{1:012d}-last.parquet", 1, 1, Stats())
    assert choose_change(retry.whole, Outcome((part,), broken={task.key: ("large-a",)})) == ((part,), ())
    assert choose_change(retry.whole, Outcome((part,)))[1] != ()


def test_results_of_a_retry_replace_those_of_its_buckets() -> None:
    old, new, other = (Part(f"{key}-{version * 32}-{0:012d}-{1:012d}-last.parquet", 1, 1, Stats()) for key, version in (
        ("a" * 16, "1"), ("a" * 16, "2"), ("b" * 16, "1")))  # fmt: skip
    keys = ["a" * 16, "c" * 16]
    first = Outcome((old, other), (), dict.fromkeys(keys, "cut off"), {keys[0]: ("s",)}, frozenset(keys), {"x": 1}, seconds=2.0, cost_usd=1)
    both = first.merge(Outcome((new,), (other,), reasons={"x": 1, "y": 2}, seconds=1.0, cost_usd=0.5), {keys[0]})
    assert (both.parts, both.adopted) == ((other, new), (other,))
    assert both.failures == dict.fromkeys(keys, "cut off"), "shards that could not be read are still reported"
    assert both.unread == {keys[1]}
    assert (both.reasons, both.seconds, both.cost_usd) == ({"x": 2, "y": 2}, 3.0, 1.5)

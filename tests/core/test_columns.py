"""Columns hold what objects hold: the plan over columns equals the rules written down for one shard at a time."""

import math
from collections import defaultdict

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.core.columns import PartNames, Shards, find_foreign
from embedder.core.plan import BUCKET_BYTES, BUCKET_SHARDS, SMALL_SHARD_BYTES, choose_bucket_bits, group_shards, plan_work, protected_keys
from embedder.core.spec import digest
from embedder.core.units import PartName, Shard, Task, bucket_key, complete_parts, shard_key

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
shards = st.builds(
    Shard,
    uri=texts,
    version=texts,
    size_bytes=st.sampled_from([0, 100, SMALL_SHARD_BYTES - 1, SMALL_SHARD_BYTES, 5 * SMALL_SHARD_BYTES]),
    constants=st.sampled_from([(), (("year", "2024"),), (("year", None),)]),
    num_rows=st.sampled_from([None, 3]),
    row_filter=st.sampled_from(["", "", '{"filter": "a = \'é\'"}']),
)
listings = st.lists(shards, max_size=12, unique_by=lambda shard: shard.uri)


def group_one_by_one(listed: list[Shard], layout: str, bits: int) -> list[Task]:
    """Return the tasks by the rules, without columns."""
    tasks, buckets = [], defaultdict[str, list[Shard]](list)
    for shard in listed:
        version = (shard.version, shard.row_filter) if shard.row_filter else (shard.version,)
        if shard.size_bytes >= SMALL_SHARD_BYTES:
            tasks.append(Task(shard_key(shard.uri), digest(layout, *version), (shard,)))
        else:
            buckets[bucket_key(shard.uri, bits)].append(shard)
    for key, members in buckets.items():
        ordered = sorted(members, key=lambda shard: shard.uri)
        versions = [(each.uri, each.version, each.row_filter) if each.row_filter else (each.uri, each.version) for each in ordered]
        tasks.append(Task(key, digest(layout, *versions), tuple(ordered)))
    return tasks


def in_order(tasks: list[Task]) -> list[Task]:
    return sorted(tasks, key=lambda task: (-task.size_bytes, task.key))


def part_of(task: Task, rows: int, last: bool = True) -> PartName:
    return PartName(task.key, task.version, 0, rows, last)


@settings(deadline=None)
@given(listings, texts, st.integers(0, 64))
def test_keys_versions_and_members_of_tasks_are_those_of_the_rules(listed: list[Shard], layout: str, bits: int) -> None:
    tasks = group_shards(listed, layout, bits)
    assert in_order(list(tasks)) == in_order(group_one_by_one(listed, layout, bits))
    assert tasks.sizes.tolist() == [task.size_bytes for task in tasks]
    assert tasks.keys.to_pylist() == [task.key for task in tasks]


@settings(deadline=None)
@given(listings, listings, st.data())
def test_a_plan_is_the_difference_of_the_rules(before: list[Shard], after: list[Shard], data: st.DataObject) -> None:
    old, new = group_one_by_one(before, "layout", 1), group_one_by_one(after, "layout", 1)
    committed = [part_of(task, 7) for task in old if data.draw(st.booleans())]
    stored = [part_of(task, 7, data.draw(st.booleans())) for task in new if part_of(task, 7) not in committed and data.draw(st.booleans())]
    plan = plan_work(group_shards(after, "layout", 1), committed, stored)
    have = {(name.key, name.version) for name in committed}
    missing = [task for task in new if (task.key, task.version) not in have]
    finished = {name.key for name in stored if complete_parts([name])}
    wanted = {(task.key, task.version) for task in new}
    assert list(plan.read) == in_order([task for task in missing if task.key not in finished])
    assert sorted(plan.adopt, key=str) == sorted((name for name in stored if name.last), key=str)
    assert plan.done == {name.key: frozenset([str(name)]) for name in stored if not name.last}
    assert list(plan.keep) == [name for name in committed if (name.key, name.version) in wanted]
    assert list(plan.remove) == [name for name in committed if (name.key, name.version) not in wanted]
    for task in plan.read:
        mine = [name for name in plan.remove if name.key == task.key] + [name for name in plan.remove if name.version == task.version]
        assert plan.previous.get(task.key, ()) == tuple(map(str, mine))


@settings(deadline=None)
@given(listings, st.integers(0, 5), st.data())
def test_protected_keys_and_buckets_are_those_of_the_rules(listed: list[Shard], bits: int, data: st.DataObject) -> None:
    small = [shard.size_bytes for shard in listed if shard.size_bytes < SMALL_SHARD_BYTES]
    assert choose_bucket_bits(listed) == math.ceil(math.log2(max(sum(small) / BUCKET_BYTES, len(small) / BUCKET_SHARDS, 1)))
    committed = {shard_key(shard.uri) for shard in listed if data.draw(st.booleans())}
    own = {shard_key(shard.uri) if shard_key(shard.uri) in committed else bucket_key(shard.uri, bits) for shard in listed}
    tasks = group_shards(listed, "layout", bits)
    assert protected_keys(tasks, bits, committed) == {task.key for task in tasks} | (own if committed else set())


@settings(deadline=None)
@given(listings, listings)
def test_columns_return_the_objects_they_were_made_of(first: list[Shard], second: list[Shard]) -> None:
    columns = Shards.concat([Shards.of(first), Shards.of(second)])
    assert list(columns) == [*first, *second]
    assert columns[1:3] == [*first, *second][1:3]
    rows = np.arange(len(columns))[::-1]
    assert list(columns.select(rows)) == [*first, *second][::-1]


def test_names_of_parts_are_told_from_others_and_counted() -> None:
    names = [PartName("a" * 16, "b" * 32, 5, 12, False), PartName("c" * 16, "d" * 32, 12, 1_000_000, True)]
    column = PartNames.of(names)
    assert list(column) == names
    assert column.num_documents == 7 + 999_988
    assert list(column.with_keys(["a" * 16])) == names[:1]
    foreign = ["x.parquet", f"{names[0]}\n", f"{names[0]}.tmp", str(names[1]).upper()]
    assert find_foreign([*map(str, names), *foreign]) == foreign
    assert [PartName.parse(name) for name in foreign] == [None] * 4
    assert PartNames(pa.array([], pa.string())).num_documents == 0

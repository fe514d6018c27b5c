"""Which parts a run may publish and remove before its end."""

import pytest

from embedder.config.output import Every, parse_every
from embedder.core.columns import PartNames, Tasks
from embedder.core.plan import SMALL_SHARD_BYTES, group_shards, plan_work
from embedder.core.units import Part, PartName, Shard, Stats, Task
from embedder.run.publish_often import find_held, is_complete, replaced_by

BITS = 0
LARGE = SMALL_SHARD_BYTES


def tasks_of(*shards: Shard) -> Tasks:
    return group_shards(shards, "layout", BITS)


def task_of(*shards: Shard) -> Task:
    [task] = tasks_of(*shards)
    return task


def names_of(task: Task, *stops: int) -> list[PartName]:
    firsts = (0, *stops)
    return [PartName(task.key, task.version, first, stop, stop == stops[-1]) for first, stop in zip(firsts, stops, strict=False)]


def parts_of(names: list[PartName]) -> list[Part]:
    return [Part(str(name), name.stop_row - name.first_row, 1, Stats()) for name in names]


@pytest.mark.parametrize(
    ("text", "every"),
    [
        ("30 minutes", Every(1800, "seconds")),
        ("1 hour", Every(3600, "seconds")),
        ("1,000,000 rows", Every(1_000_000, "rows")),
        ("20GB", Every(20_000_000_000, "bytes")),
    ],
)
def test_an_amount_has_a_unit(text: str, every: Every) -> None:
    assert parse_every(text) == every


@pytest.mark.parametrize("text", ["30", "0 rows", "-1 rows", "1.5 hours", "often", "5 parts"])
def test_anything_else_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match="is no amount; write 30 minutes"):
        parse_every(text)


def test_a_task_is_complete_when_its_parts_lead_from_the_first_row_to_the_last() -> None:
    first, second, last = parts_of(names_of(task_of(Shard("a", "1", LARGE)), 10, 20, 25))
    assert is_complete([last, first, second])
    assert not is_complete([first, second])
    assert not is_complete([first, last])


def test_the_parts_of_an_edited_shard_are_replaced_and_those_of_a_lost_one_stay_until_the_end() -> None:
    old = [task_of(Shard(uri, "1", LARGE)) for uri in ("edited", "lost")]
    edited = task_of(Shard("edited", "2", LARGE))
    committed = [name for task in old for name in names_of(task, 10, 20)]
    plan = plan_work(tasks_of(Shard("edited", "2", LARGE)), committed, [])
    replaced = replaced_by(parts_of(names_of(edited, 15)), plan, set(), set(map(str, committed)))
    assert sorted(replaced) == sorted(map(str, names_of(old[0], 10, 20)))


def test_the_parts_of_a_moved_shard_leave_with_its_copy_unless_another_content_took_its_place() -> None:
    old = task_of(Shard("old", "1", LARGE))
    moved, successor = Shard("new", "1", LARGE), Shard("old", "2", LARGE)
    committed = names_of(old, 10)
    names = set(map(str, committed))
    added = parts_of(names_of(task_of(moved), 10))
    assert replaced_by(added, plan_work(tasks_of(moved), committed, []), set(), names) == [str(committed[0])]
    assert replaced_by(added, plan_work(tasks_of(moved, successor), committed, []), set(), names) == []


def test_a_bucket_waits_for_a_shard_that_it_may_have_held() -> None:
    grown = Shard("grown", "2", LARGE)
    before = task_of(Shard("grown", "1", 10), Shard("small", "1", 10))
    after, alone = task_of(Shard("small", "1", 10)), tasks_of(grown)
    assert after.key == before.key
    committed = PartNames.of(names_of(before, 10))
    assert find_held(alone, BITS, committed) >= {before.key, alone[0].key}
    assert before.key not in find_held(tasks_of(), BITS, committed)


def test_a_shard_that_shrank_into_an_unfinished_bucket_keeps_its_parts() -> None:
    large, bucket = task_of(Shard("shrunk", "1", LARGE)), tasks_of(Shard("shrunk", "2", 10))
    assert large.key in find_held(bucket, BITS, PartNames.of(names_of(large, 10)))

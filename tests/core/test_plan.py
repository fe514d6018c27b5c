"""Planning is a set difference: over any history of shards, only changes are read, and a second run does nothing."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.core.plan import (
    BATCHES,
    BUCKET_BYTES,
    SMALL_SHARD_BYTES,
    batch_tasks,
    choose_bucket_bits,
    group_shards,
    plan_work,
    protected_keys,
    slice_task,
)
from embedder.core.units import PartName, Shard, Task, bucket_key, complete_parts, shard_key

LARGE = SMALL_SHARD_BYTES
names = st.sampled_from([f"s3://docs/{number}.jsonl" for number in range(12)])
listings = st.dictionaries(names, st.tuples(st.integers(0, 3), st.sampled_from([100, LARGE, 3 * LARGE])), max_size=12)


def shards_of(listing: dict[str, tuple[int, int]]) -> list[Shard]:
    return [Shard(uri, f"v{version}-{size}", size) for uri, (version, size) in sorted(listing.items())]


def parts_of(task: Task, rows: int = 25, per_part: int = 10) -> list[PartName]:
    bounds = [*range(0, rows, per_part), rows]
    pairs = list(pairwise(bounds))
    return [PartName(task.key, task.version, first, stop, stop == rows) for first, stop in pairs]


def run(
    listing: dict[str, tuple[int, int]], committed: list[PartName], stored: list[PartName], bits: int = 2
) -> tuple[list[PartName], list[Task]]:
    """Apply a plan as a run does: drop the removed parts, add those read and adopted."""
    plan = plan_work(group_shards(shards_of(listing), "layout", bits), committed, stored)
    assert set(plan.keep) | set(plan.remove) == set(committed)
    written = [part for task in plan.read for part in parts_of(task)]
    return [*plan.keep, *plan.adopt, *written], list(plan.read)


@settings(deadline=None)
@given(st.lists(listings, min_size=1, max_size=5))
def test_after_any_history_the_table_is_that_of_a_fresh_run_and_the_next_run_does_nothing(
    history: list[dict[str, tuple[int, int]]],
) -> None:
    committed: list[PartName] = []
    everything: list[PartName] = []
    for listing in history:
        committed, _ = run(listing, committed, [name for name in everything if name not in committed])
        everything = list({*everything, *committed})
    fresh, _ = run(history[-1], [], [])
    assert sorted(map(str, committed)) == sorted(map(str, fresh))
    plan = plan_work(group_shards(shards_of(history[-1]), "layout", 2), committed, [])
    assert plan.is_empty


@settings(deadline=None)
@given(listings, listings)
def test_only_shards_that_changed_are_read(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> None:
    committed, _ = run(before, [], [])
    _, read = run(after, committed, [])
    changed = {uri for uri in {*before, *after} if before.get(uri) != after.get(uri)}
    large_read = {shard.uri for task in read if len(task.shards) == 1 for shard in task.shards if shard.size_bytes >= LARGE}
    assert large_read <= changed
    buckets = {bucket_key(uri, 2) for uri in changed}
    assert all(task.key in buckets or task.shards[0].uri in changed for task in read)


@settings(deadline=None)
@given(listings, st.data())
def test_parts_of_an_unfinished_run_are_adopted_when_complete_and_skipped_when_not(
    listing: dict[str, tuple[int, int]], data: st.DataObject
) -> None:
    tasks = group_shards(shards_of(listing), "layout", 2)
    everything = [part for task in tasks for part in parts_of(task)]
    stored = data.draw(st.lists(st.sampled_from(everything), unique=True)) if everything else []
    plan = plan_work(tasks, [], stored)
    for task in tasks:
        mine = {part for part in stored if part.key == task.key}
        if len(mine) == len(parts_of(task)):
            assert mine <= set(plan.adopt)
            assert task not in plan.read
        else:
            assert task in plan.read
            assert plan.done.get(task.key, frozenset()) == frozenset(map(str, mine))


def test_another_layout_reads_everything_and_removes_everything() -> None:
    shards = [Shard("a", "1", LARGE), Shard("b", "1", 10)]
    committed = [part for task in group_shards(shards, "one", 0) for part in parts_of(task)]
    plan = plan_work(group_shards(shards, "two", 0), committed, [])
    assert len(plan.read) == 2
    assert not plan.keep
    assert set(plan.remove) == set(committed)


def test_parts_with_a_gap_or_without_an_end_are_not_complete() -> None:
    task = Task("0" * 16, "0" * 32, (Shard("a", "1", 1),))
    chain = parts_of(task)
    assert complete_parts(reversed(chain)) == chain
    assert complete_parts(chain[:-1]) == []
    assert complete_parts(chain[1:]) == []
    assert complete_parts([chain[0], chain[2]]) == []
    empty = PartName(task.key, task.version, 0, 0, True)
    assert complete_parts([empty]) == [empty]


def test_small_shards_share_buckets_of_bounded_size() -> None:
    shards = [Shard(f"s3://docs/{number}.txt", "1", 20_000) for number in range(5_000)]
    bits = choose_bucket_bits(shards)
    tasks = group_shards(shards, "layout", bits)
    assert len(tasks) <= 2**bits
    assert sum(len(task.shards) for task in tasks) == 5_000
    assert max(task.size_bytes for task in tasks) < 2 * BUCKET_BYTES


def test_a_listing_of_large_shards_needs_no_buckets() -> None:
    assert choose_bucket_bits([Shard("a", "1", LARGE)]) == 0


def test_slices_share_their_shards_name_and_only_the_last_one_ends_it() -> None:
    task = Task("0" * 16, "0" * 32, (Shard("a.parquet", "1", 1),))
    slices = slice_task(task, [(0, 4, 0), (4, 8, 4000), (8, 9, 8000)])
    assert {(each.key, each.version) for each in slices} == {(task.key, task.version)}
    assert [each.ends for each in slices] == [False, False, True]
    assert [each.first_row for each in slices] == [0, 4000, 8000]


def test_a_failed_shard_protects_its_parts_and_those_of_its_former_bucket() -> None:
    shard = Shard("a", "2", LARGE)
    tasks = group_shards([shard], "layout", 3)
    own, bucket = shard_key("a"), bucket_key("a", 3)
    assert protected_keys(tasks, 3, {bucket}) == {own, bucket}, "it may have been small before"
    assert protected_keys(tasks, 3, {own, bucket}) == {own}, "its rows are in its own parts, and the bucket is not protected"
    assert protected_keys(tasks, 3, set()) == {own}, "without commits, only its own key"


def test_a_failed_bucket_protects_the_parts_of_a_shard_that_was_large_before() -> None:
    tasks = group_shards([Shard("a", "v", 10)], "layout", 3)
    own, bucket = shard_key("a"), bucket_key("a", 3)
    assert protected_keys(tasks, 3, {own, bucket}) == {own, bucket}


links = st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans())


def chains_of(names: list[PartName], row: int = 0) -> list[list[PartName]]:
    """Return every chain, by brute force."""
    found: list[list[PartName]] = []
    for name in names:
        if name.first_row == row and name.last:
            found.append([name])
        elif name.first_row == row and name.stop_row > row:
            found += [[name, *rest] for rest in chains_of(names, name.stop_row)]
    return found


@settings(deadline=None)
@given(st.lists(links, max_size=9))
def test_a_chain_is_found_if_one_exists_and_takes_the_longest_parts_that_lead_to_the_end(drawn: list[tuple[int, int, bool]]) -> None:
    names = list({PartName("k", "v", first, first + length, last) for first, length, last in drawn})
    chains = chains_of(names)
    found = complete_parts(names)
    assert (found in chains) if chains else not found
    for link in found:
        others = [chain[0] for chain in chains_of(names, link.first_row)]
        assert link.stop_row == max(name.stop_row for name in others)


sized_tasks = st.lists(st.builds(lambda size: Task("0" * 16, "1" * 32, (Shard("a", "v", size),)), st.integers(0, 10**6)), max_size=50)


@given(sized_tasks)
def test_up_to_a_thousand_equal_tasks_and_each_large_one_are_a_row_of_their_own(tasks: list[Task]) -> None:
    total = sum(task.size_bytes for task in tasks)
    batches = list(batch_tasks(tasks, total))
    assert [task for batch in batches for task in batch] == tasks
    for batch in batches:
        assert all(task.size_bytes * BATCHES < total for task in batch[:-1])
    equal = [Task("0" * 16, "1" * 32, (Shard("a", "v", 7),))] * len(tasks)
    assert [len(batch) for batch in batch_tasks(equal, 7 * len(tasks))] == [1] * len(tasks)


def test_a_hundred_thousand_tasks_are_some_thousand_rows_of_at_most_a_thousandth_of_what_is_left() -> None:
    task = Task("0" * 16, "1" * 32, (Shard("a", "v", 100),))
    sizes = [len(batch) for batch in batch_tasks([task] * 100_000, 100 * 100_000)]
    assert sum(sizes) == 100_000
    assert len(sizes) < 6_000
    assert sizes[0] == 100
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-BATCHES:] == [1] * BATCHES


def test_each_slice_of_a_large_shard_is_a_row_of_its_own() -> None:
    large = Task("0" * 16, "1" * 32, (Shard("a.parquet", "v", 10**9),))
    slices = slice_task(large, [(0, 1, 0), (1, 2, 10), (2, 3, 20)])
    small = [Task("2" * 16, "1" * 32, (Shard("b", "v", 10**6),))] * 10
    assert list(map(len, batch_tasks([*slices, *small], 10**9 + 10**7))) == [1, 1, 1, *[1] * 10]

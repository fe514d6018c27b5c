"""Estimates are bounds: a moved shard embeds nothing, a changed one at most all, and rates come from runs of the same space."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.config.compute import ComputeConfig
from embedder.core.plan import Plan
from embedder.core.units import PartName, Shard, Task
from embedder.run.dry_run import describe_estimate
from embedder.run.estimate import Range, Rates, estimate_documents, estimate_work, learn_rates, learn_speed

HOURLY = ComputeConfig(price_per_device_hour_usd=4)


def record(**values: Any) -> dict[str, Any]:
    stats = {"documents": 100, "quarantined": 10, "reused": 40, "tokens": 5_000}
    run = {"space_id": "s", "source_bytes": 1_000, "actors": 2, "steady_tokens_per_second": 600.0, "failures": {}, "stats": stats}
    return run | values


def task(key: str, version: str, size_bytes: int) -> Task:
    return Task(key, version, (Shard(key, version, size_bytes),))


def plan(read: list[Task], remove: list[PartName] | None = None, done: dict[str, frozenset[str]] | None = None) -> Plan:
    return Plan(tuple(read), done or {}, (), (), tuple(remove or ()), {})


def test_rates_come_from_whole_runs_of_the_same_space() -> None:
    assert learn_rates([record()], "s") == Rates(0.1, 100.0, "1 earlier run")
    others = [record(space_id="t"), record(source_bytes=0), record(failures={"k": "cut off"}), {"spec": {}, "stats": {}}]
    assert learn_rates([*others, record(), record(source_bytes=3_000)], "s") == Rates(200 / 4_000, 100.0, "2 earlier runs")
    assert learn_rates(others, "s") is None


def test_a_run_that_embedded_nothing_gives_no_rates() -> None:
    stats = {"documents": 100, "quarantined": 0, "reused": 100, "tokens": 0}
    assert learn_rates([record(stats=stats)], "s") is None


def test_the_speed_is_that_of_one_actor_in_the_newest_run_that_measured_it() -> None:
    records = [record(space_id="t"), record(steady_tokens_per_second=None), record(actors=4), record()]
    assert learn_speed(records, "s") == 150.0
    assert learn_speed(records, "u") is None


def test_a_changed_shard_embeds_at_most_all_and_at_least_what_it_gained() -> None:
    before = [PartName("k", "old", 0, 40, False), PartName("k", "old", 40, 60, True)]
    assert estimate_documents(plan([task("k", "new", 1_000)], before), 0.1, same_space=True) == (100.0, Range(40.0, 100.0))
    assert estimate_documents(plan([task("k", "new", 100)], before), 0.1, same_space=True) == (10.0, Range(0.0, 10.0))
    assert estimate_documents(plan([task("k", "new", 1_000)], before), 0.1, same_space=False) == (100.0, Range(100.0, 100.0))


def test_a_moved_shard_is_read_and_embeds_nothing() -> None:
    moved = plan([task("there", "v", 1_000)], [PartName("here", "v", 0, 100, True)])
    assert estimate_documents(moved, 0.1, same_space=True) == (100.0, Range(0.0, 0.0))


def test_units_of_a_run_that_died_are_not_embedded_again() -> None:
    done = {"k": frozenset([str(PartName("k" * 16, "v" * 32, 0, 30, False)).replace("k" * 16, "0" * 16).replace("v" * 32, "0" * 32)])}
    assert estimate_documents(plan([task("k", "v", 1_000)], done=done), 0.1, same_space=True) == (100.0, Range(70.0, 70.0))


def test_hours_and_money_follow_from_the_speed_of_one_actor() -> None:
    work = plan([task("k", "v", 1_000)])
    estimate = estimate_work(work, Rates(0.1, 36.0, "x"), True, speed=2.0, compute=HOURLY)
    assert (estimate.tokens, estimate.device_hours, estimate.usd) == (Range(3_600, 3_600), Range(0.5, 0.5), Range(2.0, 2.0))
    assert estimate_work(work, Rates(0.1, 36.0, "x"), True, None, HOURLY).device_hours is None
    assert estimate_work(work, Rates(0.1, 36.0, "x"), True, 2.0, ComputeConfig()).usd is None


def test_behind_an_api_money_follows_from_the_tokens() -> None:
    estimate = estimate_work(
        plan([task("k", "v", 1_000)]), Rates(0.1, 36.0, "x"), True, None, ComputeConfig(price_per_million_tokens_usd=500)
    )
    assert (estimate.device_hours, estimate.usd) == (None, Range(1.8, 1.8))
    assert describe_estimate(estimate, is_api=True)[-1] == ("cost", "~$1.8 (estimated)")
    unpriced = estimate_work(plan([task("k", "v", 1_000)]), Rates(0.1, 36.0, "x"), True, None, ComputeConfig())
    assert describe_estimate(unpriced, is_api=True)[-1] == ("cost", "unknown: set compute.price_per_million_tokens_usd")


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 10_000))), st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 500)))
)
def test_bounds_are_bounds(sizes: list[tuple[str, int]], before: list[tuple[str, int]]) -> None:
    read = [task(key, f"new-{number}", size) for number, (key, size) in enumerate(dict(sizes).items())]
    remove = [PartName(key, "old", 0, rows, True) for key, rows in dict(before).items()]
    documents, embedded = estimate_documents(plan(read, remove), 0.1, same_space=True)
    assert 0 <= embedded.low <= embedded.high <= documents == pytest.approx(sum(each.size_bytes for each in read) * 0.1)


def test_a_range_whose_bounds_look_alike_is_one_number() -> None:
    assert Range(1_000.2, 1_000.4).text() == "~1,000"
    assert Range(0, 1_234.5).text() == "~0 to ~1,234"
    assert Range(0.01234, 1234).text("$") == "~$0.0123 to ~$1,234"
    assert Range(2, 2).text("device-hours") == "~2 device-hours"

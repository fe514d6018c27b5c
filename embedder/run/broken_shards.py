"""Plan buckets again without the shards that cannot be read, so that one truncated file does not block its neighbors.

A bucket whose broken shards have rows in the table stays as it is: without them it would lose these rows.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from embedder.core.columns import PartNames, Tasks, is_among
from embedder.core.plan import Plan, group_shards, plan_work
from embedder.core.storage import Location
from embedder.core.units import Shard
from embedder.run.prepare import RunPlan, layout_of
from embedder.table.parts import list_parts, part_file, read_batches

logger = logging.getLogger("embedder")


@dataclass(frozen=True, slots=True)
class Retry:
    """Buckets planned again without their broken shards."""

    work: RunPlan
    """Their remaining work: nothing if an earlier run did it and the shards are still broken."""
    whole: RunPlan
    """The run's plan, with theirs in place of what failed."""
    keys: frozenset[str]
    """Of the buckets."""


def replan_without_broken_shards(run_plan: RunPlan, broken: Mapping[str, Collection[str]]) -> Retry | None:
    """Plan buckets again without their broken shards, given by task key; None if no bucket can be retried."""
    if run_plan.replaces:
        return None  # all-or-nothing
    folder = run_plan.config.output.location
    committed = run_plan.table.parts if run_plan.table else PartNames.of(())
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for name in committed.with_keys(broken):
        parts[name.key].append(str(name))
    left: list[Shard] = []
    for task in run_plan.plan.read.with_keys(broken):
        shards = [shard for shard in task.shards if shard.uri not in broken[task.key]]
        if shards and len(shards) < len(task.shards) and not holds_rows(parts[task.key], broken[task.key], folder):
            left += shards
    if not left:
        return None
    tasks = group_shards(left, layout_of(run_plan.config, run_plan.spec, run_plan.metadata), run_plan.bucket_bits)
    keys = frozenset(tasks.keys.to_pylist())
    mine = committed.with_keys(keys)
    stored = PartNames.parse(list_parts(folder)).with_keys(keys)
    plan = plan_work(tasks, mine, stored.select(~is_among(stored.names, mine.names)))
    logger.info("retrying %d buckets of small shards without those that cannot be read", len(tasks))
    return Retry(replace(run_plan, plan=plan), replace(run_plan, plan=merge_plans(run_plan.plan, plan, keys)), keys)


def merge_plans(plan: Plan, retry: Plan, keys: Collection[str]) -> Plan:
    """Replace the plan of some tasks, given by key."""
    return Plan(
        read=Tasks.concat(plan.read.with_keys(keys, invert=True), retry.read),
        done={key: names for key, names in plan.done.items() if key not in keys} | retry.done,
        adopt=(*(name for name in plan.adopt if name.key not in keys), *retry.adopt),
        keep=PartNames.concat(plan.keep.with_keys(keys, invert=True), retry.keep),
        remove=PartNames.concat(plan.remove.with_keys(keys, invert=True), retry.remove),
        previous={key: names for key, names in plan.previous.items() if key not in keys} | retry.previous,
    )


def holds_rows(parts: Sequence[str], shards: Collection[str], folder: Location) -> bool:
    """Return whether any row of these parts is of one of the shards."""
    return any(
        not set(shards).isdisjoint(batch["shard"].unique().to_pylist())
        for name in parts
        for batch in read_batches(part_file(folder, name), ["shard"])
    )

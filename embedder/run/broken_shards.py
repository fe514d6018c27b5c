"""Plan buckets again without the shards that cannot be read, so that one truncated file does not block its neighbors.

A bucket whose broken shards have rows in the table stays as it is: without them it would lose these rows.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from embedder.core.plan import Plan, group_shards, plan_work
from embedder.core.storage import Location
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
    committed = run_plan.table.parts if run_plan.table else []
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for name in committed:
        if name.key in broken:
            parts[name.key].append(str(name))
    tasks = []
    for task in run_plan.plan.read:
        shards = [shard for shard in task.shards if shard.uri not in broken.get(task.key, ())]
        if shards and len(shards) < len(task.shards) and not holds_rows(parts[task.key], broken[task.key], folder):
            layout = layout_of(run_plan.config, run_plan.spec, run_plan.metadata)
            tasks += group_shards(shards, layout, run_plan.bucket_bits)
    if not tasks:
        return None
    keys, known = frozenset(task.key for task in tasks), set(committed)
    stored = [name for name in list_parts(folder) if name.key in keys and name not in known]
    plan = plan_work(tasks, [name for name in committed if name.key in keys], stored)
    logger.info("retrying %d buckets of small shards without those that cannot be read", len(tasks))
    return Retry(replace(run_plan, plan=plan), replace(run_plan, plan=merge_plans(run_plan.plan, plan, keys)), keys)


def merge_plans(plan: Plan, retry: Plan, keys: Collection[str]) -> Plan:
    """Replace the plan of some tasks, given by key."""
    return Plan(
        read=(*(task for task in plan.read if task.key not in keys), *retry.read),
        done={**plan.done, **retry.done},
        adopt=(*(name for name in plan.adopt if name.key not in keys), *retry.adopt),
        keep=(*(name for name in plan.keep if name.key not in keys), *retry.keep),
        remove=(*(name for name in plan.remove if name.key not in keys), *retry.remove),
        previous={**plan.previous, **retry.previous},
    )


def holds_rows(parts: Sequence[str], shards: Collection[str], folder: Location) -> bool:
    """Return whether any row of these parts is of one of the shards."""
    return any(
        not set(shards).isdisjoint(batch["shard"].unique().to_pylist())
        for name in parts
        for batch in read_batches(part_file(folder, name), ["shard"])
    )

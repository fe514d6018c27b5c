"""Small shards are read together by bucket: what of a bucket is published when some of its shards cannot be read.

The others go on without them, so that one file cut off on upload does not hold up its neighbours. Shards whose rows the table
already has keep their bucket as it is: without them it would lose these rows.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from embedder.core.plan import Plan, group_shards, plan_work
from embedder.core.storage import Location
from embedder.core.units import PartName, Task
from embedder.run.prepare import RunPlan, layout_of
from embedder.table.parts import list_parts, part_file, read_batches

logger = logging.getLogger("embedder")


@dataclass(frozen=True, slots=True)
class Spared:
    """Buckets planned anew without the shards that cannot be read, and the run's plan with these in their place."""

    work: RunPlan
    """What is left to do for them: nothing if an earlier run did it, as long as nobody mends the shards."""
    whole: RunPlan
    keys: frozenset[str]
    """Of the buckets."""


def replan_without_broken_shards(run_plan: RunPlan, broken: Mapping[str, Collection[str]]) -> Spared | None:
    """Plan buckets anew without their broken shards, given by task key; None where there is nothing to plan."""
    if run_plan.replaces:
        return None  # swapped as a whole or not at all
    committed = run_plan.table.parts if run_plan.table else []
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for name in committed:
        if name.key in broken:
            parts[name.key].append(str(name))
    tasks = []
    for task in run_plan.plan.read:
        shards = [shard for shard in task.shards if shard.uri not in broken.get(task.key, ())]
        if not shards or len(shards) == len(task.shards):
            continue
        if holds_rows(parts[task.key], broken[task.key], run_plan.config.output.location):
            continue
        [smaller] = group_shards(shards, layout_of(run_plan.config, run_plan.spec, run_plan.metadata), run_plan.bucket_bits)
        tasks.append(smaller)
    return plan_spared(run_plan, tasks, committed) if tasks else None


def plan_spared(run_plan: RunPlan, tasks: Sequence[Task], committed: Sequence[PartName]) -> Spared:
    """Compare the smaller buckets with what the table and its folder hold, and put them into the run's plan."""
    keys = {task.key for task in tasks}
    stored = list_parts(run_plan.config.output.location)
    known = set(committed)
    mine = [name for name in committed if name.key in keys]
    plan = plan_work(tasks, mine, [name for name in stored if name.key in keys and name not in known])
    logger.info("%d buckets of small shards go on without those that cannot be read", len(tasks))
    return Spared(replace(run_plan, plan=plan), replace(run_plan, plan=merge_plans(run_plan.plan, plan, keys)), frozenset(keys))


def merge_plans(plan: Plan, spared: Plan, keys: Collection[str]) -> Plan:
    """Put the plan of some tasks in the place of what was planned for them."""
    return Plan(
        read=(*(task for task in plan.read if task.key not in keys), *spared.read),
        done=dict(plan.done) | dict(spared.done),
        adopt=(*(name for name in plan.adopt if name.key not in keys), *spared.adopt),
        keep=(*(name for name in plan.keep if name.key not in keys), *spared.keep),
        remove=(*(name for name in plan.remove if name.key not in keys), *spared.remove),
        previous=dict(plan.previous) | dict(spared.previous),
    )


def holds_rows(parts: Sequence[str], shards: Collection[str], folder: Location) -> bool:
    """Tell whether any row of these parts is of one of the shards."""
    return any(
        not set(shards).isdisjoint(batch["shard"].unique().to_pylist())
        for name in parts
        for batch in read_batches(part_file(folder, name), ["shard"])
    )

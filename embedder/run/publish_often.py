"""Publishes a run: all of it in one commit at its end or, by output.publish_every, finished shards in commits before that.

Each version is consistent: the rows of a shard change in one commit, and rows are removed only by the commit that adds what replaces
them. Rows of shards that left the source are removed at the end.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from embedder.config.output import parse_every
from embedder.core.columns import PartNames, Tasks
from embedder.core.errors import CommitError
from embedder.core.plan import Plan, protected_keys, shard_keys
from embedder.core.units import Part, PartName, complete_parts
from embedder.observe.progress import Meter
from embedder.run.drift import DriftWatch
from embedder.run.prepare import RunPlan
from embedder.run.publish import allows_removal, check_removal, choose_change, publish
from embedder.run.summary import Outcome, Summary, summarize
from embedder.table.delta import require_table
from embedder.table.quarantine import sync_quarantine

logger = logging.getLogger("embedder")


class Publisher:
    """Publishes what one run embeds, and knows the newest version of the table."""

    def __init__(self, run_plan: RunPlan, run_id: str, started: str, environment: Mapping[str, Any], watch: DriftWatch) -> None:
        self.run_plan, self.run_id, self.started, self.environment, self.watch = run_plan, run_id, started, environment, watch
        self.table = run_plan.table
        """The newest version that this run planned on or published."""
        every = run_plan.config.output.publish_every
        if every and run_plan.replaces:
            logger.warning("output.publish_every=%r: has no effect on a run that replaces the whole table, in one commit", every)
        self.every = parse_every(every) if every and not run_plan.replaces else None
        self._waiting: defaultdict[str, list[Part]] = defaultdict(list)
        """Parts to publish, by task key."""
        self._finished: set[str] = set()
        """Keys of tasks that were read to their end."""
        self._published: list[Part] = []
        self._removed: list[str] = []
        self._last, self._amount = time.monotonic(), 0

    def adopt(self, parts: Sequence[Part]) -> None:
        """Take the finished parts of an earlier run, which the next commit publishes."""
        for part in parts:
            self._waiting[part.key].append(part)

    def land(self, part: Part, meter: Meter, probe: tuple[float, ...]) -> None:
        """Take a part of the run, and publish all finished shards if it is time to."""
        if self.every is None:
            return
        self._waiting[part.key].append(part)
        self._amount += part.size_bytes if self.every.unit == "bytes" else part.rows
        if (time.monotonic() - self._last if self.every.unit == "seconds" else self._amount) >= self.every.amount:
            self._publish_finished(meter, probe)
            self._last, self._amount = time.monotonic(), 0

    def publish_rest(self, run_plan: RunPlan, outcome: Outcome) -> Summary:
        """Make the run's last commit, if there is anything to publish; return the figures of the whole run."""
        add, remove = choose_change(run_plan, outcome)
        summary = summarize(run_plan, outcome, add, remove, self.run_id, self.started)
        is_partial = bool(self._published)
        check_removal(run_plan, summary.rows, self._refused)
        if not (add or remove or is_partial or (self.table is None and not outcome.failures)):
            return summary
        summary = replace(summary, fidelity=self.watch.measure(add, self._refused))
        committed = self.table.rows if self.table else {}
        left = [part for part in add if part.name not in committed], [name for name in remove if name in committed]
        return publish(run_plan, outcome, left, summary, self.environment, self.table)

    @property
    def _refused(self) -> str:
        return "the rest was not published" if self._published else "nothing was published"

    def _publish_finished(self, meter: Meter, probe: tuple[float, ...]) -> None:
        """Publish the shards that are finished and that no unfinished one depends on; nothing if there are none."""
        run_plan, table = self.run_plan, self.table
        self._finished |= {key for key, parts in self._waiting.items() if is_complete(parts)}
        unfinished = run_plan.plan.read.with_keys(self._finished, invert=True)
        held = find_held(unfinished, run_plan.bucket_bits, table.parts if table else PartNames.of(()))
        ready = [key for key in self._waiting if key in self._finished and key not in held]
        add = [part for key in ready for part in self._waiting[key]]
        remove = replaced_by(add, run_plan.plan, held, table.rows if table else {})
        published, removed = [*self._published, *add], [*self._removed, *remove]
        adopted = {str(name) for name in run_plan.plan.adopt}
        outcome = Outcome(
            parts=tuple(part for part in published if part.name not in adopted),
            adopted=tuple(part for part in published if part.name in adopted),
            unread=frozenset(unfinished.keys.to_pylist()),
            reasons=meter.reasons,
            probe=probe,
            seconds=meter.seconds,
            cost_usd=meter.cost_usd,
        )
        summary = summarize(run_plan, outcome, published, removed, self.run_id, self.started)
        if not (add and allows_removal(run_plan, summary.rows) and self.watch.lets_pass(add, self._refused)):
            return
        summary = publish(run_plan, outcome, (add, remove), summary, self.environment, table, is_partial=True)
        done = len(run_plan.plan.read) - len(unfinished)
        logger.info("published version %d with %d of %d tasks of the run", summary.version, done, len(run_plan.plan.read))
        location = run_plan.config.output.location
        self.table, self._published, self._removed = require_table(location), published, removed
        if self.table.version != summary.version:
            raise CommitError(
                f"{location.uri}: another run or maintenance published version {self.table.version} right after this run's "
                f"version {summary.version}; nothing was lost, run again for the rest"
            )
        for key in ready:
            del self._waiting[key]
        sync_quarantine(location)


def find_held(unfinished: Tasks, bucket_bits: int, committed: PartNames) -> set[str]:
    """Return the keys whose parts must stay as they are, because they are or may hold rows of shards that are not finished."""
    held = protected_keys(unfinished, bucket_bits, set(committed.keys.to_pylist()))
    return held | set(shard_keys(unfinished.all_shards.uris)) if len(committed) else held


def is_complete(parts: Sequence[Part]) -> bool:
    """Return whether a task's parts cover its rows from the first to the last."""
    names = [name for part in parts if (name := PartName.parse(part.name))]
    return len(complete_parts(names)) == len(names)


def replaced_by(add: Sequence[Part], plan: Plan, held: Collection[str], committed: Collection[str]) -> list[str]:
    """Return the committed parts that these replace: earlier ones of the same tasks, and those of a shard that only moved."""
    names = [name for part in add if (name := PartName.parse(part.name))]
    keys, versions = {name.key for name in names}, {name.version for name in names}
    awaited = set(plan.read.keys.to_pylist()) | {name.key for name in plan.adopt} | set(held)
    moved = {str(name) for name in plan.remove if name.version in versions and name.key not in awaited}
    return [str(name) for name in plan.remove if str(name) in committed and (name.key in keys or str(name) in moved)]

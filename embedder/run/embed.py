"""One embed run: make the table match the source. First run, resume, refresh and nothing to do are this one path."""

import logging
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import import_module
from types import MappingProxyType

from embedder.config.embed import EmbedConfig
from embedder.config.source import SourceConfig
from embedder.core.errors import CommitError, SourceError
from embedder.core.plan import protected_keys, slice_task
from embedder.core.redaction import mask_secrets
from embedder.core.rotation import keep_rotation
from embedder.core.storage import map_threads
from embedder.core.units import Part, PartName, Stats, Task, complete_parts, shard_key
from embedder.model.backends import EMULATED
from embedder.observe.environment import describe_environment
from embedder.observe.logs import add_log_fields, log_fields
from embedder.observe.metrics import measure
from embedder.observe.process import peak_bytes
from embedder.observe.progress import Display, Meter
from embedder.pipeline.cluster import choose_pool, start_ray
from embedder.pipeline.graph import embed_units
from embedder.pipeline.reporter import Reporter
from embedder.pipeline.rows import StageContext
from embedder.run.broken_shards import replan_without_broken_shards
from embedder.run.prepare import RunPlan
from embedder.run.summary import Summary
from embedder.source.documents import SLICE_BYTES, slice_parquet
from embedder.table.delta import Change, commit_table, sync_quarantine
from embedder.table.parts import read_part
from embedder.table.reuse import NO_PREVIOUS, PreviousParts, index_parts

MOST_INDEXED_ROWS = 5_000_000
"""Rows to be removed that are indexed as a whole, 20 bytes each; beyond, a task looks into the parts it wrote itself."""

logger = logging.getLogger("embedder")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back from the pipeline."""

    parts: tuple[Part, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    """By task key: why it could not be read to its end."""
    broken: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By the key of a bucket: its shards that cannot be read."""
    unread: frozenset[str] = frozenset()
    """Keys of tasks none of whose documents can be published: those that failed, but for buckets that went on without what is broken."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    probe: tuple[float, ...] | None = None
    seconds: float = 0.0
    cost_usd: float | None = None
    steady_tokens_per_second: float | None = None
    encoder_busy_share: float | None = None
    actors: int = 0

    def merge(self, other: "Outcome", keys: Collection[str]) -> "Outcome":
        """Add what came back of buckets that went on without their broken shards; what these gave before is not used."""
        costs = [each.cost_usd for each in (self, other) if each.cost_usd is not None]
        return Outcome(
            parts=(*(part for part in self.parts if key_of(part.name) not in keys), *other.parts),
            failures={key: "\n".join(each.failures[key] for each in (self, other) if key in each.failures)
                      for key in {**self.failures, **other.failures}},
            broken={**self.broken, **other.broken},
            unread=self.unread.difference(keys) | other.unread,
            reasons=Counter(self.reasons) + Counter(other.reasons),
            probe=other.probe or self.probe,
            seconds=self.seconds + other.seconds,
            cost_usd=sum(costs) if costs else None,
            steady_tokens_per_second=self.steady_tokens_per_second or other.steady_tokens_per_second,
            encoder_busy_share=self.encoder_busy_share or other.encoder_busy_share,
            actors=max(self.actors, other.actors),
        )  # fmt: skip


def begin_run(config: EmbedConfig) -> None:
    """Start Ray while a thread imports what looking at a model takes: seconds each, and each on a core of its own."""
    with ThreadPoolExecutor(1) as beside:
        if not config.embedding.is_api:
            beside.submit(import_module, "transformers.models.auto.tokenization_auto")  # a failure comes again where it is used
        start_ray()


def run_embed(run_plan: RunPlan) -> Summary:
    """Embed what the plan asks for and publish it; gives what was done, shards that failed included."""
    run_id, started = uuid.uuid4().hex[:12], datetime.now(UTC).isoformat(timespec="seconds")
    config, plan, table = run_plan.config, run_plan.plan, run_plan.table
    folder = config.output.location
    config.output.location.open().check_writable()
    if run_plan.model.rotation_WW is not None:
        keep_rotation(run_plan.model.rotation_WW, config.output.location)
    adopted = map_threads(lambda name: read_part(str(name), folder), list(plan.adopt))
    add_log_fields(run_id=run_id, table=config.output.uri)
    logger.info("run %s: %d tasks to read, %d parts kept, %d adopted", run_id, len(plan.read), len(plan.keep), len(adopted))
    environment = describe_environment()  # before hours of work: what it looks at may be gone after them
    outcome = embed(run_plan, run_id) if plan.read else Outcome()
    spared = replan_without_broken_shards(run_plan, outcome.broken)
    if spared:
        adopted += map_threads(lambda name: read_part(str(name), folder), list(spared.work.plan.adopt))
        second = embed(spared.work, run_id) if spared.work.plan.read else Outcome()
        run_plan, outcome = spared.whole, outcome.merge(second, spared.keys)
    add, remove = choose_change(run_plan, [*adopted, *outcome.parts], outcome.unread, outcome.broken)
    summary = summarize(run_plan, outcome, add, remove, len(adopted))
    summary = replace(summary, run_id=run_id, started=started)
    check_removal(run_plan, summary.rows)
    if add or remove or (table is None and not outcome.failures):
        info = summary.record() | {
            "space_id": run_plan.spec.space_id,
            "spec": run_plan.spec.model_dump(),
            "ranges": run_plan.model.ranges.record() if run_plan.model.ranges else None,
            "bucket_bits": run_plan.bucket_bits,
            "probe": outcome.probe or (table.info.get("probe") if table else None),
            "config": mask_secrets(config.model_dump(mode="json")),
            "environment": environment,
        }
        change = Change(add, remove, run_plan.schema, info, run_plan.replaces)
        summary = summary.published(commit_table(config.output.location, change, table))
    if summary.version is not None or table is not None:
        sync_quarantine(config.output.location)
    return summary


def embed(run_plan: RunPlan, run_id: str) -> Outcome:
    """Run the pipeline over the plan's tasks, showing progress, and check that nothing is missing."""
    config, plan, table = run_plan.config, run_plan.plan, run_plan.table
    start_ray()
    pool = choose_pool(config.compute, run_plan.spec.is_api).suited_to(sum(task.size_bytes for task in plan.read))
    if run_plan.spec.float8 and pool.device == "cpu":
        logger.warning(EMULATED)  # workers say so where nobody reads it
    price = config.compute.price_per_device_hour_usd
    probe = table.info.get("probe") if table and run_plan.same_space else None
    job = StageContext(
        source=config.source,
        output=config.output,
        spec=run_plan.spec,
        tokenizer_json=run_plan.model.tokenizer_json,
        metadata=run_plan.metadata,
        max_attempts=config.compute.max_attempts,
        calibration_uri=config.embedding.calibration,
        ranges=run_plan.model.ranges,
        probe=tuple(probe) if probe else None,
        run_id=run_id,
        previous=index_reusable(run_plan),
    )
    tasks = [each for tasks in map_threads(lambda task: sliced(task, config.source), list(plan.read)) for each in tasks]
    usd_per_hour = price * pool.actors[1] if price is not None else None
    meter = Meter(plan.read, usd_per_hour, pool.actors[1], config.compute.price_per_million_tokens_usd)
    reporter = Reporter({"table": config.output.uri, "run_id": run_id})
    parts: list[Part] = []
    failures: dict[str, str] = {}
    broken: dict[str, tuple[str, ...]] = {}
    with Display() as display:
        for landed in embed_units(tasks, plan, job, pool):
            if landed.part is None:
                failures[landed.key], broken[landed.key] = str(landed.error), landed.broken
                meter.fail(landed.key)
                logger.error("%s", landed.error, extra=log_fields(task=landed.key))
            else:
                parts.append(landed.part)
                meter.land(landed.part, landed.reasons, landed.attempt, landed.tokens)
                logger.debug("landed", extra=log_fields(unit=landed.part.name))
                probe = landed.probe or probe
            reporter.report(measure(meter))
            display.refresh(meter)
    check_complete(plan.read, parts, failures)
    return Outcome(
        parts=tuple(parts),
        failures=failures,
        broken=broken,
        unread=frozenset(failures),
        reasons=meter.reasons,
        probe=tuple(probe) if probe else None,
        seconds=meter.seconds,
        cost_usd=meter.cost_usd,
        steady_tokens_per_second=meter.steady_tokens_per_second,
        encoder_busy_share=meter.encoder_busy_share,
        actors=pool.actors[1],
    )


def index_reusable(run_plan: RunPlan) -> PreviousParts | None:
    """Index the vectors that would leave the table, so that a document is recognised wherever it moved; None if they are too many."""
    plan, table = run_plan.plan, run_plan.table
    if table is None or not run_plan.same_space:
        return NO_PREVIOUS
    if sum(table.rows[str(name)] for name in plan.remove) > MOST_INDEXED_ROWS:
        return None
    return index_parts([str(name) for name in plan.remove], run_plan.config.output.location)


def sliced(task: Task, source: SourceConfig) -> list[Task]:
    """Split the reading of a parquet shard that is too large for one reader; one that cannot be opened fails when it is read."""
    if len(task.shards) > 1 or task.size_bytes < 2 * SLICE_BYTES or not task.shards[0].uri.endswith(".parquet"):
        return [task]
    try:
        return slice_task(task, slice_parquet(task.shards[0], source))
    except SourceError:
        return [task]


def check_complete(tasks: Sequence[Task], parts: Sequence[Part], failures: Mapping[str, str]) -> None:
    """Refuse to publish unless every task's parts reach from its first row to its last, each row once."""
    names: defaultdict[str, list[PartName]] = defaultdict(list)
    for part in parts:
        name = PartName.parse(part.name)
        assert name is not None, part
        assert part.stats.documents == name.stop_row - name.first_row, part
        names[name.key].append(name)
    for task in tasks:
        found = names[task.key]
        if task.key not in failures and not (found and len(complete_parts(found)) == len(found)):
            raise CommitError(f"{task.shards[0].uri}: units are missing after the run, nothing was published; run again to embed them")


def choose_change(
    run_plan: RunPlan, parts: Sequence[Part], unread: Collection[str], broken: Mapping[str, Collection[str]] = MappingProxyType({})
) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """Say which parts to add and which to remove, such that no shard that could not be read loses the rows it had.

    `unread` are keys of tasks that failed; of `broken` shards, whose buckets may go on without them, the parts that they had
    when they were larger are held too.
    """
    plan = run_plan.plan
    failed = [task for task in plan.read if task.key in unread]
    if failed and run_plan.replaces:
        logger.error("%d shards failed: the table is swapped as a whole or not at all; nothing was published", len(failed))
        return (), ()
    committed = {key_of(name) for name in run_plan.table.rows} if run_plan.table else set()
    held = protected_keys(failed, run_plan.bucket_bits, committed) | {shard_key(uri) for uris in broken.values() for uri in uris}
    add = tuple(part for part in parts if key_of(part.name) not in held)
    remove = tuple(str(name) for name in plan.remove if name.key not in held)
    return add, remove


def check_removal(run_plan: RunPlan, rows_left: int) -> None:
    """Refuse to publish a table that lost most of its rows: a source that was emptied or mistyped is more likely than meant."""
    table, most = run_plan.table, run_plan.config.output.max_removed_fraction
    rows = sum(table.rows.values()) if table and run_plan.same_space else 0
    if rows_left < rows * (1 - most):
        raise CommitError(
            f"output.max_removed_fraction={most}: this run would leave {rows_left:,} of {rows:,} rows, nothing was published; "
            "check source.uri, or insist with --output.max_removed_fraction 1"
        )


def key_of(name: str) -> str:
    """Read a part's task key from its name."""
    return name.split("-", 1)[0]


def summarize(run_plan: RunPlan, outcome: Outcome, add: Sequence[Part], remove: Sequence[str], num_adopted: int) -> Summary:
    """Collect the figures of a run."""
    plan, rows = run_plan.plan, dict(run_plan.table.rows) if run_plan.table else {}
    gone = set(rows) if run_plan.replaces and add else set(remove)
    kept = [name for name in rows if name not in gone]
    return Summary(
        run_id="",
        uri=run_plan.config.output.uri,
        started="",
        shards=len(run_plan.listing.shards),
        shards_ignored=len(run_plan.listing.ignored),
        stats=sum((part.stats for part in outcome.parts), Stats()),
        reasons=outcome.reasons,
        seconds=outcome.seconds,
        cost_usd=outcome.cost_usd,
        steady_tokens_per_second=outcome.steady_tokens_per_second,
        parts_added=len(add),
        parts_adopted=num_adopted,
        parts_kept=len(kept),
        parts_removed=len(rows) - len(kept),
        documents_reused=sum(name.stop_row - name.first_row for name in (*plan.keep, *plan.adopt)),
        rows=sum(rows[name] for name in kept) + sum(part.rows for part in add),
        bytes_added=sum(part.size_bytes for part in add),
        source_bytes=sum(task.size_bytes for task in plan.read if task.key not in outcome.unread),
        actors=outcome.actors,
        encoder_busy_share=outcome.encoder_busy_share,
        driver_peak_bytes=peak_bytes(),
        failures=outcome.failures,
    )

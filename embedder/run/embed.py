"""One embed run: make the table match the source. First run, resume, refresh and nothing to do are this one path."""

import logging
import math
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module

from embedder.config.embed import EmbedConfig
from embedder.config.source import SourceConfig
from embedder.core.columns import Tasks
from embedder.core.errors import CommitError, SourceError
from embedder.core.plan import slice_task
from embedder.core.rotation import keep_rotation
from embedder.core.storage import map_threads
from embedder.core.units import Part, PartName, Task, complete_parts
from embedder.model.backends import EMULATED
from embedder.observe.environment import describe_environment
from embedder.observe.logs import add_log_fields, log_fields
from embedder.observe.metrics import measure
from embedder.observe.progress import Display, Meter
from embedder.pipeline import in_process
from embedder.pipeline.pool import Pool
from embedder.pipeline.rows import LandedRow, StageContext
from embedder.run.broken_shards import replan_without_broken_shards
from embedder.run.drift import DriftWatch
from embedder.run.open_pipeline import Report, open_pipeline
from embedder.run.prepare import RunPlan, inspect_inputs, plan_run
from embedder.run.publish import missing_parts_explained, refuse_moved_table
from embedder.run.publish_often import Publisher
from embedder.run.summary import Outcome, Summary
from embedder.source.columns import with_context
from embedder.source.documents import SLICE_BYTES, slice_shard
from embedder.table.hash_index import LEAST_BYTES, MOST_BYTES, NO_INDEX, HashIndex, open_index
from embedder.table.parts import read_part
from embedder.table.quarantine import sync_quarantine

logger = logging.getLogger("embedder")

OPENED_TASKS = 256
REPORT_SECONDS = 1.0
"""Metrics and progress after every unit would take a driver of many GPUs a tenth of its time."""


def warm_up(config: EmbedConfig) -> None:
    """Start Ray while a thread imports the modules that read a model's files: seconds each, and each on its own core."""
    with ThreadPoolExecutor(1) as thread:
        if not config.embedding.is_api:
            thread.submit(import_module, "transformers.models.auto.tokenization_auto")  # a failed import is raised again at its use
        from embedder.pipeline.cluster import own_data_context, start_ray

        with own_data_context():
            start_ray()


def prepare_and_warm_up(config: EmbedConfig) -> RunPlan:
    """Check and plan a run; start Ray in between if the run is certain to need it."""
    inputs = inspect_inputs(config)
    if inputs.will_embed and inputs.listing and not in_process.suits(config, inputs.listing.shards):
        warm_up(config)
    return plan_run(inputs)


def run_embed(run_plan: RunPlan) -> Summary:
    """Make the table match its source; return the run's figures, failed shards included."""
    run_id, started = uuid.uuid4().hex[:12], datetime.now(UTC).isoformat(timespec="seconds")
    folder = run_plan.config.output.location
    folder.open().check_writable()
    add_log_fields(run_id=run_id, table=folder.uri)
    if run_plan.model.rotation_WW is not None:
        keep_rotation(run_plan.model.rotation_WW, folder)
    environment = describe_environment()  # before hours of work, after which files it looks at may be gone
    watch = DriftWatch(run_plan, run_id)
    publisher = Publisher(run_plan, run_id, started, environment, watch)
    with watch.kept_if_refused():
        with missing_parts_explained(run_plan, lambda: publisher.table):
            outcome = embed(run_plan, run_id, watch, publisher)
            retry = replan_without_broken_shards(run_plan, outcome.broken)
            if retry:
                run_plan, outcome = retry.whole, outcome.merge(embed(retry.work, run_id, watch), retry.keys)
        if outcome.failures:
            refuse_moved_table(run_plan, publisher.table)
        summary = publisher.publish_rest(run_plan, outcome)
    if summary.version is not None or run_plan.table:
        sync_quarantine(folder)
    return summary


def embed(run_plan: RunPlan, run_id: str, watch: DriftWatch, publisher: Publisher | None = None) -> Outcome:
    """Adopt finished parts, and run the pipeline over the tasks to read; CommitError if a unit is missing at the end.

    The publisher publishes finished shards meanwhile.
    """
    config, plan = run_plan.config, run_plan.plan
    logger.info("run %s: %d tasks to read, %d parts kept, %d adopted", run_id, len(plan.read), len(plan.keep), len(plan.adopt))
    adopted = tuple(map_threads(lambda name: read_part(str(name), config.output.location), list(plan.adopt)))
    if publisher:
        publisher.adopt(adopted)
    if not plan.read:
        return Outcome(adopted=adopted)
    with ExitStack() as stack:
        pipeline = open_pipeline(run_plan, run_id, stack)
        pool = pipeline.pool
        if run_plan.spec.float8 and pool.device == "cpu":
            logger.warning(EMULATED)  # here, since the logs of workers are not shown
        context = make_context(run_plan, run_id)
        price, actors = config.compute.price_per_device_hour_usd, pool.actors[1]
        meter = Meter(plan.read, None if price is None else price * actors, actors, config.compute.price_per_million_tokens_usd)
        landings = pipeline.embed_units(open_tasks(plan.read, config.source, find_fair_share(plan.read, pool)), plan, context, pool)
        parts, failed, probe = collect(landings, meter, pipeline.report, watch, publisher)
    failures = {each["key"]: str(each["error"]) for each in failed}
    check_complete(plan.read, parts, failures)
    return Outcome(
        parts=tuple(parts),
        adopted=adopted,
        failures=failures,
        broken={each["key"]: tuple(each["broken"]) for each in failed},
        unread=frozenset(failures),
        reasons=meter.reasons,
        probe=probe or context.probe,
        seconds=meter.seconds,
        cost_usd=meter.cost_usd,
        steady_tokens_per_second=meter.steady_tokens_per_second,
        encoder_busy_share=meter.encoder_busy_share,
        actors=actors,
    )


def make_context(run_plan: RunPlan, run_id: str) -> StageContext:
    """Return the values that every stage of the run needs."""
    config, table = run_plan.config, run_plan.table
    probe = table.info.get("probe") if table and run_plan.same_space else None
    return StageContext(
        source=with_context(config.source, config.chunking.template),
        output=config.output,
        spec=run_plan.spec,
        tokenizer_json=run_plan.model.tokenizer_json,
        metadata=run_plan.metadata,
        max_attempts=config.compute.max_attempts,
        calibration_uri=config.embedding.calibration,
        ranges=run_plan.model.ranges,
        probe=tuple(probe) if probe else None,
        run_id=run_id,
        index=index_documents(run_plan),
    )


def index_documents(run_plan: RunPlan) -> HashIndex:
    """Open the index of the table's vectors; of a large table, only as many bytes as the run reads from its source."""
    table = run_plan.table
    if table is None or not run_plan.same_space:
        return NO_INDEX
    size = max(LEAST_BYTES, min(run_plan.plan.read.size_bytes, MOST_BYTES))
    return open_index(run_plan.config.output.location, table.rows, size)


def find_fair_share(read: Tasks, pool: Pool) -> float:
    """Return the bytes above which one reader of a shard may keep the run waiting: more than half of an encoder's share, and 64 MiB.

    No reader does if units do not overlap in an encoder (on CPUs): reading is then hundreds of times as fast as encoding.
    """
    return max(SLICE_BYTES / 2, read.size_bytes / pool.actors[1] / 2) if pool.calls > 1 else math.inf


def open_tasks(read: Tasks, source: SourceConfig, fair_bytes: float) -> Iterator[Task]:
    """Yield tasks, large ones sliced. They become objects some at a time: the shards of all would take gigabytes."""
    for start in range(0, len(read), OPENED_TASKS):
        for sliced in map_threads(lambda task: slice_large(task, source, fair_bytes), read[start : start + OPENED_TASKS]):
            yield from sliced


def slice_large(task: Task, source: SourceConfig, fair_bytes: float = math.inf) -> list[Task]:
    """Split a shard that is too large for one reader, if its format allows; else, above `fair_bytes`, leave its documents to the encoders
    to cut. If it cannot be opened, its task fails when it is read."""
    if len(task.shards) > 1:
        return [task]
    slices = []
    if task.size_bytes >= 2 * SLICE_BYTES:
        try:
            slices = slice_shard(task.shards[0], source)
        except SourceError:
            return [task]
    return slice_task(task, slices) if slices else [replace(task, cut_by_encoders=task.size_bytes > fair_bytes)]


def collect(
    landings: Iterator[LandedRow], meter: Meter, report: Report, watch: DriftWatch, publisher: Publisher | None = None
) -> tuple[list[Part], list[LandedRow], tuple[float, ...] | None]:
    """Show progress until all units have landed; return the parts, the failed tasks, and the encoder's probe vector."""
    parts: list[Part] = []
    failed: list[LandedRow] = []
    probe, next_report = None, 0.0
    with Display() as display:
        for row in landings:
            if row["part"] is None:
                failed.append(row)
                meter.fail(row["key"])
                logger.error("%s", row["error"], extra=log_fields(task=row["key"]))
            else:
                part, probe = Part.from_fields(row["part"]), tuple(row["probe"])
                parts.append(part)
                meter.land(part, {each["reason"]: each["count"] for each in row["reasons"]}, row["attempt"], row["tokens"])
                logger.debug("landed", extra=log_fields(unit=part.name))
                watch.land(part.name, row["sample"])
                if publisher:
                    publisher.land(part, meter, probe)
            if time.monotonic() >= next_report:
                report(measure(meter))
                display.refresh(meter)
                next_report = time.monotonic() + REPORT_SECONDS
    report(measure(meter))
    return parts, failed, probe


def check_complete(tasks: Tasks, parts: Sequence[Part], failures: Mapping[str, str]) -> None:
    """Raise CommitError unless each task's parts cover its rows from the first to the last, each row once."""
    names: defaultdict[str, list[PartName]] = defaultdict(list)
    for part in parts:
        name = PartName.parse(part.name)
        assert name is not None, part
        assert part.stats.documents == name.stop_row - name.first_row, part
        names[name.key].append(name)
    for number, key in enumerate(tasks.keys.to_pylist()):
        found = names[key]
        if key not in failures and not (found and len(complete_parts(found)) == len(found)):
            where = tasks[number].shards[0].uri
            raise CommitError(f"{where}: units are missing after the run, nothing was published; run again to embed them")

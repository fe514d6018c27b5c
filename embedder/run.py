"""One embed run: make the table match the source. First run, resume, refresh and nothing to do are this one path."""

import logging
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

import pyarrow as pa

from embedder.config import EmbedConfig, SourceConfig
from embedder.errors import CommitError, ConfigError, ModelError, SourceError, StorageError
from embedder.model.resolve import ResolvedModel, resolve_model
from embedder.output.parts import Folder, read_part
from embedder.output.reuse import NO_PREVIOUS, PreviousParts, index_parts
from embedder.output.table import Change, TableState, commit_table, read_table, sync_quarantine
from embedder.pipeline import choose_pool, embed_units, start_ray
from embedder.planning import Plan, choose_bucket_bits, find_chain, group_shards, held_keys, plan_work, slice_task
from embedder.progress import Display, Meter
from embedder.schema import table_schema
from embedder.source.columns import inspect_source
from embedder.source.documents import SLICE_BYTES, slice_parquet
from embedder.source.shards import Listing, list_shards
from embedder.spec import EmbeddingSpec, digest
from embedder.stages import Job
from embedder.storage import Store, map_threads
from embedder.summary import Preview, Summary, describe_environment, mask_secrets
from embedder.work import Part, PartName, Stats, Task

PART_VERSION = 1
"""Raised when a part's bytes change under unchanged settings, so that old and new parts are told apart by name."""

MOST_INDEXED_ROWS = 5_000_000
"""Rows to be removed that are indexed as a whole, 20 bytes each; beyond, a task looks into the parts it wrote itself."""

T = TypeVar("T")
logger = logging.getLogger("embedder")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that is checked and planned, before the first document is read."""

    config: EmbedConfig
    model: ResolvedModel
    listing: Listing
    metadata: pa.Schema
    table: TableState | None
    bucket_bits: int
    plan: Plan

    @property
    def spec(self) -> EmbeddingSpec:
        """The space the table's vectors are in after this run."""
        return self.model.spec

    @property
    def schema(self) -> pa.Schema:
        """The table's columns after this run."""
        return table_schema(self.metadata, self.config.output.store_text)

    @property
    def same_space(self) -> bool:
        """Whether the table holds vectors of this run's space, which then may be kept."""
        return self.table is not None and self.table.spec.space_id == self.spec.space_id

    @property
    def replaces(self) -> bool:
        """Whether the commit swaps everything: another spec, or other columns."""
        return self.table is not None and not (self.same_space and self.table.schema.equals(self.schema))

    def preview(self) -> Preview:
        """Say what a run would do."""
        plan, rows = self.plan, self.table.rows if self.table else {}
        changed = {shard.uri for task in plan.read for shard in task.shards}
        return Preview(
            uri=self.config.output.uri,
            space_id=self.spec.space_id,
            spec=self.spec.model_dump(),
            shards=len(self.listing.shards),
            shards_ignored=len(self.listing.ignored),
            read=tuple((shard.uri, shard.size_bytes) for shard in self.listing.shards if shard.uri in changed),
            parts_adopted=len(plan.adopt),
            parts_kept=len(plan.keep),
            rows_kept=sum(rows[str(name)] for name in plan.keep),
            parts_removed=len(plan.remove),
            rows_removed=sum(rows[str(name)] for name in plan.remove),
        )


def prepare_run(config: EmbedConfig) -> Prepared:
    """Check all that can be checked without reading documents, and plan; ConfigError holds every problem found."""
    problems: list[str] = []
    model = _collect(problems, lambda: resolve_model(config.embedding, config.chunking))
    listing = _collect(problems, lambda: list_shards(config.source))
    table = _collect(problems, lambda: read_table(config.output.uri, config.output.storage_options))
    metadata = None
    if listing:
        known = table.schema if table else None
        metadata = _collect(problems, lambda: inspect_source(config.source, listing.shards, known))
    if model and table and table.spec.space_id != model.spec.space_id and not config.output.replace:
        changes = "; ".join(table.spec.differences(model.spec))
        problems.append(
            f"output.uri={config.output.uri!r}: the table holds another space ({changes}); "
            "choose another output.uri, or swap all of it with --output.replace true"
        )
    if problems or model is None or listing is None or metadata is None:
        raise ConfigError("\n".join(problems))
    bits = int(table.info["bucket_bits"]) if table else choose_bucket_bits(listing.shards)
    tasks = group_shards(listing.shards, layout_of(config, model.spec, metadata), bits)
    stored = Folder(config.output.uri, config.output.storage_options).list_parts()
    committed = table.parts if table else []
    plan = plan_work(tasks, committed, [name for name in stored if name not in set(committed)])
    return Prepared(config, model, listing, metadata, table, bits, plan)


def layout_of(config: EmbedConfig, spec: EmbeddingSpec, metadata: pa.Schema) -> str:
    """Digest what besides the documents decides a part's bytes: space, columns, and how records are read and cut."""
    source = config.source.model_dump(mode="json", include={"format", "text_columns", "id_column", "metadata_columns", "rows_per_unit"})
    return digest(PART_VERSION, spec.space_id, source, str(metadata), config.output.store_text)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back from the pipeline."""

    parts: tuple[Part, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    """By task key: why it could not be read to its end."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    probe: tuple[float, ...] | None = None
    seconds: float = 0.0
    cost_usd: float | None = None
    steady_tokens_per_second: float | None = None


def run_embed(prepared: Prepared) -> Summary:
    """Embed what the plan asks for and publish it; gives what was done, shards that failed included."""
    run_id, started = uuid.uuid4().hex[:12], datetime.now(UTC).isoformat(timespec="seconds")
    config, table = prepared.config, prepared.table
    folder = Folder(config.output.uri, config.output.storage_options)
    Store(config.output.uri, config.output.storage_options).check_writable()
    adopted = map_threads(lambda name: read_part(str(name), folder), list(prepared.plan.adopt))
    outcome = embed(prepared) if prepared.plan.read else Outcome()
    add, remove = choose_change(prepared, [*adopted, *outcome.parts], outcome.failures)
    summary = summarize(prepared, outcome, add, remove, len(adopted))
    summary = replace(summary, run_id=run_id, started=started)
    check_removal(prepared, summary.rows)
    if add or remove or (table is None and not outcome.failures):
        info = summary.record() | {
            "space_id": prepared.spec.space_id,
            "spec": prepared.spec.model_dump(),
            "bucket_bits": prepared.bucket_bits,
            "probe": outcome.probe or (table.info.get("probe") if table else None),
            "config": mask_secrets(config.model_dump(mode="json")),
            "environment": describe_environment(),
        }
        change = Change(add, remove, prepared.schema, info, prepared.replaces)
        summary = summary.published(commit_table(config.output.uri, config.output.storage_options, change, table))
    if summary.version is not None or table is not None:
        sync_quarantine(config.output.uri, config.output.storage_options)
    return summary


def embed(prepared: Prepared) -> Outcome:
    """Run the pipeline over the plan's tasks, showing progress, and check that nothing is missing."""
    config, plan, table = prepared.config, prepared.plan, prepared.table
    start_ray()
    pool = choose_pool(config.compute)
    price = config.compute.price_per_device_hour_usd
    probe = table.info.get("probe") if table and prepared.same_space else None
    job = Job(
        source=config.source,
        output=config.output,
        spec=prepared.spec,
        tokenizer_json=prepared.model.tokenizer_json,
        metadata=prepared.metadata,
        probe=tuple(probe) if probe else None,
        previous=index_reusable(prepared),
    )
    tasks = [each for tasks in map_threads(lambda task: sliced(task, config.source), list(plan.read)) for each in tasks]
    meter = Meter(plan.read, price * pool.actors[1] if price is not None else None)
    parts: list[Part] = []
    failures: dict[str, str] = {}
    reasons: Counter[str] = Counter()
    with Display(meter) as display:
        for landed in embed_units(tasks, plan, job, pool):
            if landed.part is None:
                failures[landed.key] = str(landed.error)
                meter.finish(landed.key)
                logger.error("%s", landed.error)
            else:
                parts.append(landed.part)
                reasons.update(landed.reasons)
                meter.land(landed.part)
                probe = landed.probe or probe
            display.refresh()
    check_complete(plan.read, parts, failures)
    return Outcome(
        tuple(parts), failures, reasons, tuple(probe) if probe else None, meter.seconds, meter.cost_usd, meter.steady_tokens_per_second
    )


def index_reusable(prepared: Prepared) -> PreviousParts | None:
    """Index the vectors that would leave the table, so that a document is recognised wherever it moved; None if they are too many."""
    plan, table = prepared.plan, prepared.table
    if table is None or not prepared.same_space:
        return NO_PREVIOUS
    if sum(table.rows[str(name)] for name in plan.remove) > MOST_INDEXED_ROWS:
        return None
    return index_parts([str(name) for name in plan.remove], Folder(prepared.config.output.uri, prepared.config.output.storage_options))


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
        if task.key not in failures and not (found and len(find_chain(found)) == len(found)):
            raise CommitError(f"{task.shards[0].uri}: units are missing after the run, nothing was published; run again to embed them")


def choose_change(prepared: Prepared, parts: Sequence[Part], failures: Mapping[str, str]) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """Say which parts to add and which to remove, such that no shard that failed loses the rows it had."""
    plan = prepared.plan
    failed = [task for task in plan.read if task.key in failures]
    if failed and prepared.replaces:
        logger.error("%d shards failed: the table is swapped as a whole or not at all; nothing was published", len(failed))
        return (), ()
    held = held_keys(failed, prepared.bucket_bits)
    add = tuple(part for part in parts if key_of(part.name) not in held)
    remove = tuple(str(name) for name in plan.remove if name.key not in held)
    return add, remove


def check_removal(prepared: Prepared, rows_left: int) -> None:
    """Refuse to publish a table that lost most of its rows: a source that was emptied or mistyped is more likely than meant."""
    table, most = prepared.table, prepared.config.output.max_removed_fraction
    rows = sum(table.rows.values()) if table and prepared.same_space else 0
    if rows_left < rows * (1 - most):
        raise CommitError(
            f"output.max_removed_fraction={most}: this run would leave {rows_left:,} of {rows:,} rows, nothing was published; "
            "check source.uri, or insist with --output.max_removed_fraction 1"
        )


def key_of(name: str) -> str:
    """Read a part's task key from its name."""
    return name.split("-", 1)[0]


def summarize(prepared: Prepared, outcome: Outcome, add: Sequence[Part], remove: Sequence[str], num_adopted: int) -> Summary:
    """Collect the figures of a run."""
    plan, rows = prepared.plan, dict(prepared.table.rows) if prepared.table else {}
    kept = [] if prepared.replaces and add else [name for name in rows if name not in set(remove)]
    return Summary(
        run_id="",
        uri=prepared.config.output.uri,
        started="",
        shards=len(prepared.listing.shards),
        shards_ignored=len(prepared.listing.ignored),
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
        failures=outcome.failures,
    )


def _collect(problems: list[str], check: Callable[[], T]) -> T | None:
    """Run a check, keeping its complaint so that all are reported at once."""
    try:
        return check()
    except (ConfigError, ModelError, SourceError, StorageError, CommitError) as error:
        problems.append(str(error))
        return None

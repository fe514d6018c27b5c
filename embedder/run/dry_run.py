"""A planned run → its work and cost in words and figures, without running it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from embedder.core.columns import Mask, Numbers, Rows, Shards, is_among
from embedder.core.context import keep_context
from embedder.core.plan import SMALL_SHARD_BYTES, group_shards
from embedder.core.storage import Location, map_threads
from embedder.core.units import Shard
from embedder.observe.progress import align
from embedder.run.estimate import Estimate, Rates, estimate_work, learn_rates, learn_speed
from embedder.run.prepare import RunPlan
from embedder.source.columns import with_context
from embedder.source.file_kinds import Ignored, count_ignored, describe_ignored
from embedder.source.sampling import sample_documents
from embedder.source.shards import Listing
from embedder.table.commits import list_records
from embedder.table.parts import part_file, read_batches
from embedder.text.byte_estimate import chunk_counted

SHOWN_SHARDS = 10
SAMPLE_DOCUMENTS = 200
SAMPLE_SHARDS = 3
MOST_LOOKED_INTO = 512
"""Parts to be removed whose shards are looked up: a small read each, 32 at a time. Shards of further parts are not named."""

State = Literal["new", "changed", "moved", "regrouped", "adopted", "unchanged", "gone"]
MEANINGS: dict[State, str] = {
    "new": "not in the table",
    "changed": "read again; known texts cost nothing",
    "moved": "known under another name; read, nothing embedded",
    "regrouped": "small, it or a neighbor in its group changed; read again, known texts cost nothing",
    "adopted": "finished by a run that did not publish",
    "unchanged": "neither read nor touched",
    "gone": "rows are removed",
}


@dataclass(frozen=True, slots=True)
class Preview:
    """Work of a run. `shards` holds, by state, each shard's uri and its bytes; for gone shards, their rows."""

    uri: str
    space_id: str
    spec: Mapping[str, Any]
    shards: Mapping[State, Sequence[tuple[str, int]]]
    shards_ignored: int
    """Files at the source that are not read, for any reason."""
    ignored: Mapping[str, Ignored]
    """The same by reason, with the first names."""
    source_table: str
    """The table to read and its version; empty: the source is not a table."""
    parts_adopted: int
    parts_kept: int
    rows_kept: int
    parts_removed: int
    rows_removed: int
    """Rows of replaced parts included, most of which are added again."""
    parts_not_looked_into: int
    """Parts to be removed whose shards are not named, because there are too many."""
    estimate: Estimate | None
    """None: there is nothing to read."""

    def record(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        figures = asdict(replace(self, shards={})) | {
            "spec": dict(self.spec),
            "shards": {state: list(shards) for state, shards in self.shards.items()},
            "ignored": {reason: asdict(each) for reason, each in self.ignored.items()},
        }
        return figures if self.source_table else {name: value for name, value in figures.items() if name != "source_table"}

    def text(self) -> str:
        """Return the figures as aligned lines, with the first shards of each state by name."""
        spec = self.spec
        model = f"{spec['model']}, depth {spec['depth']}" if spec["depth"] else f"{spec['model']} at {spec['base_url']}"
        ignored = (
            f", {self.shards_ignored:,} files ignored ({describe_ignored(count_ignored(self.ignored))})" if self.shards_ignored else ""
        )
        num_shards = sum(len(each) for state, each in self.shards.items() if state != "gone")
        rows = [
            ("space", f"{self.space_id}: {model}, dim {spec['dim']}" + (f", {spec['pooling']} pooling" if spec["depth"] else "")),
            ("source", f"{num_shards:,} shards{ignored}" + (f" of {self.source_table}" if self.source_table else "")),
            *((state, _total(state, shards)) for state, shards in self.shards.items() if shards),
            ("keep", f"{self.rows_kept:,} rows in {self.parts_kept:,} parts"),
            ("adopt", f"{self.parts_adopted:,} parts of a run that did not finish"),
            ("remove", f"{self.rows_removed:,} rows in {self.parts_removed:,} parts, rows that are added again included"),
            *(describe_estimate(self.estimate, spec["depth"] == 0) if self.estimate else [("read", "nothing")]),
        ]
        if self.parts_not_looked_into:
            rows.append(("not named", f"shards of {self.parts_not_looked_into:,} more parts to be removed"))
        named = [line for state, shards in self.shards.items() if state != "unchanged" for line in _name(state, shards)]
        named += [line for reason, each in self.ignored.items() for line in _name_ignored(reason, each)]
        return "\n".join([align(rows), *([align(named)] if named else []), "dry run: nothing was written"])


def describe_estimate(estimate: Estimate, is_api: bool = False) -> list[tuple[str, str]]:
    """Return names and values of an estimate, marked as such."""
    embedded = f"{estimate.embedded.text()} documents, {estimate.tokens.text()} tokens"
    rows = [("read", f"~{estimate.documents:,.0f} documents"), ("embed", f"{embedded} (estimated from {estimate.basis})")]
    if is_api:
        usd = f"{estimate.usd.text('$')} (estimated)" if estimate.usd else "unknown: set compute.price_per_million_tokens_usd"
        return [*rows, ("cost", usd)]
    if estimate.device_hours is None:
        return [*rows, ("cost", "unknown: set compute.tokens_per_second, which jobs.benchmark measures")]
    usd = f", {estimate.usd.text('$')}" if estimate.usd else ", set compute.price_per_device_hour_usd for money"
    return [*rows, ("cost", f"{estimate.device_hours.text('device-hours')}{usd} (estimated)")]


def preview_run(run_plan: RunPlan) -> Preview:
    """Return the work of a run. At most a sample of the source is read, and the table's records and shard names."""
    plan, rows = run_plan.plan, run_plan.table.rows if run_plan.table else {}
    rows_before, num_left_out = count_removed_rows(run_plan)
    return Preview(
        uri=run_plan.config.output.uri,
        space_id=run_plan.spec.space_id,
        spec=run_plan.spec.model_dump(),
        shards=sort_shards(run_plan, rows_before),
        shards_ignored=sum(count_ignored(run_plan.listing.ignored).values()),
        ignored=run_plan.listing.ignored,
        source_table=run_plan.listing.table,
        parts_adopted=len(plan.adopt),
        parts_kept=len(plan.keep),
        rows_kept=sum(map(rows.__getitem__, plan.keep.names.to_pylist())),
        parts_removed=len(plan.remove),
        rows_removed=sum(map(rows.__getitem__, plan.remove.names.to_pylist())),
        parts_not_looked_into=num_left_out,
        estimate=estimate_run(run_plan) if plan.read else None,
    )


def count_removed_rows(run_plan: RunPlan) -> tuple[Counter[str], int]:
    """Count rows by shard in parts to be removed, without large shards that are read again; and the parts left out."""
    read = run_plan.plan.read
    large = read.select(read.shards.sizes[read.members[read.starts]] >= SMALL_SHARD_BYTES).keys.to_pylist()
    names = sorted(run_plan.plan.remove.with_keys(large, invert=True), key=lambda name: (name.key, name.first_row))
    folder = run_plan.config.output.location
    found: Counter[str] = Counter()
    for counts in map_threads(lambda name: _count_shards(folder, str(name)), names[:MOST_LOOKED_INTO]):
        found.update(counts)
    return found, max(0, len(names) - MOST_LOOKED_INTO)


def sort_shards(run_plan: RunPlan, rows_before: Mapping[str, int]) -> dict[State, Sequence[tuple[str, int]]]:
    """Sort shards by state; `rows_before` counts rows of parts to be removed by shard."""
    plan, shards = run_plan.plan, run_plan.listing.shards
    before = pa.array(rows_before, pa.large_string())
    rows, task = plan.read.rows, np.repeat(np.arange(len(plan.read)), plan.read.stops - plan.read.starts)
    order = np.argsort(rows)
    read, task = rows[order], task[order]
    had_parts, is_moved = is_among(plan.read.keys, plan.remove.keys)[task], is_among(plan.read.versions, plan.remove.versions)[task]
    is_named = is_among(shards.uris, before)  # a set of those before, which may be none, and not of all shards
    sizes = shards.sizes[read]
    # a shard of no bytes has no row by which to recognize it
    known = is_named[read] | ((sizes == 0) & had_parts)
    is_small = sizes < SMALL_SHARD_BYTES
    conditions: dict[State, Mask] = {
        "regrouped": is_small & known,
        "changed": ~is_small & (known | had_parts),
        "moved": ~is_small & is_moved,
    }
    states = np.select(list(conditions.values()), list(conditions), "new")
    adopted = (
        group_shards(shards, "", run_plan.bucket_bits).with_keys({name.key for name in plan.adopt}).rows
        if plan.adopt
        else np.zeros(0, np.int64)
    )
    is_unchanged = np.ones(len(shards), np.bool_)
    is_unchanged[rows] = is_unchanged[adopted] = False
    by_state: dict[State, Sequence[tuple[str, int]]] = {state: Amounts(shards, read[states == state]) for state in (*conditions, "new")}
    by_state["adopted"] = Amounts(shards, np.sort(adopted))
    by_state["unchanged"] = Amounts(shards, np.flatnonzero(is_unchanged))
    gone = before.filter(pa.array(~is_among(before, shards.uris.filter(pa.array(is_named))))).to_pylist()
    by_state["gone"] = sorted((uri, rows_before[uri]) for uri in gone)
    return {state: by_state[state] for state in MEANINGS}


@dataclass(frozen=True, slots=True, eq=False)
class Amounts(Rows[tuple[str, int]]):
    """The uri and the bytes of some shards."""

    shards: Shards
    rows: Numbers

    def __len__(self) -> int:
        return len(self.rows)

    def make(self, rows: Numbers) -> list[tuple[str, int]]:
        """Return the pairs of some rows."""
        return [(shard.uri, shard.size_bytes) for shard in self.shards.make(self.rows[rows])]

    @property
    def total(self) -> int:
        """Bytes of all."""
        return int(self.shards.sizes[self.rows].sum())


def estimate_run(run_plan: RunPlan) -> Estimate:
    """Estimate from records of earlier runs of this space, or from a sample of the shards to be read."""
    config, space_id = run_plan.config, run_plan.spec.space_id
    records = list_records(config.output.location) if run_plan.table else []
    rates = learn_rates(records, space_id) or sample_rates(run_plan)
    speed = config.compute.tokens_per_second or learn_speed(records, space_id)
    return estimate_work(run_plan.plan, rates, run_plan.same_space, speed, config.compute)


def sample_rates(run_plan: RunPlan) -> Rates:
    """Read and tokenize some documents of a few shards."""
    shards = choose_shards(run_plan.plan.read.all_shards, SAMPLE_SHARDS)
    source = with_context(run_plan.config.source, run_plan.config.chunking.template)
    sample = sample_documents(source, Listing(Shards.of(shards)), SAMPLE_DOCUMENTS, seed=0, metadata=keep_context(run_plan.metadata))
    chunks = chunk_counted(sample.documents, run_plan.model.tokenizer_json, run_plan.spec)
    num_tokens = int(chunks["num_tokens"].to_numpy().sum())
    basis = f"a sample of {sample.documents.num_rows:,} documents of {len(shards)} shard{'s' * (len(shards) > 1)}"
    return Rates(sample.records_read / max(1, sample.bytes_read), num_tokens / sample.documents.num_rows, basis)


def choose_shards(shards: Shards, count: int) -> list[Shard]:
    """Choose shards at even distances by bytes, so that large ones are likely chosen."""
    ends = np.cumsum(shards.sizes)
    places = np.searchsorted(ends, (np.arange(count) + 0.5) / count * ends[-1], side="right")
    return shards.make(np.unique(np.minimum(places, len(shards) - 1)))


def _count_shards(folder: Location, name: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for table in read_batches(part_file(folder, name), ("shard",)):
        counts.update({str(each["values"]): int(each["counts"]) for each in table["shard"].value_counts().to_pylist()})
    return counts


def _total(state: State, shards: Sequence[tuple[str, int]]) -> str:
    total = shards.total if isinstance(shards, Amounts) else sum(size for _, size in shards)
    amount = f"{total:,} rows" if state == "gone" else f"{total / 1e6:,.2f} MB"
    return f"{len(shards):,} shards, {amount}: {MEANINGS[state]}"


def _name(state: State, shards: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
    form = "{:,} rows" if state == "gone" else "{:,} bytes"
    lines = [(f"  {state:<9}  {uri}", form.format(size)) for uri, size in shards[:SHOWN_SHARDS]]
    return lines + ([(f"  {state:<9}  … {len(shards) - SHOWN_SHARDS:,} more", "")] if len(shards) > SHOWN_SHARDS else [])


def _name_ignored(reason: str, ignored: Ignored) -> list[tuple[str, str]]:
    lines = [(f"  ignored    {uri!r}", reason) for uri in ignored.uris]
    more = ignored.count - len(ignored.uris)
    return lines + ([(f"  ignored    … {more:,} more", reason)] if more else [])

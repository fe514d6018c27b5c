"""Results of the pipeline → the figures of a run, for a person, for a machine, and for the commit's record."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from embedder.core.columns import PartNames
from embedder.core.fidelity import CALIBRATE_AGAIN, Measured, describe_fidelity
from embedder.core.units import Part, Stats
from embedder.observe.process import peak_bytes
from embedder.observe.progress import align
from embedder.run.prepare import RunPlan
from embedder.source.file_kinds import count_ignored, describe_ignored


@dataclass(frozen=True, slots=True)
class Outcome:
    """Results of the pipeline over one plan."""

    parts: tuple[Part, ...] = ()
    adopted: tuple[Part, ...] = ()
    """Parts of an earlier run that it did not publish."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Errors by task key."""
    broken: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Unreadable shards of failed buckets, by task key."""
    unread: frozenset[str] = frozenset()
    """Keys of failed tasks, without buckets that were retried without their broken shards."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Quarantined records by reason."""
    probe: tuple[float, ...] | None = None
    seconds: float = 0.0
    cost_usd: float | None = None
    steady_tokens_per_second: float | None = None
    encoder_busy_share: float | None = None
    actors: int = 0

    def merge(self, retried: "Outcome", keys: Collection[str]) -> "Outcome":
        """Replace the parts of the retried buckets, given by key, and add up the figures."""
        costs = [each.cost_usd for each in (self, retried) if each.cost_usd is not None]
        return Outcome(
            parts=(*(part for part in self.parts if part.key not in keys), *retried.parts),
            adopted=(*self.adopted, *retried.adopted),
            failures={key: "\n".join(each.failures[key] for each in (self, retried) if key in each.failures)
                      for key in {**self.failures, **retried.failures}},
            broken={**self.broken, **retried.broken},
            unread=self.unread.difference(keys) | retried.unread,
            reasons=Counter(self.reasons) + Counter(retried.reasons),
            probe=retried.probe or self.probe,
            seconds=self.seconds + retried.seconds,
            cost_usd=sum(costs) if costs else None,
            steady_tokens_per_second=self.steady_tokens_per_second or retried.steady_tokens_per_second,
            encoder_busy_share=self.encoder_busy_share or retried.encoder_busy_share,
            actors=max(self.actors, retried.actors),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one run. `stats` covers the documents read in it; kept and adopted parts are counted separately."""

    run_id: str
    uri: str
    started: str
    shards: int
    shards_ignored: int
    """Files at the source that are not read, for any reason."""
    stats: Stats
    reasons: Mapping[str, int]
    seconds: float
    cost_usd: float | None
    steady_tokens_per_second: float | None
    """Between the first landed unit and the last, if there were two."""
    parts_added: int
    parts_adopted: int
    parts_kept: int
    parts_removed: int
    documents_reused: int
    """Documents of kept or adopted parts, quarantined ones included: neither read nor embedded."""
    rows: int
    """Rows of the table after the run."""
    bytes_added: int
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Files that are not read, by reason."""
    shards_empty: int = 0
    """Shards of no bytes."""
    quarantined_adopted: int = 0
    """Quarantined documents of adopted parts, which `stats` and `reasons` leave out."""
    source_bytes: int = 0
    """Of shards that were read to their end."""
    actors: int = 0
    """Most encoder actors; 0: nothing was read."""
    encoder_busy_share: float | None = None
    """Share of the actors' time that went into encoding, between the first landed unit and the last."""
    driver_peak_bytes: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)
    fidelity: Measured | None = None
    """Of a calibrated exit, on a sample of the chunks embedded; None: none was measured."""
    source_table: str = ""
    """The table that was read and its version; empty: the source is not a table."""
    version: int | None = None
    """None if there was nothing to publish."""

    @property
    def did_nothing(self) -> bool:
        """Whether the table already matched the source."""
        return self.version is None and not self.failures

    @property
    def padding_share(self) -> float:
        """Share of the computed tokens that was padding."""
        return 1 - self.stats.tokens / self.stats.padded_tokens if self.stats.padded_tokens else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens embedded per second of the whole run."""
        return self.stats.tokens / self.seconds if self.seconds else 0.0

    def record(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        derived = {"padding_share": round(self.padding_share, 4), "tokens_per_second": round(self.tokens_per_second, 1)}
        named = {
            "reasons": dict(self.reasons),
            "ignored": dict(self.ignored),
            "failures": dict(self.failures),
            "stats": self.stats.record(),
        }
        figures = asdict(self) | named | derived
        return figures if self.source_table else {name: value for name, value in figures.items() if name != "source_table"}

    def text(self) -> str:
        """Return the figures as aligned lines."""
        stats = self.stats
        ignored = f", {self.shards_ignored:,} files ignored ({describe_ignored(self.ignored)})" if self.shards_ignored else ""
        if self.did_nothing:
            read = f", {self.source_table}" if self.source_table else ""
            return f"nothing to do: {self.uri} matches its source ({self.rows:,} rows, {self.shards:,} shards unchanged{ignored}{read})"
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.reasons.items()))
        empty = f", {self.shards_empty:,} of them of no bytes" if self.shards_empty else ""
        adopted = f", {self.quarantined_adopted:,} more in adopted parts" if self.quarantined_adopted else ""
        truncated = f", {stats.truncated:,} truncated" if stats.truncated else ""
        listed = "; ".join(filter(None, [reasons, f"see {self.uri}/_quarantine"]))
        where = f" ({listed})" if stats.quarantined or adopted else ""
        embedded = stats.documents - stats.quarantined - stats.reused - stats.filtered
        reused = self.documents_reused + stats.reused
        busy = f", encoders {self.encoder_busy_share:.0%} busy" if self.encoder_busy_share is not None else ""
        steady = f" ({self.steady_tokens_per_second:,.0f} once running{busy})" if self.steady_tokens_per_second else ""
        speed = f"{self.tokens_per_second:,.0f} tokens/s{steady}, {100 * self.padding_share:.1f}% padding"
        version = "not published" if self.version is None else f"version {self.version}"
        parts = f"{self.bytes_added / 1e6:,.1f} MB added in {self.parts_added:,} parts, {self.parts_removed:,} parts removed"
        rows = [
            *([("source", self.source_table)] if self.source_table else []),
            ("read", f"{stats.documents:,} documents, {self.shards:,} shards listed{empty}{ignored}"),
            *(
                [("filtered", f"{stats.filtered:,} records, left out by source.filter or as WARC records of other kinds")]
                if stats.filtered
                else []
            ),
            ("embedded", f"{embedded:,} documents, {stats.chunks:,} chunks{_add_reused(stats.chunks_reused)}{truncated}"),
            ("reused", f"{reused:,} documents ({self.parts_kept:,} parts kept, {self.parts_adopted:,} adopted)"),
            ("quarantined", f"{stats.quarantined:,} documents{adopted}{where}"),
            ("tokens", f"{stats.tokens:,}{_add_reused(stats.tokens_reused)} in {self.seconds:.1f} s, {speed}"),
            ("table", f"{self.uri}, {version}: {self.rows:,} rows, {parts}"),
        ]
        if self.fidelity:
            rows.append(("fidelity", describe_fidelity(asdict(self.fidelity))))
            rows += [("drifted", CALIBRATE_AGAIN)] if self.fidelity.drifted else []
        if self.cost_usd is not None:
            rows.append(("cost", f"${self.cost_usd:,.4f}"))
        rows += [("failed", line) for why in self.failures.values() for line in why.split("\n")]
        return align(rows)


def _add_reused(count: int) -> str:
    return f" (and {count:,} reused)" if count else ""


def summarize(
    run_plan: RunPlan, outcome: Outcome, add: Sequence[Part], remove: Sequence[str], run_id: str = "", started: str = ""
) -> Summary:
    """Return the figures of a run before its commit."""
    plan, rows = run_plan.plan, dict(run_plan.table.rows) if run_plan.table else {}
    removed = set(rows) if run_plan.replaces and add else set(remove)
    kept = [name for name in rows if name not in removed]
    ignored = count_ignored(run_plan.listing.ignored)
    return Summary(
        run_id=run_id,
        uri=run_plan.config.output.uri,
        started=started,
        shards=len(run_plan.listing.shards),
        shards_ignored=sum(ignored.values()),
        ignored=ignored,
        shards_empty=int((run_plan.listing.shards.sizes == 0).sum()),
        quarantined_adopted=sum(part.stats.quarantined for part in outcome.adopted),
        stats=sum((part.stats for part in outcome.parts), Stats()),
        reasons=outcome.reasons,
        seconds=outcome.seconds,
        cost_usd=outcome.cost_usd,
        steady_tokens_per_second=outcome.steady_tokens_per_second,
        parts_added=len(add),
        parts_adopted=len(outcome.adopted),
        parts_kept=len(kept),
        parts_removed=len(rows) - len(kept),
        documents_reused=plan.keep.num_documents + PartNames.of(plan.adopt).num_documents,
        rows=sum(rows[name] for name in kept) + sum(part.rows for part in add),
        bytes_added=sum(part.size_bytes for part in add),
        source_bytes=plan.read.with_keys(outcome.unread, invert=True).size_bytes,
        actors=outcome.actors,
        encoder_busy_share=outcome.encoder_busy_share,
        driver_peak_bytes=peak_bytes(),
        failures=outcome.failures,
        source_table=run_plan.listing.table,
    )

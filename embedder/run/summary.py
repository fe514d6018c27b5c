"""What a run did, for a person, for a machine, and for the commit's record."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from embedder.core.units import Stats
from embedder.observe.progress import align


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one run. `stats` covers what was read in it; kept and adopted parts are counted apart."""

    run_id: str
    uri: str
    started: str
    shards: int
    shards_ignored: int
    stats: Stats
    reasons: Mapping[str, int]
    """Quarantined records by reason."""
    seconds: float
    cost_usd: float | None
    steady_tokens_per_second: float | None
    """Between the first unit that landed and the last, if there were two."""
    parts_added: int
    parts_adopted: int
    parts_kept: int
    parts_removed: int
    documents_reused: int
    """Documents of parts that were kept or adopted, quarantined ones included: neither read nor embedded."""
    rows: int
    """Rows of the table after the run."""
    bytes_added: int
    source_bytes: int = 0
    """Of the shards that were read to their end; with `stats` it says what a byte of this source holds."""
    actors: int = 0
    """Encoder actors at most; 0: nothing was read."""
    encoder_busy_share: float | None = None
    """Share of the actors' time that went into encoding, between the first unit that landed and the last."""
    driver_peak_bytes: int = 0
    """Most memory that the driver's process held so far."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """By task key: why it could not be read to its end."""
    version: int | None = None
    """Table version published; None if there was nothing to publish."""

    def published(self, version: int) -> "Summary":
        """Add the version."""
        return replace(self, version=version)

    @property
    def did_nothing(self) -> bool:
        """Whether the table matched the source already."""
        return self.version is None and not self.failures

    @property
    def padding_share(self) -> float:
        """Share of computed tokens that were padding."""
        return 1 - self.stats.tokens / self.stats.padded_tokens if self.stats.padded_tokens else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens embedded a second of the whole run."""
        return self.stats.tokens / self.seconds if self.seconds else 0.0

    def record(self) -> dict[str, Any]:
        """Give all figures as JSON values."""
        derived = {"padding_share": round(self.padding_share, 4), "tokens_per_second": round(self.tokens_per_second, 1)}
        return asdict(self) | {"reasons": dict(self.reasons), "failures": dict(self.failures)} | derived

    def text(self) -> str:
        """Lay out the figures for a person."""
        stats = self.stats
        if self.did_nothing:
            return f"nothing to do: {self.uri} matches its source ({self.rows:,} rows, {self.shards:,} shards unchanged)"
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.reasons.items()))
        ignored = f", {self.shards_ignored:,} files ignored" if self.shards_ignored else ""
        truncated = f", {stats.truncated:,} truncated" if stats.truncated else ""
        embedded = stats.documents - stats.quarantined - stats.reused
        reused = self.documents_reused + stats.reused
        busy = f", encoders {self.encoder_busy_share:.0%} busy" if self.encoder_busy_share is not None else ""
        steady = f" ({self.steady_tokens_per_second:,.0f} once running{busy})" if self.steady_tokens_per_second else ""
        speed = f"{self.tokens_per_second:,.0f} tokens/s{steady}, {100 * self.padding_share:.1f}% padding"
        version = "not published" if self.version is None else f"version {self.version}"
        parts = f"{self.bytes_added / 1e6:,.1f} MB added in {self.parts_added:,} parts, {self.parts_removed:,} parts removed"
        rows = [
            ("read", f"{stats.documents:,} documents, {self.shards:,} shards listed{ignored}"),
            ("embedded", f"{embedded:,} documents, {stats.chunks:,} chunks{truncated}"),
            ("reused", f"{reused:,} documents ({self.parts_kept:,} parts kept, {self.parts_adopted:,} adopted)"),
            ("quarantined", f"{stats.quarantined:,} documents" + (f" ({reasons}; see {self.uri}/_quarantine)" if reasons else "")),
            ("tokens", f"{stats.tokens:,} in {self.seconds:.1f} s, {speed}"),
            ("table", f"{self.uri}, {version}: {self.rows:,} rows, {parts}"),
        ]
        if self.cost_usd is not None:
            rows.append(("cost", f"${self.cost_usd:,.4f}"))
        rows += [("failed", why) for why in self.failures.values()]
        return align(rows)

"""Records of earlier runs, or a sample → the estimated work and cost of reading some shards."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from embedder.config.compute import ComputeConfig
from embedder.core.plan import Plan
from embedder.core.units import PartName

MOST_RUNS = 10
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Rates:
    """Mean content of the source's bytes."""

    documents_per_byte: float
    tokens_per_document: float
    basis: str
    """The runs or the sample that were measured, in words."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of an unknown quantity."""

    low: float
    high: float

    def times(self, factor: float) -> "Range":
        """Scale both bounds."""
        return Range(self.low * factor, self.high * factor)

    def text(self, unit: str = "") -> str:
        """Return the range in words, to three digits; counts are whole."""
        low, high = (f"{each:,.0f}" if each >= 100 or not unit else f"{each:.3g}" for each in (self.low, self.high))
        sign, word = ("$", "") if unit == "$" else ("", f" {unit}" if unit else "")
        return f"~{sign}{high}{word}" if low == high else f"~{sign}{low} to ~{sign}{high}{word}"


@dataclass(frozen=True, slots=True)
class Estimate:
    """Work of a run. The lower bounds assume that all known documents of changed shards are still there."""

    documents: float
    embedded: Range
    tokens: Range
    basis: str
    device_hours: Range | None
    """None: the rate is unknown."""
    usd: Range | None


def learn_rates(records: Iterable[Mapping[str, Any]], space_id: str) -> Rates | None:
    """Return the rates of the newest runs of one space that read whole shards; None if there are none."""
    runs = [each for each in records if each.get("space_id") == space_id and each.get("source_bytes") and not each.get("failures")]
    runs = runs[:MOST_RUNS]
    size = sum(each["source_bytes"] for each in runs)
    total = {name: sum(each["stats"][name] for each in runs) for name in ("documents", "quarantined", "reused", "tokens")}
    embedded = total["documents"] - total["quarantined"] - total["reused"] - sum(each["stats"].get("filtered", 0) for each in runs)
    if not embedded:
        return None
    return Rates(total["documents"] / size, total["tokens"] / embedded, f"{len(runs)} earlier run{'s' * (len(runs) > 1)}")


def learn_speed(records: Iterable[Mapping[str, Any]], space_id: str) -> float | None:
    """Return the tokens per second of one actor in the newest run of one space that measured it; None if there is none."""
    speeds = (
        each["steady_tokens_per_second"] / each["actors"]
        for each in records
        if each.get("space_id") == space_id and each.get("actors") and each.get("steady_tokens_per_second")
    )
    return next(speeds, None)


def estimate_work(plan: Plan, rates: Rates, same_space: bool, speed: float | None, compute: ComputeConfig) -> Estimate:
    """Estimate the work of a plan at the prices of the settings. If the table is of the same space, its vectors are reused."""
    documents, embedded = estimate_documents(plan, rates.documents_per_byte, same_space)
    tokens = embedded.times(rates.tokens_per_document)
    hours = tokens.times(1 / speed / SECONDS_PER_HOUR) if speed else None
    per_hour, per_million = compute.price_per_device_hour_usd, compute.price_per_million_tokens_usd
    usd = hours.times(per_hour) if hours and per_hour is not None else None
    if per_million is not None:
        usd = tokens.times(per_million / 1e6)
    return Estimate(documents, embedded, tokens, rates.basis, hours, usd)


def estimate_documents(plan: Plan, documents_per_byte: float, same_space: bool) -> tuple[float, Range]:
    """Estimate the documents to read and to embed: at most those that are not yet on storage, at least those that the task gained.

    A shard that only moved embeds none. Copies of documents of other shards, which are reused too, are not foreseen.
    """
    known: Counter[str] = Counter()
    moved: set[str] = set()
    if same_space:
        for name in plan.remove:
            known[name.key] += name.stop_row - name.first_row
            moved.add(name.version)
    documents, low, high = 0.0, 0.0, 0.0
    for task in plan.read:
        rows = [shard.size_bytes * documents_per_byte if shard.num_rows is None else shard.num_rows for shard in task.shards]
        expected = float(sum(rows))
        documents += expected
        if task.version not in moved:
            done = filter(None, map(PartName.parse, plan.done.get(task.key, ())))
            left = max(0.0, expected - sum(name.stop_row - name.first_row for name in done))
            low += max(0.0, left - known[task.key])
            high += left
    return documents, Range(low, high)

"""What reading some shards would cost, before they are read: from what earlier runs recorded, or from a sample. All are estimates."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedder.core.plan import Plan
from embedder.core.units import PartName

RUNS_LEARNED_FROM = 10
SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Rates:
    """What a byte of the source held so far."""

    documents_per_byte: float
    tokens_per_document: float
    basis: str
    """Where this is from, in words."""


@dataclass(frozen=True, slots=True)
class Range:
    """A quantity of which only the bounds are known."""

    low: float
    high: float

    def times(self, factor: float) -> "Range":
        """Scale both bounds."""
        return Range(self.low * factor, self.high * factor)

    def text(self, unit: str = "") -> str:
        """Say it in words, to three digits; counts are whole."""
        low, high = (f"{each:,.0f}" if each >= 100 or not unit else f"{each:.3g}" for each in (self.low, self.high))
        sign, word = ("$", "") if unit == "$" else ("", f" {unit}" if unit else "")
        return f"~{sign}{high}{word}" if low == high else f"~{sign}{low} to ~{sign}{high}{word}"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would read and embed. The lower bound holds if all that the table knows of changed shards is still there."""

    documents: float
    embedded: Range
    tokens: Range
    basis: str
    device_hours: Range | None
    """None: no rate is known."""
    usd: Range | None


def learn_rates(records: Iterable[Mapping[str, Any]], space_id: str) -> Rates | None:
    """Learn from the newest runs of one space that read something; None if there are none."""
    runs = [each for each in records if each.get("space_id") == space_id and each.get("source_bytes") and not each.get("failures")]
    runs = runs[:RUNS_LEARNED_FROM]
    size = sum(each["source_bytes"] for each in runs)
    total = {name: sum(each["stats"][name] for each in runs) for name in ("documents", "quarantined", "reused", "tokens")}
    embedded = total["documents"] - total["quarantined"] - total["reused"]
    if not embedded:
        return None
    return Rates(total["documents"] / size, total["tokens"] / embedded, f"{len(runs)} earlier run{'s' * (len(runs) > 1)}")


def learn_speed(records: Iterable[Mapping[str, Any]], space_id: str) -> float | None:
    """Give the tokens a second of one actor in the newest run of one space that ran long enough to say."""
    speeds = (
        each["steady_tokens_per_second"] / each["actors"]
        for each in records
        if each.get("space_id") == space_id and each.get("actors") and each.get("steady_tokens_per_second")
    )
    return next(speeds, None)


@dataclass(frozen=True, slots=True)
class Price:
    """What is paid: for hours of a device, or behind an API for tokens."""

    usd_per_hour: float | None = None
    usd_per_million_tokens: float | None = None


def estimate_work(plan: Plan, rates: Rates, same_space: bool, speed: float | None, price: Price) -> Estimate:
    """Estimate the work of a plan; vectors that the table holds already are reused where they are of the same space."""
    documents, embedded = estimate_documents(plan, rates.documents_per_byte, same_space)
    tokens = embedded.times(rates.tokens_per_document)
    hours = tokens.times(1 / speed / SECONDS_AN_HOUR) if speed else None
    usd = hours.times(price.usd_per_hour) if hours and price.usd_per_hour is not None else None
    if price.usd_per_million_tokens is not None:
        usd = tokens.times(price.usd_per_million_tokens / 1e6)
    return Estimate(documents, embedded, tokens, rates.basis, hours, usd)


def estimate_documents(plan: Plan, documents_per_byte: float, same_space: bool) -> tuple[float, Range]:
    """Estimate the documents to read, and of them those to embed: at most all but those on storage already, at least those
    that are more than the task had. A shard that only moved embeds none."""
    known: Counter[str] = Counter()
    moved: set[str] = set()
    if same_space:
        known.update({key: num_documents(names) for key, names in _by_key(plan.remove).items()})
        moved = {name.version for name in plan.remove}
    documents, low, high = 0.0, 0.0, 0.0
    for task in plan.read:
        expected = task.size_bytes * documents_per_byte
        documents += expected
        if task.version in moved:
            continue
        left = max(0.0, expected - num_documents(_parse(plan.done.get(task.key, ()))))
        low += max(0.0, left - known[task.key])
        high += left
    return documents, Range(low, high)


def num_documents(names: Iterable[PartName]) -> int:
    """Count the records of parts, quarantined ones included."""
    return sum(name.stop_row - name.first_row for name in names)


def _by_key(names: Sequence[PartName]) -> dict[str, list[PartName]]:
    grouped: dict[str, list[PartName]] = {}
    for name in names:
        grouped.setdefault(name.key, []).append(name)
    return grouped


def _parse(names: Iterable[str]) -> list[PartName]:
    return [name for name in map(PartName.parse, names) if name is not None]

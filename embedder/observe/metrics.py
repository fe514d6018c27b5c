"""What a run tells Prometheus, by name and meaning; Ray carries it there (pipeline.Reporter).

The driver reports as units land, so that workers have nothing to do with it and a unit counts once, however often it was tried.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from embedder.observe.progress import Meter

RUN_LABELS = ("table", "run_id")
"""On every metric."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that only rises (counter) or one that goes either way (gauge)."""

    name: str
    meaning: str
    kind: Literal["counter", "gauge"] = "counter"
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """The value of a metric now; a counter's since the run began."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


METRICS = (
    Metric("embedder_documents", "Source records read, quarantined ones included."),
    Metric("embedder_documents_reused", "Documents whose vectors were taken from a previous part."),
    Metric("embedder_documents_quarantined", "Records set aside, by reason.", labels=("reason",)),
    Metric("embedder_chunks", "Chunks embedded."),
    Metric("embedder_tokens", "Tokens the model saw, padding not included."),
    Metric("embedder_stage_seconds", "Seconds of all workers together in a stage: read, encode, write.", labels=("stage",)),
    Metric("embedder_units_landed", "Units whose part is on storage."),
    Metric("embedder_units_retried", "Attempts at units that had taken their worker down before, in this run or an earlier one."),
    Metric("embedder_tasks_failed", "Shards, slices or buckets that could not be read to their end."),
    Metric("embedder_bytes_written", "Bytes of parts."),
    Metric("embedder_padding_share", "Share of the computed tokens that is padding.", "gauge"),
    Metric("embedder_encoder_busy_share", "Share of the time between the first unit and now that encoder actors were encoding.", "gauge"),
    Metric("embedder_done_share", "Estimated share of the work that is done.", "gauge"),
    Metric("embedder_cost_usd", "Cost of the run so far, where a price is set.", "gauge"),
)


def measure(meter: Meter) -> Iterator[Sample]:
    """Give all figures of a run as they are now; what is not known yet is left out."""
    total = meter.total
    yield Sample("embedder_documents", total.documents)
    yield Sample("embedder_documents_reused", total.reused)
    for reason, count in sorted(meter.reasons.items()):
        yield Sample("embedder_documents_quarantined", count, {"reason": reason})
    yield Sample("embedder_chunks", total.chunks)
    yield Sample("embedder_tokens", total.tokens)
    for stage, seconds in (("read", total.read_seconds), ("encode", total.encode_seconds), ("write", total.write_seconds)):
        yield Sample("embedder_stage_seconds", seconds, {"stage": stage})
    yield Sample("embedder_units_landed", meter.units)
    yield Sample("embedder_units_retried", meter.retried)
    yield Sample("embedder_tasks_failed", meter.failed)
    yield Sample("embedder_bytes_written", meter.bytes_written)
    if total.padded_tokens:
        yield Sample("embedder_padding_share", 1 - total.tokens / total.padded_tokens)
    if meter.encoder_busy_share is not None:
        yield Sample("embedder_encoder_busy_share", meter.encoder_busy_share)
    yield Sample("embedder_done_share", meter.share)
    if meter.cost_usd is not None:
        yield Sample("embedder_cost_usd", meter.cost_usd)

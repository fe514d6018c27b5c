"""The run's metrics for Prometheus, by name and meaning; Ray exports them (pipeline.Reporter).

The driver reports as units finish, so that a retried unit counts once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from embedder.observe.progress import Meter

RUN_LABELS = ("table", "run_id")
"""Labels of every metric."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A value that only rises (counter), or one that rises and falls (gauge)."""

    name: str
    meaning: str
    kind: Literal["counter", "gauge"] = "counter"
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A metric's current value; a counter's since the start of the run."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


METRICS = (
    Metric("embedder_documents", "Source records read, quarantined ones included."),
    Metric("embedder_documents_reused", "Documents whose vectors came from a previous part."),
    Metric("embedder_documents_quarantined", "Quarantined records, by reason.", labels=("reason",)),
    Metric("embedder_chunks", "Chunks embedded."),
    Metric("embedder_chunks_reused", "Chunks whose vectors came from a previous part, or from an equal chunk of their unit."),
    Metric("embedder_tokens", "Tokens embedded, padding excluded."),
    Metric("embedder_tokens_reused", "Tokens of the reused chunks."),
    Metric("embedder_stage_seconds", "Seconds in a stage, summed over all workers: read, encode, write.", labels=("stage",)),
    Metric("embedder_units_landed", "Units whose part is on storage."),
    Metric("embedder_units_retried", "Retries of units whose worker died, in this run or an earlier one."),
    Metric("embedder_tasks_failed", "Shards, slices or buckets that could not be read to their end."),
    Metric("embedder_bytes_written", "Bytes of written parts."),
    Metric("embedder_padding_share", "Share of padding in the computed tokens.", "gauge"),
    Metric("embedder_encoder_busy_share", "Share of the encoder actors' time spent encoding, since the first finished unit.", "gauge"),
    Metric("embedder_fidelity_cosine", "Mean cosine to the full model of a sample embedded behind a calibrated exit.", "gauge"),
    Metric("embedder_fidelity_overlap", "Share of the full model's ten nearest that this sample keeps.", "gauge"),
    Metric("embedder_done_share", "Estimated share of finished work.", "gauge"),
    Metric("embedder_cost_usd", "Cost of the run so far, if a price is set.", "gauge"),
)


def measure(meter: Meter) -> Iterator[Sample]:
    """Yield all known metrics of a run with their current values."""
    total = meter.total
    yield Sample("embedder_documents", total.documents)
    yield Sample("embedder_documents_reused", total.reused)
    for reason, count in sorted(meter.reasons.items()):
        yield Sample("embedder_documents_quarantined", count, {"reason": reason})
    yield Sample("embedder_chunks", total.chunks)
    yield Sample("embedder_chunks_reused", total.chunks_reused)
    yield Sample("embedder_tokens", total.tokens)
    yield Sample("embedder_tokens_reused", total.tokens_reused)
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

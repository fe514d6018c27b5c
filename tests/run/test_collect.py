"""The driver takes landed units: its own time for each is what limits a run of many GPUs."""

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

from embedder.core.units import Part, PartName, Shard, Stats, Task
from embedder.observe.metrics import Sample
from embedder.observe.progress import Meter
from embedder.pipeline.rows import LandedRow
from embedder.run.embed import collect
from tests.tables import as_columns

NUM_UNITS = 1_000


def land(name: str) -> LandedRow:
    """Return a landed unit of ten documents."""
    part = Part(name, 10, 1_000, Stats(documents=10, chunks=10, tokens=100))
    return {"key": part.key, "part": asdict(part), "error": None, "broken": [], "reasons": [{"reason": "empty_text", "count": 1}],
            "probe": [1.0], "attempt": 1, "tokens": 100, "sample": b""}  # fmt: skip


def test_metrics_are_reported_at_most_once_a_second_and_the_last_report_holds_all_units() -> None:
    task = Task("a" * 16, "1" * 32, (Shard("a.jsonl", "v", 1_000),))
    names = [str(PartName(task.key, task.version, 10 * n, 10 * n + 10, n == NUM_UNITS - 1)) for n in range(NUM_UNITS)]
    reports: list[list[Sample]] = []
    meter = Meter(as_columns([task]), None)
    watch: Any = SimpleNamespace(land=lambda *_: None)
    parts, failed, probe = collect(map(land, names), meter, lambda samples: reports.append(list(samples)), watch)
    assert ([part.name for part in parts], failed, probe) == (names, [], (1.0,))
    assert len(reports) <= 2 + meter.seconds
    last = {sample.name: sample.value for sample in reports[-1]}
    assert (last["embedder_units_landed"], last["embedder_done_share"]) == (NUM_UNITS, 1.0)
    assert last["embedder_documents_quarantined"] == NUM_UNITS

"""Metrics add up, and the dashboard queries no others."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from embedder.core.units import Part, PartName, Shard, Stats, Task
from embedder.observe.metrics import METRICS, RUN_LABELS, measure
from embedder.observe.progress import Meter
from tests.tables import as_columns

DASHBOARD = json.loads((Path(__file__).parents[2] / "deploy/grafana/dashboard.json").read_text())
NAMES = {f"ray_{metric.name}" + ("_total" if metric.kind == "counter" else "") for metric in METRICS}
"""As Ray exports them."""
TASK = Task("0" * 16, "1" * 32, (Shard("a.jsonl", "v", 100),))


def part(first: int, stop: int, last: bool) -> Part:
    tokens = {"tokens": 300, "padded_tokens": 400, "text_bytes": 50}
    seconds = {"encode_seconds": 2.0, "read_seconds": 0.5, "write_seconds": 0.25}
    stats = Stats(documents=10, quarantined=2, chunks=16, **tokens, **seconds)
    return Part(str(PartName(TASK.key, TASK.version, first, stop, last)), 16, 1000, stats)


def test_figures_add_up_over_units(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("embedder.observe.progress.time.monotonic", lambda: now)
    meter = Meter(as_columns([TASK]), usd_per_hour=3600.0, actors=2)
    assert {sample.value for sample in measure(meter)} == {0}
    meter.land(part(0, 10, last=False), {"empty_text": 2})
    now = 110.0
    meter.land(part(10, 20, last=True), {"empty_text": 1, "bad_json": 1}, attempt=3)
    meter.fail("another")
    found = {(sample.name, *sample.labels.values()): sample.value for sample in measure(meter)}
    assert found == {
        ("embedder_documents",): 20,
        ("embedder_documents_reused",): 0,
        ("embedder_documents_quarantined", "bad_json"): 1,
        ("embedder_documents_quarantined", "empty_text"): 3,
        ("embedder_chunks",): 32,
        ("embedder_chunks_reused",): 0,
        ("embedder_tokens",): 600,
        ("embedder_tokens_reused",): 0,
        ("embedder_stage_seconds", "read"): 1.0,
        ("embedder_stage_seconds", "encode"): 4.0,
        ("embedder_stage_seconds", "write"): 0.5,
        ("embedder_units_landed",): 2,
        ("embedder_units_retried",): 2,
        ("embedder_tasks_failed",): 1,
        ("embedder_bytes_written",): 2000,
        ("embedder_padding_share",): 0.25,
        ("embedder_encoder_busy_share",): 0.1,  # 2 of 10 seconds, on one of 2 actors
        ("embedder_done_share",): 1.0,
        ("embedder_cost_usd",): 10.0,
    }


def test_an_api_costs_only_tokens_embedded_in_this_run() -> None:
    meter = Meter(as_columns([TASK]), None, 4, usd_per_million_tokens=2000.0)
    meter.land(part(0, 10, last=False), tokens_embedded=300)
    meter.land(part(10, 20, last=True))  # on storage already
    assert meter.cost_usd == 0.6


def test_samples_have_the_labels_that_their_metric_declares() -> None:
    meter = Meter(as_columns([TASK]), None)
    meter.land(part(0, 10, last=True), {"empty_text": 2})
    declared = {metric.name: metric for metric in METRICS}
    assert all(tuple(sample.labels) == declared[sample.name].labels for sample in measure(meter))


def test_the_dashboard_queries_exactly_the_existing_metrics() -> None:
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    asked = Counter(name for query in queries for name in re.findall(r"\bray_embedder_\w+", query))
    assert set(asked) == NAMES
    known = {*RUN_LABELS, *(label for metric in METRICS for label in metric.labels)}
    for query in queries:
        assert {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")} <= known
        assert set(re.findall(r"(\w+)=~?\"", query)) <= known


def test_the_dashboard_lays_panels_side_by_side_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])

"""Measure what the job adds to Ray's startup and imports in a short run.

The floor is a graph of the same shape whose stages only import: python -m embedder.benchmark.startup
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedder.config.compute import ComputeConfig
from embedder.config.embed import EmbedConfig
from embedder.demo.corpus import Document
from embedder.pipeline.cluster import choose_pool
from embedder.pipeline.graph import connect, iterate
from embedder.pipeline.rows import Row
from embedder.run.embed import warm_up
from embedder.sweep.timing import run_module


@dataclass(frozen=True, slots=True)
class Start:
    """Medians over rounds, in seconds of a whole process."""

    documents: int
    seconds: float
    floor_seconds: float
    """Time of Ray's start and end, and of the job's imports on driver and workers."""
    ours_seconds: float
    """Median difference of the two, run in turn."""
    here_seconds: float
    """Of the job without Ray, in one process, as it runs where no cluster is named."""
    rounds: tuple[tuple[float, float, float], ...]
    """Job on Ray, floor, and job without Ray, by round."""

    def rows(self) -> list[tuple[str, str]]:
        """Return the figures as named lines."""
        jobs = [job for job, _, _ in self.rounds]
        low, high = min(jobs), max(jobs)
        return [
            (f"{self.documents:,} documents on Ray", f"{self.seconds:5.1f} s, median of {len(self.rounds)} from {low:.1f} to {high:.1f}"),
            ("Ray and imports alone", f"{self.floor_seconds:5.1f} s"),
            ("ours", f"{self.ours_seconds:5.1f} s, {self.ours_seconds / self.seconds:.0%} of the whole"),
            ("in one process, without Ray", f"{self.here_seconds:5.1f} s"),
        ]


def measure_start(model: str, documents: Sequence[Document], rounds: int) -> Start:
    """Run the job as a user does and the floor, in turn, after one warm-up round."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        lines = [json.dumps({"id": each.id, "text": f"{each.title} {each.text}"}) for each in documents]
        Path(folder, "corpus.jsonl").write_text("\n".join(lines))
        for number in range(rounds + 1):
            flags = [f"--source.uri={folder}/corpus.jsonl", "--source.id_column=id", f"--embedding.model={model}"]
            job = time_module("jobs.embed", *flags, f"--output.uri={folder}/table-{number}", RAY_ADDRESS="local")
            floor = time_module("embedder.benchmark.startup", RAY_ADDRESS="local")
            here = time_module("jobs.embed", *flags, f"--output.uri={folder}/here-{number}", RAY_ADDRESS="")
            if number:
                found.append((job, floor, here))
    return Start(
        len(documents),
        statistics.median(job for job, _, _ in found),
        statistics.median(floor for _, floor, _ in found),
        statistics.median(job - floor for job, floor, _ in found),
        statistics.median(here for _, _, here in found),
        tuple(found),
    )


def time_module(module: str, *args: str, **environment: str) -> float:
    """Run a module in a process of its own and return its seconds."""
    started = time.perf_counter()
    run_module(module, *args, **environment)
    return time.perf_counter() - started


class ImportingActor:
    """Imports what an encoder imports. OpenVINO is left out, since short runs do not convert a model."""

    def __init__(self) -> None:
        import embedder.model.encoder  # noqa: F401

    def __call__(self, row: Row) -> Row:
        """Return the row."""
        return row


def pass_one(row: Row) -> Iterator[Row]:
    """Yield the row: a task of one unit."""
    yield row


def pass_on(row: Row) -> Row:
    """Return the row."""
    return row


def run_floor() -> None:
    """Start what a run starts, and pass one row through it."""
    warm_up(EmbedConfig.model_validate({"source": {"uri": "none"}, "embedding": {"model": "none"}, "output": {"uri": "no table"}}))
    rows = [{"number": 0}]
    assert list(iterate(connect(rows, (pass_one, ()), (ImportingActor, ()), (pass_on, ()), choose_pool(ComputeConfig())))) == rows


if __name__ == "__main__":
    run_floor()

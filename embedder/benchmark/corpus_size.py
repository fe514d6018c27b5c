"""Embed corpora of growing size, each by a job of its own, to see whether speed and memory depend on the size."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from embedder.demo.corpus import Document, read_documents
from embedder.model.backends import has_openvino
from embedder.observe.progress import align
from embedder.sweep.timing import run_module

SHARD_DOCUMENTS = 5_000
UNIT_DOCUMENTS = 250
BAR = 40


@dataclass(frozen=True, slots=True)
class Growth:
    """Figures of one corpus size."""

    documents: int
    chunks: int
    tokens_per_second: float
    """Between the first landed unit and the last."""
    encoder_busy_share: float
    driver_peak_bytes: int
    seconds: float
    """Whole run, with the start of Ray and of the model."""


def measure_growth(model: str, depth: int, sizes: Sequence[int]) -> list[Growth]:
    """Embed corpora of these sizes. A small depth is the harder test for the readers that feed the encoder."""
    documents, _ = read_documents()
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_repeated(documents, size, Path(folder, "corpus"))
            found.append(embed_in_a_process(model, depth, Path(folder)))
    return found


def write_repeated(documents: Sequence[Document], count: int, folder: Path) -> None:
    """Write `count` documents, the given ones repeated under new ids, as parquet shards of equal size."""
    folder.mkdir(parents=True)
    for first in range(0, count, SHARD_DOCUMENTS):
        numbers = range(first, min(count, first + SHARD_DOCUMENTS))
        chosen = [documents[number % len(documents)] for number in numbers]
        rows = {"id": [str(number) for number in numbers], "text": [f"{each.title} {each.text}" for each in chosen]}
        pq.write_table(pa.table(rows), folder / f"shard-{first:09d}.parquet", row_group_size=UNIT_DOCUMENTS)


def embed_in_a_process(model: str, depth: int, folder: Path) -> Growth:
    """Run the job as a user does, in a process of its own, so that its peak memory is the driver's."""
    flags = [
        f"--source.uri={folder}/corpus",
        "--source.id_column=id",
        f"--source.rows_per_unit={UNIT_DOCUMENTS}",
        f"--embedding.model={model}",
        f"--embedding.depth={depth}",
        f"--compute.backend={'openvino' if has_openvino() else 'torch'}",  # auto leaves a small corpus to torch
        f"--output.uri={folder}/table",
    ]
    run = json.loads(run_module("jobs.embed", *flags, "--json"))
    return Growth(
        documents=run["stats"]["documents"],
        chunks=run["stats"]["chunks"],
        tokens_per_second=run["steady_tokens_per_second"] or run["tokens_per_second"],
        encoder_busy_share=run["encoder_busy_share"] or 0.0,
        driver_peak_bytes=run["driver_peak_bytes"],
        seconds=run["seconds"],
    )


def plot_growth(found: Sequence[Growth]) -> str:
    """Draw speed and memory as bars, one line per size."""
    fastest, largest = max(each.tokens_per_second for each in found), max(each.driver_peak_bytes for each in found)
    names = [f"{each.documents:,} documents" for each in found]
    speeds = [
        f"{draw_bar(each.tokens_per_second / fastest)} {each.tokens_per_second:,.0f} tokens/s, encoder {each.encoder_busy_share:.0%} busy"
        for each in found
    ]
    peaks = [f"{draw_bar(each.driver_peak_bytes / largest)} {each.driver_peak_bytes / 1e6:,.0f} MB in the driver" for each in found]
    return f"{align(zip(names, speeds, strict=True))}\n\n{align(zip(names, peaks, strict=True))}"


def draw_bar(share: float) -> str:
    """Return a bar of this share of the longest."""
    return ("█" * round(BAR * share)).ljust(BAR)

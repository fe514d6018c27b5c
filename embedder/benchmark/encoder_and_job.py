"""Measure tokens per second: the encoder by depth, dtype and backend beside its peers, and the whole job beside the encoder.

Contenders run in turn, round after round, so that a slow phase of the machine slows all of them. Each figure is the median
over rounds of a contender's ratio to the reference of the same round.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from embedder.benchmark.peers import VectorRun, open_peers
from embedder.config.compute import Backend
from embedder.config.embed import EmbedConfig
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.quantization import cut_vectors
from embedder.core.schema import DOCUMENTS
from embedder.demo.corpus import Document, read_documents, write_corpus
from embedder.model.backends import has_openvino
from embedder.model.encoder import Encoder
from embedder.model.files.recipe import locate_model
from embedder.model.loading import DTYPES
from embedder.model.resolve import ResolvedModel, resolve_model
from embedder.model.runtime import multiplies_bfloat16
from embedder.observe.progress import align
from embedder.run.embed import run_embed
from embedder.run.prepare import prepare_run
from embedder.run.summary import Summary
from embedder.sweep.retrieval import mean_reciprocal_rank
from embedder.sweep.timing import Run, Timing, compare
from embedder.text.chunking import chunk_documents
from embedder.text.tokenizing import load_tokenizer


def tokenize_texts(texts: Sequence[str], resolved: ResolvedModel, chunking: bool = False) -> pa.Table:
    """Return CHUNKS of texts. Without chunking, a text is one chunk truncated at max_tokens, as in sentence-transformers."""
    rows = len(texts)
    columns = {"doc_id": [""] * rows, "text": list(texts), "content_hash": [""] * rows, "shard": [""] * rows, "row": list(range(rows))}
    spec = resolved.spec.model_copy(update={"chunking": chunking})
    return chunk_documents(pa.table(columns, schema=DOCUMENTS), load_tokenizer(resolved.tokenizer_json), spec)


OURS = "embedder, "
INT8 = ", int8"


@dataclass(frozen=True, slots=True)
class EncoderTimings:
    """Speed of every encoder, ours and peers', on the same texts."""

    tokens: int
    timings: list[Timing]
    """The first is the reference: sentence-transformers' default."""
    cosines: dict[str, float]
    """By name: mean cosine of its vectors to the reference's."""


def benchmark_encoder(model: str, texts: Sequence[str], token_budget: int, rounds: int, peer_python: str | None = None) -> EncoderTimings:
    """Compare the encoder, also at half its depth, with sentence-transformers' encode, both with tokenizing.

    `peer_python` runs more peers in another environment. bfloat16 is left out where the processor emulates it.
    """
    from sentence_transformers import SentenceTransformer

    resolved = resolve_model(EmbeddingConfig(model=model), ChunkingConfig())
    folder = str(locate_model(model, None)[0])
    num_tokens = int(tokenize_texts(texts, resolved)["num_tokens"].to_numpy().sum())
    dtypes = ("float32", "bfloat16") if multiplies_bfloat16("cpu") else ("float32",)
    contenders: dict[str, VectorRun] = {}
    for dtype in dtypes:
        peer = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": DTYPES[dtype]})
        contenders[f"sentence-transformers, {dtype}"] = partial(peer.encode, list(texts), show_progress_bar=False)
    backends: list[Backend] = ["torch", "openvino"] if has_openvino() else ["torch"]
    half = resolved.spec.depth // 2
    for backend in backends:
        for dtype in dtypes:
            for depth, name in ((resolved.spec.depth, ""), (half, f", depth {half}")):
                encoder = Encoder.load(resolved.spec.model_copy(update={"depth": depth}), "cpu", dtype, backend=backend)
                contenders[f"{OURS}{backend}, {dtype}{name}"] = partial(_embed, encoder, texts, resolved, token_budget)
    vectors: dict[str, npt.NDArray[np.float32]] = {}

    def keep(name: str, run: VectorRun) -> None:
        vectors[name] = run()

    with open_peers(peer_python, folder, texts) as peers:
        timings = compare({name: partial(keep, name, run) for name, run in {**contenders, **peers}.items()}, num_tokens, rounds)
    unit = {name: cut_vectors(vectors_ND, vectors_ND.shape[1], normalize=True) for name, vectors_ND in vectors.items()}
    reference_ND = unit[timings[0].name]
    cosines = {name: float((unit_ND * reference_ND).sum(axis=1).mean()) for name, unit_ND in unit.items()}
    return EncoderTimings(num_tokens, timings, cosines)


def lay_out(found: EncoderTimings) -> str:
    """Return a table of the contenders, and the ratios of our fastest at full depth to the fastest peers in the same rounds."""

    def fastest(wanted: Callable[[str], bool]) -> Timing | None:
        return max((each for each in found.timings if wanted(each.name)), key=lambda each: each.tokens_per_second, default=None)

    ours = fastest(lambda name: name.startswith(OURS) and "depth" not in name)
    exact = fastest(lambda name: not name.startswith(OURS) and INT8 not in name)
    int8 = fastest(lambda name: not name.startswith(OURS) and INT8 in name)
    assert ours is not None
    rows = [
        (each.name, f"{each.tokens_per_second:9,.0f} tokens/s  {each.ratio:5.2f} x  cosine {found.cosines[each.name]:.4f}")
        for each in found.timings
    ]
    peers = [(kind, peer) for kind, peer in (("peer", exact), ("int8 peer", int8)) if peer is not None]
    lines = [f"{ours.name}: {ours.ratio_to(peer):.2f} x the best {kind} ({peer.name})" for kind, peer in peers]
    return "\n".join([align(rows), "", *lines])


def _embed(encoder: Encoder, texts: Sequence[str], resolved: ResolvedModel, token_budget: int) -> npt.NDArray[np.float32]:
    return encoder.encode(tokenize_texts(texts, resolved)["token_ids"].combine_chunks(), token_budget).vectors_ND


@dataclass(frozen=True, slots=True)
class DepthTiming:
    """Speedup of a depth over the full model: of the whole pass and of the layers alone, beside the ideal full / depth."""

    depth: int
    tokens_per_second: float
    speedup: float
    layer_speedup: float
    ideal: float
    found: dict[int, float]
    """By dim: MRR@10 of names that search for their own documentation, both sides embedded at this depth."""

    def heading(self) -> str:
        """Return the heading of `line`."""
        return "".join(f"{dim:>7}" for dim in self.found) + "   tokens/s   whole  layers  ideal"

    def line(self) -> str:
        """Return the figures in columns."""
        found = "".join(f"{score:7.3f}" for score in self.found.values())
        return f"{found}  {self.tokens_per_second:9,.0f}  {self.speedup:5.2f}x  {self.layer_speedup:5.2f}x  {self.ideal:4.2f}x"


def lay_out_depths(depths: Sequence[DepthTiming]) -> str:
    """Return a table of the depths, the full model first."""
    heading = "MRR@10 of names that search for their own documentation, by dim; speed relative to the full model"
    return f"{heading}\n" + align([("depth", depths[0].heading()), *((str(each.depth), each.line()) for each in depths)])


DIMS = (384, 128, 64, 32)
NUM_QUERIES = 1000


def benchmark_depths(model: str, documents: Sequence[Document], token_budget: int, rounds: int) -> list[DepthTiming]:
    """Compare every depth, loaded alone, with the full model: speed on the first 1,500 documents, search quality on all."""
    texts = [document.text for document in documents]
    full = resolve_model(EmbeddingConfig(model=model), ChunkingConfig())
    token_ids = tokenize_texts(texts[:1500], full)["token_ids"].combine_chunks()
    num_layers = full.spec.depth
    layers: dict[int, list[float]] = {depth: [] for depth in range(1, num_layers + 1)}
    found: dict[int, dict[int, float]] = {}
    contenders: dict[str, Run] = {}
    for depth in range(num_layers, 0, -1):
        encoder = Encoder.load(full.spec.model_copy(update={"depth": depth}), "cpu", "auto")

        def run(encoder: Encoder = encoder, depth: int = depth) -> None:
            with timed_layers(encoder.layers) as spent:
                encoder.encode(token_ids, token_budget)
            layers[depth].append(sum(spent))

        contenders[str(depth)] = run
        found[depth] = find_titles(encoder, documents, full, token_budget)
    timings = compare(contenders, len(token_ids.values), rounds)
    in_layers = {
        depth: statistics.median(whole / mine for whole, mine in zip(layers[num_layers][1:], taken[1:], strict=True))
        for depth, taken in layers.items()
    }
    return [
        DepthTiming(depth, timing.tokens_per_second, timing.ratio, in_layers[depth], num_layers / depth, found[depth])
        for timing in timings
        for depth in [int(timing.name)]
    ]


def find_titles(encoder: Encoder, documents: Sequence[Document], resolved: ResolvedModel, token_budget: int) -> dict[int, float]:
    """Search for documents by their names among all of them; return MRR@10 by dim."""

    def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return encoder.encode(tokenize_texts(texts, resolved)["token_ids"].combine_chunks(), token_budget).vectors_ND

    documents_ND = embed([document.text for document in documents])
    wanted_Q = np.linspace(0, len(documents) - 1, min(NUM_QUERIES, len(documents)), dtype=np.int64)
    queries_QD = embed([documents[number].id for number in wanted_Q])
    dims = [dim for dim in DIMS if dim <= encoder.dim]
    return {
        dim: mean_reciprocal_rank(cut_vectors(queries_QD, dim, normalize=True), cut_vectors(documents_ND, dim, normalize=True), wanted_Q)
        for dim in dims
    }


@contextmanager
def timed_layers(layers: torch.nn.ModuleList) -> Iterator[list[float]]:
    """Yield a list that collects, per forward pass on a CPU, the seconds from the first layer's start to the last layer's end."""
    spent: list[float] = []
    entered = threading.local()  # batches run in parallel, one thread each

    def enter(*_: object) -> None:
        entered.at = time.perf_counter()

    def finish(*_: object) -> None:
        spent.append(time.perf_counter() - entered.at)

    hooks = [layers[0].register_forward_pre_hook(enter), layers[-1].register_forward_hook(finish)]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def shuffle_documents(seed: int = 0) -> list[Document]:
    """Read the documentation of the running Python in random order, so that lengths are mixed."""
    documents, _ = read_documents()
    return [documents[number] for number in np.random.default_rng(seed).permutation(len(documents))]


@dataclass(frozen=True, slots=True)
class JobTiming:
    """Speed of the whole job and of the encoder alone on the same documents."""

    documents: int
    tokens: int
    encoder_tokens_per_second: float
    job_tokens_per_second: float
    """Between the first landed unit and the last."""
    ratio: float
    seconds: float
    """Whole run, with the start of Ray and of the model."""

    def rows(self) -> list[tuple[str, str]]:
        """Return the figures as named lines."""
        return [
            ("whole job, steady", f"{self.job_tokens_per_second:9,.0f} tokens/s  {self.ratio:5.2f} x the encoder alone"),
            ("encoder alone", f"{self.encoder_tokens_per_second:9,.0f} tokens/s, {self.tokens:,} tokens, tokenized beforehand"),
            ("whole job, with start", f"{self.seconds:9.1f} s for {self.documents:,} documents"),
        ]


def benchmark_job(model: str, token_budget: int, rounds: int) -> JobTiming:
    """Embed the demo corpus with the whole job and with the encoder alone, in turn; return medians over rounds."""
    alone = [_encoder_rate(model, token_budget)]
    runs: list[Summary] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            write_corpus(Path(folder, "corpus"))
            config = EmbedConfig.model_validate(
                {
                    "source": {"uri": f"{folder}/corpus", "id_column": "id", "text_columns": ["title", "text"], "rows_per_unit": 500},
                    "embedding": {"model": model},
                    "compute": {"token_budget": token_budget, "device": "cpu"},
                    "output": {"uri": f"{folder}/table"},
                }
            )
            runs.append(run_embed(prepare_run(config)))
        alone.append(_encoder_rate(model, token_budget))
    rates = [run.steady_tokens_per_second or 0.0 for run in runs]
    beside = [(before + after) / 2 for before, after in pairwise(alone)]
    return JobTiming(
        documents=runs[0].stats.documents,
        tokens=runs[0].stats.tokens,
        encoder_tokens_per_second=statistics.median(alone),
        job_tokens_per_second=statistics.median(rates),
        ratio=statistics.median(rate / reference for rate, reference in zip(rates, beside, strict=True)),
        seconds=statistics.median(run.seconds for run in runs),
    )


def _encoder_rate(model: str, token_budget: int) -> float:
    """Return tokens per second of the encoder alone over the same chunks, tokenized beforehand, in units of 500."""
    resolved = resolve_model(EmbeddingConfig(model=model), ChunkingConfig())
    encoder = Encoder.load(resolved.spec, "cpu", "auto", backend="auto")
    texts = [f"{each.title} {each.text}" for each in read_documents()[0]]
    token_ids = tokenize_texts(texts, resolved, chunking=True)["token_ids"].combine_chunks()
    units = [token_ids.slice(first, 500) for first in range(0, len(token_ids), 500)]
    encoder.encode(units[0], token_budget)
    started = time.perf_counter()
    for unit in units:
        encoder.encode(unit, token_budget)
    return len(token_ids.values) / (time.perf_counter() - started)

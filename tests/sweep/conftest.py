"""A grid over the real MiniLM, whose texts are run once for all tests, and a small labeled corpus."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.storage import Location
from embedder.model.resolve import resolve_model
from embedder.sweep import cost
from embedder.sweep.candidates import Cache, Machine, Transformer
from embedder.sweep.config import GridConfig
from embedder.sweep.grid import Grid, view_model
from tests.sentences import quiet, sentence

MACHINE = Machine("cpu", "float32", 2048)


@pytest.fixture(scope="package", autouse=True)
def _short_timing() -> Iterator[None]:
    """Time encoders on as few chunks as will do: no test reads more from a speed than that it was measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "LEAST_SECONDS", 0.05)
        patch.setattr(cost, "ROUNDS", 1)
        yield


@pytest.fixture(scope="session")
def grid_of(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Grid]:
    cache = Cache(Location(str(tmp_path_factory.mktemp("taps"))))

    def make(depths: Sequence[int] = (6, 3), dims: tuple[int, ...] = (384, 64), **grid: Any) -> Grid:
        resolved = resolve_model(EmbeddingConfig(model=minilm), ChunkingConfig())
        model = Transformer(minilm, resolved, depths, MACHINE, cache, quiet)
        wanted = GridConfig(**grid)
        return Grid(tuple(view_model(model, sorted(depths, reverse=True), dims, wanted)), wanted.precisions)

    return make


@pytest.fixture
def write_beir(tmp_path: Path) -> Callable[..., str]:
    """Write a BEIR folder of 130 documents and 12 queries made of most words of a document."""

    def write(qrels: Sequence[tuple[str, str, int]] | None = None, num_documents: int = 130) -> str:
        import json

        folder = tmp_path / "mini"
        (folder / "qrels").mkdir(parents=True, exist_ok=True)
        documents = [{"_id": f"d{number}", "title": f"Part {number}", "text": sentence(number * 11)} for number in range(num_documents)]
        queries = [{"_id": f"q{number}", "text": sentence(number * 11).lower().removesuffix(" near the town.")} for number in range(12)]
        (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
        (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
        rows = [(f"q{number}", f"d{number}", 1) for number in range(12)] if qrels is None else qrels
        lines = "".join(f"{query}\t{document}\t{grade}\n" for query, document, grade in rows)
        (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
        return str(folder)

    return write

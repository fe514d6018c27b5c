"""Late chunking equals its published definition (arXiv 2409.04701), computed by transformers: a whole text is encoded, and the token states
within each chunk's span are averaged."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from embedder.config.embed import EmbedConfig
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError
from embedder.model.encoder import Encoder
from embedder.model.late_chunking import read_passes
from embedder.model.loading import resolve_backend
from embedder.model.resolve import ResolvedModel, resolve_model
from embedder.model.results import Encoded
from embedder.pipeline.batch_encoder import BatchEncoder
from embedder.text.chunking import chunk_documents
from embedder.text.tokenizing import load_tokenizer
from tests.model.conftest import WORDS, TinyModel

LONG = " ".join(np.random.default_rng(0).choice(WORDS, 300))
PASSES = [(0, 96), (81, 192), (177, 288), (273, 300)]
"""Of `LONG`, whose chunks have 32 tokens: 126 tokens fit into a pass, and 15 before its first chunk are context."""


def resolve(model: TinyModel, *, late: bool = True, max_tokens: int | None = 34, overlap: int = 0, **embedding: Any) -> ResolvedModel:
    chunking = ChunkingConfig(late=late, max_tokens=max_tokens, overlap_tokens=overlap)
    return resolve_model(EmbeddingConfig(**({"model": str(model.folder), "pooling": "mean"} | embedding)), chunking)


def chunk(resolved: ResolvedModel, texts: list[str]) -> pa.Table:
    return chunk_documents(pa.table({"text": texts}), load_tokenizer(resolved.tokenizer_json), resolved.spec)


def embed(resolved: ResolvedModel, texts: list[str], layout: Any = "padded") -> Encoded:
    token_ids, spans = read_passes(chunk(resolved, texts))
    return Encoder.load(resolved.spec, dtype="float32", layout=layout).encode(token_ids, 300, spans)


def pool_published(
    folder: Path, text: str, passes: list[tuple[int, int]], spans: list[tuple[int, int]], depth: int, prompt: str
) -> np.ndarray:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids, num_prompt = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True), len(tokenizer.tokenize(prompt))
    first, last = tokenizer("", add_special_tokens=True)["input_ids"]
    states_by_token: dict[int, torch.Tensor] = {}
    for start, stop in passes:
        own = [first, *tokenizer(prompt, add_special_tokens=False)["input_ids"], *ids["input_ids"][start:stop], last]
        with torch.inference_mode():
            output = model(torch.tensor([own]), output_hidden_states=True)
        is_whole = depth == model.config.num_hidden_layers
        states = (output.last_hidden_state if is_whole else output.hidden_states[depth])[0]
        lead = 1 + num_prompt
        for at in range(start, stop):
            states_by_token.setdefault(at, states[lead + at - start])
        if start == 0:
            before = states[:lead]
    vectors = []
    for number, (start, end) in enumerate(spans):
        inside = [at for at, (low, high) in enumerate(ids["offset_mapping"]) if start <= low and high <= end]
        rows = [states_by_token[at] for at in inside]
        rows = [*before, *rows] if number == 0 else rows
        rows = [*rows, states[-1]] if number == len(spans) - 1 else rows
        vectors.append(torch.nn.functional.normalize(torch.stack(rows).mean(dim=0), dim=0).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize(("family", "depth"), [("bert", 2), ("bert", 4), ("modernbert", 4)])
def test_vectors_equal_the_published_definition(tiny_models: Callable[[str], TinyModel], family: str, depth: int, layout: str) -> None:
    model, short = tiny_models(family), " ".join(WORDS * 4)
    resolved = resolve(model, depth=depth, prompt="the cat ")
    texts = [short, WORDS[0], LONG]
    chunks = chunk(resolved, texts)
    found = embed(resolved, texts, layout).vectors_ND
    passes = {0: [(0, len(WORDS) * 4)], 1: [(0, 1)], 2: [(0, 120), (105, 210), (195, 300)]}  # 30 tokens a chunk, 124 a pass
    for document, text in enumerate(texts):
        mine = np.flatnonzero(chunks["document"].to_numpy() == document)
        spans = list(zip(chunks["start_char"].to_numpy()[mine], chunks["end_char"].to_numpy()[mine], strict=True))
        expected = pool_published(model.folder, text, passes[document], spans, depth, "the cat ")
        assert (found[mine] * expected).sum(axis=1).min() > 0.99999, text[:20]


def test_chunks_of_overlapping_windows_and_of_any_token_budget_are_pooled_alike(tiny_model: TinyModel) -> None:
    resolved = resolve(tiny_model, overlap=7)
    token_ids, spans = read_passes(chunk(resolved, [LONG]))
    encoder = Encoder.load(resolved.spec, dtype="float32")
    found, alone = (encoder.encode(token_ids, budget, spans).vectors_ND for budget in (4096, 1))
    np.testing.assert_allclose(found, alone, atol=1e-6)
    chunks = chunk(resolved, [LONG])
    bounds = list(zip(chunks["start_char"].to_pylist(), chunks["end_char"].to_pylist(), strict=True))
    assert all(next_start < end for (_, end), (next_start, _) in pairwise(bounds))
    passes = [(0, 107), (85, 207), (185, 300)]
    expected = pool_published(tiny_model.folder, LONG, passes, bounds[:4], 4, "")
    assert (found[:3] * expected[:3]).sum(axis=1).min() > 0.99999


def test_batches_of_a_graph_of_ones_own_have_the_same_vectors(tiny_model: TinyModel) -> None:
    settings = {"chunking": {"late": True, "max_tokens": 34}, "compute": {"dtype": "float32", "backend": "torch"}}
    encoder = BatchEncoder({"model": str(tiny_model.folder), "pooling": "mean"}, **settings)
    found = encoder({"text": np.array([LONG, WORDS[0]])})
    np.testing.assert_allclose(found["embedding"], embed(resolve(tiny_model), [LONG, WORDS[0]]).vectors_ND, atol=1e-6)


def test_a_document_of_one_chunk_has_the_vector_of_plain_chunking(tiny_model: TinyModel) -> None:
    texts = [" ".join(WORDS[:9]), " ".join(WORDS[:20])]
    np.testing.assert_allclose(
        embed(resolve(tiny_model), texts).vectors_ND, embed(resolve(tiny_model, late=False), texts).vectors_ND, atol=1e-6
    )


def test_equal_chunks_of_different_documents_have_their_own_vectors_and_equal_documents_one(tiny_model: TinyModel) -> None:
    shared, resolved = " ".join((WORDS * 2)[:32]), resolve(tiny_model)
    texts = [f"{shared} dogs ran far", f"{shared} birds sang", f"{shared} dogs ran far"]
    chunks, found = chunk(resolved, texts), embed(resolved, texts)
    assert [
        text[start:end] == shared
        for text, start, end in zip(texts, *(chunks[name].to_pylist()[::2] for name in ("start_char", "end_char")), strict=True)
    ]
    vectors = found.vectors_ND.reshape(3, 2, -1)
    assert (vectors[0, 0] @ vectors[1, 0]) < 0.999
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert (found.copies, found.copied_tokens) == (2, sum(chunks["num_tokens"].to_pylist()[4:]))
    plain = embed(resolve(tiny_model, late=False), texts)
    assert plain.copies == 3, "without late chunking they share it"


def test_queries_are_plain_and_the_space_is_another(tiny_model: TinyModel) -> None:
    late, plain = resolve(tiny_model).spec, resolve(tiny_model, late=False).spec
    assert (late.late_tokens, plain.late_tokens) == (128, None)
    assert late.space_id != plain.space_id
    assert plain.model_copy(update={"late_tokens": None}).space_id == plain.space_id
    assert late.for_queries() == plain.for_queries()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"pooling": "cls"}, "a chunk is the mean of its tokens, not embedding.pooling='cls'"),
        ({"pooling": "last"}, "a chunk is the mean of its tokens, not embedding.pooling='last'"),
        ({"max_tokens": None}, "chunking.max_tokens=128 is all that"),
    ],
)
def test_models_and_settings_that_cannot_pool_by_chunks_are_refused(tiny_model: TinyModel, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"chunking.late=true: .*{problem}"):
        resolve(tiny_model, **changes)


def test_openvino_is_refused_and_never_chosen() -> None:
    with pytest.raises(ValueError, match=r"compute.backend=openvino: does not pool by chunks"):
        EmbedConfig.model_validate(
            {"source": {"uri": "in"}, "embedding": {"model": "m"}, "output": {"uri": "out"}, "chunking": {"late": True},
             "compute": {"backend": "openvino"}}
        )  # fmt: skip
    with pytest.raises(ConfigError, match="does not pool by chunks"):
        resolve_backend("openvino", "cpu", torch.float32, "padded", late=True)
    assert resolve_backend("auto", "cpu", torch.float32, "padded", late=True) == "torch"

"""A model that leaves the prompt's tokens out of pooling equals sentence-transformers, for documents and for queries."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedder.calibrate.run import resolve_whole
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError
from embedder.core.spec import Pooling
from embedder.model.defaults import choose_defaults
from embedder.model.encoder import Encoder
from embedder.model.files.recipe import read_recipe
from embedder.search.query_encoder import QueryEncoder
from tests.model.conftest import POOLING, TinyModel, tokenize

POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last", "max": "max", "mean_sqrt_len_tokens": "mean_sqrt_len"}


@pytest.fixture
def without_prompt(tiny_models: Callable[[str], TinyModel], tmp_path: Path) -> Callable[[str, str], TinyModel]:
    """A copy of a tiny model whose pooling excludes the prompt."""

    def copy(family: str, mode: str) -> TinyModel:
        folder = Path(shutil.copytree(tiny_models(family).folder, tmp_path / f"{family}-{mode}"))
        config = {"embedding_dimension": 64, "pooling_mode": mode, "include_prompt": False}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
        return TinyModel(folder, family)

    return copy


@pytest.mark.parametrize(("family", "mode"), [*(("bert", mode) for mode in POOLINGS), ("t5", "mean"), ("qwen3", "lasttoken")])
def test_vectors_equal_sentence_transformers(
    family: str, mode: str, without_prompt: Callable[[str, str], TinyModel], texts: list[str]
) -> None:
    model = without_prompt(family, mode)
    settings: dict[str, Any] = {"prompt": "the cat sat on ", "query_prompt": "dogs ran "}
    texts = texts[:10]
    spec, theirs = model.resolve(**settings).spec, model.reference()
    expected = theirs.encode(texts, prompt="the cat sat on ", normalize_embeddings=True)
    ids = tokenize(model.resolve(**settings), texts)
    for layout in ("padded", "packed") if family != "t5" else ("padded",):
        vectors = Encoder.load(spec, dtype="float32", layout=layout).encode(ids, 512).vectors_ND
        np.testing.assert_allclose(vectors, expected, atol=5e-6)
    encoder = QueryEncoder(spec)
    queries = theirs.encode(texts[:3], prompt="dogs ran ", normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode(texts[:3]), queries, atol=5e-6)
    np.testing.assert_allclose(encoder.encode_passages(texts[:3]), expected[:3], atol=5e-6)
    if mode in ("mean", "max"):
        pooled = TinyModel(model.folder, family).resolve(**settings).spec.model_copy(update={"include_prompt": True})
        assert np.abs(Encoder.load(pooled, dtype="float32").encode(ids, 512).vectors_ND - expected).max() > 1e-3


def test_openvino_and_taps_leave_it_out(without_prompt: Callable[[str, str], TinyModel], texts: list[str]) -> None:
    model, settings = without_prompt("bert", "mean"), {"prompt": "the cat sat on "}
    spec, ids = model.resolve(**settings).spec, tokenize(model.resolve(**settings), texts)
    encoder = Encoder.load(spec, dtype="float32")
    expected = encoder.encode(ids, 512).vectors_ND
    np.testing.assert_allclose(Encoder.load(spec, dtype="float32", backend="openvino").encode(ids, 512).vectors_ND, expected, atol=1e-5)
    (states,) = encoder.tap(ids, 512, [4]).values()
    np.testing.assert_allclose(states / np.linalg.norm(states, axis=1, keepdims=True), expected, atol=1e-6)


def test_a_model_without_prompts_keeps_its_space(without_prompt: Callable[[str, str], TinyModel], tiny_models: Any) -> None:
    model = without_prompt("bert", "cls")
    assert POOLING["bert"] == "cls"
    assert model.resolve().spec.include_prompt
    assert not model.resolve(prompt="the ").spec.include_prompt
    assert not model.resolve(query_prompt="the ").spec.include_prompt


def test_instructor_is_known_by_name_to_leave_the_prompt_out(tiny_model: TinyModel) -> None:
    recipe = read_recipe(tiny_model.folder)
    assert not choose_defaults("hkunlp/instructor-large", recipe).include_prompt
    assert choose_defaults("acme/encoder", recipe).include_prompt


def test_what_would_read_the_prompt_is_refused(without_prompt: Callable[[str, str], TinyModel]) -> None:
    with pytest.raises(ConfigError, match=r"embedding\.pooling='weightedmean': .* leaves the prompt out of pooling"):
        without_prompt("bert", "weightedmean").resolve(prompt="the ")
    settings = EmbeddingConfig(model=str(without_prompt("bert", "mean").folder), prompt="the ")
    with pytest.raises(ConfigError, match="pools without the prompt, which exit maps read"):
        resolve_whole(settings, ChunkingConfig())

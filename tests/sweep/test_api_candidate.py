"""Vectors over a real /v1/embeddings: requests, refusals, and no text paid for twice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ModelError
from embedder.core.quantization import cut_vectors
from embedder.core.storage import Location
from embedder.model.resolve import resolve_model
from embedder.sweep.api_candidate import Api, plan_requests
from embedder.sweep.candidates import Cache, Transformer
from embedder.sweep.config import BaselineConfig
from tests.api_server import ApiServer, run_api_server
from tests.sentences import quiet, sentence
from tests.sweep.conftest import MACHINE

pytestmark = pytest.mark.real

TEXTS = [sentence(number) for number in range(150)] + [""]


@pytest.fixture(scope="module")
def running(minilm: str) -> Iterator[ApiServer]:
    with run_api_server(minilm) as server:
        yield server


@pytest.fixture
def server(running: ApiServer, monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    running.reset()
    return running


def connect(server: ApiServer, folder: Path, **settings: Any) -> Api:
    values = {"model": "openai:mini", "dims": (64, 256), "base_url": server.url, "price_per_million_tokens_usd": 0.5} | settings
    return Api(BaselineConfig(**values), Cache(Location(str(folder))), quiet)


def test_vectors_are_the_models_cut_to_the_largest_dim(server: ApiServer, minilm: str, tmp_path: Path) -> None:
    api = connect(server, tmp_path)
    vectors = api.embed(TEXTS, "document", 0)
    model = Transformer(
        minilm, resolve_model(EmbeddingConfig(model=minilm), ChunkingConfig()), [6], MACHINE, Cache(Location(str(tmp_path))), quiet
    )
    expected = cut_vectors(model.embed([*TEXTS[:-1], " "], "document", 6), 256, normalize=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert [len(request["input"]) for request in server.requests] == [128, 23]
    assert {request["dimensions"] for request in server.requests} == {256}
    assert {request["model"] for request in server.requests} == {"mini"}


def test_texts_are_paid_for_once_and_counted(server: ApiServer, tmp_path: Path) -> None:
    first = connect(server, tmp_path).embed(TEXTS, "document", 0)
    asked = len(server.requests)
    again = connect(server, tmp_path)
    np.testing.assert_array_equal(again.embed(TEXTS, "document", 0), first)
    tokens, seconds = again.measure(TEXTS)
    assert len(server.requests) == asked
    assert tokens > 150 * 8
    assert seconds > 0


def test_prompts_precede_the_texts(server: ApiServer, tmp_path: Path) -> None:
    connect(server, tmp_path, query_prompt="find: ").embed(["a river"], "query", 0)
    assert server.requests[0]["input"] == ["find: a river"]


def test_rate_limited_requests_are_retried(server: ApiServer, tmp_path: Path) -> None:
    server.refusals += [429, 429, 503]
    assert connect(server, tmp_path).embed(TEXTS[:3], "document", 0).shape == (3, 256)
    assert not server.refusals


def test_a_refusal_names_the_model(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(ModelError, match=r"baselines: openai:mini at .*: 401 AuthenticationError"):
        connect(server, tmp_path).embed(TEXTS, "document", 0)


def test_vectors_of_another_size_are_refused(server: ApiServer, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="400 components were requested, 384 returned"):
        connect(server, tmp_path, dims=(400,)).embed(["a"], "document", 0)


def test_requests_are_bounded_in_texts_and_characters() -> None:
    texts = ["x" * 30_000, *["y" * 20_000] * 12, *["z"] * 300]
    requests = list(plan_requests(texts))
    assert max(len(request) for request in requests) == 128
    assert max(sum(map(len, request)) for request in requests) <= 200_000
    assert [text for request in requests for text in request] == [text[:24_000] for text in texts]

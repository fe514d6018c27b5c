"""A model behind a real /v1/embeddings: resolved before a run, bounded requests, refusals distinguished from outages."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core import retry as retries
from embedder.core.errors import ConfigError, ModelError
from embedder.core.spec import EmbeddingSpec
from embedder.model.api_encoder import ApiEncoder, find_stop
from embedder.model.api_spec import open_counted, resolve_api
from embedder.model.encoder import Encoder
from embedder.model.resolve import resolve_model
from tests.api_server import ApiServer, run_api_server
from tests.model.conftest import tokenize

TEXTS = [f"the {animal} and the {thing} number {number}" for number in range(50) for animal, thing in (("cat", "hat"), ("dog", "fog"))]


@pytest.fixture(scope="module")
def running(minilm: str) -> Iterator[ApiServer]:
    with run_api_server(minilm) as server:
        yield server


@pytest.fixture
def server(running: ApiServer, monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    running.reset()
    return running


def resolve(server: ApiServer, max_tokens: int | None = 200, tokenizer: str | None = None, **settings: Any) -> EmbeddingSpec:
    embedding = EmbeddingConfig(**({"model": "openai:mini", "base_url": server.url} | settings))
    return resolve_api(embedding, ChunkingConfig(max_tokens=max_tokens, tokenizer=tokenizer)).spec


def local_vectors(minilm: str, texts: list[str], dim: int) -> np.ndarray:
    resolved = resolve_model(EmbeddingConfig(model=minilm, dim=dim), ChunkingConfig())
    return Encoder.load(resolved.spec, dtype="float32").encode(tokenize(resolved, texts), 4096).vectors_ND


def test_a_spec_records_the_model_the_server_and_the_token_counter(server: ApiServer) -> None:
    spec = resolve(server)
    assert (spec.model, spec.base_url, spec.dim, spec.depth, spec.pooling) == ("openai:mini", server.url, 384, 0, "unknown")
    assert spec.model_checksum == "mini, tokens counted by bytes"
    assert resolve(server, base_url=server.url + "/").space_id == spec.space_id
    elsewhere = spec.model_copy(update={"base_url": "https://elsewhere/v1"})
    assert spec.differences(elsewhere) == [f"base_url: {server.url!r} → 'https://elsewhere/v1'"]
    assert resolve(server, model="openai:other").space_id != spec.space_id
    assert spec.for_queries().base_url == server.url


def test_an_address_from_the_environment_is_recorded(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert resolve(server, base_url=None).base_url == server.url


def test_vectors_are_truncated_and_normalized(server: ApiServer, minilm: str) -> None:
    encoded = ApiEncoder(resolve(server, dim=64)).encode(TEXTS)
    np.testing.assert_allclose(encoded.vectors_ND, local_vectors(minilm, TEXTS, 64), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(encoded.vectors_ND, axis=1), 1, atol=1e-6)
    assert encoded.tokens is not None
    assert encoded.tokens > 8 * len(TEXTS)
    assert {request["dimensions"] for request in server.requests[2:]} == {64}


def test_vectors_of_a_server_without_dimensions_are_truncated_locally(server: ApiServer) -> None:
    expected = ApiEncoder(resolve(server, dim=64)).encode(TEXTS[:3]).vectors_ND
    server.takes_dimensions = False
    encoder = ApiEncoder(resolve(server, dim=64))
    np.testing.assert_allclose(encoder.encode(TEXTS[:3]).vectors_ND, expected, atol=1e-6)
    assert "dimensions" not in server.requests[-1]


def test_a_named_tokenizer_counts_tokens(server: ApiServer, minilm: str) -> None:
    spec = resolve(server, tokenizer=minilm)
    assert spec.model_checksum.startswith("mini, tokens counted by ")
    assert spec.space_id != resolve(server).space_id
    encoder, tokenizer_json = open_counted(spec)
    assert "[CLS]" in tokenizer_json
    assert encoder.encode(TEXTS[:2]).vectors_ND.shape == (2, 384)
    with pytest.raises(ModelError, match="not the tokenizer that the spec was resolved with"):
        open_counted(spec.model_copy(update={"model_checksum": "mini, tokens counted by another"}))
    with pytest.raises(ConfigError, match=r"chunking.tokenizer='/nowhere/at/all': no tokenizer found"):
        resolve(server, tokenizer="/nowhere/at/all")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": None}, "chunking.max_tokens: an API does not report how many tokens 'openai:mini' accepts; set it"),
        ({"dim": 400}, "embedding.dim=400: 'openai:mini' has 384 components; choose 1 to 384"),
        ({"dim": 100, "quantization": "binary"}, "embedding.dim=100: binary packs eight components"),
        ({"prompt": "p" * 700}, "leaves no room for text"),
    ],
)
def test_unsupported_settings_are_refused_before_the_run(server: ApiServer, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(server, **settings)


def test_max_tokens_of_openai_models_is_built_in(server: ApiServer) -> None:
    assert resolve(server, max_tokens=None, model="openai:text-embedding-3-small").max_tokens == 8191


def test_a_wrong_key_or_address_is_refused_before_the_run(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedder.model.api_spec.RESOLVE_SECONDS", 0.1)
    with pytest.raises(ConfigError, match=r"embedding.model='openai:mini': openai:mini at http://127.0.0.1:9/v1: APIConnectionError"):
        resolve(server, base_url="http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(ConfigError, match="401 AuthenticationError"):
        resolve(server)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set in the environment"):
        resolve(server, base_url=None)


def test_a_refused_text_is_isolated(server: ApiServer) -> None:
    encoder = ApiEncoder(resolve(server))
    expected = encoder.encode(TEXTS).vectors_ND
    server.refused_word = "long"
    texts = [*TEXTS]
    texts[17] = texts[60] = "long " * 200
    encoded = encoder.encode(texts)
    assert sorted(encoded.refused) == [17, 60]
    assert "maximum context length exceeded" in encoded.refused[17]
    kept = [number for number in range(len(texts)) if number not in (17, 60)]
    np.testing.assert_allclose(encoded.vectors_ND[kept], expected[kept], atol=1e-5)


def test_requests_stay_small_after_a_server_refuses_a_large_one(server: ApiServer) -> None:
    encoder = ApiEncoder(resolve(server))
    server.most_texts = 32
    encoder.encode(TEXTS)
    server.requests.clear()
    assert not encoder.encode(TEXTS).refused
    assert [len(request["input"]) for request in server.requests] == [25, 25, 25, 25]


def test_tokens_are_none_if_the_server_does_not_report_usage(server: ApiServer) -> None:
    server.says_usage = False
    assert ApiEncoder(resolve(server)).encode(TEXTS[:2]).tokens is None


def test_a_busy_server_is_retried_and_a_persistent_failure_names_it(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ApiEncoder(resolve(server))
    server.refusals += [429, 503]
    assert encoder.encode(TEXTS[:1]).vectors_ND.shape == (1, 384)
    monkeypatch.setattr(retries, "PATIENCE_SECONDS", 0.0)
    server.refusals += [503]
    with pytest.raises(ModelError, match=r"openai:mini at http.*: 503 InternalServerError"):
        encoder.encode(TEXTS[:1])


def test_vectors_shorter_than_the_specs_dim_are_refused(server: ApiServer) -> None:
    spec = resolve(server).model_copy(update={"dim": 512})
    with pytest.raises(ModelError, match="384 components returned, and dim is 512"):
        ApiEncoder(spec).encode(TEXTS[:1])


def test_requests_are_bounded_in_texts_and_characters() -> None:
    assert find_stop(["x"] * 300, 0, 128) == 128
    assert find_stop(["x" * 60_000] * 5, 0, 128) == 3
    assert find_stop(["x" * 300_000, "x"], 0, 128) == 1

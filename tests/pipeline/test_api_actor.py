"""The API actor without Ray: chunks and vectors stay together if a document is refused, and another model is refused."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.config.output import OutputConfig
from embedder.config.source import SourceConfig
from embedder.core.errors import ModelError
from embedder.core.schema import DOCUMENTS
from embedder.core.units import Stats
from embedder.model.api_encoder import ApiEncoder
from embedder.model.api_spec import resolve_api
from embedder.pipeline.api_actor import MOST_REFUSED, ApiActor
from embedder.pipeline.rows import PreparedRow, PreparedUnit, StageContext, from_ipc, to_ipc
from embedder.text.byte_estimate import chunk_counted
from tests.api_server import ApiServer, run_api_server

FINISHED: PreparedRow = {"key": "key", "name": "unit", "error": None, "broken": [], "unit": None}
"""A unit whose part is already on storage."""
LONG = "a river runs past an engine and a violin " * 4


@pytest.fixture(scope="module")
def server(minilm: str) -> Iterator[ApiServer]:
    with run_api_server(minilm) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "secret")
        yield server
        server.reset()


def make_context(server: ApiServer, folder: Path, probe: tuple[float, ...] | None = None) -> StageContext:
    embedding = EmbeddingConfig(model="openai:mini", base_url=server.url, dim=16, prompt="passage: ")
    spec = resolve_api(embedding, ChunkingConfig(max_tokens=30)).spec
    source, output = SourceConfig(uri="in"), OutputConfig(uri=str(folder))
    return StageContext(source, output, spec, "", pa.schema([]), 3, None, None, probe, "r1")


def make_row(texts: list[str], context: StageContext) -> PreparedRow:
    rows = len(texts)
    columns = {"doc_id": [""] * rows, "text": texts, "content_hash": [""] * rows, "shard": [""] * rows, "row": list(range(rows))}
    documents = pa.table(columns, schema=DOCUMENTS)
    chunks = chunk_counted(documents, "", context.spec)
    unit: PreparedUnit = {"documents": to_ipc(documents), "chunks": to_ipc(chunks), "reused": b"", "quarantined": b"",
                          "stats": asdict(Stats(tokens=1))}  # fmt: skip
    return FINISHED | {"unit": unit}


def test_a_refused_document_is_dropped_with_all_its_chunks(server: ApiServer, tmp_path: Path) -> None:
    context = make_context(server, tmp_path)
    texts = [LONG, LONG + "forbidden", "a short one", LONG]
    row = make_row(texts, context)
    server.reset()
    server.refused_word = "forbidden"
    encoded = ApiActor(context)(row)["unit"]
    assert encoded is not None
    kept = from_ipc(encoded["chunks"])
    assert (encoded["rejected"], encoded["reasons"]) == ([1], ["refused_by_api"])
    assert set(kept["document"].to_pylist()) == {0, 2, 3}
    vectors = np.frombuffer(encoded["codes"], np.float32).reshape(-1, 16)
    whole = chunk_counted(from_ipc(encoded["documents"]), "", context.spec)
    whole = whole.filter(pa.array([number != 1 for number in whole["document"].to_pylist()]))
    spans = zip(whole["document"].to_pylist(), whole["start_char"].to_pylist(), whole["end_char"].to_pylist(), strict=True)
    expected = ApiEncoder(context.spec).encode([f"passage: {texts[document][start:end]}" for document, start, end in spans])
    np.testing.assert_allclose(vectors, expected.vectors_ND, atol=1e-6)
    assert encoded["stats"]["tokens"] > 1, "as the API bills them, and not as they were counted"


def test_equal_texts_are_sent_once_and_refused_alike(server: ApiServer, tmp_path: Path) -> None:
    context = make_context(server, tmp_path)
    server.reset()
    server.refused_word = "forbidden"
    actor = ApiActor(context)
    sent = len(server.requests)
    encoded = actor(make_row(["one text", "forbidden", "another", "one text", "forbidden"], context))["unit"]
    assert encoded is not None
    assert all(len(request["input"]) == len(set(request["input"])) for request in server.requests[sent:])
    vectors = np.frombuffer(encoded["codes"], np.float32).reshape(-1, 16)
    assert np.array_equal(vectors[0], vectors[2])
    assert not np.array_equal(vectors[0], vectors[1])
    assert encoded["rejected"] == [1, 4]
    assert encoded["stats"]["chunks_reused"] == 2


def test_an_api_that_refuses_every_document_ends_the_run(server: ApiServer, tmp_path: Path) -> None:
    context = make_context(server, tmp_path)
    row = make_row(["forbidden"] * MOST_REFUSED, context)
    server.reset()
    server.refused_word = "forbidden"
    with pytest.raises(ModelError, match="all 16 documents of a unit were refused so"):
        ApiActor(context)(row)


def test_a_finished_unit_and_an_empty_one_send_no_request(server: ApiServer, tmp_path: Path) -> None:
    context = make_context(server, tmp_path)
    server.reset()
    actor = ApiActor(context)
    sent = len(server.requests)
    assert actor(FINISHED)["unit"] is None
    empty = actor(make_row([], context))["unit"]
    assert empty is not None
    assert empty["codes"] == b""
    assert len(server.requests) == sent


def test_another_model_under_the_same_name_is_refused_at_the_first_row(server: ApiServer, tmp_path: Path) -> None:
    server.reset()
    actor = ApiActor(make_context(server, tmp_path, probe=(1.0, *[0.0] * 15)))
    with pytest.raises(ModelError, match=r"cosine of .* to the table's .*the model behind the API is another one than before"):
        actor(FINISHED)

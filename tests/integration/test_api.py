"""A job behind a real /v1/embeddings: tokens are paid once, refused documents are quarantined, and a run resumes after an outage."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError, ModelError
from embedder.core.storage import Location
from embedder.model.encoder import Encoder
from embedder.model.resolve import resolve_model
from embedder.run.dry_run import preview_run
from embedder.run.prepare import prepare_run
from embedder.run.recut import RecutConfig, run_recut
from embedder.search.code_snippet import write_snippet
from embedder.search.exact import open_table
from embedder.search.query_encoder import QueryEncoder
from embedder.table.delta import read_table
from tests.api_server import ApiServer, run_api_server
from tests.integration.conftest import Site, documents
from tests.model.conftest import tokenize

pytestmark = pytest.mark.ray

PRICE = 0.5


@pytest.fixture
def server(minilm: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """A server without a key, since Ray's workers started before this test and have none."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with run_api_server(minilm) as server:
        server.key = "none"
        yield server


def sections(server: ApiServer, **embedding: Any) -> dict[str, dict[str, Any]]:
    return {
        "chunking": {"max_tokens": 64, "overlap_tokens": 4},
        "embedding": {"model": "openai:mini", "base_url": server.url, "dim": 128} | embedding,
        "compute": {"dtype": "auto", "backend": "auto", "actors": 2, "price_per_million_tokens_usd": PRICE},
    }


def vectors_of(minilm: str, texts: list[str]) -> np.ndarray:
    resolved = resolve_model(EmbeddingConfig(model=minilm, dim=128), ChunkingConfig())
    return Encoder.load(resolved.spec, dtype="float32").encode(tokenize(resolved, texts), 4096).vectors_ND


def test_an_outage_ends_the_run_and_the_next_one_resumes(ray_site: Site, server: ApiServer, minilm: str) -> None:
    rows = documents(0, 60)
    rows[23]["text"] = "forbidden words"
    ray_site.corpus.put("a.jsonl", rows)
    settings = sections(server)
    server.refused_word, server.delay_seconds = "forbidden", 0.3
    server.most_requests = 9  # three before the run, one for each actor, and then some units
    server.before_refusing.clear()
    threading.Thread(target=set_after_the_first_part, args=(server.before_refusing, Path(ray_site.table_uri)), daemon=True).start()
    with pytest.raises(ModelError, match=r"openai:mini at http.*/v1: 401 AuthenticationError.*the key was taken away"):
        ray_site.embed(**settings)
    assert read_table(Location(ray_site.table_uri)) is None, "no partial result is published"
    finished = {path.name: path.read_bytes() for path in Path(ray_site.table_uri).glob("*.parquet")}
    assert finished, "the outage was in the middle of the run"
    server.most_requests, server.delay_seconds = None, 0.0
    server.requests.clear()
    settings["compute"]["actors"] = 1
    summary = ray_site.embed(**settings)
    asked = [text for request in server.requests for text in request["input"]]
    found = ray_site.rows()
    assert {name: Path(ray_site.table_uri, name).read_bytes() for name in finished} == finished, "finished parts are kept"
    times = Counter(row["text"] for row in found)
    paid = {text for data in finished.values() for text in pq.read_table(pa.BufferReader(data))["text"].to_pylist() if times[text] == 1}
    assert paid
    assert not paid & set(asked), "finished texts are not sent again"
    assert {row["doc_id"] for row in found} == {f"d{number}" for number in range(60) if number != 23}
    assert [(row["doc_id"], row["reason"]) for row in ray_site.quarantine()] == [("d23", "refused_by_api")]
    expected = vectors_of(minilm, [row["text"] for row in found])
    np.testing.assert_allclose([row["embedding"] for row in found], expected, atol=1e-5)
    assert len({row["chunk"] for row in found}) > 1
    assert summary.cost_usd is not None
    assert 0 < summary.cost_usd < PRICE * summary.stats.tokens / 1e6, "tokens of the first run are not paid twice"
    again = ray_site.embed(**settings)
    assert again.did_nothing
    check_follow_ups(ray_site, settings, server)


def set_after_the_first_part(event: threading.Event, table: Path) -> None:
    for _ in range(600):
        if any(table.glob("*.parquet")):
            event.set()
            return
        time.sleep(0.1)


def check_follow_ups(site: Site, settings: dict[str, dict[str, Any]], server: ApiServer) -> None:
    """Search, cut, price and replace the table as any other."""
    target = open_table(Location(site.table_uri))
    wanted = next(row for row in site.rows() if row["doc_id"] == "d8")
    query = QueryEncoder.from_table(site.table_uri).encode([wanted["text"]])[0]
    assert target.find(query, 1, None)[0].score == pytest.approx(1, abs=1e-4)
    names: dict[str, Any] = {"queries": ["a whale", "a proof"]}
    recipe = write_snippet(target.spec, target.table).replace(f"base_url={server.url!r}", f"base_url={server.url!r}, api_key='none'")
    exec(recipe, names)
    np.testing.assert_allclose(names["vectors"], QueryEncoder.from_table(site.table_uri).encode(names["queries"]), atol=1e-5)
    cut_uri = f"{site.table_uri}-cut"
    smaller: dict[str, Any] = {"dim": 32, "quantization": "binary"}
    run_recut(RecutConfig.model_validate({"parent": {"uri": site.table_uri}, "output": {"uri": cut_uri, **smaller}}))
    asked_for = prepare_run(site.config(**sections(server, **smaller), output={"uri": f"{site.table_uri}-asked"}))
    assert open_table(Location(cut_uri)).spec.space_id == asked_for.spec.space_id, "the space of a run at that dim"
    site.corpus.put("b.jsonl", documents(100, 40))
    preview = preview_run(prepare_run(site.config(**settings)))
    assert preview.estimate is not None
    assert preview.estimate.usd is not None
    assert preview.estimate.usd.high == pytest.approx(preview.estimate.tokens.high * PRICE / 1e6)
    assert f"openai:mini at {server.url}, dim 128" in preview.text()
    with pytest.raises(ConfigError, match="the table holds another space"):
        prepare_run(site.config(**sections(server, model="openai:other")))

"""Documents that kill their worker every time are isolated and quarantined, and the run succeeds."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from embedder.model.resolve import resolve_model
from embedder.model.results import Encoded
from embedder.pipeline import stages
from embedder.pipeline.actors import EncoderActor
from embedder.pipeline.pool import Pool
from embedder.pipeline.rows import PreparedRow, StageContext, TasksRow
from embedder.text.tokenizing import load_tokenizer
from tests.integration.conftest import Site, documents

pytestmark = [pytest.mark.ray, pytest.mark.slow]

WORD, TOKEN = "zebra", 29145
"""A word of one token that occurs in no other document."""


class FragileActor(EncoderActor):
    """Dies at the word."""

    def encode(self, chunks: pa.Table) -> Encoded:
        if pc.any(pc.equal(chunks["token_ids"].combine_chunks().flatten(), TOKEN)).as_py():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(chunks)


class FailingDeviceActor(EncoderActor):
    """Raises a device error at the word."""

    def __init__(self, context: StageContext, pool: Pool) -> None:
        super().__init__(context, pool)
        encode = self.encoder.encode

        def fail(token_ids: pa.ListArray, token_budget: int) -> Encoded:
            if pc.any(pc.equal(token_ids.flatten(), TOKEN)).as_py():
                raise torch.AcceleratorError("CUDA error: device-side assert triggered")
            return encode(token_ids, token_budget)

        self.encoder.encode = fail


def fragile_units(row: TasksRow, context: StageContext) -> Iterator[PreparedRow]:
    """Read units in a worker that dies at the word."""
    chunk_counted = stages.chunk_counted

    def die(documents: pa.Table, *rest: Any) -> pa.Table:
        if any(WORD in text for text in documents["text"].to_pylist()):
            os.kill(os.getpid(), signal.SIGKILL)
        return chunk_counted(documents, *rest)

    stages.chunk_counted = die
    try:
        yield from stages.prepare_tasks(row, context)
    finally:
        stages.chunk_counted = chunk_counted


def marks(site: Site) -> list[str]:
    return [path.name for path in Path(site.table_uri, "_attempts").glob("*")]


def put_documents(site: Site) -> set[str]:
    """Write two shards, one with a poison document; return the ids of the others."""
    poison = {"id": "poison", "text": f"a {WORD} crosses", "topic": "x", "meta": {"url": "u"}}
    site.corpus.put("a.jsonl", [*documents(0, 14), poison, *documents(14, 8)])
    site.corpus.put("b.parquet", documents(30, 25))
    return {f"d{number}" for number in (*range(22), *range(30, 55))}


@pytest.mark.parametrize("actor", [FragileActor, FailingDeviceActor])
def test_a_document_that_kills_the_encoder_or_its_device_is_quarantined(
    local_site: Site, monkeypatch: pytest.MonkeyPatch, actor: type[EncoderActor]
) -> None:
    ids = put_documents(local_site)
    config = local_site.config()
    tokenizer = load_tokenizer(resolve_model(config.embedding, config.chunking).tokenizer_json)
    assert tokenizer.encode(WORD, add_special_tokens=False).ids == [TOKEN]
    monkeypatch.setattr("embedder.pipeline.graph.EncoderActor", actor)
    summary = local_site.embed(compute={"max_attempts": 1})
    assert {row["doc_id"] for row in local_site.rows()} == ids
    assert [(row["doc_id"], row["reason"], row["excerpt"]) for row in local_site.quarantine()] == [
        ("poison", "kills_encoder", f"a {WORD} crosses")
    ]
    assert summary.reasons == {"kills_encoder": 1}
    assert summary.stats.documents == len(ids) + 1
    assert marks(local_site) == []
    monkeypatch.undo()
    assert local_site.embed().did_nothing


def test_a_shard_that_kills_its_reader_is_reported_and_the_others_are_published(local_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    local_site.corpus.put("a.jsonl", [{"id": "pad", "text": "x" * 300_000, "topic": "x", "meta": {"url": "u"}}, *documents(0, 12)])
    local_site.corpus.put("b.jsonl", [{"id": "poison", "text": WORD + " x" * 150_000, "topic": "x", "meta": {"url": "u"}}])
    monkeypatch.setattr("embedder.pipeline.graph.prepare_tasks", fragile_units)
    summary = local_site.embed(compute={"max_attempts": 1})
    assert [message.partition(":")[2] for message in summary.failures.values()] == [
        " reading on from row 0 took its worker down 1 times; look at the records there, or run again to retry"
    ]
    assert {row["doc_id"] for row in local_site.rows()} == {"pad", *(f"d{number}" for number in range(12))}
    assert marks(local_site) == [], "the next run tries again"

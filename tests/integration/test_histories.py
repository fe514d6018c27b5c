"""Over random histories of edits, a refreshed table equals a fresh one, and only unseen texts are embedded."""

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedder.core.plan
import embedder.model.encoder
import embedder.model.run_batches
from embedder.core.storage import Location
from embedder.model.encoder import Encoder
from embedder.model.run_batches import Distinct
from embedder.pipeline import in_process
from embedder.pipeline.pool import Pool
from embedder.table.compact import compact_table
from tests.integration.conftest import Corpus, Site, sentences

pytestmark = pytest.mark.slow

POOL = Pool("cpu", "float32", 2048, (1, 1), 0.0, 1.0, 1, 1.0)
NAMES = ("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl")
BLANK = 7
"""Text of a quarantined document."""

records = st.tuples(st.integers(0, 19), st.sampled_from(["x", "y"]))
"""Number of a document, of which those that differ by 10 have one text, and its metadata."""
shards = st.lists(records, min_size=1, max_size=8, unique_by=lambda record: record[0])
corpora = st.dictionaries(st.sampled_from(NAMES), shards, min_size=1)


def rows_of_shard(name: str, content: list[tuple[int, str]]) -> list[dict[str, Any]]:
    """Return rows whose text depends on the document's number alone, so that it is the same in every shard."""
    texts = {number: "  " if number % 10 == BLANK else sentences(number % 10, 3 + 25 * (number % 10 % 3)) for number, _ in content}
    return [{"id": f"{name}-{number}", "text": texts[number], "topic": topic, "meta": {"url": name}} for number, topic in content]


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder.model.encoder.Encoder, "load", lru_cache(maxsize=1)(Encoder.load))
    monkeypatch.setattr(in_process, "choose_pool", lambda compute: POOL)
    monkeypatch.setattr(embedder.core.plan, "SMALL_SHARD_BYTES", 600)
    monkeypatch.setattr(embedder.core.plan, "BUCKET_SHARDS", 2)


CONFIG: dict[str, Any] = {
    "source": {"rows_per_unit": 3},
    "chunking": {"max_tokens": 24, "overlap_tokens": 4},
    "embedding": {"depth": 1, "dim": 16},
    "output": {"max_removed_fraction": 1.0},
}


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(st.tuples(corpora, st.booleans()), min_size=2, max_size=4))
def test_a_refreshed_table_equals_a_fresh_one_compacted_or_not(
    serial: None, minilm: str, tmp_path: Path, history: list[tuple[dict[str, Any], bool]]
) -> None:
    for folder in ("corpus", "table", "fresh"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    site = Site(Corpus(str(tmp_path / "corpus")), str(tmp_path / "table"), minilm)
    before: dict[str, Any] = {}
    for corpus, is_compacted in history:
        for name in before.keys() - corpus.keys():
            site.corpus.remove(name)
        for name, content in corpus.items():
            if before.get(name) != content:
                site.corpus.put(name, [*rows_of_shard(name, content), "{malformed"])
        summary = site.embed(**CONFIG)
        known = {number % 10 for content in before.values() for number, _ in content}
        fresh_texts = {number % 10 for content in corpus.values() for number, _ in content} - known - {BLANK}
        encoded = summary.stats.documents - summary.stats.quarantined - summary.stats.reused
        assert encoded <= sum(number % 10 in fresh_texts for content in corpus.values() for number, _ in content)
        if is_compacted:
            compact_table(Location(site.table_uri), 10**8)
        before = corpus
    assert site.embed(**CONFIG).did_nothing
    fresh = Site(site.corpus, str(tmp_path / "fresh"), minilm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder.model.run_batches, "find_distinct", take_all)
        assert fresh.embed(**CONFIG).stats.chunks_reused == 0
    assert_equal(site, fresh)


def take_all(token_ids: pa.ListArray) -> Distinct:
    """Take every row, copies too."""
    offsets = token_ids.offsets.to_numpy()
    return Distinct(token_ids.values.to_numpy(), offsets[:-1], np.diff(offsets), None, 0)


def assert_equal(site: Site, fresh: Site) -> None:
    mine, theirs = site.rows(), fresh.rows()
    plain = [[{name: row[name] for name in row if name != "embedding"} for row in rows] for rows in (mine, theirs)]
    assert plain[0] == plain[1]
    if mine:
        np.testing.assert_allclose([row["embedding"] for row in mine], [row["embedding"] for row in theirs], atol=1e-5)
    rejects = [sorted(json.dumps(row, sort_keys=True) for row in each.quarantine()) for each in (site, fresh)]
    assert rejects[0] == rejects[1]

"""The main job on real files, real Ray, the real model, and a real S3 server: a corpus becomes a table."""

import dataclasses
import re
from datetime import UTC, datetime

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from embedder.config.compute import ComputeConfig
from embedder.core.errors import ConfigError, ModelError
from embedder.core.storage import Location
from embedder.model.attention_pooling import start_attention_pooling
from embedder.model.calibration import Calibration, ExitMap, fitted_for, write_calibration
from embedder.model.files.recipe import locate_model
from embedder.model.resolve import resolve_model
from embedder.pipeline import in_process
from embedder.pipeline.actors import check_probe
from embedder.pipeline.cluster import choose_pool
from embedder.pipeline.pool import Pool
from embedder.run.embed import run_embed
from embedder.run.prepare import prepare_run
from embedder.search.query_encoder import QueryEncoder
from embedder.table.check import check_table
from tests.integration.conftest import Site, documents, fill, on_s3, sentences, vectors_of

DEPTH = 1


def test_a_corpus_becomes_a_table(site: Site) -> None:
    fill(site)
    summary = site.embed()
    rows = site.rows()
    texts = {document["id"]: document for document in documents(0, 36)}
    assert {row["doc_id"] for row in rows} == set(texts)
    assert [row["doc_id"] for row in rows if row["chunk"] == 0] == list(texts), "the order of the source"
    for row in rows:
        document = texts[row["doc_id"]]
        assert document["text"][row["start_char"] : row["end_char"]] == row["text"]
        assert (row["topic"], row["meta_url"]) == (document["topic"], document["meta"]["url"])
        assert row["num_tokens"] <= 64
    assert summary.version == 0
    stats = summary.stats
    assert (stats.documents, stats.chunks + stats.chunks_reused, summary.rows) == (36, len(rows), len(rows))
    assert stats.tokens + stats.tokens_reused == sum(row["num_tokens"] for row in rows)
    np.testing.assert_allclose(np.linalg.norm(vectors_of(rows).astype(np.float64), axis=1), 1, atol=1e-6)


def test_vectors_are_those_of_sentence_transformers(local_site: Site) -> None:
    fill(local_site)
    local_site.embed(embedding={"depth": 6}, compute={"backend": "openvino"})
    rows = local_site.rows()
    reference = SentenceTransformer(str(locate_model(local_site.model, None)[0]), device="cpu")
    wanted_ND = reference.encode([row["text"] for row in rows], normalize_embeddings=True)
    assert (vectors_of(rows) * wanted_ND).sum(axis=1).min() > 0.99999


def make_up_calibration(site: Site, uri: str) -> str:
    """Write a calibration of MiniLM's second layer whose map is drawn at random."""
    model, draw, size = resolve_model(site.config().embedding, site.config().chunking), np.random.default_rng(0), 384
    pooling = start_attention_pooling(np.ones(model.vocab_size, np.float32), 6, size)
    weight, bias = draw.normal(size=(3 * pooling.num_poolings * size, size)), np.zeros(size)
    exits = {2: ExitMap((0, 1, 2), weight.astype(np.float32), bias.astype(np.float32))}
    write_calibration(Calibration(fitted_for(model.spec), 6, pooling, exits, {}), uri)
    return uri


@pytest.mark.ray
@pytest.mark.slow
def test_an_actor_with_two_units_at_a_time_makes_the_table_that_this_process_makes(ray_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    local_site = ray_site
    fill(local_site)
    embedding = {"depth": 2, "calibration": make_up_calibration(local_site, f"{local_site.table_uri}-calibration")}
    with monkeypatch.context() as patch:
        patch.setattr(in_process, "is_ray_running", lambda: False)
        assert in_process.suits(local_site.config(), [])
        first = local_site.embed(source={"rows_per_unit": 2}, embedding=embedding)
    assert not in_process.suits(local_site.config(), [])
    expected = local_site.rows()
    pools = []

    def choose(compute: ComputeConfig, is_api: bool) -> Pool:
        pools.append(dataclasses.replace(choose_pool(compute, is_api), calls=2))
        return pools[-1]

    monkeypatch.setattr("embedder.pipeline.cluster.choose_pool", choose)
    other = dataclasses.replace(local_site, table_uri=f"{local_site.table_uri}-on-ray")
    summary = other.embed(source={"rows_per_unit": 2}, embedding=embedding, output={"store_text": False})
    rows = other.rows()
    assert len(pools) == 2, "of the run, and of the full model over its sample"
    assert summary.fidelity is not None
    assert first.fidelity is not None
    assert (summary.fidelity.chunks, summary.fidelity.overlap) == (first.fidelity.chunks, first.fidelity.overlap)
    assert summary.fidelity.cosine == pytest.approx(first.fidelity.cosine, abs=1e-4)
    assert (summary.stats.documents, summary.stats.reused) == (36, 0)
    for row, twin in zip(rows, expected, strict=True):
        assert row | {"embedding": 0} == {name: twin[name] for name in row} | {"embedding": 0}
    np.testing.assert_allclose(vectors_of(rows), vectors_of(expected), atol=1e-6)


@on_s3
def test_bad_records_are_quarantined_with_a_reason(site: Site) -> None:
    good = documents(0, 2)
    site.corpus.put("a.jsonl", [good[0], {"id": "null", "text": None}, {"id": "blank", "text": " \n"}, "{not json", {"id": "n", "text": 3},
                                {"text": "no id"}, {"id": "d0", "text": "again"}, b'{"id": "x", "text": "\xff"}', good[1]])  # fmt: skip
    summary = site.embed()
    assert {row["doc_id"] for row in site.rows()} == {"d0", "d1"}
    reasons = {row["row"]: row["reason"] for row in site.quarantine()}
    assert reasons == {
        1: "null_text", 2: "empty_text", 3: "malformed", 4: "not_text", 5: "missing_id", 6: "duplicate_id", 7: "undecodable",
    }  # fmt: skip
    assert summary.reasons == dict.fromkeys(reasons.values(), 1)
    assert (summary.stats.documents, summary.stats.quarantined) == (9, 7)
    assert not summary.failures
    site.corpus.put("a.jsonl", good)
    site.embed()
    assert site.quarantine() == [], "the quarantine follows the source too"


@on_s3
def test_another_spec_is_refused_with_its_differences_unless_replace_is_set(site: Site) -> None:
    fill(site)
    site.embed()
    with pytest.raises(ConfigError, match=r"depth: 1 → 3; dim: 384 → 32.*output.replace"):
        prepare_run(site.config(embedding={"depth": 3, "dim": 32}))
    site.embed(embedding={"depth": 3, "dim": 32}, output={"replace": True})
    assert vectors_of(site.rows()).shape[1] == 32
    assert vectors_of(site.rows(version=0)).shape[1] == 384
    assert site.embed(embedding={"depth": 3, "dim": 32}).did_nothing


def test_a_float8_table_refuses_exact_vectors_and_is_searched_by_exact_queries(local_site: Site, caplog: pytest.LogCaptureFixture) -> None:
    fill(local_site)
    coarse = {"embedding": {"depth": 6, "float8": True}, "compute": {"dtype": "auto"}}
    local_site.embed(**coarse)
    assert any("is emulated on a CPU" in message for message in caplog.messages)
    with pytest.raises(ConfigError, match=r"float8: True → False.*output.replace"):
        prepare_run(local_site.config(embedding={"depth": 6}))
    assert local_site.embed(**coarse).did_nothing
    rows = local_site.rows()
    exact_ND = QueryEncoder.from_table(local_site.table_uri, model=local_site.model).encode_passages([row["text"] for row in rows])
    cosines_N = (exact_ND * vectors_of(rows)).sum(axis=1)
    assert 0.98 < cosines_N.min() < cosines_N.max() < 0.9999


@pytest.mark.ray
def test_results_do_not_depend_on_units_batches_layouts_actors_rows_or_who_cuts_documents(
    ray_site: Site, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_site = ray_site
    fill(local_site)
    with monkeypatch.context() as patch:
        patch.setattr(in_process, "is_ray_running", lambda: False)
        local_site.embed()
    other = dataclasses.replace(local_site, table_uri=str(tmp_path_factory.mktemp("other") / "table"))
    with monkeypatch.context() as patch:
        patch.setattr("embedder.pipeline.graph.choose_units", lambda *_: 2)
        patch.setattr("embedder.run.embed.slice_large", lambda task, *_: [dataclasses.replace(task, cut_by_encoders=True)])
        other.embed(source={"rows_per_unit": 3}, compute={"token_budget": 100, "actors": [2, 2], "num_cpus": 0.25, "layout": "packed"})
    mine, theirs = local_site.rows(), other.rows()
    for row, twin in zip(mine, theirs, strict=True):
        assert {name: row[name] for name in row if name != "embedding"} == {name: twin[name] for name in twin if name != "embedding"}
    np.testing.assert_allclose(vectors_of(mine), vectors_of(theirs), atol=1e-5)


def test_a_text_longer_than_the_token_budget_is_embedded(local_site: Site) -> None:
    local_site.corpus.put("a.jsonl", [{"id": "long", "text": sentences(1, 3_000)}])
    summary = local_site.embed(source={"metadata_columns": []}, chunking={"max_tokens": 256}, compute={"token_budget": 16})
    assert summary.stats.chunks + summary.stats.chunks_reused == len(local_site.rows()) > 12


def test_without_chunking_a_document_is_one_row_and_truncation_is_counted(local_site: Site) -> None:
    local_site.corpus.put("a.jsonl", documents(0, 10))
    summary = local_site.embed(chunking={"enabled": False, "max_tokens": 32, "overlap_tokens": 0})
    assert [row["num_chunks"] for row in local_site.rows()] == [1] * 10
    assert summary.stats.truncated == sum(len(document["text"].split()) > 30 for document in documents(0, 10)) == 8


def test_ids_default_to_shard_and_row(local_site: Site) -> None:
    local_site.corpus.put("a.jsonl", documents(0, 2))
    local_site.embed(source={"id_column": None})
    assert [row["doc_id"] for row in local_site.rows()] == [f"{local_site.corpus.uri}/a.jsonl#{number}" for number in range(2)]


def test_an_encoder_of_another_space_is_refused_by_the_stored_probe(local_site: Site) -> None:
    local_site.corpus.put("a.jsonl", documents(0, 2))
    local_site.embed()
    prepared = prepare_run(local_site.config())
    assert prepared.table is not None
    probe = np.array(prepared.table.info["probe"], np.float32)
    check_probe(probe, list(probe), "advice")
    with pytest.raises(ModelError, match=r"cosine of -?0\."):
        check_probe(np.roll(probe, 1), list(probe), "advice")
    local_site.corpus.put("b.jsonl", documents(2, 2))
    prepared = prepare_run(local_site.config())
    assert prepared.table is not None
    other = dataclasses.replace(prepared.table, info={**prepared.table.info, "probe": (-probe).tolist()})
    with pytest.raises(ModelError, match=r"^embedding: the probe's vector has a cosine of -1\.0000 [^\n]*embed into another output\.uri$"):
        run_embed(dataclasses.replace(prepared, table=other))


def test_metadata_keeps_its_types_over_later_runs(local_site: Site) -> None:
    day = datetime(2024, 5, 1, 12, tzinfo=UTC)
    rich = {"tags": ["a", None], "year": 1999, "score": 0.5, "seen": True, "origin": {"place": "x", "ids": [1, 2]}, "at": day}
    local_site.corpus.put("a.parquet", [document | rich for document in documents(0, 5)])
    large = [document | rich | {"at": day.isoformat(), "pad": "x" * 10_000} for document in documents(5, 30)]
    local_site.corpus.put("b.jsonl", large)
    columns = {"metadata_columns": list(rich), "metadata_types": {"at": "timestamp"}, "rows_per_unit": 4000}
    cheap = {"embedding": {"depth": 1, "dim": 8}, "chunking": {"enabled": False, "overlap_tokens": 0, "max_tokens": 8}}
    local_site.embed(source=columns, **cheap)
    row = local_site.rows()[0]
    assert {name: row[name] for name in rich} == rich
    assert local_site.embed(source=columns, **cheap).did_nothing
    local_site.corpus.put("a.parquet", [document | rich for document in documents(0, 6)])
    summary = local_site.embed(source=columns, **cheap)
    assert summary.stats.documents == 6, "the large shard is not read again"
    assert summary.parts_kept == 1
    assert len({row["doc_id"] for row in local_site.rows()}) == 35


def test_pages_are_embedded_without_their_tags_and_stored_with_them(local_site: Site) -> None:
    page = "<h1 class='a'>Rivers &amp; engines</h1>" + "".join(f"<p>{sentences(number, 30)}</p>\n" for number in range(4))
    rows = [{"id": "page", "text": page}, {"id": "empty", "text": "<img src='a.png' alt='A violin'>"}]
    local_site.corpus.put("a.jsonl", rows)
    changes = {"source": {"metadata_columns": []}, "chunking": {"text_format": "html", "boundaries": ["paragraph", "word"]}}
    local_site.embed(**changes)
    found = local_site.rows()
    assert [page[row["start_char"] : row["end_char"]] for row in found] == [row["text"] for row in found]
    assert len(found) > 1
    assert [(row["doc_id"], row["reason"]) for row in local_site.quarantine()] == [("empty", "no_tokens")]
    read = [re.sub("<[^>]*>", " ", row["text"]).replace("&amp;", "&") for row in found]
    vectors = QueryEncoder.from_table(local_site.table_uri, model=local_site.model).encode_passages(read)
    np.testing.assert_allclose(vectors_of(found), vectors, atol=1e-5)
    assert not check_table(Location(local_site.table_uri), deep=True).faults

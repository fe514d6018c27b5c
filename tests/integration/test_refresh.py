"""The table follows its source: new documents are embedded, gone ones removed, and a broken shard keeps its rows."""

from dataclasses import replace

import numpy as np
import pytest

from embedder.core.errors import ConfigError
from embedder.core.storage import Location, Store
from embedder.run.embed import run_embed
from embedder.run.prepare import prepare_run
from embedder.search.query_encoder import QueryEncoder
from embedder.table.check import check_table
from tests.integration.conftest import Site, documents, fill, on_s3, sentences, vectors_of

DEPTH = 1


def test_a_second_run_does_nothing(local_site: Site) -> None:
    fill(local_site)
    local_site.embed()
    prepared = prepare_run(local_site.config())
    assert prepared.plan.is_empty
    summary = run_embed(prepared)
    assert summary.did_nothing
    assert "nothing to do" in summary.text()
    assert local_site.delta().version() == 0


def test_the_table_follows_added_changed_and_removed_shards(site: Site) -> None:
    fill(site)
    site.embed()
    before = site.rows()
    site.corpus.remove("b.parquet")
    site.corpus.put("a.jsonl.gz", [*documents(0, 11), documents(90, 1)[0]])
    site.corpus.put("new.jsonl", documents(40, 3))
    summary = site.embed()
    ids = {row["doc_id"] for row in site.rows()}
    assert ids == {document["id"] for document in [*documents(0, 11), *documents(90, 1), *documents(24, 12), *documents(40, 3)]}
    assert summary.version == 1
    assert site.rows(version=0) == before, "readers of the old version keep it"
    assert site.embed().did_nothing


@on_s3
def test_a_broken_shard_keeps_its_rows_until_it_can_be_read(site: Site) -> None:
    fill(site)
    site.embed()
    site.corpus.put("a.jsonl.gz", documents(50, 30))
    whole = Store(f"{site.corpus.uri}/a.jsonl.gz")
    with whole.open_input() as file:
        data = file.read()
    site.corpus.put_bytes("a.jsonl.gz", data[: len(data) // 2])
    summary = site.embed()
    assert [("a.jsonl.gz" in why) for why in summary.failures.values()] == [True]
    assert {f"d{number}" for number in range(36)} <= {row["doc_id"] for row in site.rows()}
    site.corpus.put_bytes("a.jsonl.gz", data)
    assert not site.embed().failures
    assert {row["doc_id"] for row in site.rows()} == {document["id"] for document in [*documents(50, 30), *documents(12, 24)]}


def test_parts_of_a_run_that_died_before_its_commit_are_adopted(local_site: Site) -> None:
    fill(local_site)
    first = local_site.embed()
    before = local_site.rows()
    table = Store(local_site.table_uri)
    parts = {found.uri: found.version for found in table.list_folder()}
    table.fs.rm(f"{table.path}/_delta_log", recursive=True)
    summary = local_site.embed()
    assert summary.parts_adopted == first.parts_added
    assert summary.stats.documents == 0, "nothing was read"
    assert {found.uri: found.version for found in table.list_folder()} == parts
    assert local_site.rows() == before


def test_only_missing_units_of_a_dead_run_are_embedded(local_site: Site) -> None:
    local_site.corpus.put("a.jsonl", documents(0, 35))
    local_site.embed()
    before = local_site.rows()
    table = Store(local_site.table_uri)
    table.fs.rm(f"{table.path}/_delta_log", recursive=True)
    parts = sorted(table.list_folder(), key=lambda found: found.uri)
    Store(parts[1].uri).remove()
    local_site.embed()
    after = sorted(table.list_folder(), key=lambda found: found.uri)
    assert [found.uri for found in after] == [found.uri for found in parts]
    assert [found.version == old.version for found, old in zip(after, parts, strict=True)] == [True, False, True, True]
    rows = local_site.rows()
    assert [row["doc_id"] for row in rows] == [row["doc_id"] for row in before]
    np.testing.assert_allclose(vectors_of(rows), vectors_of(before), atol=1e-5)


@on_s3
def test_only_changed_texts_are_embedded(site: Site) -> None:
    fill(site)
    site.embed()
    before = {row["doc_id"]: row["embedding"] for row in site.rows() if row["chunk"] == 0}
    edited = documents(12, 12)
    edited[3] |= {"text": "entirely new words"}
    edited[5] |= {"topic": "another topic"}
    site.corpus.put("b.parquet", [documents(99, 1)[0], *edited])
    summary = site.embed()
    assert summary.stats.documents - summary.stats.reused == 2
    rows = {row["doc_id"]: row for row in site.rows() if row["chunk"] == 0}
    assert {name for name in before if rows[name]["embedding"] != before[name]} == {"d15"}, "the other vectors are bit-identical"
    assert rows["d17"]["topic"] == "another topic"
    assert [row["doc_id"] for row in site.rows() if row["shard"].endswith("b.parquet") and row["chunk"] == 0][:2] == ["d99", "d12"]
    for row in site.rows():
        if row["doc_id"] not in ("d15", "d99"):
            assert documents(int(row["doc_id"][1:]), 1)[0]["text"][row["start_char"] : row["end_char"]] == row["text"]


def test_moved_shards_and_other_columns_embed_nothing(local_site: Site) -> None:
    fill(local_site)
    local_site.embed()
    before = vectors_of(local_site.rows())
    local_site.corpus.remove("a.jsonl.gz")
    local_site.corpus.put("a-moved.jsonl", documents(0, 12))
    assert local_site.embed().stats.reused == 12 + 24, "the changed bucket is read, and its documents are known"
    moved = local_site.embed(source={"metadata_columns": ["topic"], "rows_per_unit": 7}, output={"store_text": False})
    assert moved.stats.reused == moved.stats.documents == 36
    assert moved.stats.tokens == 0
    rows = local_site.rows()
    assert "meta_url" not in rows[0]
    assert np.array_equal(vectors_of(rows), before)


def test_a_copy_of_a_shard_that_stays_embeds_nothing_and_equal_chunks_of_a_unit_are_computed_once(local_site: Site) -> None:
    fill(local_site)
    local_site.corpus.put("twice.jsonl.gz", [row | {"id": f"{row['id']}-{copy}"} for row in documents(50, 5) for copy in "ab"])
    first = local_site.embed()
    rows = local_site.rows()
    assert (first.stats.chunks + first.stats.chunks_reused, first.stats.reused) == (len(rows), 0)
    assert first.stats.tokens + first.stats.tokens_reused == sum(row["num_tokens"] for row in rows)
    vectors = {(row["doc_id"], row["chunk"]): row["embedding"] for row in rows}
    copied = {name: vector for (name, chunk), vector in vectors.items() if name.endswith("-a") and chunk == 0}
    assert all(vectors[f"{name[:-2]}-b", 0] == vector for name, vector in copied.items())
    assert first.stats.chunks_reused >= sum(row["doc_id"].endswith("-b") for row in rows) == 10
    assert f"chunks (and {first.stats.chunks_reused:,} reused)" in first.text()
    big = {"padding": "x" * 300_000}  # a shard of its own: no part leaves the table
    local_site.corpus.put("copy.jsonl", [documents(0, 12)[0] | big, *documents(1, 11)])
    second = local_site.embed()
    assert (second.parts_removed, second.stats.documents, second.stats.reused, second.stats.tokens) == (0, 12, 12, 0)
    assert second.record()["stats"]["chunks_reused"] == sum(row["shard"].endswith("copy.jsonl") for row in local_site.rows())
    after = {(row["doc_id"], row["chunk"]): row["embedding"] for row in local_site.rows() if row["shard"].endswith("copy.jsonl")}
    assert all(vectors[place] == vector for place, vector in after.items())


def test_an_empty_shard_is_remembered(local_site: Site) -> None:
    local_site.corpus.put("a.jsonl", documents(0, 3))
    local_site.corpus.put("empty.jsonl.gz", [])
    local_site.embed()
    assert {row["doc_id"] for row in local_site.rows()} == {"d0", "d1", "d2"}
    assert local_site.embed().did_nothing


def doc_ids(site: Site) -> set[str]:
    return {row["doc_id"] for row in site.rows()}


def numbered(*numbers: int) -> set[str]:
    return {f"d{number}" for number in numbers}


def test_a_bucket_is_published_without_its_broken_shards(local_site: Site) -> None:
    local_site.corpus.put("a.jsonl", documents(0, 12))
    local_site.corpus.put("e.jsonl", documents(40, 7))
    for name in ("b.parquet", "d.jsonl.gz"):
        local_site.corpus.put_bytes(name, b"PAR1 not really")
    first = local_site.embed()
    [why] = first.failures.values()
    assert all(any(f"/{name}: " in line for line in why.splitlines()) for name in ("b.parquet", "d.jsonl.gz"))
    assert (first.version, doc_ids(local_site)) == (0, numbered(*range(12), *range(40, 47)))
    again = local_site.embed()
    assert (again.version, again.stats.documents, list(again.failures.values())) == (None, 0, [why])
    local_site.corpus.put("b.parquet", documents(20, 5))
    mended = local_site.embed()
    [why] = mended.failures.values()
    assert "b.parquet" not in why
    assert (mended.version, mended.stats.documents, mended.stats.reused) == (1, 24, 19)
    assert doc_ids(local_site) == numbered(*range(12), *range(20, 25), *range(40, 47))


def test_a_broken_small_shard_with_rows_in_the_table_blocks_its_bucket(local_site: Site) -> None:
    local_site.corpus.put("a.jsonl", documents(0, 3))
    local_site.corpus.put("e.jsonl.gz", documents(40, 7))
    local_site.embed()
    before = doc_ids(local_site)
    local_site.corpus.put("a.jsonl", documents(0, 4))
    local_site.corpus.put_bytes("e.jsonl.gz", b"\x1f\x8b cut off")
    held = local_site.embed()
    assert (held.version, next(iter(held.failures.values())).count("e.jsonl.gz")) == (None, 1)
    assert doc_ids(local_site) == before
    local_site.corpus.remove("e.jsonl.gz")
    gone = local_site.embed(output={"max_removed_fraction": 1.0})
    assert (gone.version, gone.failures) == (1, {})
    assert doc_ids(local_site) == numbered(*range(4))


def test_a_changed_title_embeds_its_document_again_and_no_other(local_site: Site) -> None:
    """The title is read for the template alone; neither the table's text nor its columns hold it."""
    titled = [document | {"title": f"Title {document['topic']}"} for document in documents(0, 12)]
    chunking = {"template": "{title|none}\n{chunk}", "max_tokens": 64, "overlap_tokens": 8}
    local_site.corpus.put("a.jsonl", titled)
    local_site.embed(chunking=chunking)
    before = local_site.rows()
    local_site.corpus.put("a.jsonl", [titled[0], titled[1] | {"title": "Another"}, *titled[2:11], titled[11] | {"title": None}])
    summary = local_site.embed(chunking=chunking)
    after = local_site.rows()
    assert (summary.stats.documents, summary.stats.reused) == (12, 10)
    changed = [old["doc_id"] for old, new in zip(before, after, strict=True) if old["embedding"] != new["embedding"]]
    assert set(changed) == {"d1", "d11"}
    spans = [[(row["doc_id"], row["start_char"], row["end_char"], row["text"]) for row in rows] for rows in (before, after)]
    assert spans[0] == spans[1]
    assert "title" not in after[0]
    with pytest.raises(ConfigError, match=r"chunking.template: {heading}: .* has no column 'heading'"):
        local_site.embed(chunking=chunking | {"template": "{heading}{chunk}"})


def test_a_document_in_a_template_has_the_vector_of_its_text_in_it(local_site: Site) -> None:
    local_site.corpus.put("a.jsonl", [{"id": "x", "text": "an engine", "title": "River", "topic": "t", "meta": {"url": "u"}}])
    local_site.embed(chunking={"template": "{title}: {chunk}", "overlap_tokens": 0, "enabled": False})
    (row,) = local_site.rows()
    encoder = QueryEncoder.from_table(local_site.table_uri, model=local_site.model)
    assert (row["text"], row["start_char"], row["end_char"]) == ("an engine", 0, 9)
    assert encoder.encode(["River: an engine"])[0] @ np.array(row["embedding"], np.float32) == pytest.approx(1, abs=1e-5)
    assert not check_table(Location(local_site.table_uri), deep=True).faults


def test_late_chunks_of_an_edited_document_are_embedded_anew_and_those_of_others_reused(local_site: Site) -> None:
    start = sentences(0, 80)
    local_site.corpus.put("a.jsonl", [{"id": name, "text": f"{start} {sentences(seed, 300)}"} for name, seed in (("one", 1), ("two", 2))])
    changes = {"source": {"metadata_columns": []}, "chunking": {"late": True}}
    local_site.embed(**changes)
    before = {(row["doc_id"], row["chunk"]): row for row in local_site.rows()}
    assert before["one", 0]["text"] == before["two", 0]["text"]
    assert before["one", 0]["embedding"] != before["two", 0]["embedding"]
    local_site.corpus.put("a.jsonl", [{"id": name, "text": f"{start} {sentences(seed, 300)}"} for name, seed in (("one", 3), ("two", 2))])
    summary = local_site.embed(**changes)
    after = {(row["doc_id"], row["chunk"]): row for row in local_site.rows()}
    assert summary.stats.reused == 1
    assert after["two", 0]["embedding"] == before["two", 0]["embedding"]
    assert after["one", 0]["text"] == before["one", 0]["text"]
    assert after["one", 0]["embedding"] != before["one", 0]["embedding"], "its vector depends on the text after it"
    anew = replace(local_site, table_uri=f"{local_site.table_uri}-anew")
    anew.embed(**changes)
    np.testing.assert_allclose(vectors_of(list(after.values())), vectors_of(anew.rows()), atol=1e-6)
    assert not check_table(Location(local_site.table_uri), deep=True).faults

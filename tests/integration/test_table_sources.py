"""A table as a source of the whole job: a refresh reads only files that came, and embeds only texts that are new."""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import lance
import numpy as np
import psycopg
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog

from embedder.core.delta_options import delta_options
from embedder.core.errors import ConfigError
from embedder.core.storage import Store
from embedder.pipeline import in_process
from embedder.run.dry_run import preview_run
from embedder.run.embed import run_embed
from embedder.run.prepare import RunPlan, prepare_run
from embedder.run.summary import Summary
from embedder.source import postgres_source
from embedder.source.shards import list_shards
from tests.integration.conftest import Site, documents, on_s3, vectors_of

DEPTH = 1


def append(uri: str, first: int, count: int) -> None:
    rows = [{key: document[key] for key in ("id", "text", "topic")} for document in documents(first, count)]
    write_deltalake(uri, pa.Table.from_pylist(rows), mode="append", partition_by=["topic"], storage_options=delta_options(uri, {}))


@on_s3
def test_a_delta_source_is_followed_through_appends_an_optimize_and_a_lost_file(site: Site) -> None:
    uri = site.corpus.uri
    settings: dict[str, Any] = {"metadata_columns": ["topic"], "filter": "topic != 'violin' and id != 'd3'"}

    def wanted(stop: int) -> set[str]:
        return {each["id"] for each in documents(0, stop) if each["topic"] != "violin" and each["id"] != "d3"}

    def found() -> set[str]:
        return {row["doc_id"] for row in site.rows()}

    append(uri, 0, 12)
    first = site.embed(source=settings)
    assert (first.stats.filtered, first.stats.reused, found()) == (1, 0, wanted(12))
    append(uri, 12, 6)
    second = site.embed(source=settings)
    assert (second.stats.reused, found()) == (len(wanted(12)), wanted(18))
    DeltaTable(uri, storage_options=delta_options(uri, {})).optimize.compact()
    third = site.embed(source=settings)
    assert (third.stats.reused, third.stats.tokens, third.failures, found()) == (len(wanted(18)), 0, {}, wanted(18))
    append(uri, 18, 6)
    Store(max(list_shards(site.config(source=settings).source).shards, key=lambda each: each.num_rows or 0).uri).remove()
    fourth = site.embed(source=settings)
    (why,) = fourth.failures.values()
    assert "the table's log names this file, but it is gone" in why
    assert wanted(18) <= found()


@pytest.mark.real
def test_a_table_of_a_database_is_followed_through_edits(local_site: Site, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_source, "ROWS_PER_SHARD", 8)
    rows = [tuple(each[key] for key in ("id", "text", "topic")) for each in documents(0, 40)]
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS articles; CREATE TABLE articles (id text PRIMARY KEY, text text, topic text)")
        connection.cursor().executemany("INSERT INTO articles VALUES (%s, %s, %s)", rows)
        source: dict[str, Any] = {"uri": postgres, "table": "articles", "metadata_columns": ["topic"]}
        assert local_site.embed(source=source).stats.documents == 40
        assert local_site.embed(source=source).did_nothing
        connection.execute("UPDATE articles SET text = 'edited' WHERE id = 'd7'; DELETE FROM articles WHERE id = 'd8'")
        refreshed = local_site.embed(source=source)
        wanted = connection.execute("SELECT id, topic FROM articles").fetchall()
    assert (refreshed.stats.chunks, refreshed.stats.documents - refreshed.stats.reused) == (1, 1)
    assert {(row["doc_id"], row["topic"]) for row in local_site.rows()} == set(wanted)
    assert [row["text"] for row in local_site.rows() if row["doc_id"] == "d7"] == ["edited"]


CONNECT: dict[str, Callable[[str], Any]] = {"a.sqlite": sqlite3.connect, "a.duckdb": duckdb.connect}


@pytest.mark.real
@pytest.mark.parametrize("name", CONNECT)
def test_a_database_file_is_read_again_if_it_or_the_named_table_changed_and_keeps_its_rows_if_it_is_damaged(
    local_site: Site, name: str
) -> None:
    path = Path(local_site.corpus.uri, "lang=de", name)
    path.parent.mkdir(parents=True)

    def run(*queries: str, rows: Sequence[dict[str, Any]] = ()) -> None:
        with closing(CONNECT[name](str(path))) as connection:
            for query in queries:
                connection.execute(query)
            for each in rows:
                connection.execute("INSERT INTO docs VALUES (?, ?, ?)", (each["id"], each["text"], each["topic"]))
            connection.commit()

    def prepare(**settings: Any) -> RunPlan:
        source = {"metadata_columns": ["topic", "lang"], "filter": "topic != 'violin'", "rows_per_unit": 4, **settings}
        return prepare_run(local_site.config(source=source, chunking={"template": "{topic}: {chunk}"}, output={"max_removed_fraction": 1}))

    def embed(**settings: Any) -> Summary:
        return run_embed(prepare(**settings))

    run("BEGIN", "CREATE TABLE docs (id TEXT, text TEXT, topic TEXT)", rows=documents(0, 12))
    wanted = {each["id"] for each in documents(0, 12) if each["topic"] != "violin"}
    estimate = preview_run(prepare()).estimate
    assert estimate is not None
    assert estimate.documents == pytest.approx(12)
    assert (embed().stats.filtered, {row["doc_id"] for row in local_site.rows()}) == (12 - len(wanted), wanted)
    assert {row["lang"] for row in local_site.rows()} == {"de"}
    assert embed().did_nothing
    run("BEGIN", "UPDATE docs SET text = 'edited' WHERE id = 'd1'", "DELETE FROM docs WHERE id = 'd4'")
    refreshed = embed()
    assert (refreshed.stats.chunks, refreshed.stats.reused) == (1, len(wanted) - 2)
    assert {row["doc_id"]: row["text"] for row in local_site.rows()}["d1"] == "edited"
    run("BEGIN", "CREATE TABLE notes AS SELECT 'n' AS id, 'a note' AS text, 'river' AS topic")
    with pytest.raises(ConfigError, match=r"several tables \(found: docs, notes\); set source.table"):
        embed()
    embed(table="notes")
    kept = local_site.rows()
    assert [row["doc_id"] for row in kept] == ["n"], "the file is the same, and the rows are not"
    (path.parent / f"b{path.suffix}").write_bytes(path.read_bytes())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (why,) = embed(table="docs").failures.values()
    assert f"{path}: cannot be read to its end" in why
    assert [row for row in local_site.rows() if row["shard"] == str(path)] == kept


def make_tables(folder: Path, postgres: str) -> dict[str, dict[str, Any]]:
    """Write the same 24 documents as a table of each kind, delete one, and return the settings of each source."""
    rows = pa.Table.from_pylist([{key: document[key] for key in ("id", "text", "topic")} for document in documents(0, 24)])
    write_deltalake(folder / "delta", rows, partition_by=["topic"])
    DeltaTable(folder / "delta").delete("id = 'd5'")
    lance.write_dataset(rows, folder / "t.lance", max_rows_per_file=8).delete("id = 'd5'")
    catalog = SqlCatalog("lake", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")
    catalog.create_namespace("docs")
    table = catalog.create_table("docs.t", rows.schema)
    table.append(rows)
    table.delete("id = 'd5'")
    catalog.engine.dispose()
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS on_ray; CREATE TABLE on_ray (id text PRIMARY KEY, text text, topic text)")
        connection.cursor().executemany("INSERT INTO on_ray VALUES (%s, %s, %s)", [tuple(row.values()) for row in rows.to_pylist()])
        connection.execute("DELETE FROM on_ray WHERE id = 'd5'")
    folders = {"delta": f"{folder}/delta", "iceberg": table.location().removeprefix("file://"), "lance": f"{folder}/t.lance"}
    return {kind: {"uri": uri} for kind, uri in folders.items()} | {"postgres": {"uri": postgres, "table": "on_ray"}}


@pytest.mark.ray
@pytest.mark.real
@pytest.mark.slow
def test_rays_workers_read_every_kind_of_table(ray_site: Site, tmp_path: Path, postgres: str) -> None:
    wanted = {(each["id"], each["topic"]) for each in documents(0, 24) if each["id"] != "d5"}
    for kind, source in make_tables(tmp_path, postgres).items():
        site = replace(ray_site, table_uri=f"{tmp_path}/out/{kind}")
        prepared = prepare_run(site.config(source=source | {"metadata_columns": ["topic"], "filter": "id != 'd3'"}))
        assert not in_process.suits(prepared.config, prepared.listing.shards), kind
        summary = run_embed(prepared)
        rows = site.rows()
        assert (summary.failures, summary.stats.filtered, summary.stats.quarantined) == ({}, 1, 0), kind
        assert {(row["doc_id"], row["topic"]) for row in rows} == wanted - {("d3", "river")}, kind
        np.testing.assert_allclose(np.linalg.norm(vectors_of(rows), axis=1), 1, atol=1e-3)

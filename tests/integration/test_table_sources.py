"""A table as a source of the whole job: a refresh reads only files that came, and embeds only texts that are new."""

from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from embedder.core.storage import Store, delta_options
from embedder.source.shards import list_shards
from tests.integration.conftest import Site, documents, on_s3


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

"""output.publish_every: a long run publishes finished shards as it goes; each version holds whole shards, and none loses a document."""

from collections import Counter
from pathlib import Path

import pytest

from embedder.core import plan
from embedder.core.errors import CommitError
from embedder.core.storage import Location
from embedder.run import embed
from embedder.run.prepare import prepare_run
from embedder.run.publish_often import Publisher
from embedder.table.history import PARTIAL, RUN, read_history
from tests.integration.conftest import Site, documents, fill

DEPTH = 1
OFTEN = {"publish_every": "1 rows", "max_removed_fraction": 1.0}


@pytest.fixture(autouse=True)
def _shards_are_not_bucketed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SMALL_SHARD_BYTES", 0)


def versions(site: Site) -> list[list[dict]]:
    return [site.rows(version) for version in range(site.delta().version() + 1)]


def ids_by_shard(rows: list[dict]) -> dict[str, set[str]]:
    return {shard: {row["doc_id"] for row in rows if row["shard"] == shard} for shard in {row["shard"] for row in rows}}


def test_every_version_holds_whole_shards_and_only_the_last_one_removes_what_left(local_site: Site) -> None:
    fill(local_site)
    first = local_site.embed(output=OFTEN)
    whole = ids_by_shard(local_site.rows())
    assert {len(ids) for ids in whole.values()} == {12}
    assert len(versions(local_site)) > 2
    assert all(ids_by_shard(rows).items() <= whole.items() for rows in versions(local_site)), "a shard appears whole"
    assert (first.parts_added, first.rows) == (len(local_site.delta().file_uris()), len(local_site.rows()))
    history = read_history(Location(local_site.table_uri), 99)
    assert [event.kind for event in history] == [RUN, *[PARTIAL] * (len(history) - 1)]
    assert {event.figures["run_id"] for event in history} == {first.run_id}
    assert local_site.embed(output=OFTEN).did_nothing

    begun = local_site.delta().version()
    Path(local_site.corpus.uri, "a.jsonl.gz").rename(Path(local_site.corpus.uri, "a-moved.jsonl.gz"))
    local_site.corpus.put("b.parquet", [*documents(12, 11), *documents(60, 3)])
    local_site.corpus.put("deep/c.jsonl", documents(24, 30))
    second = local_site.embed(output=OFTEN)
    kept = {f"d{number}" for number in [*range(23), *range(24, 36)]}
    for rows in versions(local_site)[begun:]:
        assert kept <= {row["doc_id"] for row in rows}
        assert max(Counter((row["doc_id"], row["chunk"]) for row in rows).values()) == 1
    assert second.version == local_site.delta().version() > begun + 1
    assert {row["doc_id"] for row in local_site.rows()} == kept | {f"d{number}" for number in [*range(36, 54), *range(60, 63)]}


def test_a_run_that_dies_leaves_its_finished_shards_published_and_the_next_one_embeds_the_rest(
    local_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(local_site)

    def die_after_the_first(self: Publisher, *args: object) -> None:
        publish_finished(self, *args)
        if self._published:
            raise KeyboardInterrupt

    publish_finished = Publisher._publish_finished
    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "_publish_finished", die_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            local_site.embed(output=OFTEN)
    assert [len(ids) for ids in ids_by_shard(local_site.rows()).values()] == [12]
    prepared = prepare_run(local_site.config(output=OFTEN))
    assert len(prepared.plan.keep) == len(local_site.delta().file_uris())
    summary = embed.run_embed(prepared)
    assert summary.parts_kept > 0
    assert len(local_site.rows()) == summary.rows
    assert {row["doc_id"] for row in local_site.rows()} == {f"d{number}" for number in range(36)}
    assert local_site.embed().did_nothing


def test_a_table_that_another_run_changed_meanwhile_is_left_as_it_is(local_site: Site) -> None:
    fill(local_site)
    prepared = prepare_run(local_site.config(output=OFTEN))
    local_site.embed()
    before = local_site.rows()
    with pytest.raises(CommitError, match="another run"):
        embed.run_embed(prepared)
    assert local_site.rows() == before


def test_a_run_that_lost_most_of_its_documents_publishes_no_part_of_it(local_site: Site) -> None:
    fill(local_site)
    local_site.embed()
    for name in ("a.jsonl.gz", "b.parquet", "deep/c.jsonl"):
        local_site.corpus.put(name, documents(70, 1))
    with pytest.raises(CommitError, match=r"would leave .* rows"):
        local_site.embed(output={"publish_every": "1 rows"})
    assert len({row["doc_id"] for row in local_site.rows()}) > 12

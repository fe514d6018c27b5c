"""A dry run names each shard's state and prices the run, with and without a history."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedder.core.columns import Shards
from embedder.core.plan import SMALL_SHARD_BYTES
from embedder.core.units import Shard
from embedder.run.dry_run import Preview, choose_shards, preview_run
from embedder.run.prepare import prepare_run
from tests.integration.conftest import Corpus, Site, documents


@pytest.fixture
def site(tmp_path: Path, minilm: str) -> Site:
    return Site(Corpus(str(tmp_path / "corpus")), str(tmp_path / "table"), minilm)


def large(first: int, count: int) -> list[dict[str, Any]]:
    """Return documents of a shard too large for a bucket."""
    pad = "x" * (SMALL_SHARD_BYTES // count)
    return [document | {"pad": pad} for document in documents(first, count)]


def states(preview: Preview, site: Site) -> dict[str, list[str]]:
    return {state: [uri.removeprefix(f"{site.corpus.uri}/") for uri, _ in shards] for state, shards in preview.shards.items() if shards}


def preview(site: Site, **sections: dict[str, Any]) -> Preview:
    return preview_run(prepare_run(site.config(**sections)))


def test_a_first_run_is_priced_by_a_sample(site: Site) -> None:
    site.corpus.put("a.jsonl", documents(0, 50))
    site.corpus.put("b.parquet", documents(50, 50))
    shown = preview(site)
    assert states(shown, site) == {"new": ["a.jsonl", "b.parquet"]}
    assert shown.estimate is not None
    assert shown.estimate.documents == pytest.approx(100)
    assert shown.estimate.basis == "a sample of 100 documents of 2 shards"
    assert shown.estimate.device_hours is None
    assert "cost    unknown: set compute.tokens_per_second" in shown.text()
    assert not Path(site.table_uri).exists(), "nothing is written"
    priced = preview(site, compute={"tokens_per_second": 1_000, "price_per_device_hour_usd": 3.6})
    assert priced.estimate is not None
    assert priced.estimate.usd is not None
    assert priced.estimate.usd.high == pytest.approx(priced.estimate.tokens.high / 1e6)
    assert "(estimated)" in priced.text()


def test_the_sample_is_bounded_however_large_the_source(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        site.corpus.put(f"{number}.jsonl", documents(100 * number, 100))
    shown = preview(site)
    assert shown.estimate is not None
    assert shown.estimate.basis == "a sample of 200 documents of 3 shards"
    assert shown.estimate.documents == pytest.approx(1_200, rel=0.05)


def test_files_that_are_not_read_are_named_by_reason(site: Site) -> None:
    site.corpus.put("a.jsonl", documents(0, 5))
    for name in ("_SUCCESS", "b\n.md", "1.doc", "2.doc", "3.doc", "4.doc"):
        site.corpus.put(name, [])
    shown = preview(site)
    text = shown.text()
    assert "1 shards, 6 files ignored (5 unknown suffix, 1 job marker)" in text
    named = [line.split() for line in text.splitlines() if line.startswith("  ignored ")]
    assert ["ignored", f"'{site.corpus.uri}/_SUCCESS'", "job", "marker"] in named
    assert ["ignored", "…", "2", "more", "unknown", "suffix"] in named
    assert json.loads(json.dumps(shown.record()))["ignored"]["unknown suffix"]["count"] == 5


def test_shards_are_chosen_by_bytes() -> None:
    shards = [Shard(str(number), "", size) for number, size in enumerate([1, 1, 1000, 1, 1])]
    assert choose_shards(Shards.of(shards), 3) == [shards[2]]
    assert len(choose_shards(Shards.of(replace(shard, size_bytes=0) for shard in shards), 3)) == 1
    assert len(choose_shards(Shards.of(replace(shard, size_bytes=5) for shard in shards), 3)) == 3


@pytest.mark.slow
def test_after_a_run_each_shard_is_named_with_its_state(site: Site) -> None:
    for name, first in (("same", 0), ("edited", 100), ("renamed", 200), ("left", 300)):
        site.corpus.put(f"{name}.jsonl", large(first, 20))
    site.corpus.put("small.jsonl", documents(400, 5))
    site.corpus.put("empty.jsonl", [])
    summary = site.embed()
    assert summary.source_bytes == sum(path.stat().st_size for path in Path(site.corpus.uri).iterdir())
    assert summary.actors >= 1
    shown = preview(site)
    assert (shown.estimate, states(shown, site).keys()) == (None, {"unchanged"})
    assert "read       nothing" in shown.text()

    corpus = Path(site.corpus.uri)
    site.corpus.put("edited.jsonl", [*large(100, 20), *documents(150, 5)])
    (corpus / "renamed.jsonl").rename(corpus / "renamed-now.jsonl")
    site.corpus.remove("left.jsonl")
    site.corpus.put("added.jsonl", large(500, 20))
    site.corpus.put("small-too.jsonl", documents(600, 5))
    shown = preview(site, compute={"tokens_per_second": 100, "price_per_device_hour_usd": 1})
    left = sum(row["shard"].endswith("left.jsonl") for row in site.rows())
    renamed = sum(row["shard"].endswith("renamed.jsonl") for row in site.rows())
    found = states(shown, site)
    assert found["unchanged"] == ["same.jsonl"]
    assert found["changed"] == ["edited.jsonl"]
    assert found["moved"] == ["renamed-now.jsonl"]
    assert found["new"] == ["added.jsonl", "small-too.jsonl"]
    assert found["regrouped"] == ["empty.jsonl", "small.jsonl"]
    assert shown.shards["gone"] == [(f"{site.corpus.uri}/left.jsonl", left), (f"{site.corpus.uri}/renamed.jsonl", renamed)]
    assert shown.estimate is not None
    assert shown.estimate.basis == "1 earlier run"
    assert json.loads(json.dumps(shown.record()))["estimate"]["usd"]["high"] > 0
    stats = site.embed().stats
    assert shown.estimate.embedded.low <= stats.documents - stats.quarantined - stats.reused <= shown.estimate.embedded.high
    assert shown.estimate.documents == pytest.approx(stats.documents, rel=0.5)

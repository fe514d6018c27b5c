"""A whole run over shards whose names look like syntax, beside entries that are not read."""

import os
from pathlib import Path

from tests.integration.conftest import Site, documents
from tests.source.test_shards import NAMES

DEPTH = 1


def test_shards_with_names_like_syntax_are_embedded_once_and_every_other_entry_is_counted(site: Site) -> None:
    is_local = "://" not in site.corpus.uri
    names = [name if is_local else name.replace("\\", "") for name in [*NAMES, "_load=1/r.jsonl"]]
    for number, name in enumerate(names):
        site.corpus.put(name, [*documents(number, 1), {"id": "blank", "text": " "}])
    site.corpus.put("_SUCCESS", [])
    site.corpus.put("notes\n.md", [])
    ignored = {"job marker": 1, "unknown suffix": 1}
    if is_local:
        os.mkfifo(Path(site.corpus.uri) / "pipe.jsonl")
        ignored["not a regular file"] = 1
    summary = site.embed()
    uris = sorted(f"{site.corpus.uri}/{name}" for name in names)
    assert sorted({row["shard"] for row in site.rows()}) == uris
    assert sorted(row["shard"] for row in site.quarantine()) == uris
    assert summary.failures == {}
    assert summary.ignored == ignored
    assert summary.stats.quarantined == summary.reasons["empty_text"] == len(names)
    again = site.embed()
    assert again.did_nothing
    assert f"{sum(ignored.values())} files ignored (" in again.text()
    site.corpus.remove(names[0])
    assert site.embed().rows == summary.rows - sum(row["shard"] == f"{site.corpus.uri}/{names[0]}" for row in site.rows(0))

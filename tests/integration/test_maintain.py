"""A table that is compacted, vacuumed, checkpointed and checked between runs still follows its source."""

import pytest

from embedder.core.storage import Store
from jobs.diff import main as diff
from jobs.maintain import main as maintain
from tests.integration.conftest import Site, documents

pytestmark = pytest.mark.slow


def test_a_maintained_table_still_follows_its_source(local_site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site = local_site
    odd = [{"id": "spaces", "text": "  a text \n that begins  and ends with space  "}, {"id": "emoji", "text": "🦊 " * 70}, "{malformed"]
    site.corpus.put("a.jsonl.gz", [*documents(0, 35), *odd])
    site.corpus.put("b.parquet", documents(35, 25))
    site.embed()
    rows, rejects = (
        site.rows(),
        site.quarantine(),
    )
    assert maintain([site.table_uri, "--compact", "--vacuum", "--checkpoint", "--check", "--deep"]) == 0
    assert "every row read: no fault" in capsys.readouterr().out
    assert len(site.delta().file_uris()) < 6
    assert (
        site.rows(),
        site.quarantine(),
    ) == (rows, rejects)
    assert site.embed().did_nothing
    assert diff([site.table_uri, "--from-version", "0", "--rows"]) == 0
    assert capsys.readouterr().out == ""

    site.corpus.put("b.parquet", [*documents(35, 24), *documents(80, 1)])
    summary = site.embed()
    assert summary.stats.documents - summary.stats.reused - summary.stats.quarantined == 1, "vectors are found in merged parts"
    assert maintain([site.table_uri, "--vacuum", "--older-than-hours", "0", "--insist"]) == 0
    assert maintain([site.table_uri, "--check", "--deep"]) == 0
    assert {found.uri.rsplit("/", 1)[-1] for found in Store(site.table_uri).list_folder()} == {
        uri.rsplit("/", 1)[-1] for uri in site.delta().file_uris()
    }
    assert site.embed().did_nothing

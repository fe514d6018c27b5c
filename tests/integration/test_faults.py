"""Faults in real runs: killed drivers, terminated drivers, an emptied source. No row is lost or duplicated."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedder.core.errors import CommitError, StorageError
from embedder.core.storage import Location
from embedder.table.delta import read_table
from tests.integration.conftest import Corpus, Site, documents


def start(site: Site, repository: str, address: str = "local") -> subprocess.Popen[str]:
    """Start the job as a user does, with its own Ray or on a running cluster."""
    flags = [
        f"--source.uri={site.corpus.uri}", "--source.id_column=id", "--source.metadata_columns", "topic", "meta.url",
        "--source.rows_per_unit=10",
        "--chunking.max_tokens=64", "--chunking.overlap_tokens=8", f"--embedding.model={site.model}", "--compute.dtype=float32",
        "--compute.backend=torch",
        f"--output.uri={site.table_uri}",
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.embed", *flags], cwd=repository, env=os.environ | {"RAY_ADDRESS": address}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_parts(site: Site, process: subprocess.Popen[str], count: int) -> None:
    """Wait until the run has written so many parts, and before its commit."""
    deadline = time.monotonic() + 240
    folder = Path(site.table_uri)
    while time.monotonic() < deadline and process.poll() is None:
        if len(list(folder.glob("*.parquet"))) >= count:
            return
        time.sleep(0.02)
    pytest.fail(f"no {count} parts: {process.communicate()}")


def check_whole(site: Site, undisturbed: Site) -> None:
    """Compare with the table of an undisturbed run."""
    rows = site.rows()
    plain = [{name: value for name, value in row.items() if name != "embedding"} for row in rows]
    assert plain == [{name: value for name, value in row.items() if name != "embedding"} for row in undisturbed.rows()]
    np.testing.assert_allclose([row["embedding"] for row in rows], [row["embedding"] for row in undisturbed.rows()], atol=1e-5)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, minilm: str) -> Site:
    """A corpus, and the table of an undisturbed run, without Ray."""
    folder = tmp_path_factory.mktemp("undisturbed")
    site = Site(Corpus(f"{folder}/corpus"), f"{folder}/table", minilm)
    for number in range(3):
        site.corpus.put(f"{number}.jsonl", [*documents(100 * number, 90), "{bad", {"id": "blank", "text": " "}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedder.pipeline.in_process.is_ray_running", lambda: False)
        site.embed()
    return site


@pytest.fixture
def disturbed(undisturbed: Site, tmp_path: Path, ray_session: None) -> Site:
    """The same corpus, without a table, and with Ray running."""
    return replace(undisturbed, table_uri=str(tmp_path / "table"))


@pytest.mark.ray
def test_a_run_that_is_killed_and_then_terminated_loses_no_rows(
    disturbed: Site, undisturbed: Site, repository: str, ray_address: str
) -> None:
    process = start(disturbed, repository, ray_address)
    wait_for_parts(disturbed, process, 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert read_table(Location(disturbed.table_uri)) is None, "no partial result is published"
    process = start(disturbed, repository)  # while workers of the killed run may still write
    wait_for_parts(disturbed, process, 10)
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - started < 30
    assert process.returncode == 143, errors
    assert "finished parts are kept" in errors
    assert "Traceback" not in errors
    assert read_table(Location(disturbed.table_uri)) is None, "no partial result is published"
    summary = disturbed.embed()
    assert summary.version == 0
    check_whole(disturbed, undisturbed)
    assert len(disturbed.quarantine()) == 6


@pytest.mark.ray
@pytest.mark.slow
def test_two_runs_at_once_write_every_row_once(disturbed: Site, undisturbed: Site, repository: str, ray_address: str) -> None:
    runs = [start(disturbed, repository, ray_address) for _ in range(2)]
    outcomes = [(*run.communicate(timeout=500), run.returncode) for run in runs]
    codes = sorted(code for _, _, code in outcomes)
    assert codes[0] == 0, outcomes
    if codes[1]:
        assert codes[1] == 1
        assert any("another run" in errors for _, errors, _ in outcomes), outcomes
    check_whole(disturbed, undisturbed)


def test_a_source_that_lost_most_of_its_documents_is_refused_by_default(local_site: Site) -> None:
    local_site.corpus.put("a.jsonl", documents(0, 30))
    local_site.corpus.put("b.jsonl", documents(30, 10))
    local_site.embed()
    local_site.corpus.put("a.jsonl", documents(0, 2))
    with pytest.raises(CommitError, match=r"would leave .* of .* rows.*--output.max_removed_fraction 1"):
        local_site.embed()
    assert local_site.delta().version() == 0
    local_site.embed(output={"max_removed_fraction": 1.0})
    assert {row["doc_id"] for row in local_site.rows()} == {f"d{number}" for number in [0, 1, *range(30, 40)]}


def test_an_output_that_cannot_be_written_is_refused_before_the_first_document(local_site: Site) -> None:
    local_site.corpus.put("a.jsonl", documents(0, 3))
    with pytest.raises(StorageError, match="/proc/embedder-table"):
        local_site.embed(output={"uri": "/proc/embedder-table"})

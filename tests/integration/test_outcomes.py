"""Failures of the machine: a full disk, dead workers, a clock that jumps, a missing source."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from embedder.core.errors import ConfigError
from embedder.core.storage import Location
from embedder.table.delta import read_table
from tests.integration.conftest import Site, documents
from tests.integration.runs import start_run

pytestmark = pytest.mark.slow

DAY_SECONDS = 86_400


def flags_of(site: Site) -> list[str]:
    return [
        f"--source.uri={site.corpus.uri}", "--source.id_column=id", "--source.rows_per_unit=10", "--chunking.max_tokens=64",
        "--chunking.overlap_tokens=8", f"--embedding.model={site.model}", "--compute.dtype=float32", f"--output.uri={site.table_uri}",
    ]  # fmt: skip


def parts_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


@pytest.fixture
def small_disk() -> list[str]:
    """A command prefix that runs a shell which can mount a small disk."""
    command = ["unshare", "--map-root-user", "--mount", "sh", "-ec"]
    if shutil.which("unshare") is None or subprocess.run([*command, "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode:
        pytest.skip("no user namespaces here, so no small disk can be mounted")
    return command


DISK_FULL = """
mkdir -p "$TABLE" && mount -t tmpfs -o size=256k tmpfs "$TABLE"
run() { status=0; "$@" > "$LOGS/$name.log" 2>&1 || status=$?; echo $status > "$LOGS/$name.status"; cp -r "$TABLE" "$LOGS/$name"; }
name=full; run "$@"
mount -o remount,size=64m "$TABLE"
name=freed; run "$@"
"""


@pytest.mark.ray
def test_a_full_disk_ends_the_run_and_the_next_one_resumes(site_of_size: Site, small_disk: list[str], repository: str) -> None:
    logs = Path(site_of_size.table_uri).parent / "logs"
    logs.mkdir()
    command = [*small_disk, DISK_FULL, "sh", sys.executable, "-m", "jobs.embed", *flags_of(site_of_size)]
    environment = {"TABLE": site_of_size.table_uri, "LOGS": str(logs)}
    subprocess.run(["env", *(f"{name}={value}" for name, value in environment.items()), *command], cwd=repository, check=True)
    output = (logs / "full.log").read_text()
    assert (logs / "full.status").read_text().strip() == "1", output
    assert "no space left on device; free some and run again, finished parts are kept" in output.splitlines()[-1]
    assert output.splitlines()[-1].startswith(site_of_size.table_uri)
    assert "Traceback" not in output
    before, after = parts_of(logs / "full"), parts_of(logs / "freed")
    assert before, "the disk was full in the middle of the run"
    assert read_table(Location(str(logs / "full"))) is None, "no partial result is published"
    assert not [path.name for path in (logs / "full").rglob("*.tmp")]
    for name in before:
        pq.read_table(logs / "full" / name)
    assert (logs / "freed.status").read_text().strip() == "0", (logs / "freed.log").read_text()
    assert {name: after[name] for name in before} == before, "finished parts were kept"
    state = read_table(Location(str(logs / "freed")))
    assert state is not None
    rows = Site(site_of_size.corpus, str(logs / "freed"), site_of_size.model).rows()
    assert {row["doc_id"] for row in rows} == {f"d{number}" for number in range(120)}


@pytest.fixture
def site_of_size(tmp_path: Path, make_site: Callable[[str], Site]) -> Site:
    """A site whose table takes about half a megabyte; its runs start their own Ray."""
    site = make_site(str(tmp_path))
    site.corpus.put("a.jsonl", documents(0, 60))
    site.corpus.put("b.parquet", documents(60, 60))
    return site


def test_a_disk_that_cannot_be_written_is_refused_by_name(tmp_path: Path, small_disk: list[str], repository: str) -> None:
    script = 'mount -t tmpfs -o ro tmpfs "$1" && "$2" -c "$3" "$1"'
    check = "import sys; from embedder.core.storage import Store; Store(sys.argv[1]).check_writable()"
    done = subprocess.run([*small_disk, script, "sh", tmp_path, sys.executable, check], cwd=repository, capture_output=True, text=True)
    assert done.returncode
    assert done.stderr.splitlines()[-1].startswith(f"embedder.core.errors.StorageError: {tmp_path}/_writable-")
    assert "Read-only file system" in done.stderr.splitlines()[-1]


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["encoder", "reader"])
def test_a_run_whose_worker_is_killed_succeeds(site_of_size: Site, repository: str, tmp_path: Path, kind: str) -> None:
    run = start_run(repository, flags_of(site_of_size), tmp_path / "log", {})
    try:
        assert run.wait_and_kill_worker(kind), run.log.read_text()
        assert run.wait() == 0, run.log.read_text()
    finally:
        run.stop()
    rows = site_of_size.rows()
    places = [(row["shard"], row["row"], row["chunk"]) for row in rows]
    assert len(set(places)) == len(places)
    assert {row["doc_id"] for row in rows} == {f"d{number}" for number in range(120)}


def shift_log(table: Path, seconds: int) -> None:
    """Shift the timestamps of all commits."""
    for entry in table.glob("_delta_log/*.json"):
        actions = [json.loads(line) for line in entry.read_text().splitlines()]
        for action in actions:
            for name, field in (("commitInfo", "timestamp"), ("add", "modificationTime"), ("remove", "deletionTimestamp")):
                if name in action:
                    action[name][field] += 1000 * seconds
        entry.write_text("\n".join(map(json.dumps, actions)))


@pytest.mark.parametrize("seconds", [DAY_SECONDS, -DAY_SECONDS])
def test_a_clock_that_jumps_a_day_neither_loses_nor_repeats_work(local_site: Site, monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    local_site.corpus.put("a.jsonl", documents(0, 25))
    local_site.corpus.put("b.jsonl", documents(25, 5))
    clock = SimpleNamespace(time=lambda: time.time() + seconds)
    with monkeypatch.context() as patch:
        patch.setattr("embedder.table.delta.time", clock)
        local_site.embed()
    shift_log(Path(local_site.table_uri), seconds)
    before = local_site.rows()
    assert local_site.embed().did_nothing
    local_site.corpus.put("b.jsonl", documents(24, 6))
    with monkeypatch.context() as patch:
        patch.setattr("embedder.table.delta.time", clock)
        assert local_site.embed().stats.reused == 31, "the copy of d24 is known too"
    local_site.corpus.put("b.jsonl", documents(25, 6))
    summary = local_site.embed()
    assert summary.stats.documents - summary.stats.reused == 1
    assert local_site.embed().did_nothing
    assert {row["doc_id"] for row in local_site.rows()} == {f"d{number}" for number in range(31)}
    assert local_site.rows(version=0) == before, "versions are counted, not dated"


def test_an_empty_source_empties_the_table_only_if_allowed(local_site: Site) -> None:
    local_site.corpus.put("a.jsonl", [*documents(0, 12), {"id": "blank", "text": " "}])
    local_site.embed()
    rows = len(local_site.rows())
    local_site.corpus.remove("a.jsonl")
    with pytest.raises(ConfigError, match=rf"no file is there; .* keeps its {rows} rows, .* --output.max_removed_fraction 1"):
        local_site.embed()
    assert len(local_site.rows()) == rows
    summary = local_site.embed(output={"max_removed_fraction": 1.0})
    assert (summary.rows, summary.version) == (0, 1)
    assert local_site.rows() == local_site.quarantine() == []
    assert local_site.embed(output={"max_removed_fraction": 1.0}).did_nothing
    local_site.corpus.put("a.jsonl", documents(0, 12))
    local_site.embed()
    assert {row["doc_id"] for row in local_site.rows()} == {f"d{number}" for number in range(12)}


def test_a_source_that_never_existed_is_refused_without_mentioning_removal(local_site: Site) -> None:
    with pytest.raises(ConfigError, match=r"no file is there; give a folder, glob or file that has some$"):
        local_site.embed(output={"max_removed_fraction": 1.0})

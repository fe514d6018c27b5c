"""The history of a table: each run's figures, and versions that are not runs."""

import json
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from embedder.core.errors import CommitError, ConfigError, StorageError
from embedder.core.storage import Location
from embedder.core.units import Stats
from embedder.observe.environment import read_revision
from embedder.run.recut import RecutConfig, run_recut
from embedder.run.summary import Summary
from embedder.table.commits import open_delta
from embedder.table.compact import compact_table
from embedder.table.delta import Change, commit_table, read_table
from embedder.table.history import lay_out, read_history
from embedder.table.log_checkpoint import write_checkpoint
from jobs import history
from tests.tables import SCHEMA, SPEC, Corpus, MadeTable

CORPUS: Corpus = {"large": [("a", "one two", "x"), ("b", " ", "y"), ("c", "three", None)], "p": [("a", "four", "x")]}
EDITED: Corpus = {**CORPUS, "p": [("a", "five six", "x")]}


def record(documents: int, config: dict[str, Any], **figures: Any) -> dict[str, Any]:
    """Return the record that a run writes into its commit."""
    reused = {"chunks_reused": 3, "tokens_reused": 2345} if documents > 3 else {}
    stats = Stats(documents=documents, quarantined=1, chunks=7, tokens=1234, reused=documents - 2, **reused)
    counts = {
        "parts_added": 2,
        "parts_adopted": 0,
        "parts_kept": 1,
        "parts_removed": 0,
        "documents_reused": 5,
        "rows": 8,
        "bytes_added": 10_000,
    }
    summary = Summary(
        run_id=figures.pop("run_id", "r1"), uri="", started="", shards=2, shards_ignored=0, stats=stats, reasons={"empty_text": 1},
        seconds=2.5, cost_usd=0.25, steady_tokens_per_second=None, failures=figures.pop("failures", {}), **counts,
    )  # fmt: skip
    return summary.record() | {"config": config, "environment": {"torch": "2.13.0", **figures}}


@pytest.fixture
def table(tmp_path: Path) -> MadeTable:
    return MadeTable(str(tmp_path / "table"))


def test_each_run_shows_its_figures_and_its_changes_since_the_run_before(table: MadeTable) -> None:
    table.follow(CORPUS, record=record(3, {"a": 1}))
    table.follow(EDITED, record=record(4, {"a": 2}, revision="abc", failures={"k": "s3://b/x.parquet: broken"}))
    newer, older = read_history(table.location, 20)
    assert (older.version, older.kind, older.changes) == (0, "run", ())
    assert older.figures["stats"]["tokens"] == 1234
    assert newer.changes == (f"config {older.config_digest} → {newer.config_digest}", "revision None → abc")
    text = lay_out([newer, older])
    assert [text.count(words) for words in ("$0.2500", "quarantined: empty_text 1", "failed: s3://b/x.parquet: broken", "1,234")] == [
        2,
        2,
        1,
        2,
    ]
    assert text.count("reused: 3 chunks, 2,345 tokens, beside those embedded") == 1
    assert text.splitlines()[-1] == f"version 0: space {SPEC.space_id}, config {older.config_digest}, torch 2.13.0"


def test_files_ignored_by_a_run_are_shown_if_they_changed_and_old_records_lack_them(table: MadeTable) -> None:
    table.follow(CORPUS, record={name: value for name, value in record(3, {}).items() if name != "ignored"})
    for corpus, counts in ((EDITED, {}), (CORPUS, {"hidden": 1}), (EDITED, {"hidden": 1})):
        table.follow(corpus, record=record(3, {}) | {"ignored": counts})
    events = read_history(table.location, 20)
    assert [event.changes for event in events] == [(), ("files ignored: none → hidden 1",), (), ()]
    assert "ignored" not in events[-1].record()
    assert events[0].record()["ignored"] == {"hidden": 1}


def test_maintenance_is_marked_and_repeats_no_figures(table: MadeTable) -> None:
    table.follow(CORPUS, record=record(3, {"a": 1}))
    table.follow(EDITED, record=record(3, {"a": 1}))
    compact_table(table.location, 10_000_000)
    write_checkpoint(table.location)
    events = read_history(table.location, 20)
    kinds = [event.kind for event in events]
    assert kinds[-2:] == ["run", "run"]
    assert "compact" in kinds
    assert [event.figures for event in events if event.kind != "run"] == [{}] * (len(events) - 2)
    assert lay_out(events).count("1,234") == 2


def test_another_space_lists_its_differences_and_a_replacement_is_one_run(table: MadeTable) -> None:
    table.follow(CORPUS, record=record(3, {"a": 1}))
    state = read_table(table.location)
    assert state is not None
    deeper = SPEC.model_copy(update={"depth": SPEC.depth - 1})
    info = record(3, {"a": 1}) | {"spec": deeper.model_dump(), "space_id": deeper.space_id, "bucket_bits": 1}
    commit_table(table.location, Change((), (), SCHEMA, info, replaces=True), state)
    events = read_history(table.location, 20)
    assert [event.kind for event in events] == ["describe", "run", "run"]
    assert f"depth: {SPEC.depth} → {SPEC.depth - 1}" in events[1].changes[0]


def test_a_recut_shows_its_figures_and_one_without_figures_is_a_line_of_its_own(table: MadeTable) -> None:
    table.follow(CORPUS)
    uri = f"{table.uri}-cut"
    config = RecutConfig.model_validate({"parent": {"uri": table.uri}, "output": {"uri": uri, "dim": 2}})
    run_recut(config)
    state = read_table(Location(uri))
    assert state is not None
    earlier = {name: state.info[name] for name in ("spec", "space_id", "bucket_bits", "parent", "stats", "environment")}
    commit_table(Location(uri), Change((), (), state.schema, earlier), state)
    table.follow(EDITED)
    done = run_recut(config)
    newest, old, first = read_history(Location(uri), 20)
    assert [event.kind for event in (newest, old, first)] == ["run"] * 3
    assert (newest.figures["documents_reused"], newest.figures["rows"], newest.figures["parts_kept"]) == (4, len(table.rows()), 2)
    assert (newest.figures["parts_added"], newest.figures["bytes_added"]) == (done.parts_added, done.bytes_added)
    assert newest.figures["seconds"] > 0
    assert "rows" not in old.figures
    lines = lay_out([newest, old, first]).splitlines()
    columns = [line.split() for line in lines if "run" in line.split()]
    assert [each[:1] + each[3:9] for each in columns] == [
        ["2", "run", "0", "4", "0", "0", "0"],
        ["1", "run"],
        ["0", "run", "0", "4", "0", "0", "0"],
    ]
    assert f"config {first.config_digest}" in lines[-1]


def test_another_tools_commit_is_named_by_its_operation(table: MadeTable) -> None:
    table.follow(CORPUS, record=record(3, {"a": 1}))
    open_delta(table.location).alter.set_table_name("mine")
    newest = read_history(table.location, 20)[0]
    assert newest.kind == "foreign"
    assert f"{newest.operation}, by another tool" in lay_out([newest])


def test_a_table_that_embedder_did_not_write_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_delta(str(tmp_path / "other"))
    with pytest.raises(CommitError, match="that embedder did not write"):
        read_history(Location(str(tmp_path / "other")), 20)
    with pytest.raises(StorageError, match="no table there"):
        read_history(Location(str(tmp_path / "none")), 20)


def test_the_job_prints_a_json_line_per_version_newest_first(table: MadeTable, capsys: pytest.CaptureFixture[str]) -> None:
    for corpus in (CORPUS, EDITED, CORPUS):
        table.follow(corpus, record=record(3, {"a": 1}))
    assert history.main([table.uri, "--json", "--most", "2"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(event["version"], event["kind"], event["stats"]["chunks"]) for event in events] == [(2, "run", 7), (1, "run", 7)]
    with pytest.raises(ConfigError, match="--most 0"):
        history.main([table.uri, "--most", "0"])


@pytest.mark.parametrize("packed", [False, True])
def test_the_revision_is_the_one_git_has_checked_out(tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBEDDER_REVISION", raising=False)
    assert read_revision(tmp_path) is None

    def git(*args: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(["git", "-C", str(tmp_path), *identity, *args], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "-m", "first")
    git("worktree", "add", "--quiet", "tree")
    if packed:
        git("pack-refs", "--all")
    (tmp_path / "tree/deep").mkdir()
    revision = git("rev-parse", "HEAD")
    assert [read_revision(tmp_path), read_revision(tmp_path / "tree/deep")] == [revision, revision]
    git("checkout", "--quiet", "--detach")
    assert read_revision(tmp_path) == revision
    monkeypatch.setenv("EMBEDDER_REVISION", "told")
    assert read_revision(tmp_path) == "told"

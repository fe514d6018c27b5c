"""Made-up units, and a made-up table of some shards with quarantined records."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedder.core.schema import DOCUMENTS, QUARANTINE
from embedder.core.storage import Location
from embedder.core.units import Part, PartName, Stats
from embedder.table.parts import assemble_rows, footer_of, write_part
from embedder.text.chunking import CHUNKS
from tests.core.test_spec import SPEC
from tests.tables import Corpus, MadeTable, hash_text

TEXTS = ("one two", "drei 🦊 vier", "fünf sechs sieben")
DIM = 8

CORPUS: Corpus = {
    "large": [(f"d{number}", "one two" if number % 3 else " ", "x") for number in range(9)],
    "large-2": [("a", "five", "x"), ("b", "six", None)],
    "p": [("a", "five", "x"), ("b", " ", "x")],
    "q": [("a", "six seven", "x")],
}


def make_documents(texts: tuple[str, ...] = TEXTS, first_id: int = 0) -> pa.Table:
    """Return documents with metadata of every shape: plain, list, struct."""
    num_rows = len(texts)
    documents = pa.table(
        {
            "doc_id": [f"d{first_id + number}" for number in range(num_rows)],
            "text": list(texts),
            "content_hash": [hash_text(text) for text in texts],
            "shard": ["s3://docs/a.jsonl"] * num_rows,
            "row": list(range(num_rows)),
        },
        schema=DOCUMENTS,
    )
    metadata = {"title": ["t"] * num_rows, "tags": [["a", "b"]] * num_rows, "origin": [{"year": 1999, "place": None}] * num_rows}
    for name, values in metadata.items():
        documents = documents.append_column(name, pa.array(values))
    return documents


def make_chunks(texts: tuple[str, ...] = TEXTS) -> pa.Table:
    """Return two chunks a document: its first word, and the rest."""
    spans = [span for text in texts for span in ((0, text.index(" ")), (text.index(" ") + 1, len(text)))]
    columns = {
        "document": [number // 2 for number in range(2 * len(texts))],
        "chunk": [0, 1] * len(texts),
        "num_chunks": [2] * (2 * len(texts)),
        "start_char": [start for start, _ in spans],
        "end_char": [end for _, end in spans],
        "num_tokens": [3] * len(spans),
        "truncated": [False] * len(spans),
        "token_ids": [[1, 2, 3]] * len(spans),
    }
    return pa.table(columns, schema=CHUNKS)


def make_vectors(num_rows: int, seed: int = 0) -> np.ndarray:
    vectors_ND = np.random.default_rng(seed).normal(size=(num_rows, DIM)).astype(np.float32)
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)


@pytest.fixture
def write_unit(tmp_path: Path) -> Callable[..., Part]:
    """Return a function that writes one made-up unit into tmp_path/table, or another table."""

    def write(
        key: str = "0" * 16, version: str = "0" * 32, first_id: int = 0, seed: int = 0, quarantined: int = 0, uri: str | None = None
    ) -> Part:
        documents, chunks = make_documents(first_id=first_id), make_chunks()
        rejects = pa.Table.from_pylist(
            [{"shard": "s", "row": 9, "doc_id": None, "reason": "null_text", "excerpt": ""}] * quarantined, QUARANTINE
        )
        stats = Stats(documents=len(TEXTS) + quarantined, quarantined=quarantined, chunks=chunks.num_rows)
        name = PartName(key, version, 0, stats.documents, True)
        rows = assemble_rows(documents, chunks.drop_columns(["token_ids"]), make_vectors(chunks.num_rows, seed), True)
        return write_part(rows, rejects, name, footer_of(SPEC, stats), Location(uri or str(tmp_path / "table")))

    return write


@pytest.fixture
def table(location: str) -> MadeTable:
    return MadeTable(location)

"""A table opened from Python is searched by vector or text, under a condition."""

from pathlib import Path

import numpy as np
import pytest

import embedder
from embedder.core.errors import ConfigError, StorageError
from tests.stores.conftest import TABLE_SPEC, TypedTable, corpus_of, key_of, vector_of

QUERY_D = np.array(vector_of("query"), np.float32)


class FakeQueryEncoder:
    def __init__(self, *_: object) -> None: ...

    def encode(self, queries: list[str]) -> np.ndarray:
        return np.array([vector_of(query) for query in queries], np.float32)


def test_a_table_is_searched_by_text_or_vector_under_a_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = TypedTable(str(tmp_path / "table"))
    made.follow(corpus_of(2))
    monkeypatch.setattr("embedder.search.query_encoder.QueryEncoder", FakeQueryEncoder)
    table = embedder.open_table(made.uri)
    assert table.spec == TABLE_SPEC
    rows = made.rows()
    scores = {key: float(np.array(row["embedding"], np.float32) @ QUERY_D) for key, row in rows.items()}
    best = sorted(scores, key=lambda key: -scores[key])
    assert [key_of(hit.row) for hit in table.search(QUERY_D, 3)] == best[:3]
    assert table.search("query", 3) == table.search(table.encode(["query"])[0], 3) == table.search(QUERY_D, 3)
    wanted = [key for key in best if rows[key]["topic"] == "x"]
    assert [key_of(hit.row) for hit in table.search(QUERY_D, 100, where="topic = 'x'")] == wanted
    with pytest.raises(ConfigError, match="top=0: must be at least 1"):
        table.search(QUERY_D, 0)


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no table there"):
        embedder.open_table(str(tmp_path / "nothing"))

"""Exact search finds the best rows that pass, over many files in any order, on every storage."""

import json
from pathlib import Path

import numpy as np
import pytest

from embedder.core.errors import ConfigError, StorageError
from embedder.core.storage import Location
from embedder.search.exact import Hit, nearest_rows, open_dataset, open_table
from embedder.search.results import BOLD, PLAIN, SearchResult, excerpt, render, split_sentences
from embedder.source.filter import parse_filter
from jobs.search import main
from tests.stores.conftest import RANGES, SCHEMA, TABLE_SPEC, TypedTable, corpus_of, key_of, vector_of

QUERY_D = np.array(vector_of("query"), np.float32)


def test_the_best_rows_come_first_from_any_file_and_batch(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedder.search.exact.BATCH_ROWS", 5)
    table = TypedTable(location)
    table.follow(corpus_of(4))
    rows = table.rows()
    scores = {key: float(np.dot(np.array(row["embedding"], np.float32), QUERY_D)) for key, row in rows.items()}
    for top in (1, 7, 500):
        hits = nearest_rows(open_dataset(Location(location)), QUERY_D, top)
        assert [key_of(hit.row) for hit in hits] == sorted(scores, key=lambda key: -scores[key])[:top]
        assert [hit.score for hit in hits] == pytest.approx([scores[key_of(hit.row)] for hit in hits], abs=1e-6)
    found = nearest_rows(open_dataset(Location(location)), QUERY_D, 500, parse_filter("topic = 'x' and year > 2000", SCHEMA))
    assert {key_of(hit.row) for hit in found} == {key for key, row in rows.items() if row["topic"] == "x" and (row["year"] or 0) > 2000}
    assert "embedding" not in found[0].row


def test_stored_codes_are_scored_as_the_vectors_they_encode(tmp_path: Path) -> None:
    for quantization, off in (("int8", float(RANGES.step_D.max()) * 2), ("binary", 8.0)):
        table = TypedTable(str(tmp_path / quantization)).of_space(quantization=quantization, calibration="c")
        table.follow(corpus_of(2))
        exact = TypedTable(str(tmp_path / f"{quantization}-exact"))
        exact.follow(corpus_of(2))
        wanted = {key_of(hit.row): hit.score for hit in open_table(Location(exact.uri)).find(QUERY_D, 100, None)}
        hits = open_table(Location(table.uri)).find(QUERY_D, 100, None)
        assert len(hits) == len(wanted)
        assert all(abs(hit.score - wanted[key_of(hit.row)]) <= off for hit in hits)
        correlation = np.corrcoef([hit.score for hit in hits], [wanted[key_of(hit.row)] for hit in hits])[0, 1]
        assert correlation > (0.999 if quantization == "int8" else 0.6)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no table there; make one with jobs\.embed"):
        open_table(Location(str(tmp_path / "nothing")))


def test_an_empty_table_and_a_filter_that_rejects_all_rows_give_no_hits(tmp_path: Path) -> None:
    table = TypedTable(str(tmp_path / "table"), TABLE_SPEC)
    table.follow({"shard": []})
    assert open_table(Location(table.uri)).find(QUERY_D, 5, None) == []
    table.follow(corpus_of(1))
    assert open_table(Location(table.uri)).find(QUERY_D, 5, parse_filter("year > 3000", SCHEMA)) == []


@pytest.mark.parametrize("words", [[], ["--store", "x.yaml", "a", "b"]])
def test_the_job_takes_one_location_and_at_most_one_query(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="one query in quotes"):
        main(words)
    with pytest.raises(SystemExit):
        main(["a", "b", "c"])


def test_flags_may_stand_between_the_table_and_the_query(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no table there; make one with jobs\.embed"):
        main([str(tmp_path / "nothing"), "--top", "3", "a query"])


def test_a_column_named_score_is_kept_beside_the_results_score() -> None:
    row = {"doc_id": "a", "chunk": 0, "num_chunks": 1, "text": "One.", "score": 3.25, "highlight": "h", "metadata.score": 7}
    result = SearchResult(Hit(0.5, row), "One.")
    ours, others = {"score": 0.5, "highlight": "One."}, {"metadata.score": 3.25, "metadata.highlight": "h", "metadata.metadata.score": 7}
    kept = {name: row[name] for name in ("doc_id", "chunk", "num_chunks", "text")}
    assert json.loads(render([result], as_json=True, bold=False)) == [ours | kept | others]
    assert result.text(1, bold=False).splitlines()[:2] == ["1. 0.500  a", "   score 3.25 · highlight h · metadata.score 7"]


def test_sentences_end_at_stops_and_lines() -> None:
    assert split_sentences("One. Two? Three v1.2\n\nfour…  Five") == ["One.", "Two?", "Three v1.2", "four…", "Five"]
    assert split_sentences(" \n ") == []


def test_an_excerpt_shows_the_sentence_with_some_words_around_it() -> None:
    text = "First words. " * 20 + "The answer is here. And more follows it."
    shown = excerpt(text, "The answer is here.", bold=True)
    assert f"{BOLD}The answer is here.{PLAIN} And more follows it." in shown
    assert shown.startswith("… ")
    assert len(shown) < 300
    assert excerpt(text, "The answer is here.", bold=False).count("\x1b") == 0
    assert excerpt("", "", bold=True) == ""

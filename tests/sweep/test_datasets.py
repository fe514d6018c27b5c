"""Labeled sets are read as they are, and inconsistent files are refused with the file and line."""

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from embedder.core.errors import ConfigError
from embedder.core.storage import Location
from embedder.sweep.config import QualityConfig
from embedder.sweep.datasets import make_known_items, read_beir, read_similarity
from tests.sentences import sentence

QUALITY = QualityConfig(known_item=False)


def refusal_of_beir(folder: str, quality: QualityConfig = QUALITY) -> str:
    with pytest.raises(ConfigError) as caught:
        read_beir(Location(folder), quality, 0)
    return str(caught.value)


def test_a_beir_folder_is_read_with_title_and_text_joined(write_beir: Callable[..., str]) -> None:
    dataset = read_beir(Location(write_beir()), QUALITY, 0)
    assert (dataset.name, len(dataset.documents), len(dataset.queries)) == ("mini", 130, 12)
    assert dataset.documents[1] == f"Part 1 {sentence(11)}"
    assert dataset.qrels["q3"] == {"d3": 1}


def test_a_grade_of_0_is_not_relevant(write_beir: Callable[..., str]) -> None:
    rows = [(f"q{number}", f"d{number}", 2) for number in range(11)] + [("q0", "d5", 0), ("q11", "d11", 0)]
    dataset = read_beir(Location(write_beir(rows)), QUALITY, 0)
    assert dataset.qrels["q0"] == {"d0": 2}
    assert "q11" not in dataset.query_ids


def test_unknown_queries_and_documents_in_qrels_are_refused_at_once(write_beir: Callable[..., str]) -> None:
    rows = [(f"q{number}", f"d{number}", 1) for number in range(12)] + [("q99", "d0", 1), ("q1", "gone", 1), ("q2", "away", 1)]
    message = refusal_of_beir(write_beir(rows))
    assert "names 1 queries that are missing (q99)" in message
    assert "names 2 documents that are missing (away, gone)" in message


def test_too_few_documents_or_queries_are_refused(write_beir: Callable[..., str]) -> None:
    assert "100 documents; recall@100 needs more than 100" in refusal_of_beir(write_beir(num_documents=100))
    assert "2 queries; use at least 10" in refusal_of_beir(write_beir([("q0", "d0", 1), ("q1", "d1", 1)]))


def test_a_missing_qrels_file_is_refused_with_the_existing_ones(write_beir: Callable[..., str]) -> None:
    assert "has test; choose one" in refusal_of_beir(write_beir(), QualityConfig(qrels="dev"))


def test_damaged_lines_are_named(write_beir: Callable[..., str]) -> None:
    folder = Path(write_beir())
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq0 d0 1\n")
    assert re.search(r"test\.tsv:2: 'q0 d0 1' is not query, document and grade", refusal_of_beir(str(folder)))
    (folder / "queries.jsonl").write_text('{"_id": "q0", "text": "a"}\n{"text": "b"}\n')
    assert "queries.jsonl:2: not an object with an _id" in refusal_of_beir(str(folder))
    assert "corpus.jsonl" in refusal_of_beir(str(folder / "qrels"))


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("corpus.jsonl", '{"_id": "d1", "text": "another"}', r"corpus.jsonl:\d+: _id 'd1' is there twice"),
        ("queries.jsonl", '{"_id": "q1", "text": "another"}', r"queries.jsonl:\d+: _id 'q1' is there twice"),
        ("corpus.jsonl", '{"_id": "x", "_id": "y", "text": "z"}', r"corpus.jsonl:\d+: not an object .*key '_id' 2 times"),
        ("corpus.jsonl", '{"_id": null, "text": "z"}', r"corpus.jsonl:\d+: not an object with an _id"),
        ("corpus.jsonl", '{"_id": "x", "text": 7}', r"corpus.jsonl:\d+: not an object with an _id and texts"),
        ("corpus.jsonl", '{"_id": "x", "text": "\\ud800"}', r"corpus.jsonl:\d+: not an object with an _id and texts"),
        ("qrels/test.tsv", "q0\td0\t0", r"test.tsv:\d+: 'q0\\td0\\t0' is graded 1 above"),
    ],
)
def test_lines_that_contradict_each_other_are_named(write_beir: Callable[..., str], name: str, line: str, message: str) -> None:
    folder = Path(write_beir([(f"q{number}", f"d{number}", 1) for number in range(10)]))
    (folder / name).write_text((folder / name).read_text().rstrip("\n") + f"\n{line}\n")
    assert re.search(message, refusal_of_beir(str(folder)))


def test_a_smaller_corpus_keeps_every_relevant_document(write_beir: Callable[..., str]) -> None:
    dataset = read_beir(Location(write_beir()), QualityConfig(max_documents=110), 0)
    assert len(dataset.documents) == 110
    assert {f"d{number}" for number in range(12)} <= set(dataset.document_ids)


def test_an_sts_file_is_read_by_name_or_by_position(tmp_path: Path) -> None:
    rows = [(f"{number / 4}", f"a {number}", f"b, {number}") for number in range(12)]
    (tmp_path / "named.tsv").write_text("score\tsentence1\tsentence2\n" + "".join("\t".join(row) + "\n" for row in rows))
    (tmp_path / "plain.csv").write_text("x,y,z\n" + "".join(f'"{a}","{b}",{score}\n' for score, a, b in rows))
    for name in ("named.tsv", "plain.csv"):
        dataset = read_similarity(Location(str(tmp_path / name)))
        assert (dataset.firsts[1], dataset.seconds[1], dataset.scores[1]) == ("a 1", "b, 1", 0.25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\nx,y,high\nx,y\n", "2 rows are not two texts and a number (rows 2, 3)"),
        ("a,b,c\n" + "x,y,1\n" * 12, "12 pairs of 1 different scores"),
        ("a,b\nx,y\n", "fewer than three columns"),
        ("a,b,c\n" + "x,y,nan\n" * 12, "12 rows are not two texts and a number"),
    ],
)
def test_an_sts_file_that_cannot_be_ranked_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sts.csv").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_similarity(Location(str(tmp_path / "sts.csv")))


def documents(texts: list[str], titles: list[str | None] | None = None) -> pa.Table:
    columns = {"doc_id": [str(number) for number in range(len(texts))], "text": texts}
    return pa.table(columns | ({"query": titles} if titles else {}))


def test_the_first_sentence_is_the_query_for_the_rest() -> None:
    texts = [f"{sentence(number)} {sentence(number + 500)}" for number in range(200)] + ["No second one here", "a. b."]
    dataset = make_known_items(documents(texts), None, 50, 0)
    assert len(dataset.queries) == 50
    for query, number in zip(dataset.queries, map(int, dataset.query_ids), strict=True):
        assert query == sentence(number)
        assert dataset.documents[number] == sentence(number + 500)
        assert dataset.qrels[str(number)] == {str(number): 1}
    assert dataset.documents[200:] == ("No second one here", "a. b.")


@pytest.mark.parametrize(
    ("text", "query"),
    [
        (
            "\u6771\u4eac\u306f\u9996\u90fd\u3067\u3059\u3002\u4eba\u53e3\u306f\u591a\u3044\uff01",
            "\u6771\u4eac\u306f\u9996\u90fd\u3067\u3059\u3002",
        ),
        ("See http://example.org/?page=1 for the list. It is a long one.", "See http://example.org/?page=1 for the list."),
    ],
)
def test_sentences_end_at_full_width_marks_and_not_within_an_address(text: str, query: str) -> None:
    texts = [f"{sentence(number)} {sentence(number + 500)}" for number in range(150)] + [text]
    dataset = make_known_items(documents(texts), None, 500, 0)
    assert query in dataset.queries


def test_a_title_is_the_query_for_its_text_without_it() -> None:
    titles: list[str | None] = [f"Title {number}" for number in range(150)]
    titles[:3] = [None, "Title 7", " "]
    texts = [f"Title {number} {sentence(number)}" for number in range(150)]
    dataset = make_known_items(documents(texts, titles), "query", 500, 0)
    assert dataset.documents[9] == sentence(9)
    assert "7" not in dataset.query_ids, "two documents share this title"
    assert len(dataset.queries) == 146
    assert dataset.documents[0] == texts[0]


def test_too_few_known_items_are_refused_with_the_setting_to_change() -> None:
    with pytest.raises(ConfigError, match=r"only 0 of 150 documents have a unique first sentence.*set quality.query_column"):
        make_known_items(documents(["no sentence"] * 150), None, 500, 0)
    with pytest.raises(ConfigError, match="40 documents; recall@100 needs more than 100"):
        make_known_items(documents([f"{sentence(n)} {sentence(n + 500)}" for n in range(40)]), None, 500, 0)

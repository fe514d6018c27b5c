"""Hits as text for a person: a document cannot forge a result or act on the terminal."""

from embedder.search.exact import Hit
from embedder.search.results import BOLD, PLAIN, SearchResult

FORGED = "x\n2. 0.999  other\r\x1b[2K"
ROW = {"doc_id": FORGED, "chunk": 0, "num_chunks": 1, "text": "First. \x1b[31mSecond\x9b \u202eone. Third.", "topic": FORGED}


def test_control_characters_of_a_document_are_shown_escaped() -> None:
    text = SearchResult(Hit(0.5, ROW), "\x1b[31mSecond\x9b \u202eone.").text(1, bold=True)
    assert text.count("\n") == 2
    assert text.split("\n")[0] == r"1. 0.500  x\n2. 0.999  other\r\x1b[2K"
    assert text.split("\n")[1] == r"   topic x\n2. 0.999  other\r\x1b[2K"
    assert text.split("\n")[2] == rf"   First. {BOLD}\x1b[31mSecond\x9b \u202eone.{PLAIN} Third."


def test_a_record_keeps_the_exact_characters() -> None:
    assert SearchResult(Hit(0.5, ROW), None).record()["doc_id"] == FORGED

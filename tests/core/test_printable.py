"""A document, a file name or a log entry cannot act on the terminal that it is printed on."""

import pytest

from embedder.core.printable import printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b[31mred", r"\x1b[2J\x1b[31mred"),
        ("a\r1. 0.999  forged", r"a\r1. 0.999  forged"),
        ("a\nb\tc\0", r"a\nb\tc\x00"),
        ("\x9b31m, \x7f, \u2028, \u202e, \ud800", r"\x9b31m, \x7f, \u2028, \u202e, \ud800"),
        ("Zürich 東京 👩\u200d🔬 a\\n", "Zürich 東京 👩\u200d🔬 a\\n"),
    ],
)
def test_control_characters_are_shown_as_escapes_and_all_others_as_they_are(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_text_of_several_lines_keeps_its_lines() -> None:
    assert printable_lines("a\nb\r\x1b[A") == "a\nb\\r\\x1b[A"

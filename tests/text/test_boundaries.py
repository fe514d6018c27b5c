import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from embedder.core.spec import TextFormat
from embedder.text.boundaries import NO_HEADINGS, find_boundaries, find_ends, find_headings
from tests.text.texts import texts

ROOT = Path(__file__).parents[2]
ALL = ("heading", "paragraph", "sentence", "word")


def split(text: str, *boundaries: str, text_format: TextFormat = "plain") -> list[str]:
    headings = find_headings(text, text_format)
    places = find_boundaries(text, text_format, [*boundaries, "word"], headings).places  # type: ignore[list-item]
    return [text[start:stop].strip() for start, stop in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("name", ["README.md", "configs/README.md", "embedder/README.md", "jobs/README.md", "tests/README.md"])
def test_markdown_headings_are_those_of_markdown_it(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = text.split("\n")
    expected = [(lines[each.map[0]], int(each.tag[1])) for each in MarkdownIt().parse(text) if each.type == "heading_open" and each.map]
    headings = find_headings(text, "markdown")
    found = [(text[place:].split("\n", 1)[0], text[place:].split(" ", 1)[0].count("#")) for place in headings.places]
    assert found == expected


MARKDOWN = """---
title: front matter
---
# Guide #
Intro.

Install
-------
```sh
# not a heading
```
### On Linux
Text.
## Use
"""


def test_a_place_lies_below_its_headings_and_not_below_one_that_starts_there() -> None:
    headings = find_headings(MARKDOWN, "markdown")
    assert headings.titles == ["Guide", "Install", "On Linux", "Use"]
    assert headings.path(MARKDOWN.index("Text.")) == "Guide > Install > On Linux"
    assert headings.path(MARKDOWN.index("## Use")) == "Guide"
    assert headings.path(0) == ""
    assert headings.list_paths()[2] == "Guide > Install > On Linux"


def test_definitions_are_the_headings_of_code() -> None:
    code = "import x\n\nclass A(B):\n    async def run(self):\n        defer = 1\n\npub fn go(x: i32) {\n}\n"
    headings = find_headings(code, "code")
    assert headings.titles == ["class A(B)", "async def run(self)", "pub fn go(x: i32)"]
    assert headings.path(code.index("defer")) == "class A(B) > async def run(self)"


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Who met J. R. Smith, e.g. today. It rained (hard).) No. 5 won... Did it?! Yes", 5),
        ("Am 3. Mai kam Prof. Kant, z. B. um 5. Er ging. Gut.", 2),
        ("Il a dit «\u00a0oui\u00a0». Puis « non ! » Fin.", 3),
        ("¿Qué? ¡Nada! Bueno.", 3),
        ("Он пришёл. Потом ушёл? Да.", 3),
        ("他来了。然后走了！“是吗？”对。", 4),
        ("彼は来た。「行こう。」そして", 3),
        ("그는 왔다. 그리고 갔다.", 2),
        ("वह आया। फिर गया।", 2),
        ("جاء. ثم ذهب؟ نعم.", 3),
        ("وہ آیا۔ پھر گیا۔", 2),
        ("Ήρθε. Μετά έφυγε!  Ναι.", 3),
        ("እሱ መጣ። ከዚያ ሄደ።", 2),
        ("Նա եկավ։ Հետո գնաց։", 2),
        ("เขามา แล้วไป", 1),
    ],
)
def test_sentences_end_in_many_languages(text: str, sentences: int) -> None:
    assert len(split(text, "sentence")) == sentences


def test_coarser_boundaries_are_finer_ones_too() -> None:
    text = "# A\n\nOne. Two\n\n- three\n- four\n\n## B\nfive"
    assert split(text, "heading", text_format="markdown") == ["# A\n\nOne. Two\n\n- three\n- four", "## B\nfive"]
    assert split(text, "paragraph", text_format="markdown") == ["# A\n\nOne. Two", "- three\n- four", "## B\nfive"]
    assert split(text, "sentence", text_format="markdown") == ["# A\n\nOne.", "Two", "- three", "- four", "## B\nfive"]
    found = find_boundaries(text, "markdown", ALL, find_headings(text, "markdown"))  # type: ignore[arg-type]
    assert found.ranks == [2, 1, 2, 0]


@settings(max_examples=60, deadline=None)
@given(texts, st.sampled_from(["plain", "markdown", "code"]))
def test_a_boundary_is_a_visible_character(text: str, text_format: TextFormat) -> None:
    found = find_boundaries(text, text_format, ALL, find_headings(text, text_format))  # type: ignore[arg-type]
    assert all(not text[place].isspace() for place in found.places)
    assert list(found.places) == sorted(set(found.places))
    assert find_boundaries(text, text_format, ["word"], NO_HEADINGS).places == []


@pytest.mark.parametrize("part", [".", "\n", " ", "# ", "```\n", "=\n", "!)", "a\n=", "x. ", "\n \n", "def ", 'a."', "---\n"])
def test_no_text_takes_quadratic_time(part: str) -> None:
    text, started = (part * 400_000)[:400_000], time.process_time()
    for text_format in ("markdown", "code"):
        found = find_boundaries(text, text_format, ALL, find_headings(text, text_format))  # type: ignore[arg-type]
        find_ends(text, found.places)
    assert time.process_time() - started < 5

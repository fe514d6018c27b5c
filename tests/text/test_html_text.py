"""HTML is read without its tags, and every character keeps its place in the source."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.core.context import Context, find_format
from embedder.text.byte_estimate import EstimatingChunker
from embedder.text.chunking import Chunker, chunk_documents, drop_tokenless
from embedder.text.html_text import read_html
from tests.text.test_chunk_context import ALL, MARKED
from tests.text.test_chunking import chunk, make_documents, make_spec, styles
from tests.text.texts import texts
from tests.text.tokenizers_for_tests import build_tokenizer

PAGE = """<!DOCTYPE html>
<html><head><title>Foxes &amp; dogs</title><style>p > b { color: red }</style><script>if (1 < 2) { "</p>" }</script></head>
<body><!-- <p>not read</p> -->
<h1 class="x>y">The  quick <em>bro</em>wn
  fox</h1>
<p>Caf&eacute;s, 1 &lt; 2 &#x1F98A;&nbsp;R&D and a<b c.<br>Next line</p><P>Upper</P>
<h2 id='lazy'>Lazy dogs</h2><table><tr><td>one<td>two</tr></table><pre>
  def f():
      pass</pre><noscript>No</noscript><h3></h3><div>rest <a href="a?b&copy=1">here</a></div></body></html>"""
HTML: dict[str, Any] = {"text_format": "html"}
HTML_CONTEXT = Context({}, "html")


class IndependentReader(HTMLParser):
    """The visible characters of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.left_out, self.found = 0, ""

    def handle_starttag(self, tag: str, _attributes: Any) -> None:
        self.left_out += tag in ("script", "style", "noscript")

    def handle_endtag(self, tag: str) -> None:
        self.left_out -= tag in ("script", "style", "noscript")

    def handle_data(self, data: str) -> None:
        self.found += "" if self.left_out else data


def squeeze(text: str) -> str:
    return re.sub(r"\s", "", text)


def test_a_page_is_read_as_it_is_seen() -> None:
    page = PAGE.replace("a<b c.", "a.")
    assert read_html(page).text.split("\n\n") == [
        "Foxes & dogs",
        "The quick brown fox",
        "Cafés, 1 < 2 🦊 R&D and a.\nNext line",
        "Upper",
        "Lazy dogs",
        "one two",
        "\n  def f():\n      pass",
        "rest here",
    ]
    reader = IndependentReader()
    reader.feed(page)
    reader.close()
    assert squeeze(read_html(page).text) == squeeze(reader.found)


def test_headings_are_those_with_text_by_their_level() -> None:
    found = read_html(PAGE)
    assert [(level, title) for *_, level, title in found.headings] == [(1, "The quick brown fox"), (2, "Lazy dogs")]
    assert [found.text[start:end] for start, end, *_ in found.headings] == ["The quick brown fox", "Lazy dogs"]
    assert read_html("<h1>Open<p>text").headings == [(0, 4, 1, "Open")]


MARKUP = (
    *("<p>", "</p>", "<b>", "</b>", "<br/>", "<h2>", "</h2>", "<li>", '<a href="x > y">', "</a>", "<td>", "<pre>", "</pre>", "<!-- no -->"),
    *("&amp;", "&eacute;", "&#32;", "&nosuch;", "<script>a<b</script>", "< ", "<", "&", '<i "'),
)
pages = st.lists(st.one_of(texts, st.sampled_from(MARKUP)), max_size=14).map("".join)


@settings(max_examples=100, deadline=None)
@given(pages)
def test_every_character_that_is_read_has_its_place(page: str) -> None:
    found = read_html(page)
    reached = 0
    for at, character in enumerate(found.text):
        start, end = found.locate(at, at + 1)
        if character.isspace():
            continue
        assert reached <= start < end
        reached = end
        assert page[start:end] == character or page[start] == "&"
        assert found.find(start, end) == (at, at + 1)


@settings(max_examples=40, deadline=None)
@given(
    style=styles,
    page=pages,
    template=st.sampled_from([None, MARKED]),
    boundaries=st.sampled_from([ALL, ("word",)]),
    overlap=st.integers(0, 6),
)
def test_chunks_are_those_of_the_text_that_is_read_at_its_places(
    style: str, page: str, template: str | None, boundaries: tuple[str, ...], overlap: int
) -> None:
    found, tokenizer = read_html(page), build_tokenizer(style)
    changes = {"boundaries": boundaries, "overlap_tokens": overlap, "max_tokens": 72}
    rows = chunk(style, page, **HTML, **changes)
    if not found.text.strip():
        assert [row["num_tokens"] for row in rows] == [0]
        return
    if not found.headings:
        read = chunk(style, found.text, text_format="plain", **changes)
        assert [row["token_ids"] for row in rows] == [row["token_ids"] for row in read]
        if len(rows) > 1:
            assert [(row["start_char"], row["end_char"]) for row in rows] == [
                found.locate(row["start_char"], row["end_char"]) for row in read
            ]
    visible = [found.locate(at, at + 1) for at in range(len(found.text)) if not found.text[at].isspace()]
    tokens = {at for start, end in tokenizer.encode(found.text, add_special_tokens=False).offsets for at in range(start, end)}
    covered = [found.locate(at, at + 1) for at in tokens if not found.text[at].isspace()]
    assert set(covered) <= set(visible)
    assert all(any(row["start_char"] <= start and end <= row["end_char"] for row in rows) for start, end in covered)
    assert [row["start_char"] for row in rows] == sorted(row["start_char"] for row in rows)


def test_a_chunk_has_its_headings_and_its_written_text_has_no_tags() -> None:
    spec = make_spec(template="{headings} | {chunk}", context_tokens=14, max_tokens=30, boundaries=ALL, **HTML)
    chunker, page = Chunker(build_tokenizer("wordpiece"), spec), PAGE + "<p>" + "Nothing else. " * 9
    chunks = chunker.chunk([page], [HTML_CONTEXT])
    written = chunker.write_chunks([page], chunks, [HTML_CONTEXT])
    assert [build_tokenizer("wordpiece").encode(text).ids for text in written] == chunks["token_ids"].to_pylist()
    assert written[-1].startswith("The quick brown fox > Lazy dogs | ")
    assert not any("<p" in text or "&amp;" in text for text in written)


def test_a_page_without_text_has_no_token_and_is_left_to_the_quarantine() -> None:
    spec, documents = make_spec(**HTML), make_documents("<p><img src='x'></p>", "<p>A fox</p>")
    chunks, tokenless = drop_tokenless(chunk_documents(documents, build_tokenizer("wordpiece"), spec))
    assert (tokenless, chunks["document"].to_pylist()) == ([0], [1])
    estimated = EstimatingChunker(spec).chunk(documents["text"].to_pylist(), [HTML_CONTEXT] * 2)
    assert drop_tokenless(estimated)[1] == [0]
    assert estimated["num_tokens"].to_pylist() == [0, 2], "tags do not count"


@pytest.mark.parametrize("uri", ["s3://b/page.html", "a/b.HTM.txt", "x.xhtml.gz"])
def test_a_shard_of_pages_is_known_by_its_suffix(uri: str) -> None:
    assert find_format(uri) == "html"

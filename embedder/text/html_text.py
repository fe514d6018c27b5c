"""HTML → the text that a model reads, and the place of each of its characters in the source.

Tags, comments and the contents of scripts, styles, templates and frames are left out, references such as &amp; are decoded, and whitespace
outside of `pre` is one space. Blocks are paragraphs, table cells are words. Attributes are not read, CSS is not applied.

The rules are a few expressions that read the source once. The parsers of resiliparse, selectolax and lxml give no places, and html.parser
reads broken tags otherwise in each release of Python.
"""

import re
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from html import unescape

from embedder.text.boundaries import HEADING_CHARS

_ATTRIBUTES = r"(?:[^>=]++|=\s*+(?:\"[^\"]*+\"?|'[^']*+'?)?)*+>?"
_MARKUP = re.compile(
    rf"(?P<left_out><!--(?:-?>|[\s\S]*?(?:--!?>|\Z))|<(?P<element>script|style|template|noscript|iframe)(?=[\s/>]){_ATTRIBUTES}"
    rf"(?:[\s\S]*?</(?P=element)(?=[\s/>])[^>]*+>?|[\s\S]*+)|<(?:[!?]|/[^a-z])[^>]*+>?)"
    rf"|<(?P<end>/?)(?P<name>[a-z][^\s/>]*+){_ATTRIBUTES}"
    r"|(?P<reference>&(?:#(?:\d{1,7}|x[0-9a-f]{1,6});?|[a-z][a-z0-9]{1,31};))",
    re.IGNORECASE,
)
_WORDS = re.compile(r"\S++(?: \S++)*+")
_BLOCK_NAMES = """
address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption figure footer
form h1 h2 h3 h4 h5 h6 head header hgroup hr html legend li main menu nav ol optgroup option p pre search section
summary table tbody tfoot thead title tr ul
"""
_GAPS = ("", " ", "\n", "\n\n")
_WORD, _LINE, _BLOCK = 1, 2, 3
_PARTS = {"td": _WORD, "th": _WORD, "br": _LINE, **dict.fromkeys(_BLOCK_NAMES.split(), _BLOCK)}
_HEADING = re.compile("h([1-6])")

Heading = tuple[int, int, int, str]
"""Start and end in the text that is read, level, title."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the pieces of a text start and end, in order."""

    starts: "array[int]"
    ends: "array[int]"

    def map_span(self, start: int, end: int, other: "Places") -> tuple[int, int]:
        """Return the same span in another text of the same pieces; a piece of another length there, a reference, is not cut."""
        first, last = min(bisect_right(self.ends, start), len(self.ends) - 1), max(bisect_left(self.starts, end) - 1, 0)
        begin, stop = max(start - self.starts[first], 0), max(self.ends[last] - end, 0)
        return (
            other.starts[first] + (begin if self._size(first) == other._size(first) else 0),
            other.ends[last] - (stop if self._size(last) == other._size(last) else 0),
        )

    def _size(self, piece: int) -> int:
        return self.ends[piece] - self.starts[piece]


@dataclass(frozen=True, slots=True)
class HtmlText:
    """The text that is read, its headings, and its pieces there and in the source."""

    text: str
    headings: list[Heading]
    read: Places
    source: Places

    def locate(self, start: int, end: int) -> tuple[int, int]:
        """Return the place in the source of a span of the text that is read: from its first character to its last."""
        return self.read.map_span(start, end, self.source)

    def find(self, start: int, end: int) -> tuple[int, int]:
        """Return a span of the source in the text that is read."""
        return self.source.map_span(start, end, self.read) if self.text else (0, 0)


def read_html(source: str) -> HtmlText:
    """Return the text of an HTML page or fragment; '' if it has none."""
    builder, reached, verbatim = _Builder(), 0, 0
    for match in _MARKUP.finditer(source):
        builder.add_text(source, reached, match.start(), verbatim > 0)
        reached = match.end()
        if match["reference"]:
            builder.add_reference(match[0], match.start())
        elif match["name"]:
            name = match["name"].lower()
            verbatim += (name == "pre") * (-1 if match["end"] else 1)
            builder.add_tag(name, bool(match["end"]))
    builder.add_text(source, reached, len(source), verbatim > 0)
    return builder.finish()


class _Builder:
    def __init__(self) -> None:
        self.parts: list[str] = []
        self.size, self.gap = 0, 0
        self.read, self.source = (Places(array("l"), array("l")) for _ in range(2))
        self.found: list[tuple[int, int, int]] = []
        """The first piece of each heading, its level, and the piece after it, 0 if its end is missing."""

    def add_text(self, source: str, start: int, end: int, is_verbatim: bool) -> None:
        """Add what is between two tags."""
        if is_verbatim and start < end:
            self._add(source[start:end], start, end)
            return
        for words in _WORDS.finditer(source, start, end):
            if words.start() > start:
                self._part(_WORD)
            self._add(words[0], words.start(), words.end())
            start = words.end()
        if start < end:
            self._part(_WORD)

    def add_reference(self, reference: str, start: int) -> None:
        """Add a character, or text that looks like its reference."""
        character = unescape(reference)
        if character.isspace():
            self._part(_WORD)
        elif character:
            self._add(character, start, start + len(reference))

    def add_tag(self, name: str, is_end: bool) -> None:
        """Part the pieces before and after a tag, and note where a heading starts; forget one without text."""
        self._part(_PARTS.get(name, 0))
        if heading := _HEADING.fullmatch(name):
            number = len(self.read.starts)
            if self.found and self.found[-1][0] == number:
                self.found.pop()
            elif self.found and is_end:
                first, level, stop = self.found[-1]
                self.found[-1] = first, level, stop or number
            if not is_end:
                self.found.append((number, int(heading[1]), 0))

    def finish(self) -> HtmlText:
        """Return the text; a heading whose end is missing is its first line."""
        text, headings = "".join(self.parts), list[Heading]()
        for first, level, stop in self.found:
            if first < len(self.read.starts):
                start = self.read.starts[first]
                line = text.find("\n", start)
                end = self.read.ends[stop - 1] if stop else line if line >= 0 else len(text)
                headings.append((start, end, level, " ".join(text[start : min(end, start + HEADING_CHARS)].split())))
        return HtmlText(text, headings, self.read, self.source)

    def _part(self, gap: int) -> None:
        self.gap = max(gap, self.gap)

    def _add(self, piece: str, start: int, end: int) -> None:
        gap, self.gap = _GAPS[self.gap] if self.size else "", 0
        self.parts += gap, piece
        self.read.starts.append(self.size + len(gap))
        self.size += len(gap) + len(piece)
        self.read.ends.append(self.size)
        self.source.starts.append(start)
        self.source.ends.append(end)

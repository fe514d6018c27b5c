"""A text → the places where headings, paragraphs and sentences begin, by rules that read it once.

A place is the position of a unit's first visible character. The rules favor speed: markdown-it-py takes a quarter of the time of tokenizing
for its blocks alone. Markdown: headings (`#` and underlined) outside of fences are CommonMark's, other than underlined ones of several
lines. HTML: of the text that is read of it. Code: a definition is a heading, a line is a sentence.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from embedder.core.spec import Boundary, TextFormat

HEADING_CHARS = 200
"""Most characters of a heading that count."""

BETWEEN = " > "

_PARAGRAPH = re.compile(r"\n[ \t\r]*\n\s*")
_SPACE = re.compile(r"\s*")
_LINE = re.compile(r"\n\s*")
_ITEM = re.compile(r"\n[ \t]*(?=(?:[-*+]|\d{1,9}[.)])[ \t]|\|)")
_STOPS = "!?…؟۔।॥։።፧។៕།"
_CLOSERS = "[\"'”’»)\\]]*+"
_LOWER = "a-zß-öø-ÿα-ωά-ώа-џ"
_ABBREVIATIONS = (r"\w", r"\d\d", "[A-Z][rs]", "Mrs", "Prof", "Fig", "No", "Nr", "St", "vs", "etc", "cf", "ca", "bzw", "usw")
_NO_ABBREVIATION = "".join(rf"(?<!\b{word}\.)" for word in _ABBREVIATIONS)
_PERIOD = re.compile(rf"\.(?<![.{_STOPS}]\.){_NO_ABBREVIATION}(?![.{_STOPS}]){_CLOSERS}\s++(?![{_LOWER}])")
"""Not before a small letter, nor after an initial, a number of one or two digits or an abbreviation."""
_STOP = re.compile(rf"[.{_STOPS}](?<![.{_STOPS}]{{2}})(?:(?<!\.)|(?=[.{_STOPS}]))[.{_STOPS}]*+{_CLOSERS}\s+")
_WIDE_STOP = re.compile(r"(?:。|！|？|｡)[。！？｡]*[」』”’）》】]*\s*")
_MARKDOWN = re.compile(
    r"^ {0,3}(?:\A---[ \t]*\n[\s\S]*?\n---[ \t]*$|(?P<fence>`{3,}(?=[^`\n]*$)|~{3,})"
    r"[^\n]*(?:\n[\s\S]*?^ {0,3}(?P=fence)[`~]*[ \t]*$|[\s\S]*\Z)"
    r"|(?P<level>#{1,6})(?:[ \t]+(?P<title>[^\n]*))?$"
    r"|(?![>|=#]|[-*_ \t]+$|[-*+][ \t]|\d{1,9}[.)][ \t])(?P<underlined>[^\s][^\n]*)\n {0,3}(?P<line>=+|-+)[ \t]*$)",
    re.MULTILINE,
)
_DEFINITION = re.compile(
    r"^(?P<indent>[ \t]*)(?P<title>"
    r"(?:(?:export|default|public|private|protected|internal|static|final|abstract|async|pub|unsafe|override|open|data|sealed)[ \t]+)*"
    r"(?:def|class|function|func|fn|interface|struct|enum|trait|impl|module|namespace|object|protocol|extension)[ \t][^\n{]*)",
    re.MULTILINE,
)


_COMMON: Mapping[Boundary, Sequence[re.Pattern[str]]] = {
    "heading": (),
    "paragraph": (_PARAGRAPH,),
    "sentence": (_PERIOD, _STOP, _WIDE_STOP),
}
_BEGINNINGS: Mapping[TextFormat, Mapping[Boundary, Sequence[re.Pattern[str]]]] = {
    "plain": _COMMON,
    "markdown": {**_COMMON, "sentence": (_PERIOD, _STOP, _WIDE_STOP, _ITEM)},
    "html": _COMMON,
    "code": {**_COMMON, "sentence": (_LINE,)},
}


@dataclass(frozen=True, slots=True)
class Headings:
    """Headings of a text in order: their places, their texts, and the heading that each lies below, −1 for none."""

    places: list[int]
    titles: list[str]
    parents: list[int]
    bodies: list[int]
    """Where the text below each begins."""

    def path(self, place: int) -> str:
        """Return the headings above a place, the outermost first; a heading that starts there is not above it."""
        number = bisect_right(self.places, place) - 1
        if number >= 0 and self.places[number] == place:
            number = self.parents[number]
        path: list[str] = []
        while number >= 0:
            path.append(self.titles[number])
            number = self.parents[number]
        return BETWEEN.join(reversed(path))

    def list_paths(self) -> list[str]:
        """Return the path below each heading, in order."""
        paths: list[str] = []
        for title, parent in zip(self.titles, self.parents, strict=True):
            paths.append(title if parent < 0 else f"{paths[parent]}{BETWEEN}{title}")
        return paths


@dataclass(frozen=True, slots=True)
class Boundaries:
    """Places in order where units begin, and for each the rank of its coarsest boundary, 0 being the most preferred."""

    places: Sequence[int]
    ranks: Sequence[int]
    num_ranks: int


NO_BOUNDARIES = Boundaries((), (), 0)
NO_HEADINGS = Headings([], [], [], [])


def find_headings(text: str, text_format: TextFormat) -> Headings:
    """Return the headings of a text; plain text has none, and HTML is read first."""
    return nest_headings(text, _READERS[text_format](text))


def nest_headings(text: str, found: Iterable[tuple[int, int, int, str]]) -> Headings:
    """Return headings, given in order by start, end, level and title, each below the last one of a higher level."""
    headings, open_ = Headings([], [], [], []), list[tuple[int, int]]()
    for place, end, level, title in found:
        while open_ and open_[-1][0] >= level:
            open_.pop()
        headings.parents.append(open_[-1][1] if open_ else -1)
        open_.append((level, len(headings.places)))
        headings.places.append(place)
        headings.titles.append(title)
        headings.bodies.append(space.end() if (space := _SPACE.match(text, end)) else end)
    return headings


def _read_markdown(text: str) -> Iterator[tuple[int, int, int, str]]:
    for match in _MARKDOWN.finditer(text):
        if match["level"]:
            title = (match["title"] or "")[:HEADING_CHARS].strip()
            yield match.start("level"), match.end(), len(match["level"]), re.sub(r"(?:^|[ \t])#+$", "", title).strip()
        elif match["underlined"]:
            yield match.start("underlined"), match.end(), 1 if match["line"][0] == "=" else 2, match["underlined"][:HEADING_CHARS].strip()


def _read_code(text: str) -> Iterator[tuple[int, int, int, str]]:
    for match in _DEFINITION.finditer(text):
        yield match.start("title"), match.end(), len(match["indent"].expandtabs()), match["title"][:HEADING_CHARS].rstrip(" \t\r:;")


_READERS: dict[TextFormat, Callable[[str], Iterator[tuple[int, int, int, str]]]] = {
    "plain": lambda _: iter(()),
    "markdown": _read_markdown,
    "code": _read_code,
}


def find_boundaries(text: str, text_format: TextFormat, boundaries: Sequence[Boundary], headings: Headings) -> Boundaries:
    """Return the places of the boundaries but word. A heading also begins a paragraph, and a paragraph a sentence; none is between a
    heading and its text."""
    ranks: dict[int, int] = {}
    rank, last = 0, len(boundaries) - 1
    for boundary, patterns in _BEGINNINGS[text_format].items():
        if rank == last:
            break
        places = headings.places if boundary == "heading" else [match.end() for each in patterns for match in each.finditer(text)]
        ranks = dict.fromkeys(places, rank) | ranks
        rank += boundary in boundaries
    ordered = sorted(ranks.keys() - {0, len(text), *(set(headings.bodies) - set(headings.places))})
    return Boundaries(ordered, [ranks[place] for place in ordered], last)


def find_ends(text: str, places: Sequence[int]) -> list[int]:
    """Return for each place the end of the visible text before it; places are in order."""

    def walk_back(reached: int, place: int) -> int:
        end = place
        while end > reached and text[end - 1].isspace():
            end -= 1
        return end

    return list(accumulate(places, walk_back, initial=0))[1:]

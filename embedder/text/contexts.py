"""A document's context and a chunk's headings → the text around the chunk, and its tokens, at most `context_tokens` of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from embedder.core.context import NO_VALUES
from embedder.core.spec import EmbeddingSpec
from embedder.core.template import HEADINGS, escape, parse_template
from embedder.text.boundaries import BETWEEN, HEADING_CHARS, Headings
from embedder.text.tokenizing import NO_IDS, Int32s, Tokens, find_end, read_ids
from embedder.text.words import SPACES, encode_many, has_separate_words

_LETTER = "x"
_MARK = "\0"


@dataclass(frozen=True, slots=True)
class Around:
    """The text around a chunk."""

    before: str
    after: str


class Contexts:
    """Renders the template of one spec; without one, the prompt is before every chunk."""

    def __init__(self, tokenizer: Tokenizer, spec: EmbeddingSpec) -> None:
        self._tokenizer, self._most = tokenizer, spec.context_tokens
        self._template = parse_template(escape(spec.prompt) + "{chunk}" if spec.template is None else spec.template)
        self._names = self._template.names
        self.has_headings = HEADINGS in self._names
        self._last: tuple[str, Int32s] = "", NO_IDS
        self._has_separate_words = has_separate_words(tokenizer)
        self._between = self.encode_after(BETWEEN)

    def write(self, values: Mapping[str, str] = NO_VALUES) -> Around:
        """Return the text around a chunk below no heading, however many tokens it has."""
        return Around(*self._template.render(values))

    def render(self, values: Mapping[str, str] = NO_VALUES, headings: str = "") -> Around:
        """Return the text around a chunk; while it has too many tokens, its longest value loses words from its end."""
        values = {**values, HEADINGS: headings}
        around = self.write(values)
        if self._most is None or self.surely_fits(around, len(self.encode_before(around.before))):
            return around
        return self.render_all([values])[0]

    def render_all(self, rows: Iterable[Mapping[str, str]]) -> list[Around]:
        """Return what `render` does for each row of values; all are tokenized at once."""
        kept = [{name: row.get(name, "") for name in self._names} for row in rows]
        long = kept if self._most is not None else []
        while long := [row for row in long if any(row.values())]:
            excesses = [num_tokens - (self._most or 0) for num_tokens in self._count([self.write(row) for row in long])]
            long = [row for row, excess in zip(long, excesses, strict=True) if excess > 0]
            self._shorten(long, [excess for excess in excesses if excess > 0])
        return [self.write(row) for row in kept]

    def _shorten(self, rows: Sequence[dict[str, str]], excesses: Sequence[int]) -> None:
        """Take tokens from the end of the longest value of each row."""
        encoded = iter(encode_many(self._tokenizer, [value for row in rows for value in row.values() if value]))
        for row, excess in zip(rows, excesses, strict=True):
            tokens = {name: next(encoded) for name, value in row.items() if value}
            name = max(tokens, key=lambda each: len(tokens[each]))
            shorter = _cut(row[name], tokens[name], len(tokens[name]) - excess)
            row[name] = shorter if len(shorter) < len(row[name]) else row[name][:-1]  # its last tokens are one character

    def surely_fits(self, around: Around, num_before: int) -> bool:
        """Return whether the number of tokens before a word shows that the text around it fits without a count."""
        spaces = len(around.before[len(around.before.rstrip()) :].encode())
        return self._most is None or num_before + spaces + len(self.encode_after(around.after)) <= self._most

    def count(self, around: Around) -> int:
        """Return the tokens of a text around a chunk."""
        return self._count([around])[0]

    def _count(self, arounds: Sequence[Around]) -> list[int]:
        encoded = iter(encode_many(self._tokenizer, [text for each in arounds for text in (each.before, each.after) if text]))
        return [sum(len(next(encoded)) for text in (each.before, each.after) if text) for each in arounds]

    def encode_before(self, text: str) -> Int32s:
        """Return the tokens before a chunk that begins a word; a space at the end of the text may be part of that word's first token."""
        known, ids = self._last
        if text != known:
            encoding = self._encode(text + _LETTER if text[-1:].isspace() else text)
            ids = read_ids(encoding)[: encoding.char_to_token(len(text))]  # None, thus all, without the letter
            self._last = text, ids
        return ids

    def encode_after(self, text: str) -> Int32s:
        """Return the tokens after a chunk."""
        return read_ids(self._encode(text)) if text else NO_IDS

    def encode_paths(
        self, values: Mapping[str, str], own: tuple[Around, Int32s], headings: Headings, text: str, tokens: Tokens
    ) -> dict[str, tuple[Int32s, Int32s]]:
        """Return the tokens before and after a chunk that begins a word, by the path of its headings; '' is none.

        `own` is the text around the document's first chunk, and the tokens before that.
        """
        around, first = own
        is_parted = self._has_separate_words and around.before[-1:] in SPACES
        known = {"": (first, self.encode_after(around.after)) if is_parted else self._encode_around(around)}
        if self.has_headings and headings.titles:
            known |= self._join_titles(values, headings, text, tokens)
            others = dict.fromkeys(path for path in headings.list_paths() if path not in known)
            known |= {path: self._encode_around(self.render(values, path)) for path in others}
        return known

    def _encode_around(self, around: Around) -> tuple[Int32s, Int32s]:
        return self.encode_before(around.before), self.encode_after(around.after)

    def _join_titles(self, values: Mapping[str, str], headings: Headings, text: str, tokens: Tokens) -> dict[str, tuple[Int32s, Int32s]]:
        """Return those of paths that need not be cut, from the tokens that their headings have in the text: most of a heading's cost."""
        around = self.write({**values, HEADINGS: _MARK})
        lead, mark, rest = around.before.partition(_MARK)
        parted = mark and not lead[-1:].strip() and not rest[:1].strip() and _MARK not in rest + around.after
        if not self._has_separate_words or not parted:
            return {}
        first, last, after = (self.encode_after(each) for each in (lead, rest, around.after))
        room = (self._most or 0) - len(first) - len(last) - len(after)
        ids, found = list[Int32s](), dict[str, tuple[Int32s, Int32s]]()
        for path, title, place, parent in zip(headings.list_paths(), headings.titles, headings.places, headings.parents, strict=True):
            own = self._read_title(title, place, text, tokens)
            ids.append(own if parent < 0 else np.concatenate([ids[parent], self._between, own]))
            if path and len(ids[-1]) <= room:
                found[path] = np.concatenate([first, ids[-1], last]), after
        return found

    def _read_title(self, title: str, place: int, text: str, tokens: Tokens) -> Int32s:
        """Return the tokens of a heading: those in the text, if it stands there between spaces."""
        start = text.find(title, place, place + 2 * HEADING_CHARS)
        end = start + len(title)
        if start < 0 or text[start - 1 : start].strip() or text[end : end + 1].strip():
            return self.encode_after(title)
        first, stop = tokens.starts.searchsorted((start, end)).tolist()
        return tokens.ids[first:stop]

    def _encode(self, text: str) -> Encoding:
        return self._tokenizer.encode(text, add_special_tokens=False)


def _cut(value: str, encoded: Encoding | Tokens, num_tokens: int) -> str:
    """Return the words of a value within its first tokens, or a part of its first word."""
    end = find_end(encoded, num_tokens) if num_tokens > 0 else 0
    cut, rest = value[:end], value[end:]
    words = cut.rsplit(maxsplit=1)
    return (words[0] if rest[:1].strip() and len(words) == 2 and not cut[-1:].isspace() else cut).strip()

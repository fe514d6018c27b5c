"""A document's context and a chunk's headings → the text around the chunk, and its tokens, at most `context_tokens` of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from embedder.core.context import NO_VALUES
from embedder.core.spec import EmbeddingSpec
from embedder.core.template import HEADINGS, escape, parse_template
from embedder.text.tokenizing import Int32s, read_ids

_LETTER = "x"
_NO_IDS: Int32s = np.zeros(0, np.int32)


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
        self.has_headings = HEADINGS in self._template.names
        self._last: tuple[str, Int32s] = "", _NO_IDS

    def render(self, values: Mapping[str, str] = NO_VALUES, headings: str = "") -> Around:
        """Return the text around a chunk; while it has too many tokens, its longest value loses words from its end."""
        values = {name: headings if name == HEADINGS else values.get(name, "") for name in self._template.names}
        while True:
            around = Around(*self._template.render(values))
            if self._most is None or not any(values.values()) or self._surely_fits(around):
                return around
            excess = self.count(around) - self._most
            if excess <= 0:
                return around
            encodings = {name: self._encode(value) for name, value in values.items() if value}
            name = max(encodings, key=lambda each: len(encodings[each]))
            shorter = _cut(values[name], encodings[name], len(encodings[name]) - excess)
            values[name] = shorter if len(shorter) < len(values[name]) else values[name][:-1]  # its last tokens are one character

    def _surely_fits(self, around: Around) -> bool:
        """Return whether the tokens before a chunk, which its window takes next, show that the text around it fits without a count."""
        spaces = len(around.before[len(around.before.rstrip()) :].encode())
        return len(self.encode_before(around.before)) + spaces + len(self.encode_after(around.after)) <= (self._most or 0)

    def count(self, around: Around) -> int:
        """Return the tokens of a text around a chunk."""
        return sum(len(self._encode(text)) for text in (around.before, around.after) if text)

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
        return read_ids(self._encode(text)) if text else _NO_IDS

    def _encode(self, text: str) -> Encoding:
        return self._tokenizer.encode(text, add_special_tokens=False)


def _cut(value: str, encoding: Encoding, num_tokens: int) -> str:
    """Return the words of a value within its first tokens, or a part of its first word."""
    end = encoding.offsets[num_tokens - 1][1] if num_tokens > 0 else 0
    cut, rest = value[:end], value[end:]
    words = cut.rsplit(maxsplit=1)
    return (words[0] if rest[:1].strip() and len(words) == 2 and not cut[-1:].isspace() else cut).strip()

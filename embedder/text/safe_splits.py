"""Places where a text can be cut without changing one of its tokens.

Tokenising a 10 MB text whole costs its size in time and a hundred times in memory, so long texts are cut first, and the
tokens of the pieces must be exactly those of the whole. That holds at a *seam*: a single space or newline between two
plain characters (a letter or digit, before it also the end of a sentence), where

1. normalising does not look across: both neighbours are their own NFKC form and start no combining sequence, and a
   lone whitespace character cannot merge with a run of others;
2. the tokenizer's pre-tokens end there, and models never look across pre-tokens; or there are no pre-tokens, and no entry
   of the BPE vocabulary goes on past a space, so that no merge can cross it;
3. no added token matches across it.

To which side the whitespace goes is a matter of the tokenizer (byte-level BPE joins a space to the next word, and some
join a newline to the punctuation before it). It is found, for spaces and newlines apart, by tokenising probes whole and in
two. A tokenizer for which nothing holds (one that puts a space before every text, even before one) has no seams, and its
texts are tokenised whole: slower and with memory in proportion to the longest, but never wrong.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from unicodedata import is_normalized

from tokenizers import Encoding, Tokenizer

from embedder.text.tokenizing import Tokens, encode_batch, join_tokens, read_tokens

_SENTENCE_ENDS = ".!?。！？"
_WORDS = ("Alpha", "beta9", "x", "7", "été", "слово", "文字", "한국어", "שלום")
_MAYBE_SEAM = re.compile(rf"(?<=[\w{_SENTENCE_ENDS}])[ \n](?=\w)")
_CROSSING = re.compile(rf"[^\W_▁][▁ ]|[{_SENTENCE_ENDS}][▁ ]")


@dataclass(frozen=True, slots=True)
class Seam:
    """One kind of seam: the separator, and where to cut, counted from it: 0 before it, 1 after it."""

    separator: str
    cut: int


@lru_cache(maxsize=4)
def find_seams(tokenizer: Tokenizer) -> tuple[Seam, ...]:
    """Find which whitespace this tokenizer can be cut at, and to which side it goes."""
    return tuple(seam for separator in " \n" if (seam := _find_seam(tokenizer, separator)) is not None)


def _find_seam(tokenizer: Tokenizer, separator: str) -> Seam | None:
    if _added_token_crosses(tokenizer, separator) or not _pre_tokens_end(tokenizer, separator):
        return None
    seams = (Seam(separator, cut) for cut in (0, 1))
    return next((seam for seam in seams if _holds(tokenizer, seam)), None)


def _holds(tokenizer: Tokenizer, seam: Seam) -> bool:
    """Tell whether probes tokenised in two give the tokens and spans of the whole."""
    for first, end, second in product(_WORDS, ("", *_SENTENCE_ENDS), _WORDS):
        text = f"{first}{end}{seam.separator}{second}{seam.separator}{first}"
        cut = len(first + end) + seam.cut
        whole, left, right = tokenizer.encode_batch([text, text[:cut], text[cut:]], add_special_tokens=False)
        if _tokens(whole, 0) != _tokens(left, 0) + _tokens(right, cut):
            return False
    return True


def _tokens(encoding: Encoding, shift: int) -> list[tuple[int, int, int]]:
    return [(token_id, start + shift, end + shift) for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)]


def _added_token_crosses(tokenizer: Tokenizer, separator: str) -> bool:
    """Tell whether an added token could match at a seam: it holds the separator beside something else, or eats whitespace
    beside a letter or digit."""
    for token in tokenizer.get_added_tokens_decoder().values():
        content = token.content
        if separator in content and content.strip(separator):
            return True
        if (token.lstrip and _is_plain(content[:1])) or (token.rstrip and (_is_plain(content[-1:]) or content[-1:] in _SENTENCE_ENDS)):
            return True
    return False


def _pre_tokens_end(tokenizer: Tokenizer, separator: str) -> bool:
    """Tell whether no token can go on from the word before a separator into it."""
    text = f"alpha{separator}beta"
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is not None and len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) > 1:
        return True
    is_bpe = type(tokenizer.model).__name__ == "BPE"
    return separator == " " and is_bpe and not any(_CROSSING.search(token) for token in tokenizer.get_vocab(with_added_tokens=False))


def _is_plain(character: str) -> bool:
    return (character.isalpha() or character.isdecimal()) and is_normalized("NFKC", character)


def find_cut(text: str, seams: tuple[Seam, ...], start: int, size: int) -> int:
    """Find where to cut `text[start:]`: after at most `size` characters, or at the next seam, or at the end of the text."""
    if not seams or len(text) - start <= size:
        return len(text)
    before = max(_last_seam(text, seam, start, start + size) for seam in seams)
    return before if before > start else _next_cut(text, seams, start + size)


def _last_seam(text: str, seam: Seam, start: int, stop: int) -> int:
    at = text.rfind(seam.separator, start + 1, stop)
    while at > 0 and not _is_seam(text, at):
        at = text.rfind(seam.separator, start + 1, at)
    return at + seam.cut if at > 0 else start


def _next_cut(text: str, seams: tuple[Seam, ...], start: int) -> int:
    """Look for all seams at once: where one kind never holds, a search for it alone would read all that is left, for each piece."""
    cuts = {seam.separator: seam.cut for seam in seams}
    places = (match.start() for match in _MAYBE_SEAM.finditer(text, start))
    return next((at + cuts[text[at]] for at in places if text[at] in cuts and _is_seam(text, at)), len(text))


def _is_seam(text: str, at: int) -> bool:
    left, right = text[at - 1 : at], text[at + 1 : at + 2]
    return _is_plain(right) and (_is_plain(left) or (left != "" and left in _SENTENCE_ENDS))


def split_text(text: str, seams: tuple[Seam, ...], size: int) -> Iterator[tuple[int, int]]:
    """Yield the pieces of a text as (start, stop), each of about `size` characters where seams allow; at least one."""
    start, stop = 0, find_cut(text, seams, 0, size)
    while stop < len(text):
        yield start, stop
        start, stop = stop, find_cut(text, seams, stop, size)
    yield start, stop


PIECE_CHARS = 1 << 12
"""Longer texts are tokenised in pieces of about this size. Beside bounding memory and feeding all threads, that is faster:
of 1 MB of English, pieces of 64 k characters took 1.2 times as long with WordPiece and 1.9 times with byte-level BPE."""


BATCH_CHARS = 1 << 20
"""Characters tokenised at a time: an encoding takes some 120 bytes a token until it is read, so some 30 MB."""


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    start: int
    stop: int

    @property
    def is_whole(self) -> bool:
        return self.stop - self.start == len(self.text)

    @property
    def content(self) -> str:
        return self.text[self.start : self.stop]


def encode_texts(tokenizer: Tokenizer, seams: tuple[Seam, ...], texts: Iterable[str]) -> Iterator[tuple[str, Encoding | Tokens]]:
    """Yield each text and its tokens, in order: as the tokenizer's own encoding if it was tokenised in one piece."""
    tokens: list[Tokens] = []
    starts: list[int] = []
    for batch in _batches(_Piece(text, start, stop) for text in texts for start, stop in split_text(text, seams, PIECE_CHARS)):
        for piece, encoding in zip(batch, encode_batch(tokenizer, [piece.content for piece in batch]), strict=True):
            if piece.is_whole:
                yield piece.text, encoding
                continue
            tokens.append(read_tokens(encoding, piece.content))
            starts.append(piece.start)
            if piece.stop == len(piece.text):
                yield piece.text, join_tokens(tokens, starts)
                tokens, starts = [], []


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    chars = 0
    for piece in pieces:
        batch.append(piece)
        chars += piece.stop - piece.start
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch

"""Split points at which a text can be cut without changing any of its tokens, and long texts tokenized in parts between them.

Tokenizing a 10 MB text whole takes a hundred times its size in memory. Long texts are therefore cut first, and the tokens of the parts
must be exactly those of the whole. This holds at a *safe split point*: a single space or newline between two plain characters (a letter
or digit, or before it the end of a sentence), where

1. normalization does not look across: both neighbors are their own NFKC form and start no combining sequence, and a lone whitespace
   character cannot merge with a run of others;
2. the tokenizer's pre-tokens end there, and models never look across pre-tokens; or there are no pre-tokens, and no entry of the BPE
   vocabulary continues past a space, so that no merge can cross it;
3. no added token matches across it.

The tokenizer decides to which side the whitespace belongs: byte-level BPE joins a space to the next word, and some join a newline to
the punctuation before it. Probes tokenized whole and in two find this, for spaces and newlines separately. A tokenizer without safe
splits (such as one that puts a space before every text) tokenizes texts whole: slower and with more memory, but with the same result.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from unicodedata import is_normalized

from tokenizers import Encoding, Tokenizer

from embedder.text.tokenizing import PART_CHARS, Tokens, join_tokens, read_tokens
from embedder.text.words import encode_many

BATCH_CHARS = 1 << 20
"""Characters tokenized at a time: an encoding takes about 120 bytes per token until it is read, so about 30 MB."""

_SENTENCE_ENDS = ".!?。！？"
_WORDS = ("Alpha", "beta9", "x", "7", "été", "слово", "文字", "한국어", "שלום")
_CANDIDATE = re.compile(rf"(?<=[\w{_SENTENCE_ENDS}])[ \n](?=\w)")
_CROSSING = re.compile(rf"[^\W_▁][▁ ]|[{_SENTENCE_ENDS}][▁ ]")


@dataclass(frozen=True, slots=True)
class SafeSplit:
    """One kind of split point: the separator, and the offset of the cut from it, 0 (before) or 1 (after)."""

    separator: str
    cut: int


def encode_texts(tokenizer: Tokenizer, splits: tuple[SafeSplit, ...], texts: Iterable[str]) -> Iterator[tuple[str, Encoding | Tokens]]:
    """Yield each text and its tokens, in order: the tokenizer's own encoding if it read the text whole."""
    tokens: list[Tokens] = []
    starts: list[int] = []
    for batch in _batch_parts((text, start, stop) for text in texts for start, stop in split_text(text, splits, PART_CHARS)):
        contents = [text[start:stop] for text, start, stop in batch]
        for (text, start, stop), content, encoding in zip(batch, contents, encode_many(tokenizer, contents), strict=True):
            if len(content) == len(text):
                yield text, encoding
                continue
            tokens.append(read_tokens(encoding, content))
            starts.append(start)
            if stop == len(text):
                yield text, join_tokens(tokens, starts)
                tokens, starts = [], []


def _batch_parts(parts: Iterable[tuple[str, int, int]]) -> Iterator[list[tuple[str, int, int]]]:
    batch: list[tuple[str, int, int]] = []
    chars = 0
    for part in parts:
        batch.append(part)
        chars += part[2] - part[1]
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def split_text(text: str, splits: tuple[SafeSplit, ...], size: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a text as (start, stop), each of about `size` characters where splits allow; at least one."""
    start, stop = 0, find_cut(text, splits, 0, size)
    while stop < len(text):
        yield start, stop
        start, stop = stop, find_cut(text, splits, stop, size)
    yield start, stop


def find_cut(text: str, splits: tuple[SafeSplit, ...], start: int, size: int) -> int:
    """Return where to cut `text[start:]`: after at most `size` characters, or at the next split point, or at the end of the text."""
    if not splits or len(text) - start <= size:
        return len(text)
    before = max(_last_cut(text, split, start, start + size) for split in splits)
    return before if before > start else _next_cut(text, splits, start + size)


def _last_cut(text: str, split: SafeSplit, start: int, stop: int) -> int:
    at = text.rfind(split.separator, start + 1, stop)
    while at > 0 and not _is_safe(text, at):
        at = text.rfind(split.separator, start + 1, at)
    return at + split.cut if at > 0 else start


def _next_cut(text: str, splits: tuple[SafeSplit, ...], start: int) -> int:
    # one search for all kinds: a search for a kind that never holds would read the rest of the text for each part
    cuts = {split.separator: split.cut for split in splits}
    found = (match.start() for match in _CANDIDATE.finditer(text, start))
    return next((at + cuts[text[at]] for at in found if text[at] in cuts and _is_safe(text, at)), len(text))


def _is_safe(text: str, at: int) -> bool:
    left, right = text[at - 1 : at], text[at + 1 : at + 2]
    return _is_plain(right) and (_is_plain(left) or (left != "" and left in _SENTENCE_ENDS))


def _is_plain(character: str) -> bool:
    return (character.isalpha() or character.isdecimal()) and is_normalized("NFKC", character)


@lru_cache(maxsize=4)
def find_safe_splits(tokenizer: Tokenizer) -> tuple[SafeSplit, ...]:
    """Return the whitespace at which texts of this tokenizer can be cut, and the side it belongs to."""
    allowed = [each for each in " \n" if not _added_token_crosses(tokenizer, each) and _pre_tokens_end(tokenizer, each)]
    found = [next((cut for cut in (0, 1) if _holds(tokenizer, SafeSplit(each, cut))), None) for each in allowed]
    return tuple(SafeSplit(each, cut) for each, cut in zip(allowed, found, strict=True) if cut is not None)


def _holds(tokenizer: Tokenizer, split: SafeSplit) -> bool:
    """Return whether probes tokenized in two have the tokens and spans of the whole."""
    for first, end, second in product(_WORDS, ("", *_SENTENCE_ENDS), _WORDS):
        text = f"{first}{end}{split.separator}{second}{split.separator}{first}"
        cut = len(first + end) + split.cut
        whole, left, right = tokenizer.encode_batch([text, text[:cut], text[cut:]], add_special_tokens=False)
        if _tokens(whole, 0) != _tokens(left, 0) + _tokens(right, cut):
            return False
    return True


def _tokens(encoding: Encoding, shift: int) -> list[tuple[int, int, int]]:
    return [(token_id, start + shift, end + shift) for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)]


def _added_token_crosses(tokenizer: Tokenizer, separator: str) -> bool:
    """Return whether an added token can match across a split point: it holds the separator and more, or strips whitespace next to a
    letter or digit."""
    for token in tokenizer.get_added_tokens_decoder().values():
        content = token.content
        if separator in content and content.strip(separator):
            return True
        if (token.lstrip and _is_plain(content[:1])) or (token.rstrip and (_is_plain(content[-1:]) or content[-1:] in _SENTENCE_ENDS)):
            return True
    return False


def _pre_tokens_end(tokenizer: Tokenizer, separator: str) -> bool:
    """Return whether no token can continue from the word before a separator into it."""
    text = f"alpha{separator}beta"
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is not None and len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) > 1:
        return True
    is_bpe = type(tokenizer.model).__name__ == "BPE"
    return separator == " " and is_bpe and not any(_CROSSING.search(token) for token in tokenizer.get_vocab(with_added_tokens=False))

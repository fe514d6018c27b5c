"""Texts → tokens by way of their distinct words, where a word between spaces has the same tokens in any text, as with BERT's tokenizers.

Tokenizing takes most of the time of chunking, and most words of a batch repeat: of 1.2 MB of Python's documentation, 22% are in distinct
words. These are tokenized once, and their tokens are copied to every place where they stand.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from itertools import count, pairwise

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from embedder.text.tokenizing import NO_TOKENS, PART_CHARS, Int32s, Tokens, encode_batch, join_tokens, read_tokens

SPACES = " \t\n\r"
"""Characters between words: BERT's normalizer keeps these as spaces, and removes other control characters that Python takes for spaces."""
FEW_TEXTS = 16
"""Fewer texts are tokenized whole: their words are too few to pay for the arrays."""

_WORD = re.compile(f"[^{SPACES}]+")
_IS_SPACE = np.array([chr(code) in SPACES for code in range(0x22)])
"""By code point; larger ones are clipped to U+0021."""


@lru_cache(maxsize=4)
def has_separate_words(tokenizer: Tokenizer) -> bool:
    """Return whether a word between spaces has the same tokens in any text, and spaces have none."""
    if not (isinstance(tokenizer.normalizer, BertNormalizer) and isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)):
        return False
    added = tokenizer.get_added_tokens_decoder().values()
    return not any(each.lstrip or each.rstrip or any(map(str.isspace, each.content)) for each in added)


def encode_many(tokenizer: Tokenizer, texts: Sequence[str]) -> Sequence[Encoding | Tokens]:
    """Return the tokens of each text, without special tokens, by the faster way."""
    by_words = len(texts) >= FEW_TEXTS and has_separate_words(tokenizer)
    return encode_words(tokenizer, texts) if by_words else encode_batch(tokenizer, texts)


def encode_words(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Tokens]:
    """Return the tokens of each text, by a tokenizer that has separate words.

    T texts, W words of all texts in order, D distinct words, N tokens of all texts.
    """
    joined = "\n".join(["", *texts, ""])
    words = _WORD.findall(joined)
    number_D: defaultdict[str, int] = defaultdict(count().__next__)
    number_W = np.fromiter(map(number_D.__getitem__, words), np.int32, len(words))
    distinct, start_D, first_D = _encode_distinct(tokenizer, list(number_D))
    is_space = _IS_SPACE[np.minimum(np.frombuffer(joined.encode("utf-32-le"), np.uint32), len(_IS_SPACE) - 1)]
    start_W = np.flatnonzero(is_space[:-1] > is_space[1:]).astype(np.int32) + np.int32(1)
    stop_W = np.cumsum(np.diff(first_D)[number_W], dtype=np.int32)
    first_W = np.append(np.int32(0), stop_W)
    num_W = np.diff(first_W)
    start_T = np.cumsum([1, *(len(text) + 1 for text in texts)], dtype=np.int32)
    first_T = first_W[start_W.searchsorted(start_T)]
    places_N = np.arange(first_W[-1], dtype=np.int32) + np.repeat(first_D[number_W] - first_W[:-1], num_W)
    shifts_N = np.repeat(start_W - start_D[number_W], num_W) - np.repeat(start_T[:-1], np.diff(first_T))
    tokens = distinct.take(places_N, shifts_N)
    return [tokens.cut(start, stop) for start, stop in pairwise(first_T.tolist())]


def _encode_distinct(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[Tokens, Int32s, Int32s]:
    """Return the tokens of words one after another, and where each word starts and its first token, the end of all included."""
    start_D = np.cumsum([0, *(len(word) + 1 for word in words)], dtype=np.int32)
    cuts = np.unique(start_D[:-1] // PART_CHARS, return_index=True)[1].tolist()
    parts = [" ".join(words[first:stop]) for first, stop in pairwise([*cuts, len(words)])]
    read = [read_tokens(encoding, part) for encoding, part in zip(encode_batch(tokenizer, parts), parts, strict=True)]
    tokens = join_tokens([NO_TOKENS, *read], [0, *start_D[cuts].tolist()])
    return tokens, start_D, tokens.starts.searchsorted(start_D).astype(np.int32)

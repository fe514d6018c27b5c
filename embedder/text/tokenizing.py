"""A model's tokenizer, its special tokens as a frame, and its output as flat arrays.

Texts are always tokenized without special tokens. The frame is added around each chunk afterwards, so that it is the same for the first
and the last chunk of a document.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from embedder.core.errors import ModelError

Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

PART_CHARS = 1 << 12
"""Longer texts are tokenized in parts of about this size, which bounds memory, feeds all threads and is faster: for 1 MB of English,
parts of 64 k characters took 1.2 times as long with WordPiece and 1.9 times with byte-level BPE."""

_PROBES = ("A plain probe, of several words.", "another 2nd one")

_SPACES = np.array([chr(code).isspace() for code in range(0x3002)])
"""By code point. No character above U+3000 is whitespace, so that larger ones are clipped to U+3001."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens around every sequence: [CLS] … [SEP], <s> … </s>, … <|endoftext|>, or none."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one text: ids, character spans, and whether each begins a word."""

    ids: Int32s
    starts: Int32s
    ends: Int32s
    word_starts: Bools

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, start: int, stop: int) -> "Tokens":
        """Return a run of the tokens, with their spans."""
        return Tokens(self.ids[start:stop], self.starts[start:stop], self.ends[start:stop], self.word_starts[start:stop])

    def take(self, places: Int32s, shifts: Int32s) -> "Tokens":
        """Return the tokens at these places, the span of each shifted."""
        return Tokens(self.ids[places], self.starts[places] + shifts, self.ends[places] + shifts, self.word_starts[places])

    def drop(self, count: int, shift: int = 0) -> "Tokens":
        """Return the tokens after the first `count`, their spans shifted, at least to 0; the new first token begins a word."""
        word_starts = self.word_starts[count:].copy()
        word_starts[:1] = True
        spans = [self.starts[count:], self.ends[count:]]
        starts, ends = [np.maximum(each + np.int32(shift), np.int32(0)) for each in spans] if shift else spans
        return Tokens(self.ids[count:], starts, ends, word_starts)


NO_IDS: Int32s = np.zeros(0, np.int32)
NO_TOKENS = Tokens(NO_IDS, NO_IDS, NO_IDS, np.zeros(0, np.bool_))


@lru_cache(maxsize=4)
def load_tokenizer(tokenizer_json: str) -> Tokenizer:
    """Build a tokenizer from the text of its tokenizer.json, once per process, without truncation or padding."""
    _set_threads()
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"tokenizer.json: cannot be read: {error}; the model needs a fast tokenizer") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _set_threads() -> None:
    """Limit the Rust tokenizer to the CPUs of this task, unless the environment sets its threads.

    Ray sets OMP_NUM_THREADS to a worker's num_cpus. Without it the tokenizer uses every core, which is right for a process outside Ray.
    TOKENIZERS_PARALLELISM=true keeps threads after a fork; no worker forks after tokenizing.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if "OMP_NUM_THREADS" in os.environ:
        os.environ.setdefault("RAYON_NUM_THREADS", os.environ["OMP_NUM_THREADS"])


@lru_cache(maxsize=4)
def find_frame(tokenizer: Tokenizer) -> Frame:
    """Find the special tokens before and after a text by tokenizing probes with and without them."""
    frames = {_frame_of(tokenizer, probe) for probe in _PROBES}
    frame = frames.pop()
    if frame is None or frames:
        raise ModelError("tokenizer.json: its special tokens are not the same before and after every text; such a model is not supported")
    return frame


def _frame_of(tokenizer: Tokenizer, probe: str) -> Frame | None:
    bare = tokenizer.encode(probe, add_special_tokens=False).ids
    framed = tokenizer.encode(probe).ids
    for start in range(len(framed) - len(bare) + 1):
        stop = start + len(bare)
        if framed[start:stop] == bare:
            return Frame(tuple(framed[:start]), tuple(framed[stop:]))
    return None


def encode_batch(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoding]:
    """Tokenize texts in parallel, without special tokens."""
    return tokenizer.encode_batch(texts, add_special_tokens=False)


def read_ids(encoded: Encoding | Tokens) -> Int32s:
    """Return the token ids."""
    return encoded.ids if isinstance(encoded, Tokens) else np.array(encoded.ids, dtype=np.int32)


def count_before(encoded: Encoding | Tokens, place: int) -> int | None:
    """Return the tokens before the one at a character, None if none is found there."""
    if not isinstance(encoded, Tokens):
        return encoded.char_to_token(place)
    number = int(encoded.starts.searchsorted(place))
    return number if number < len(encoded) and encoded.starts[number] == place else None


def find_end(encoded: Encoding | Tokens, num_tokens: int) -> int:
    """Return the character at which the first tokens end."""
    return int(encoded.ends[num_tokens - 1]) if isinstance(encoded, Tokens) else encoded.offsets[num_tokens - 1][1]


def read_tokens(encoding: Encoding | Tokens, text: str) -> Tokens:
    """Return the tokens of `text` from its encoding.

    A token continues a word if it is in the same pre-token as the previous one, no character lies between them, and neither begins or
    ends with whitespace between them. (Some tokenizers have no pre-tokens and keep a space in the token after it.) A token of only
    whitespace belongs to the word after it. Tokens with overlapping spans are bytes of one character.
    """
    if isinstance(encoding, Tokens):
        return encoding
    spans = np.fromiter(chain.from_iterable(encoding.offsets), dtype=np.int32, count=2 * len(encoding))  # half the time of np.array
    starts, ends = spans[::2], spans[1::2]
    word_starts = np.ones(len(starts), dtype=np.bool_)
    if len(starts) > 1:
        words = np.array(encoding.word_ids, dtype=np.float64)  # None becomes NaN, which differs from itself: a word of its own
        codes = np.frombuffer((text + "x").encode("utf-32-le"), dtype=np.uint32)  # one more, since a token may start at the end
        spaces = _SPACES[np.minimum(codes, len(_SPACES) - 1)]
        begins, firsts, lasts = starts[:-1], starts[1:], ends[:-1]
        after_space = (lasts > begins) & ~spaces[begins] & spaces[firsts - 1]
        word_starts[1:] = (words[1:] != words[:-1]) | (firsts > lasts) | ((firsts == lasts) & (spaces[firsts] | after_space))
    return Tokens(read_ids(encoding), starts, ends, word_starts)


def join_tokens(parts: Sequence[Tokens], shifts: Sequence[int]) -> Tokens:
    """Join the tokens of consecutive parts of a text; each part starts at its shift."""
    return Tokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.starts + np.int32(shift) for part, shift in zip(parts, shifts, strict=True)]),
        np.concatenate([part.ends + np.int32(shift) for part, shift in zip(parts, shifts, strict=True)]),
        np.concatenate([part.word_starts for part in parts]),
    )

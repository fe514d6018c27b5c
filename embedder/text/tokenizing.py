"""A model's tokenizer, its special tokens as a frame, and its output as flat arrays.

A text is always tokenised without special tokens; the frame is put around each chunk afterwards, so that it is the same
for the first chunk of a document and for its last.
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

_PROBES = ("A plain probe, of several words.", "another 2nd one")

_SPACES = np.array([chr(code).isspace() for code in range(0x3002)])
"""By code point; no character above U+3000 is whitespace, so that larger ones are clipped to U+3001."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens around every sequence: [CLS] … [SEP], <s> … </s>, … <|endoftext|>, or none."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one text: ids, character spans, and whether each one begins a word."""

    ids: Int32s
    starts: Int32s
    ends: Int32s
    word_starts: Bools

    def __len__(self) -> int:
        return len(self.ids)

    def drop(self, count: int) -> "Tokens":
        """Leave out the first `count` tokens; what is then first begins a word."""
        word_starts = self.word_starts[count:].copy()
        word_starts[:1] = True
        return Tokens(self.ids[count:], self.starts[count:], self.ends[count:], word_starts)


@lru_cache(maxsize=4)
def load_tokenizer(tokenizer_json: str) -> Tokenizer:
    """Build a tokenizer from the text of its tokenizer.json, once a process, without truncation or padding."""
    _set_threads()
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"tokenizer.json: cannot be read: {error}; the model needs a fast tokenizer") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _set_threads() -> None:
    """Let the Rust tokenizer use the CPUs of this task and no more, unless the environment says otherwise.

    Ray gives a worker OMP_NUM_THREADS equal to its num_cpus; without it the tokenizer takes every core, which is right
    for a process alone. Saying "true" keeps parallelism on after a fork; no worker of ours forks after tokenising.
    Both are read by the Rust thread pool at its first batch.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if "OMP_NUM_THREADS" in os.environ:
        os.environ.setdefault("RAYON_NUM_THREADS", os.environ["OMP_NUM_THREADS"])


@lru_cache(maxsize=4)
def find_frame(tokenizer: Tokenizer) -> Frame:
    """Find the special tokens before and after a text by tokenising probes with and without them."""
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
    """Tokenise texts in parallel, without special tokens."""
    return tokenizer.encode_batch(texts, add_special_tokens=False)


def read_ids(encoding: Encoding) -> Int32s:
    """Copy the token ids out of an encoding."""
    return np.array(encoding.ids, dtype=np.int32)


def read_tokens(encoding: Encoding, text: str) -> Tokens:
    """Copy the tokens of `text` out of its encoding.

    A token continues a word if the tokenizer put it in the same pre-token as the one before, no character lies between
    them, and neither it begins nor the one before ends with whitespace. (Some tokenizers have no pre-tokens, and keep a
    space in the token after it, so that nothing lies between two words.) A token of nothing but whitespace belongs to
    the word that it stands before, and tokens whose spans overlap are bytes of one character.
    """
    starts, ends = _read_spans(encoding)
    word_starts = np.ones(len(starts), dtype=np.bool_)
    if len(starts) > 1:
        words = np.array(encoding.word_ids, dtype=np.float64)  # None becomes NaN, which equals nothing: a word of its own
        codes = np.frombuffer((text + "x").encode("utf-32-le"), dtype=np.uint32)  # one more: a token may start at the end
        spaces = _SPACES[np.minimum(codes, len(_SPACES) - 1)]
        begins, firsts, lasts = starts[:-1], starts[1:], ends[:-1]
        after_space = (lasts > begins) & ~spaces[begins] & spaces[firsts - 1]
        word_starts[1:] = (words[1:] != words[:-1]) | (firsts > lasts) | ((firsts == lasts) & (spaces[firsts] | after_space))
    return Tokens(read_ids(encoding), starts, ends, word_starts)


def _read_spans(encoding: Encoding) -> tuple[Int32s, Int32s]:
    flat = np.fromiter(chain.from_iterable(encoding.offsets), dtype=np.int32, count=2 * len(encoding))  # half the time of np.array
    return flat[::2], flat[1::2]


def join_tokens(pieces: Sequence[Tokens], shifts: Sequence[int]) -> Tokens:
    """Put the tokens of consecutive pieces of a text together; each piece starts at its shift."""
    return Tokens(
        np.concatenate([piece.ids for piece in pieces]),
        np.concatenate([piece.starts + np.int32(shift) for piece, shift in zip(pieces, shifts, strict=True)]),
        np.concatenate([piece.ends + np.int32(shift) for piece, shift in zip(pieces, shifts, strict=True)]),
        np.concatenate([piece.word_starts for piece in pieces]),
    )

"""Texts to tokens, a batch at a time, long texts in pieces cut at seams: what a model's tokenizer gives for each whole."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

from embedder.text.seams import Seam, split_text
from embedder.text.tokenizing import Tokens, encode_batch, join_tokens, read_tokens

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

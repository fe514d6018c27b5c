"""Documents to chunks: prompt and text tokenised together, cut into windows, each in the frame of special tokens.

A chunk is  frame before · prompt tokens · a window of the document's tokens · frame after,  at most `max_tokens` long.

Spans (`start_char`, `end_char`) count the characters of the source text. A document in one chunk spans all of it. Else a
chunk spans from the first to the last of its window's tokens: whitespace around chunks, and before the first or after
the last token of a document, belongs to none of them. A document without any token is one chunk of frame and prompt.
"""

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from tokenizers import Encoding, Tokenizer

from embedder.core.errors import ConfigError
from embedder.core.schema import CHUNKS
from embedder.core.spec import EmbeddingSpec
from embedder.text.safe_splits import encode_texts, find_cut, find_seams
from embedder.text.tokenizing import Bools, Int32s, Tokens, find_frame, read_ids, read_tokens

HEAD_CHARS_PER_TOKEN = 8
"""Of a text of which `max_tokens` are kept, this many characters for each are tokenised first; English has 4 to 5."""

_VISIBLE = re.compile(r"\S")


@dataclass(slots=True)
class _Chunks:
    """The columns of CHUNKS as they grow."""

    rows: list[tuple[int, int, int, int, int, int, bool]]
    token_ids: list[Int32s]

    def add(self, document: int, spans: list[tuple[int, int]], truncated: bool, token_ids: list[list[Int32s]]) -> None:
        """Add one document's chunks: their spans and, for each, the pieces of its token ids."""
        for chunk, ((start, end), pieces) in enumerate(zip(spans, token_ids, strict=True)):
            num_tokens = sum(len(piece) for piece in pieces)
            self.rows.append((document, chunk, len(spans), start, end, num_tokens, truncated))
            self.token_ids += pieces

    def to_table(self) -> pa.Table:
        """Give them as CHUNKS, the token ids as one run of values."""
        if not self.rows:
            return CHUNKS.empty_table()
        columns = list(zip(*self.rows, strict=True))
        offsets = np.cumsum((0, *columns[5]), dtype=np.int32)
        token_ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(self.token_ids)))
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, CHUNKS, strict=False)]
        return pa.Table.from_arrays([*arrays, token_ids], schema=CHUNKS)


class Chunker:
    """Cuts documents for one tokenizer and one spec."""

    def __init__(self, tokenizer: Tokenizer, spec: EmbeddingSpec) -> None:
        frame = find_frame(tokenizer)
        self.tokenizer, self.spec, self.seams = tokenizer, spec, find_seams(tokenizer)
        self.before, self.after = np.array(frame.before, dtype=np.int32), np.array(frame.after, dtype=np.int32)
        self.room = spec.max_tokens - len(frame)
        """Tokens of prompt and text that fit."""
        self.prompt_stop = len(spec.prompt.rstrip())
        """A token that starts before it belongs to the prompt; a space after the prompt may belong to the text's first."""
        num_prompt_tokens = len(tokenizer.encode(spec.prompt, add_special_tokens=False))
        self._check_room(num_prompt_tokens, len(frame))

    def _check_room(self, num_prompt_tokens: int, num_frame_tokens: int) -> None:
        window = self.room - num_prompt_tokens
        taken = f"{num_frame_tokens} special tokens and {num_prompt_tokens} of the prompt"
        if window < 1:
            least = num_prompt_tokens + num_frame_tokens + 1
            raise ConfigError(f"chunking.max_tokens={self.spec.max_tokens}: no room for text beside {taken}; choose at least {least}")
        if self.spec.chunking and self.spec.overlap_tokens >= window:
            overlap = f"chunking.overlap_tokens={self.spec.overlap_tokens}"
            raise ConfigError(f"{overlap}: max_tokens={self.spec.max_tokens} leaves {window} beside {taken}; choose 0 to {window - 1}")

    def chunk(self, texts: list[str]) -> pa.Table:
        """Turn texts into CHUNKS; `document` is a text's position."""
        chunks = _Chunks([], [])
        heads = (self._head(self.spec.prompt + text, HEAD_CHARS_PER_TOKEN * self.spec.max_tokens) for text in texts)
        for document, (head, encoded) in enumerate(encode_texts(self.tokenizer, self.seams, heads)):
            self._add_document(chunks, document, texts[document], head, encoded)
        return chunks.to_table()

    def _head(self, text: str, size: int) -> str:
        """Give all of a text, or without chunking its start, up to a seam."""
        return text if self.spec.chunking else text[: find_cut(text, self.seams, 0, size)]

    def _add_document(self, chunks: _Chunks, document: int, text: str, head: str, encoded: Encoding | Tokens) -> None:
        size = HEAD_CHARS_PER_TOKEN * self.spec.max_tokens
        while len(encoded) <= self.room and len(head) < len(self.spec.prompt) + len(text):
            size = 4 * max(size, len(head))  # of the head alone it might stay what it is: its end may be the last seam of the text
            head = self._head(self.spec.prompt + text, size)
            _, encoded = next(encode_texts(self.tokenizer, self.seams, [head]))
        if len(encoded) <= self.room:
            chunks.add(document, [(0, len(text))], False, [[self.before, _ids_of(encoded), self.after]])
        else:
            tokens = read_tokens(encoded, head) if isinstance(encoded, Encoding) else encoded
            num_prompt_tokens = min(int(np.append(tokens.starts >= self.prompt_stop, True).argmax()), self.room - 1)
            prompt, content = tokens.ids[:num_prompt_tokens], tokens.drop(num_prompt_tokens)
            window = self.room - num_prompt_tokens
            overlap = min(self.spec.overlap_tokens, window - 1)
            windows = plan_windows(content, window, overlap) if self.spec.chunking else [(0, window)]
            spans = [self._span(text, int(content.starts[start]), int(content.ends[stop - 1])) for start, stop in windows]
            ids = [[self.before, prompt, content.ids[start:stop], self.after] for start, stop in windows]
            chunks.add(document, spans, not self.spec.chunking, ids)

    def _span(self, text: str, start: int, end: int) -> tuple[int, int]:
        """Move a span of prompt and text to the text's own characters and, if it begins with whitespace, past it."""
        start = max(start - len(self.spec.prompt), 0)
        end = max(end - len(self.spec.prompt), start)
        visible = _VISIBLE.search(text, start, end)
        return (visible.start() if visible else start), end


def _ids_of(encoded: Encoding | Tokens) -> Int32s:
    return read_ids(encoded) if isinstance(encoded, Encoding) else encoded.ids


def chunk_documents(documents: pa.Table, tokenizer: Tokenizer, spec: EmbeddingSpec) -> pa.Table:
    """schema.DOCUMENTS → schema.CHUNKS, in the order of the documents and then of their chunks.

    Reads `text`. No document changes the chunks of another. With `spec.chunking` off each document is one chunk, cut at
    `max_tokens` as the model's own library cuts it, and `truncated` says whether anything was.
    """
    texts = documents.column("text").to_pylist()
    return Chunker(tokenizer, spec).chunk(texts)


def plan_windows(tokens: Tokens, window: int, overlap: int) -> list[tuple[int, int]]:
    """Cover all tokens with windows of at most `window`, each as (start, stop), in order.

    Windows start and stop between words. Each starts at most `overlap` tokens before the one before stopped: at the
    first word there from which it reaches further than that one did. `overlap` is smaller than `window`.
    """
    assert 0 <= overlap < window
    assert len(tokens) > 0
    cuts = np.append(np.flatnonzero(_find_cuts(tokens, window)), len(tokens)).tolist()
    windows, start = [], 0
    while True:
        last = bisect_right(cuts, start + window) - 1
        stop = cuts[last]
        windows.append((start, stop))
        if stop == len(tokens):
            return windows
        start = cuts[bisect_left(cuts, max(stop - overlap, cuts[last + 1] - window))]


def _find_cuts(tokens: Tokens, window: int) -> Bools:
    """Mark the tokens before which may be cut: at words; in words longer than a window at characters; in the rare
    character of more tokens than a window anywhere. Between two cuts there is then at most one window."""
    cuts = tokens.word_starts
    characters = np.ones(len(tokens), dtype=np.bool_)
    characters[1:] = tokens.starts[1:] >= tokens.ends[:-1]
    for finer in (characters, np.ones(len(tokens), dtype=np.bool_)):
        sizes = np.diff(np.flatnonzero(cuts), append=len(tokens))
        if int(sizes.max()) <= window:
            break
        cuts = cuts | (finer & np.repeat(sizes > window, sizes))
    return cuts

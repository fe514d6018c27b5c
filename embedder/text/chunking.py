"""Documents → chunks: prompt and text are tokenized together, cut into windows, and framed by special tokens.

A chunk is  frame before · prompt tokens · a window of the document's tokens · frame after,  at most `max_tokens` long.

Spans (`start_char`, `end_char`) count characters of the source text. If a document is one chunk, it spans the whole text. Otherwise a
chunk spans the first to the last token of its window: whitespace around chunks belongs to none. A document without tokens is one chunk
of frame and prompt, which has no token if there is neither.

Raise `spec.RECIPE_VERSION` if the columns below, the windows or the spans change: a table reuses the chunks of an equal version.
"""

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from tokenizers import Encoding, Tokenizer

from embedder.core.errors import ConfigError
from embedder.core.spec import EmbeddingSpec
from embedder.text.safe_splits import encode_texts, find_cut, find_safe_splits
from embedder.text.tokenizing import Bools, Int32s, Tokens, find_frame, read_ids, read_tokens

CHUNKS = pa.schema(
    [
        ("document", pa.int32()),
        ("chunk", pa.int32()),
        ("num_chunks", pa.int32()),
        ("start_char", pa.int32()),
        ("end_char", pa.int32()),
        ("num_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("token_ids", pa.list_(pa.int32())),
    ]
)
"""text → model: one sequence per row; `document` is the row of its document in DOCUMENTS. The values of `token_ids` are the packed
input, and its offsets the cu_seqlens of variable-length attention."""

HEAD_CHARS_PER_TOKEN = 8
"""Without chunking, this many characters per token of `max_tokens` are tokenized first; English has 4 to 5."""

_VISIBLE = re.compile(r"\S")


def chunk_documents(documents: pa.Table, tokenizer: Tokenizer, spec: EmbeddingSpec) -> pa.Table:
    """Turn schema.DOCUMENTS into CHUNKS, in the order of the documents and then of their chunks.

    Reads `text`. The chunks of a document do not depend on other documents. If `spec.chunking` is off, each document is one chunk,
    truncated at `max_tokens` as its own library does, and `truncated` is set if anything was cut.
    """
    return Chunker(tokenizer, spec).chunk(documents["text"].to_pylist())


def drop_tokenless(chunks: pa.Table) -> tuple[pa.Table, list[int]]:
    """Return CHUNKS without those that have no token, and the documents of these: there is no vector of nothing.

    A tokenizer without special tokens gives none for a text that its normalizer removes or that its vocabulary lacks.
    """
    has_tokens_N = chunks["num_tokens"].to_numpy() > 0
    if has_tokens_N.all():
        return chunks, []
    return chunks.filter(pa.array(has_tokens_N)), chunks["document"].to_numpy()[~has_tokens_N].tolist()


class Chunker:
    """Cuts documents for one tokenizer and one spec."""

    def __init__(self, tokenizer: Tokenizer, spec: EmbeddingSpec) -> None:
        frame = find_frame(tokenizer)
        self.tokenizer, self.spec, self.splits = tokenizer, spec, find_safe_splits(tokenizer)
        self.before, self.after = np.array(frame.before, dtype=np.int32), np.array(frame.after, dtype=np.int32)
        self.room = spec.max_tokens - len(frame)
        """Tokens of prompt and text that fit."""
        self.prompt_stop = len(spec.prompt.rstrip())
        """A token that starts before it belongs to the prompt; a space after the prompt may belong to the text's first token."""
        self._check_room(len(tokenizer.encode(spec.prompt, add_special_tokens=False)), len(frame))

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
        chunks = _ChunkRows()
        heads = (self._head(self.spec.prompt + text, HEAD_CHARS_PER_TOKEN * self.spec.max_tokens) for text in texts)
        for document, (head, encoded) in enumerate(encode_texts(self.tokenizer, self.splits, heads)):
            self._add_document(chunks, document, texts[document], head, encoded)
        return chunks.to_table()

    def _head(self, text: str, size: int) -> str:
        """Return the whole text or, without chunking, its start up to a safe split point."""
        return text if self.spec.chunking else text[: find_cut(text, self.splits, 0, size)]

    def _add_document(self, chunks: "_ChunkRows", document: int, text: str, head: str, encoded: Encoding | Tokens) -> None:
        size = HEAD_CHARS_PER_TOKEN * self.spec.max_tokens
        while len(encoded) <= self.room and len(head) < len(self.spec.prompt) + len(text):
            size = 4 * max(size, len(head))  # from the head's length alone it may not grow: its end may be the text's last split point
            head = self._head(self.spec.prompt + text, size)
            _, encoded = next(encode_texts(self.tokenizer, self.splits, [head]))
        if len(encoded) <= self.room:
            token_ids = read_ids(encoded) if isinstance(encoded, Encoding) else encoded.ids
            chunks.add(document, [(0, len(text))], False, [[self.before, token_ids, self.after]])
            return
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
        """Convert a span of prompt and text to characters of the text, without leading whitespace."""
        start = max(start - len(self.spec.prompt), 0)
        end = max(end - len(self.spec.prompt), start)
        visible = _VISIBLE.search(text, start, end)
        return (visible.start() if visible else start), end


@dataclass(frozen=True, slots=True)
class _ChunkRows:
    """Rows of CHUNKS, as they are made."""

    rows: list[tuple[int, int, int, int, int, int, bool]] = field(default_factory=list)
    token_ids: list[Int32s] = field(default_factory=list)

    def add(self, document: int, spans: list[tuple[int, int]], truncated: bool, token_ids: list[list[Int32s]]) -> None:
        """Add one document's chunks: the span and the parts of the token ids of each."""
        for chunk, ((start, end), parts) in enumerate(zip(spans, token_ids, strict=True)):
            self.rows.append((document, chunk, len(spans), start, end, sum(map(len, parts)), truncated))
            self.token_ids.extend(parts)

    def to_table(self) -> pa.Table:
        """Return CHUNKS, with the token ids as one run of values."""
        if not self.rows:
            return CHUNKS.empty_table()
        columns = list(zip(*self.rows, strict=True))
        offsets = np.cumsum((0, *columns[5]), dtype=np.int32)
        token_ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(self.token_ids)))
        arrays = [pa.array(column, type=each.type) for column, each in zip(columns, CHUNKS, strict=False)]
        return pa.Table.from_arrays([*arrays, token_ids], schema=CHUNKS)


def plan_windows(tokens: Tokens, window: int, overlap: int) -> list[tuple[int, int]]:
    """Cover all tokens with windows of at most `window` tokens, each as (start, stop), in order.

    Windows start and stop between words. A window starts at most `overlap` tokens before the previous stop, at the first word from
    which it reaches further than the previous one. `overlap` is smaller than `window`.
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
    """Mark the tokens before which a cut is allowed, at most one window apart: at words, in words longer than a window at characters,
    and in a character of more tokens than a window anywhere."""
    cuts = tokens.word_starts
    characters = np.ones(len(tokens), dtype=np.bool_)
    characters[1:] = tokens.starts[1:] >= tokens.ends[:-1]
    for finer in (characters, np.ones(len(tokens), dtype=np.bool_)):
        sizes = np.diff(np.flatnonzero(cuts), append=len(tokens))
        if int(sizes.max()) <= window:
            break
        cuts = cuts | (finer & np.repeat(sizes > window, sizes))
    return cuts

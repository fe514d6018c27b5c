"""Documents → chunks: context and text are tokenized together, cut into windows, and framed by special tokens.

A chunk is  frame before · context before · a window of the document's tokens · context after · frame after,  at most `max_tokens` long.
The context before is the prompt, or what a template makes of the document's columns and of the headings above the window. If headings
are among it, all windows of a document leave room for its longest context.

Spans (`start_char`, `end_char`) count characters of the source text. If a document is one chunk, it spans the whole text. Otherwise a
chunk spans the first to the last token of its window: whitespace around chunks belongs to none. A document without tokens is one chunk
of frame and context, which has no token if there is neither.

Raise `spec.RECIPE_VERSION` if the columns below, the windows or the spans change: a table reuses the chunks of an equal version.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby

import numpy as np
import pyarrow as pa
from tokenizers import Encoding, Tokenizer

from embedder.core.context import NO_VALUES, Context, read_contexts
from embedder.core.errors import ConfigError
from embedder.core.spec import EmbeddingSpec
from embedder.text.boundaries import NO_HEADINGS, Headings, find_boundaries, find_headings, nest_headings
from embedder.text.contexts import Around, Contexts
from embedder.text.html_text import HtmlText, read_html
from embedder.text.passes import Share, share_own, share_passes
from embedder.text.safe_splits import BATCH_CHARS, encode_texts, find_cut, find_safe_splits
from embedder.text.tokenizing import Int32s, Tokens, count_before, find_frame, read_ids, read_tokens
from embedder.text.windows import find_cuts, plan_windows

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

LATE_CHUNKS = CHUNKS.append(pa.field("first_token", pa.int32()))
"""Likewise for late chunking: the first chunk of a pass holds the pass's `token_ids`, the others none. A chunk is `num_tokens` tokens of
its pass from `first_token` on."""

HEAD_CHARS_PER_TOKEN = 8
"""Without chunking, this many characters per token of `max_tokens` are tokenized first; English has 4 to 5."""

LONG_TOKEN = 3
"""If the context has more characters per allowed token, it is cut before it is tokenized with its text, else after."""

NO_CONTEXT = Context(NO_VALUES, "plain")

_VISIBLE = re.compile(r"\S")


def chunk_documents(documents: pa.Table, tokenizer: Tokenizer, spec: EmbeddingSpec) -> pa.Table:
    """Turn schema.DOCUMENTS into CHUNKS, in the order of the documents and then of their chunks.

    Reads `text` and the document's context. The chunks of a document do not depend on other documents. If `spec.chunking` is off, each
    document is one chunk, truncated at `max_tokens` as its own library does, and `truncated` is set if anything was cut.
    """
    return Chunker(tokenizer, spec).chunk(documents["text"].to_pylist(), read_contexts(documents, spec))


def drop_tokenless(chunks: pa.Table) -> tuple[pa.Table, list[int]]:
    """Return CHUNKS without those that have no token, and the documents of these: there is no vector of nothing.

    A tokenizer without special tokens gives none for a text that its normalizer removes or that its vocabulary lacks.
    """
    has_tokens_N = chunks["num_tokens"].to_numpy() > 0
    if has_tokens_N.all():
        return chunks, []
    return chunks.filter(pa.array(has_tokens_N)), chunks["document"].to_numpy()[~has_tokens_N].tolist()


@dataclass(frozen=True, slots=True)
class _Document:
    """A text to be chunked, and the text around its first chunk."""

    number: int
    text: str
    """The text that is read: of HTML, that without tags."""
    context: Context
    around: Around
    source: str
    html: HtmlText | None

    def locate(self, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the spans of the text in the source."""
        return spans if self.html is None else [self.html.locate(*span) for span in spans]

    def find(self, start: int, end: int) -> tuple[int, int]:
        """Return a span of the source in the text."""
        return (start, end) if self.html is None else self.html.find(start, end)

    def find_headings(self) -> Headings:
        """Return the headings of the text."""
        if self.html is None:
            return find_headings(self.text, self.context.text_format)
        return nest_headings(self.text, self.html.headings)


_Head = tuple[_Document, str, Encoding | Tokens]
"""A document, the text of it that is tokenized first, and the tokens of that."""


class Chunker:
    """Cuts documents for one tokenizer and one spec."""

    def __init__(self, tokenizer: Tokenizer, spec: EmbeddingSpec) -> None:
        frame = find_frame(tokenizer)
        self.tokenizer, self.spec, self.splits = tokenizer, spec, find_safe_splits(tokenizer)
        self.contexts, self.separators = Contexts(tokenizer, spec), {each.separator for each in self.splits}
        self.before, self.after = np.array(frame.before, dtype=np.int32), np.array(frame.after, dtype=np.int32)
        self.room = spec.max_tokens - len(frame)
        """Tokens of context and text that fit."""
        self._check_room(len(frame))

    def _check_room(self, num_frame_tokens: int) -> None:
        num_context_tokens = self.spec.context_tokens or self.contexts.count(self.contexts.render())
        window = self.room - num_context_tokens
        taken = f"{num_frame_tokens} special tokens and {num_context_tokens} of the {'prompt' if self.spec.template is None else 'context'}"
        if window < 1:
            least = num_context_tokens + num_frame_tokens + 1
            raise ConfigError(f"chunking.max_tokens={self.spec.max_tokens}: no room for text beside {taken}; choose at least {least}")
        if self.spec.chunking and self.spec.overlap_tokens >= window:
            overlap = f"chunking.overlap_tokens={self.spec.overlap_tokens}"
            raise ConfigError(f"{overlap}: max_tokens={self.spec.max_tokens} leaves {window} beside {taken}; choose 0 to {window - 1}")

    def chunk(self, texts: Sequence[str], contexts: Sequence[Context] | None = None) -> pa.Table:
        """Turn texts into CHUNKS; `document` is a text's position."""
        chunks = _ChunkRows(LATE_CHUNKS if self.spec.late_tokens else CHUNKS)
        known = contexts or [NO_CONTEXT] * len(texts)
        documents = [self._open(number, text, context) for number, (text, context) in enumerate(zip(texts, known, strict=True))]
        reached = accumulate(len(each.text) for each in documents)
        for _, group in groupby(zip(reached, documents, strict=True), lambda pair: pair[0] // BATCH_CHARS):
            for document, head, encoded in self._encode([document for _, document in group]):
                self._add_document(chunks, document, head, encoded)
        return chunks.to_table()

    def _encode(self, documents: Sequence[_Document]) -> list[_Head]:
        """Return the documents, those contexts cut that have too many tokens, with their heads and the tokens of these."""
        most = LONG_TOKEN * (self.spec.context_tokens or len(self.spec.prompt))
        short = [number for number, each in enumerate(documents) if len(each.around.before) <= most]
        found = dict(zip(short, self._encode_heads([documents[number] for number in short]), strict=True))
        long = [number for number in range(len(documents)) if number not in found or not self._surely_fits(*found[number])]
        arounds = zip(long, self.contexts.render_all(documents[number].context.values for number in long), strict=True)
        cut = {
            number: replace(documents[number], around=around)
            for number, around in arounds
            if number not in found or around != documents[number].around
        }
        found |= zip(cut, self._encode_heads(list(cut.values())), strict=True)
        return [found[number] for number in range(len(documents))]

    def _encode_heads(self, documents: Sequence[_Document]) -> list[_Head]:
        heads = (self._head(each.around.before + each.text, HEAD_CHARS_PER_TOKEN * self.spec.max_tokens) for each in documents)
        encoded = encode_texts(self.tokenizer, self.splits, heads)
        return [(document, head, tokens) for document, (head, tokens) in zip(documents, encoded, strict=True)]

    def write_chunks(self, texts: Sequence[str], chunks: pa.Table, contexts: Sequence[Context] | None = None) -> list[str]:
        """Return the text of each of these CHUNKS, its context around it; `document` is a text's position."""
        known, opened = contexts or [NO_CONTEXT] * len(texts), dict[int, tuple[_Document, Headings]]()
        written = []
        for number, start, end in zip(*(chunks[name].to_pylist() for name in ("document", "start_char", "end_char")), strict=True):
            if number not in opened:
                document = self._open(number, texts[number], known[number])
                opened[number] = document, document.find_headings() if self.contexts.has_headings else NO_HEADINGS
            document, headings = opened[number]
            first, last = document.find(start, end)
            around = self.contexts.render(document.context.values, headings.path(first))
            written.append(around.before + document.text[first:last] + around.after)
        return written

    def _open(self, number: int, source: str, context: Context) -> _Document:
        html = read_html(source) if context.text_format == "html" else None
        return _Document(number, html.text if html else source, context, self.contexts.write(context.values), source, html)

    def _head(self, text: str, size: int) -> str:
        """Return the whole text or, without chunking, its start up to a safe split point."""
        return text if self.spec.chunking else text[: find_cut(text, self.splits, 0, size)]

    def _add_document(self, chunks: "_ChunkRows", document: _Document, head: str, encoded: Encoding | Tokens) -> None:
        text = document.text
        if document.html and not text.strip():  # no token, which quarantines it
            chunks.add(document.number, [(0, len(document.source))], [share_own([self.before[:0]])])
            return
        around = document.around
        size = HEAD_CHARS_PER_TOKEN * self.spec.max_tokens
        after = self.contexts.encode_after(around.after)
        room = self.room - len(after)
        while len(encoded) <= room and len(head) < len(around.before) + len(text):
            size = 4 * max(size, len(head))  # from the head's length alone it may not grow: its end may be the text's last split point
            head = self._head(around.before + text, size)
            _, encoded = next(encode_texts(self.tokenizer, self.splits, [head]))
        if len(encoded) <= room:
            chunks.add(document.number, [(0, len(document.source))], [share_own([self.before, read_ids(encoded), after, self.after])])
            return
        tokens = read_tokens(encoded, head)
        num_before = min(self._count_before(tokens, around.before), room - 1)
        content = tokens.drop(num_before, shift=-len(around.before))
        if self.spec.chunking:
            self._add_windows(chunks, document, tokens.ids[:num_before], content)
            return
        window = content.ids[: room - num_before]
        span = _find_span(text, content, (0, len(window)))
        own = share_own([self.before, tokens.ids[:num_before], window, after, self.after])
        chunks.add(document.number, document.locate([span]), [own], truncated=True)

    def _surely_fits(self, document: _Document, head: str, encoded: Encoding | Tokens) -> bool:
        """Return whether the tokens of a head, if whitespace parts its context from its text, show that the context need not be cut."""
        if self.spec.template is None:
            return True
        around = document.around
        at = len(around.before.rstrip())
        if around.before[at : at + 1] not in self.separators:
            return False
        visible = _VISIBLE.search(head, len(around.before))
        num_before = count_before(encoded, visible.start()) if visible else None
        return num_before is not None and self.contexts.surely_fits(around, num_before)

    def _add_windows(self, chunks: "_ChunkRows", document: _Document, first: Int32s, content: Tokens) -> None:
        """Add windows of a document's tokens; `first` are the tokens before the first one."""
        text, text_format = document.text, document.context.text_format
        headings = document.find_headings() if self.spec.text_format else NO_HEADINGS
        around = self._surround(document, first, headings, content)
        window = self.room - max(len(first) + len(around[""][1]), *(len(before) + len(after) for before, after in around.values()))
        overlap, least = min(self.spec.overlap_tokens, window - 1), min(self.spec.min_tokens, window // 2)
        boundaries = find_boundaries(text, text_format, self.spec.boundaries, headings)
        windows = plan_windows(find_cuts(content, window, text, boundaries), window, overlap, least)
        spans = [_find_span(text, content, each) for each in windows]
        if self.spec.late_tokens:
            ((before, after),) = around.values()  # {headings} are refused
            room = self.spec.late_tokens - self.spec.max_tokens + window
            frame = [self.before, first], [self.before, before], [after, self.after]
            chunks.add(document.number, document.locate(spans), share_passes(windows, room, content.ids, *frame))
            return
        shares = []
        for (start, stop), (start_char, _) in zip(windows, spans, strict=True):
            before, after = around[headings.path(start_char) if self.contexts.has_headings else ""]
            shares.append(share_own([self.before, before if start else first, content.ids[start:stop], after, self.after]))
        chunks.add(document.number, document.locate(spans), shares)

    def _surround(self, document: _Document, first: Int32s, headings: Headings, content: Tokens) -> dict[str, tuple[Int32s, Int32s]]:
        """Return the tokens before and after a window by the path of its headings; without a template all have those of the first."""
        if self.spec.template is None:
            return {"": (first, first[:0])}
        return self.contexts.encode_paths(document.context.values, (document.around, first), headings, document.text, content)

    def _count_before(self, tokens: Tokens, before: str) -> int:
        """Return the tokens of the context: with a template those that end in it, since its last token may be a line break; else those
        that start before the spaces at the prompt's end, which may belong to the text's first token."""
        if self.spec.template is None:
            is_text = tokens.starts >= len(before.rstrip())
        else:
            is_text = (tokens.ends > len(before)) | (tokens.starts >= len(before))
        return int(np.append(is_text, True).argmax())


def _find_span(text: str, tokens: Tokens, window: tuple[int, int]) -> tuple[int, int]:
    """Return the characters from the first to the last token of a window, without leading whitespace."""
    start, end = int(tokens.starts[window[0]]), int(tokens.ends[window[1] - 1])
    end = max(end, start)
    visible = _VISIBLE.search(text, start, end)
    return (visible.start() if visible else start), end


@dataclass(frozen=True, slots=True)
class _ChunkRows:
    """Rows of CHUNKS or LATE_CHUNKS, as they are made."""

    schema: pa.Schema
    rows: list[tuple[int, int, int, int, int, int, bool, int]] = field(default_factory=list)
    token_ids: list[Int32s] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def add(self, document: int, spans: list[tuple[int, int]], shares: list[Share], truncated: bool = False) -> None:
        """Add one document's chunks: the span of each, and its share of a pass."""
        for chunk, ((start, end), share) in enumerate(zip(spans, shares, strict=True)):
            self.rows.append((document, chunk, len(spans), start, end, share.num_tokens, truncated, share.first_token))
            self.token_ids.extend(share.token_ids)
            self.lengths.append(sum(map(len, share.token_ids)))

    def to_table(self) -> pa.Table:
        """Return the rows, with the token ids as one run of values."""
        if not self.rows:
            return self.schema.empty_table()
        *columns, first_tokens = zip(*self.rows, strict=True)
        offsets = np.cumsum((0, *self.lengths), dtype=np.int32)
        token_ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(self.token_ids)))
        arrays = [*(pa.array(column) for column in columns), token_ids, pa.array(first_tokens)][: len(self.schema)]
        return pa.table(dict(zip(self.schema.names, arrays, strict=True)), schema=self.schema)

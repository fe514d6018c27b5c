"""Measure what each chunking costs beside plain word windows, and what equal texts save: rates and ratios of one run."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.context import name_columns, read_contexts
from embedder.demo.corpus import Document
from embedder.model.encoder import Encoder
from embedder.model.resolve import resolve_model
from embedder.model.run_batches import find_distinct
from embedder.observe.progress import align
from embedder.sweep.timing import Run, Timing, compare
from embedder.text.chunking import Chunker
from embedder.text.tokenizing import encode_batch, load_tokenizer

_BOUNDARIES = ("heading", "paragraph", "sentence", "word")
CHUNKINGS = {
    "words": ChunkingConfig(),
    "boundaries": ChunkingConfig(boundaries=_BOUNDARIES),
    "title": ChunkingConfig(template="{title|none}\n{chunk}"),
    "boundaries, title": ChunkingConfig(boundaries=_BOUNDARIES, template="{title|none}\n{chunk}"),
    "headings": ChunkingConfig(boundaries=_BOUNDARIES, template="{title|none}\n{headings}\n{chunk}"),
    "late": ChunkingConfig(late=True),
}
COPIED = 0.3
"""Share of the rows that are copies of others."""


@dataclass(frozen=True, slots=True)
class ChunkingSpeed:
    """Rates of the chunkings, and of the tokenizer's own batches without chunks; `ratio` is that to words of the same size."""

    max_tokens: int
    timings: tuple[Timing, ...]


@dataclass(frozen=True, slots=True)
class CopySpeed:
    """Encoder time of rows of which 30% are exact copies."""

    time_with_copies: float
    """As a share of the time of as many rows of the same lengths without copies; median over rounds."""
    tokens_copied: float
    """Share of the tokens that are in copies."""
    price_without_copies: float
    """Time to look for copies, as a share of the time of rows that have none."""


def measure_chunkings(model: str, documents: Sequence[Document], sizes: Sequence[int], rounds: int) -> list[ChunkingSpeed]:
    """Chunk and tokenize the documents in each way, in turn; a rate counts tokens of the texts alone, which all ways share."""
    texts, found = [each.text for each in documents], []
    names = name_columns(CHUNKINGS["title"].template)
    columns = pa.table({"shard": [""] * len(texts), names["title"]: [each.title for each in documents]})
    most_tokens = resolve_model(EmbeddingConfig(model=model), ChunkingConfig()).spec.max_tokens
    for size in sizes:
        runs: dict[str, Run] = {}
        for name, chunking in CHUNKINGS.items():
            if chunking.late and size >= most_tokens:
                continue  # a pass holds one chunk
            resolved = resolve_model(EmbeddingConfig(model=model), chunking.model_copy(update={"max_tokens": size}))
            tokenizer = load_tokenizer(resolved.tokenizer_json)
            runs[name] = partial(Chunker(tokenizer, resolved.spec).chunk, texts, read_contexts(columns, resolved.spec))
        runs["tokenizer alone"] = partial(encode_batch, tokenizer, texts)
        num_tokens = sum(map(len, encode_batch(tokenizer, texts)))
        found.append(ChunkingSpeed(size, tuple(compare(runs, num_tokens, rounds))))
    return found


def measure_copies(model: str, documents: Sequence[Document], token_budget: int, rounds: int) -> CopySpeed:
    """Encode rows of which some are copies beside rows that differ from these copies in one token each, in turn."""
    resolved = resolve_model(EmbeddingConfig(model=model), ChunkingConfig())
    chunks = Chunker(load_tokenizer(resolved.tokenizer_json), resolved.spec).chunk(list({each.text for each in documents}))
    token_ids = find_first(chunks["token_ids"].combine_chunks())
    draw, count = np.random.default_rng(0), len(token_ids)
    place_N = np.arange(count)
    copied = draw.choice(count, int(COPIED * count), replace=False)
    place_N[copied] = draw.choice(np.setdiff1d(place_N, copied), len(copied))
    copies = token_ids.take(pa.array(place_N))
    distinct = change_rows(copies, copied, resolved.vocab_size)
    encoder = Encoder.load(resolved.spec, "cpu", "auto")
    runs: dict[str, Run] = {
        "distinct": partial(encoder.encode, distinct, token_budget),
        "copies": partial(encoder.encode, copies, token_budget),
        "search": partial(find_distinct, distinct),
    }
    _, with_copies, search = compare(runs, len(copies.values), rounds)
    lengths_N = np.diff(copies.offsets.to_numpy())
    return CopySpeed(1 / with_copies.ratio, float(lengths_N[copied].sum() / lengths_N.sum()), 1 / search.ratio)


def find_first(token_ids: pa.ListArray) -> pa.ListArray:
    """Return equal rows once."""
    place_N = find_distinct(token_ids).place_N
    return token_ids if place_N is None else token_ids.take(pa.array(np.unique(place_N, return_index=True)[1]))


def change_rows(token_ids: pa.ListArray, rows: np.ndarray, vocab_size: int) -> pa.ListArray:
    """Return the rows of which each of some has another second token, by its number: equal lengths, no two of them equal."""
    values, offsets = token_ids.values.to_numpy().copy(), token_ids.offsets.to_numpy()
    places = offsets[rows] + 1
    values[places] = (values[places] + 1 + np.arange(len(rows))) % vocab_size
    return pa.ListArray.from_arrays(token_ids.offsets, pa.array(values))


def lay_out_chunking(speeds: Sequence[ChunkingSpeed], copies: CopySpeed) -> str:
    """Return the figures as tables."""
    lines = [
        (f"{each.max_tokens} tokens: {timing.name}", f"{timing.tokens_per_second:9,.0f} tokens/s  {timing.ratio:.2f} x words")
        for each in speeds
        for timing in each.timings
    ]
    told = (
        f"{COPIED:.0%} of the rows are copies, {copies.tokens_copied:.1%} of the tokens: {copies.time_with_copies:.2f} x the time; "
        f"looking for them takes {copies.price_without_copies:.2%} of it"
    )
    return f"{align(lines)}\n\n{told}"

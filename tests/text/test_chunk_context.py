"""Templates around chunks, and windows that end at boundaries."""

import subprocess
import sys
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.core.context import name_columns, read_contexts
from embedder.text.byte_estimate import EstimatingChunker
from embedder.text.chunking import Chunker, chunk_documents
from embedder.text.contexts import Contexts
from tests.text.test_chunking import chunk, make_spec, styles
from tests.text.texts import texts
from tests.text.tokenizers_for_tests import build_tokenizer

MARKDOWN: dict[str, Any] = {"boundaries": ("heading", "paragraph", "sentence", "word"), "text_format": "markdown"}
ALL = ("heading", "paragraph", "sentence", "word")
MARKED = "{title|none}\n{headings}\n{chunk}"
GUIDE = "# Guide\n\nA quick fox jumps. The lazy dog rests!\n\n## Install\n\nReads documents; writes vectors. " + "Nothing else. " * 12


def chunk_titled(style: str, *rows: tuple[str | None, str], **changes: Any) -> list[dict[str, Any]]:
    titles, bodies = zip(*rows, strict=True)
    name = name_columns(changes.get("template")).get("title", "unread")
    documents = pa.table({"text": pa.array(bodies, pa.string()), name: pa.array(titles, pa.string())})
    return chunk_documents(documents, build_tokenizer(style), make_spec(**changes)).to_pylist()


@settings(max_examples=150, deadline=None)
@given(
    style=styles,
    rows=st.lists(st.tuples(st.sampled_from([None, "", "A quick fox", "brown " * 30, "日本語の犬"]), texts), min_size=1, max_size=3),
    template=st.sampled_from([None, "{title}: {chunk}", MARKED, "{title|none}\n{chunk} ({title})"]),
    boundaries=st.sampled_from([ALL, ("sentence", "word"), ("word",)]),
    text_format=st.sampled_from(["plain", "markdown", "code"]),
    overlap=st.integers(0, 6),
    least=st.integers(0, 8),
)
def test_chunks_of_any_setting_cover_the_visible_text_in_order_and_fit(
    style: str,
    rows: list[tuple[str | None, str]],
    template: str | None,
    boundaries: tuple[str, ...],
    text_format: str,
    overlap: int,
    least: int,
) -> None:
    changes = {"template": template, "context_tokens": 30 if template else None, "boundaries": boundaries, "text_format": text_format}
    changes |= {"max_tokens": 72, "overlap_tokens": overlap, "min_tokens": least}
    found = chunk_titled(style, *rows, **changes)
    assert found == [row | {"document": number} for number, each in enumerate(rows) for row in chunk_titled(style, each, **changes)], (
        "the chunks of a document do not depend on the others"
    )
    for number, (_, text) in enumerate(rows):
        mine = [row for row in found if row["document"] == number]
        assert [row["chunk"] for row in mine] == list(range(len(mine)))
        assert all(row["num_tokens"] == len(row["token_ids"]) <= 72 for row in mine)
        whole = build_tokenizer(style).encode(text, add_special_tokens=False)
        visible = {at for start, end in whole.offsets for at in range(start, end) if not text[at].isspace()}
        assert visible <= {at for row in mine for at in range(row["start_char"], row["end_char"])}
        starts = [row["start_char"] for row in mine]
        assert starts == sorted(starts)


HEADED = st.lists(
    st.sampled_from(["# A quick fox\n", "## Install [SEP] ##\n", "### 日本語 (dog)\n", "#\n", "fox rests. ", "\n\n"]), max_size=40
)


@settings(max_examples=150, deadline=None)
@given(
    style=styles,
    title=st.sampled_from(["", "A quick fox", "brown fox (dog)", "brown " * 9, "日本語の犬", "fox ́"]),
    text=st.one_of(texts, HEADED.map("".join)),
    template=st.sampled_from(["{title}\n{chunk}", "{title}: {chunk}", "{title} {headings|none} \n{chunk}", "{headings}: {chunk} {title}"]),
    most=st.integers(12, 40),
    late=st.booleans(),
)
def test_tokens_read_from_the_text_and_its_words_are_those_of_a_context_tokenized_alone(
    style: str, title: str, text: str, template: str, most: int, late: bool
) -> None:
    late = late and "headings" not in template
    changes = {"template": template, "context_tokens": most, "max_tokens": 72, "boundaries": ALL, "text_format": "markdown"}
    changes |= {"late_tokens": 128} if late else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedder.text.words.FEW_TEXTS", 1)
        found = chunk_titled(style, (title, text), **changes)
        patch.setattr(Chunker, "_surely_fits", lambda *_: False)
        for module in ("words", "contexts"):
            patch.setattr(f"embedder.text.{module}.has_separate_words", lambda _: False)
        assert chunk_titled(style, (title, text), **changes) == found


@settings(max_examples=40, deadline=None)
@given(style=styles, text=texts)
def test_a_template_without_its_value_gives_the_vectors_of_the_prompt_with_the_default(style: str, text: str) -> None:
    """EmbeddingGemma's prompt is its template with the title "none"."""
    prompted = chunk(style, text, prompt="title: none | text: ", max_tokens=90, chunking=False)
    template = {"template": "title: {title|none} | text: {chunk}", "context_tokens": 60}
    assert chunk_titled(style, (None, text), max_tokens=90, chunking=False, **template) == prompted


def test_a_chunk_has_the_tokens_of_its_rendered_template() -> None:
    tokenizer, spec = (
        build_tokenizer("wordpiece"),
        make_spec(template=MARKED + " ({title})", context_tokens=16, max_tokens=40, boundaries=ALL, text_format="markdown"),
    )
    documents = pa.table({"text": [GUIDE, "short"], "context:title": ["On foxes", None]})
    chunker, contexts = Chunker(tokenizer, spec), read_contexts(documents, spec)
    chunks = chunker.chunk(documents["text"].to_pylist(), contexts)
    written = chunker.write_chunks(documents["text"].to_pylist(), chunks, contexts)
    assert written[0].startswith("On foxes\n\n# Guide\n\nA quick")
    assert written[1].startswith("On foxes\nGuide > Install\nNothing else.")
    assert written[-1] == "none\n\nshort ()"
    assert chunks["token_ids"].to_pylist() == [tokenizer.encode(text).ids for text in written]


def test_context_is_cut_to_its_share_and_never_the_chunk() -> None:
    contexts = Contexts(build_tokenizer("wordpiece"), make_spec(template=MARKED, context_tokens=12))
    around = contexts.render({"title": "the quick brown fox jumps over the lazy dog and rests"}, "batch job > reads")
    assert around.before == "the quick brown fox jumps over the lazy\nbatch job > reads\n"
    assert contexts.count(around) == 12
    (row,) = chunk_titled("wordpiece", ("dog " * 50, "brown fox " * 9), template=MARKED, context_tokens=12, max_tokens=32)
    assert row["num_tokens"] == 2 + 12 + 18


def test_windows_end_at_the_best_boundary_of_their_last_third() -> None:
    texts = [GUIDE[row["start_char"] : row["end_char"]] for row in chunk("wordpiece", GUIDE, max_tokens=20, **MARKDOWN)]
    assert texts[0].endswith("rests!"), "a heading is better than a sentence, and stays with its text"
    assert texts[1].startswith("## Install\n\nReads documents")
    assert all(text.endswith((".", "!")) for text in texts)


def test_overlap_starts_at_a_sentence_if_it_holds_one() -> None:
    rows = chunk("wordpiece", GUIDE, max_tokens=20, overlap_tokens=8, **MARKDOWN)
    assert all(GUIDE[row["start_char"] :].startswith(("Nothing", "Reads", "#", "The lazy")) for row in rows)
    assert any(later["start_char"] < row["end_char"] for row, later in pairwise(rows))


def test_a_short_tail_takes_from_the_window_before() -> None:
    text = "fox " * 32
    assert [row["num_tokens"] for row in chunk("wordpiece", text, max_tokens=32)] == [32, 4]
    assert [row["num_tokens"] for row in chunk("wordpiece", text, max_tokens=32, min_tokens=10)] == [24, 12]


def test_bytes_are_counted_with_their_context() -> None:
    spec = make_spec(model="openai:m", template="{title}: {chunk}", context_tokens=10, max_tokens=32)
    documents = pa.table({"text": ["fox " * 40, "fox"], "context:title": ["brown " * 40, "A"]})
    chunker, contexts = EstimatingChunker(spec), read_contexts(documents, spec)
    chunks = chunker.chunk(documents["text"].to_pylist(), contexts)
    written = chunker.write_chunks(documents["text"].to_pylist(), chunks, contexts)
    assert written[-1] == "A: fox"
    assert all(text.startswith("brown brown brown brown: fox") for text in written[:-1])
    assert all(len(text.encode()) <= 96 for text in written)
    assert max(chunks["num_tokens"].to_pylist()) <= 32


CHUNK_LONG = """
import resource, sys, time
from tests.text.test_chunk_context import GUIDE, MARKDOWN, MARKED, Chunker, build_tokenizer, make_spec
text = GUIDE * (int(sys.argv[1]) * 1_000_000 // len(GUIDE))
spec = make_spec(max_tokens=256, min_tokens=16, overlap_tokens=16, template=MARKED, context_tokens=64, **MARKDOWN)
Chunker(build_tokenizer("wordpiece"), spec).chunk([text])
print(time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_document_of_50_mb_takes_linear_time_and_bounded_memory() -> None:
    (short, _), (long, kilobytes) = (
        map(float, subprocess.check_output([sys.executable, "-c", CHUNK_LONG, size], text=True).split()) for size in ("5", "50")
    )
    assert long < 15 * short
    assert kilobytes < 4 << 20


def test_a_value_whose_last_character_is_several_tokens_is_cut_before_it() -> None:
    contexts = Contexts(build_tokenizer("roberta"), make_spec(template="{title} {chunk}", context_tokens=4))
    around = contexts.render({"title": "ab😀"})
    assert contexts.count(around) <= 4
    assert around.before == "ab "

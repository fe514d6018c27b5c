"""Passes of late chunking: the chunks are those of plain chunking, and each finds its tokens in one pass."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.text.chunking import LATE_CHUNKS, chunk_documents
from embedder.text.passes import Pass, plan_passes
from embedder.text.tokenizing import find_frame
from tests.text.test_chunking import chunk, make_documents, make_spec, styles
from tests.text.texts import texts
from tests.text.tokenizers_for_tests import build_tokenizer


@settings(max_examples=60, deadline=None)
@given(
    style=styles,
    rows=st.lists(texts, min_size=1, max_size=3),
    prompt=st.sampled_from(["", "ab: "]),
    overlap=st.integers(0, 6),
    more=st.integers(1, 60),
)
def test_each_chunk_of_plain_chunking_finds_its_tokens_in_one_pass(
    style: str, rows: list[str], prompt: str, overlap: int, more: int
) -> None:
    tokenizer, changes = build_tokenizer(style), {"prompt": prompt, "max_tokens": 32, "overlap_tokens": overlap}
    late = chunk_documents(make_documents(*rows), tokenizer, make_spec(late_tokens=32 + more, **changes))
    assert late.schema == LATE_CHUNKS
    plain, frame, own = chunk(style, *rows, **changes), find_frame(tokenizer), list[int]()
    for row, expected in zip(late.to_pylist(), plain, strict=True):
        own = row["token_ids"] or own
        is_first, is_last = row["chunk"] == 0, row["chunk"] == row["num_chunks"] - 1
        found = own[row["first_token"] : row["first_token"] + row["num_tokens"]]
        assert len(own) <= 32 + more
        ids = expected["token_ids"] if is_last else expected["token_ids"][: len(expected["token_ids"]) - len(frame.after)]
        lead = 0 if is_first else len(ids) - len(found)
        assert found == ids[lead:]
        assert is_first or lead == len(frame.before) + len(tokenizer.encode(prompt.rstrip(), add_special_tokens=False).ids)
        same = ("document", "chunk", "num_chunks", "start_char", "end_char", "truncated")
        assert [row[name] for name in same] == [expected[name] for name in same]


def test_a_pass_takes_the_windows_that_fit_and_the_next_has_context() -> None:
    windows = [(0, 10), (10, 20), (20, 30), (30, 40)]
    assert plan_passes(windows, 40) == [Pass(range(4), 0, 40)]
    assert plan_passes(windows, 24) == [Pass(range(2), 0, 20), Pass(range(2, 4), 17, 40)]
    assert plan_passes(windows, 11) == [Pass(range(1), 0, 10), *(Pass(range(n, n + 1), 10 * n - 1, 10 * n + 10) for n in (1, 2, 3))]


def test_a_template_is_around_each_pass() -> None:
    changes: dict[str, Any] = {"template": "a fox: {chunk} (dogs)", "context_tokens": 8, "max_tokens": 24}
    late = chunk_documents(
        make_documents("quick brown " * 30), build_tokenizer("wordpiece"), make_spec(late_tokens=50, **changes)
    ).to_pylist()
    tokenizer = build_tokenizer("wordpiece")
    before, after = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("a fox:", "(dogs)"))
    passes = [row["token_ids"] for row in late if row["token_ids"]]
    assert len(passes) == 2
    for ids in passes:
        assert ids[: len(before) + 1] == [101, *before]
        assert ids[-len(after) - 1 :] == [*after, 102]
    assert late[0]["first_token"] == 0
    assert late[-1]["first_token"] + late[-1]["num_tokens"] == len(passes[-1])

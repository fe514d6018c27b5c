from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.text.tokenizing import Tokens, read_tokens
from embedder.text.windows import find_cuts, plan_windows
from tests.text.tokenizers_for_tests import STYLES, build_tokenizer


def make_tokens(word_sizes: list[int]) -> Tokens:
    """Return words of these sizes in tokens, one character per token, with a space between words."""
    word_starts = np.array([index == 0 for size in word_sizes for index in range(size)])
    starts = np.arange(len(word_starts), dtype=np.int32) + np.cumsum(word_starts, dtype=np.int32)
    return Tokens(np.zeros_like(starts), starts, starts + np.int32(1), word_starts)


def plan(tokens: Tokens, window: int, overlap: int) -> list[tuple[int, int]]:
    return plan_windows(find_cuts(tokens, window), window, overlap)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int, int]:
    window = draw(st.integers(1, 12))
    return draw(st.lists(st.integers(1, 20), min_size=1, max_size=30)), window, draw(st.integers(0, window - 1))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_windows_cover_all_tokens_in_order_and_each_advances(case: tuple[list[int], int, int]) -> None:
    word_sizes, window, overlap = case
    windows = plan(make_tokens(word_sizes), window, overlap)
    assert windows[0][0] == 0
    assert windows[-1][1] == sum(word_sizes)
    assert all(0 < stop - start <= window for start, stop in windows)
    for (start, stop), (next_start, next_stop) in pairwise(windows):
        assert start < next_start <= stop < next_stop
        assert stop - next_start <= overlap


@settings(max_examples=100, deadline=None)
@given(cases())
def test_a_word_that_fits_a_window_is_not_cut(case: tuple[list[int], int, int]) -> None:
    word_sizes, window, overlap = case
    ends = np.cumsum(word_sizes).tolist()
    for bound in {bound for pair in plan(make_tokens(word_sizes), window, overlap) for bound in pair}:
        inside = [size for size, end in zip(word_sizes, ends, strict=True) if end - size < bound < end]
        assert all(size > window for size in inside)


def test_windows_are_as_full_as_words_allow() -> None:
    assert plan(make_tokens([2, 2, 2, 2, 2]), 5, 0) == [(0, 4), (4, 8), (8, 10)]
    assert plan(make_tokens([1] * 10), 4, 0) == [(0, 4), (4, 8), (8, 10)]


def test_overlap_starts_at_a_word() -> None:
    assert plan(make_tokens([1] * 10), 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert plan(make_tokens([3] * 4), 9, 4) == [(0, 9), (6, 12)]


def test_overlap_is_dropped_if_the_next_word_does_not_fit() -> None:
    assert plan(make_tokens([2, 2, 5, 1]), 6, 3) == [(0, 4), (4, 10)]


def test_a_word_longer_than_a_window_fills_it() -> None:
    assert plan(make_tokens([2, 9, 2]), 5, 0) == [(0, 5), (5, 10), (10, 13)]


@pytest.mark.parametrize("style", STYLES)
def test_words_lie_between_spaces_for_every_tokenizer(style: str) -> None:
    text = "unbelievable naïve 😀 vectors"
    tokens = read_tokens(build_tokenizer(style).encode(text, add_special_tokens=False), text)
    firsts = np.flatnonzero(tokens.word_starts).tolist()
    stops = [*firsts[1:], len(tokens)]
    words = [text[tokens.starts[first] : tokens.ends[stop - 1]].strip() for first, stop in zip(firsts, stops, strict=True)]
    assert words == text.split()

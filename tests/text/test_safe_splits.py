from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from embedder.text import safe_splits
from embedder.text.safe_splits import SafeSplit, find_cut, find_safe_splits, split_text
from embedder.text.tokenizing import read_tokens
from tests.text.texts import texts
from tests.text.tokenizers_for_tests import SENTENCES, STYLES, build_tokenizer, minilm_json


@settings(max_examples=150, deadline=None)
@given(style=st.sampled_from(STYLES), text=texts, size=st.integers(1, 50))
def test_a_text_cut_at_safe_splits_has_the_tokens_of_the_whole(style: str, text: str, size: int) -> None:
    tokenizer = build_tokenizer(style)
    spans = list(split_text(text, find_safe_splits(tokenizer), size))
    whole = tokenizer.encode(text, add_special_tokens=False)
    parts = [(tokenizer.encode(text[start:stop], add_special_tokens=False), start) for start, stop in spans]
    assert [id_ for part, _ in parts for id_ in part.ids] == whole.ids
    assert [(a + start, b + start) for part, start in parts for a, b in part.offsets] == whole.offsets
    words = [word for part, start in parts for word in read_tokens(part, text[start:]).word_starts.tolist()]
    assert words == read_tokens(whole, text).word_starts.tolist()


@pytest.mark.parametrize("style", ["wordpiece", "roberta", "qwen", "xlm_r", "gemma"])
def test_prose_is_cut_into_parts_of_the_requested_size(style: str) -> None:
    text = " ".join(SENTENCES * 50)
    spans = list(split_text(text, find_safe_splits(build_tokenizer(style)), 500))
    assert max(stop - start for start, stop in spans) <= 500
    assert len(spans) < 2.2 * len(text) / 500


_KINDS = ((SafeSplit(" ", 0), SafeSplit("\n", 1)), (SafeSplit(" ", 0), SafeSplit("\n", 0)), (SafeSplit(" ", 1),), (SafeSplit("\n", 0),), ())


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("ab9_²½é\u0301漢ﬁ.!。, \n\t", max_size=40),
    kinds=st.sampled_from(_KINDS),
    start=st.integers(0, 20),
    size=st.integers(1, 20),
)
def test_a_cut_is_at_the_last_split_point_within_the_size_or_else_at_the_first_after_it(
    text: str, kinds: tuple[SafeSplit, ...], start: int, size: int
) -> None:
    cuts = {at: at + kind.cut for kind in kinds for at, one in enumerate(text) if one == kind.separator and safe_splits._is_safe(text, at)}
    within = [cut for at, cut in cuts.items() if start < at < start + size]
    after = [cut for at, cut in cuts.items() if at >= start + size]
    expected = len(text) if len(text) <= start + size else max(within, default=min(after, default=len(text)))
    assert find_cut(text, kinds, start, size) == expected


@pytest.mark.parametrize("kinds", _KINDS[:2])
@pytest.mark.parametrize(("between", "separator"), [(" ", "\n"), ("\n", " ")])
def test_splitting_does_not_rescan_the_text_for_each_part(
    kinds: tuple[SafeSplit, ...], between: str, separator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: Counter[int] = Counter()
    is_safe = safe_splits._is_safe
    monkeypatch.setattr(safe_splits, "_is_safe", lambda text, at: looks.update([at]) or is_safe(text, at))
    text = separator.join(["x" + f"²{between}" * 100 + "y"] * 60)
    assert len(list(split_text(text, kinds, 150))) == 60
    assert max(looks.values()) <= 3


def test_a_text_without_a_split_point_is_not_cut() -> None:
    assert find_cut("x" * 1000, find_safe_splits(build_tokenizer("wordpiece")), 0, 10) == 1000
    assert find_cut("one two", (), 0, 1) == 7


def test_whitespace_stays_on_the_side_where_the_tokenizer_joins_it() -> None:
    assert find_safe_splits(build_tokenizer("roberta")) == (SafeSplit(" ", 0), SafeSplit("\n", 0))
    assert find_safe_splits(build_tokenizer("qwen")) == (SafeSplit(" ", 0), SafeSplit("\n", 1))
    assert find_safe_splits(build_tokenizer("metaspace_first")) == (SafeSplit(" ", 0),)
    assert find_safe_splits(build_tokenizer("llama")) == ()


def test_an_added_token_that_could_cross_a_split_point_forbids_it() -> None:
    tokenizer = Tokenizer.from_str(minilm_json())
    tokenizer.no_padding()
    tokenizer.add_tokens([AddedToken("New York", normalized=False)])
    assert find_safe_splits(tokenizer) == (SafeSplit("\n", 0),)

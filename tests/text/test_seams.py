import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from embedder.text.seams import Seam, find_cut, find_seams, split_text
from embedder.text.tokenizing import read_tokens
from tests.text.texts import texts
from tests.text.tokenizers_for_tests import SENTENCES, STYLES, build_tokenizer, minilm_json


@settings(max_examples=150, deadline=None)
@given(style=st.sampled_from(STYLES), text=texts, size=st.integers(1, 50))
def test_a_text_cut_at_seams_has_the_tokens_of_the_whole(style: str, text: str, size: int) -> None:
    tokenizer = build_tokenizer(style)
    spans = list(split_text(text, find_seams(tokenizer), size))
    whole = tokenizer.encode(text, add_special_tokens=False)
    parts = [(tokenizer.encode(text[start:stop], add_special_tokens=False), start) for start, stop in spans]
    assert [id_ for part, _ in parts for id_ in part.ids] == whole.ids
    assert [(a + start, b + start) for part, start in parts for a, b in part.offsets] == whole.offsets
    words = [word for part, start in parts for word in read_tokens(part, text[start:]).word_starts.tolist()]
    assert words == read_tokens(whole, text).word_starts.tolist()


@pytest.mark.parametrize("style", ["wordpiece", "roberta", "qwen", "xlm_r", "gemma"])
def test_prose_is_cut_into_pieces_of_the_size_asked_for(style: str) -> None:
    text = " ".join(SENTENCES * 50)
    spans = list(split_text(text, find_seams(build_tokenizer(style)), 500))
    assert max(stop - start for start, stop in spans) <= 500
    assert len(spans) < 2.2 * len(text) / 500


def test_a_text_without_a_seam_is_not_cut() -> None:
    assert find_cut("x" * 1000, find_seams(build_tokenizer("wordpiece")), 0, 10) == 1000
    assert find_cut("one two", (), 0, 1) == 7


def test_whitespace_goes_to_the_side_where_the_tokenizer_joins_it() -> None:
    assert find_seams(build_tokenizer("roberta")) == (Seam(" ", 0), Seam("\n", 0))
    assert find_seams(build_tokenizer("qwen")) == (Seam(" ", 0), Seam("\n", 1))
    assert find_seams(build_tokenizer("metaspace_first")) == (Seam(" ", 0),)
    assert find_seams(build_tokenizer("llama")) == ()


def test_an_added_token_that_could_cross_a_seam_forbids_it() -> None:
    tokenizer = Tokenizer.from_str(minilm_json())
    tokenizer.no_padding()
    tokenizer.add_tokens([AddedToken("New York", normalized=False)])
    assert find_seams(tokenizer) == (Seam("\n", 0),)

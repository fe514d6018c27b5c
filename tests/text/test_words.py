"""Tokens of a batch by its distinct words."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Encoding, Tokenizer

from embedder.text import words
from embedder.text.tokenizing import encode_batch, read_tokens
from embedder.text.words import FEW_TEXTS, encode_many, encode_words, has_separate_words
from tests.text.texts import texts
from tests.text.tokenizers_for_tests import STYLES, build_tokenizer, minilm_json

ODD = st.text("ab.É각ǄİΣ\x1c\x85\x0b\x0c\u0301\u200b\ufffd\u2028漢[]\0 \n\t\r", max_size=40)


def add_to_minilm(token: AddedToken) -> Tokenizer:
    tokenizer = Tokenizer.from_str(minilm_json())
    tokenizer.no_padding()
    tokenizer.add_tokens([token])
    return tokenizer


@settings(max_examples=200, deadline=None)
@given(batch=st.lists(st.one_of(texts, ODD), max_size=6), part_chars=st.sampled_from([1, 60, 1 << 12]))
def test_distinct_words_give_each_text_the_tokens_of_the_tokenizer(batch: list[str], part_chars: int) -> None:
    tokenizer = build_tokenizer("wordpiece")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "PART_CHARS", part_chars)
        found = encode_words(tokenizer, batch)
    for text, tokens in zip(batch, found, strict=True):
        whole = read_tokens(tokenizer.encode(text, add_special_tokens=False), text)
        for mine, its in zip(astuple(tokens), astuple(whole), strict=True):
            np.testing.assert_array_equal(mine, its, strict=True)


def test_a_word_is_tokenized_once_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenized: list[str] = []

    def encode(tokenizer: Tokenizer, parts: list[str]) -> list[Encoding]:
        tokenized.extend(parts)
        return encode_batch(tokenizer, parts)

    monkeypatch.setattr(words, "encode_batch", encode)
    encode_many(build_tokenizer("wordpiece"), ["a quick fox", "a quick dog\nrests"] * FEW_TEXTS)
    assert tokenized == ["a quick fox dog rests"]


def test_only_the_tokenizer_of_bert_has_separate_words() -> None:
    assert [style for style in STYLES if has_separate_words(build_tokenizer(style))] == ["wordpiece"]
    assert has_separate_words(add_to_minilm(AddedToken("York")))


@pytest.mark.parametrize(
    "token",
    [AddedToken("New York"), AddedToken("New\tYork"), AddedToken("\n"), AddedToken("York", lstrip=True), AddedToken("New", rstrip=True)],
)
def test_an_added_token_that_holds_a_space_or_takes_it_joins_words(token: AddedToken) -> None:
    assert not has_separate_words(add_to_minilm(token))

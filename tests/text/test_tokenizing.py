import pytest
from tokenizers import processors

from embedder.core.errors import ModelError
from embedder.text.tokenizing import Frame, find_frame, load_tokenizer
from tests.text.tokenizers_for_tests import STYLES, build_tokenizer, minilm_json


def test_a_tokenizer_is_built_once_without_truncation_or_padding() -> None:
    tokenizer = load_tokenizer(minilm_json())
    assert load_tokenizer(minilm_json()) is tokenizer
    assert tokenizer.truncation is None
    assert tokenizer.padding is None


def test_an_invalid_tokenizer_file_is_refused() -> None:
    with pytest.raises(ModelError, match=r"tokenizer.json: cannot be read"):
        load_tokenizer("{}")


@pytest.mark.parametrize("style", STYLES)
def test_the_frame_holds_the_tokens_that_the_tokenizer_adds(style: str) -> None:
    tokenizer = build_tokenizer(style)
    frame = find_frame(tokenizer)
    bare = tokenizer.encode("some words", add_special_tokens=False).ids
    assert [*frame.before, *bare, *frame.after] == tokenizer.encode("some words").ids
    assert [*frame.before, *frame.after] == tokenizer.encode("").ids


def test_the_frame_of_minilm_is_cls_and_sep() -> None:
    assert find_frame(build_tokenizer("wordpiece")) == Frame((101,), (102,))


def test_special_tokens_that_do_not_enclose_the_text_are_refused() -> None:
    tokenizer = type(build_tokenizer("wordpiece")).from_str(minilm_json())
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [SEP] $A", special_tokens=[("[SEP]", 102)])
    with pytest.raises(ModelError, match="not the same before and after every text"):
        find_frame(tokenizer)

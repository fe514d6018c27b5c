"""A calibration cuts its sample as the run cuts its documents."""

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer
from tokenizers.models import BPE

from embedder.model.attention_pooling import start_attention_pooling
from embedder.pipeline.rows import from_ipc, to_ipc
from embedder.pipeline.tap_actor import SampleRow, Tapping, count_documents, tokenize_documents
from tests.text.test_chunking import make_spec
from tests.text.tokenizers_for_tests import build_tokenizer


def test_a_sample_is_tokenized_and_counted_with_its_template() -> None:
    tokenizer, spec = build_tokenizer("wordpiece"), make_spec(template="{title|none}: {chunk}", context_tokens=8, max_tokens=24)
    documents = pa.table({"text": ["fox " * 20, "dog"], "context:title|": ["The lazy dog", None]})
    row = SampleRow(number=7, documents=to_ipc(documents), kind="held_out")
    tapping = Tapping(spec, tokenizer.to_str(), (), (), start_attention_pooling(np.ones(8, np.float32), 1, 4), synthetic=2.0, seed=1)
    tokenized = tokenize_documents(row, tapping)
    chunks = from_ipc(tokenized["token_ids"])
    texts = [f"The lazy dog: {'fox ' * 18}", "The lazy dog: fox fox", "none: dog"]
    assert (tokenized["kind"], chunks["token_ids"].to_pylist()) == ("held_out", [tokenizer.encode(text).ids for text in texts])
    fitted = tokenize_documents(row | {"kind": "fitted"}, tapping)
    found = from_ipc(fitted["token_ids"])["token_ids"].to_pylist()
    assert (len(found), fitted["num_real"], found[:3]) == (9, 3, chunks["token_ids"].to_pylist()), "two synthetic chunks for each"
    broad = tokenize_documents(row | {"kind": "broad"}, tapping)
    assert from_ipc(broad["token_ids"])["token_ids"].to_pylist() == chunks["token_ids"].to_pylist(), "broad text has nothing added"
    counted = count_documents(row, spec, tokenizer.to_str(), tokenizer.get_vocab_size())
    dog = memoryview(counted["counts"]).cast("q")[tokenizer.token_to_id("dog")]
    assert (counted["chunks"], dog) == (3, 3), "a title counts in each of its chunks"


def test_texts_held_out_are_also_searched_by_their_first_sentences() -> None:
    tokenizer = build_tokenizer("wordpiece")
    spec = make_spec(prompt="a ", query_prompt="the ", max_tokens=24)
    texts = ["The quick brown fox. It jumps over the dog.", "no sentence"]
    row = SampleRow(number=0, documents=to_ipc(pa.table({"text": texts})), kind="held_out")
    tapping = Tapping(spec, tokenizer.to_str(), (), (), start_attention_pooling(np.ones(8, np.float32), 1, 4))
    tokenized = tokenize_documents(row, tapping)
    found = from_ipc(tokenized["token_ids"])["token_ids"].to_pylist()
    expected = [f"a {texts[0]}", f"a {texts[1]}", "a It jumps over the dog.", "the The quick brown fox."]
    assert (tokenized["num_real"], found) == (2, [tokenizer.encode(text).ids for text in expected])


def test_a_sentence_or_a_rest_without_tokens_is_no_known_item() -> None:
    tokenizer = Tokenizer(BPE({"a": 0, "b": 1}, []))  # other characters have no token
    texts = ["aa a bb. b b ab", "aa a bb. xx yy zz", "xx yy zz! aa b b"]
    row = SampleRow(number=0, documents=to_ipc(pa.table({"text": texts})), kind="held_out")
    tapping = Tapping(make_spec(max_tokens=24), tokenizer.to_str(), (), (), start_attention_pooling(np.ones(8, np.float32), 1, 4))
    tokenized = tokenize_documents(row, tapping)
    found = from_ipc(tokenized["token_ids"])["token_ids"].to_pylist()
    assert found[tokenized["num_real"] :] == [[1, 1, 0, 1], [0, 0, 0, 1, 1]]

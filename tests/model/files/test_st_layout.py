import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from sentence_transformers import SentenceTransformer

from embedder.core.errors import ModelError
from embedder.model.files.st_layout import read_layout


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def add_module(folder: Path, full_name: str, path: str, config: dict[str, Any] | None = None) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    write(folder / "modules.json", [*modules, {"idx": len(modules), "name": "x", "path": path, "type": full_name}])
    if config is not None:
        write(folder / path / "config.json", config)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"word_embedding_dimension": 64, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"word_embedding_dimension": 64, "pooling_mode_lasttoken": True}, "last"),
        ({"embedding_dimension": 64, "pooling_mode": "lasttoken", "include_prompt": True}, "last"),
        ({"embedding_dimension": 64, "pooling_mode": ["cls"]}, "cls"),
        ({"word_embedding_dimension": 64}, "mean"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls+mean+last"),
        ({"pooling_mode": ["mean", "lasttoken"]}, "mean+last"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
    ],
)
def test_old_and_new_pooling_keys_are_read(folder: Path, config: dict[str, Any], pooling: str) -> None:
    write(folder / "1_Pooling" / "config.json", config)
    assert read_layout(folder).pooling == pooling


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"pooling_mode": "attention"}, "pooling attention"),
        ({"pooling_mode": ["mean", "attention"]}, "pooling mean \\+ attention"),
        ({"pooling_mode": []}, "pooling  is not supported"),
        ({"pooling_mode": "mean", "scale": 2}, "scale=2"),
        ({"pooling_mode": None}, "pooling None"),
    ],
)
def test_other_poolings_are_refused_by_name(folder: Path, config: dict[str, Any], named: str) -> None:
    write(folder / "1_Pooling" / "config.json", config)
    with pytest.raises(ModelError, match=named):
        read_layout(folder)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"max_seq_length": 64, "query_length": 32}, "query_length=32"),
        ({"transformer_task": "fill-mask"}, "transformer_task"),
        ({"modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}, "message": {}}}, "modality_config"),
        ({"module_output_name": "scores"}, "output 'scores'"),
        ({"model_args": {"rope_scaling": 2}}, "rope_scaling=2"),
        ({"colour": "red"}, "colour='red'"),
        ({"max_seq_length": "abc"}, "sentence_bert_config.json: max_seq_length='abc': expected a whole number of at least 1"),
        ({"modality_config": 3}, "cannot be used"),
    ],
)
def test_other_transformer_settings_are_refused_by_name(folder: Path, config: dict[str, Any], named: str) -> None:
    write(folder / "sentence_bert_config.json", config)
    with pytest.raises(ModelError, match=named):
        read_layout(folder)


def test_length_and_lower_case_come_from_the_transformers_own_file(folder: Path) -> None:
    write(folder / "sentence_bert_config.json", {"max_seq_length": 77, "do_lower_case": True})
    layout = read_layout(folder)
    assert (layout.max_seq_length, layout.lower_case) == (77, True)


def test_a_tokenizer_argument_overrides_max_seq_length(folder: Path) -> None:
    write(folder / "sentence_bert_config.json", {"max_seq_length": 77, "tokenizer_args": {"model_max_length": 50, "padding_side": "left"}})
    assert read_layout(folder).max_seq_length == 50


@pytest.mark.parametrize(
    ("full_name", "config", "named"),
    [
        *((kind, {}, f"module '{kind}'") for kind in ("LSTM", "CNN", "WeightedLayerPooling")),
        *((kind, {}, "start with one Transformer and one Pooling") for kind in ("Pooling", "StaticEmbedding")),
        ("custom_st.Dense", {}, "custom_st.Dense.*remote code is not run"),
        ("Dense", {"in_features": 64, "out_features": 8, "activation_function": "mine.Swish"}, "mine.Swish"),
        ("Dense", {"in_features": 64, "out_features": 8, "use_residual": True}, "use_residual=True"),
        ("Dense", {"out_features": 8}, "9_Extra/config.json: in_features=None: expected a whole number of at least 1"),
        ("LayerNorm", {}, "9_Extra/config.json: dimension=None: expected a whole number of at least 1"),
        ("Dense", {"in_features": 64, "out_features": 8, "module_input_name": "token_embeddings"}, "sentence_embedding"),
    ],
)
def test_other_modules_are_refused_by_name(folder: Path, full_name: str, config: dict[str, Any], named: str) -> None:
    add_module(folder, full_name if "." in full_name else f"sentence_transformers.models.{full_name}", "9_Extra", config)
    with pytest.raises(ModelError, match=named):
        read_layout(folder)


def test_a_path_outside_the_folder_is_refused(folder: Path) -> None:
    add_module(folder, "sentence_transformers.models.Dense", "../elsewhere")
    with pytest.raises(ModelError, match=r"'\.\./elsewhere' is outside"):
        read_layout(folder)


def test_a_dense_without_an_activation_uses_tanh_as_in_sentence_transformers(folder: Path) -> None:
    add_module(folder, "sentence_transformers.models.Dense", "9_Dense", {"in_features": 64, "out_features": 8})
    assert [step.activation for step in read_layout(folder).steps] == ["Tanh"]


def test_only_a_normalize_before_another_module_is_kept(folder: Path) -> None:
    add_module(folder, "sentence_transformers.models.Normalize", "7_Normalize")
    add_module(folder, "sentence_transformers.models.LayerNorm", "8_LayerNorm", {"dimension": 64})
    add_module(folder, "sentence_transformers.models.Normalize", "9_Normalize")
    assert [step.kind for step in read_layout(folder).steps] == ["normalize", "layer_norm"]


@pytest.mark.parametrize(
    ("config", "document", "query"),
    [
        ({"prompts": {"document": "d: ", "passage": "p: ", "query": "q: "}}, "d: ", "q: "),
        ({"prompts": {"document": "d: ", "sts": "s: "}, "default_prompt_name": "sts"}, "d: ", ""),
        ({"prompts": {"document": "", "sts": "s: "}, "default_prompt_name": "sts"}, "", ""),
        ({"prompts": {"document": "d: "}, "default_prompt_name": "document"}, "d: ", ""),
        ({"prompts": {"query": "q: "}, "default_prompt_name": "query"}, "", "q: "),
        ({"prompts": {"query": "q: ", "document": "d: "}, "default_prompt_name": "query"}, "d: ", "q: "),
        ({"prompts": {"query": "q: "}, "default_prompt_name": None}, "", "q: "),
        ({"prompts": {"sts": "s: "}, "default_prompt_name": None}, "", ""),
        ({}, "", ""),
    ],
)
def test_prompts_are_chosen_as_encode_document_and_encode_query_do(folder: Path, config: dict[str, Any], document: str, query: str) -> None:
    write(folder / "config_sentence_transformers.json", config)
    prompts = read_layout(folder).prompts
    assert (prompts.document, prompts.query) == (document, query)
    theirs = SentenceTransformer(str(folder), device="cpu")
    with patch.object(theirs, "encode", side_effect=lambda prompt_name, prompt, **_: theirs._resolve_prompt(prompt, prompt_name)):
        chosen: tuple[Any, Any] = theirs.encode_document(inputs=["the cat"]), theirs.encode_query(inputs=["the cat"])
    assert chosen == (document, query)


@pytest.mark.parametrize(
    ("config", "document", "query"),
    [
        ({"prompts": {"sts": "s: "}, "default_prompt_name": "sts"}, "s: ", "s: "),
        ({"prompts": {"query": "q: ", "text": "t: "}, "default_prompt_name": "text"}, "t: ", "q: "),
        ({"prompts": {"corpus": "c: ", "passage": "p: "}}, "p: ", ""),
        ({"prompts": {"query": "q: ", "passage": "p: "}}, "p: ", "q: "),
    ],
)
def test_prompts_that_encode_document_leaves_out_are_those_that_encode_takes(
    folder: Path, config: dict[str, Any], document: str, query: str
) -> None:
    write(folder / "config_sentence_transformers.json", config)
    prompts = read_layout(folder).prompts
    assert (prompts.document, prompts.query) == (document, query)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"prompts": {"sts": "s: "}, "default_prompt_name": "stst"}, r"default_prompt_name='stst': no such prompt \(found: sts\)"),
        ({"model_type": "SparseEncoder"}, "model_type='SparseEncoder' is not supported"),
    ],
)
def test_other_conventions_are_refused_by_name(folder: Path, config: dict[str, Any], named: str) -> None:
    write(folder / "config_sentence_transformers.json", config)
    with pytest.raises(ModelError, match=named):
        read_layout(folder)


def test_a_bare_causal_model_is_pooled_at_its_last_token_and_others_by_mean(tmp_path: Path) -> None:
    for architecture, pooling in (("Qwen3ForCausalLM", "last"), ("BertModel", "mean")):
        write(tmp_path / "config.json", {"architectures": [architecture]})
        assert read_layout(tmp_path).pooling == pooling


def test_broken_json_is_refused_by_file_name(folder: Path) -> None:
    (folder / "modules.json").write_text("{")
    with pytest.raises(ModelError, match=r"modules\.json"):
        read_layout(folder)

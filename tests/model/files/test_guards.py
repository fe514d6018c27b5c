"""Whatever would move a vector without being computed or hashed is refused by name, before the first read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError, ModelError
from embedder.model.files.recipe import read_recipe
from embedder.model.resolve import resolve_model
from tests.model.files.test_recipe import edit


@pytest.fixture
def copy_family(tiny_models: Callable[[str], Any], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a family's tiny model to edit."""
    return lambda family: Path(shutil.copytree(tiny_models(family).folder, tmp_path / family))


def refuse(folder: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        resolve_model(EmbeddingConfig(model=str(folder)), ChunkingConfig())
    [line] = str(refused.value).splitlines()
    return line


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "shard-00000-model-00001-of-00001.safetensors"])
def test_weights_beside_those_that_are_hashed_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("{}")
    assert f"{name}: " in refuse(folder)
    assert "not supported" in refuse(folder)


@pytest.mark.parametrize(
    ("family", "entries"),
    [
        ("bert", {"position_embedding_type": "alibi"}),
        ("bert", {"position_embedding_type": "relative_key"}),
        ("xlm-roberta", {"position_embedding_type": "rotary"}),
        ("bert", {"rope_scaling": {"type": "ntk", "factor": 2}}),
        ("roberta", {"attention_window": [512]}),
        ("bert", {"alibi_starting_size": 512}),
        ("bert", {"num_experts": 8}),
        ("nomic_bert", {"num_experts": 8}),
        ("nomic_bert", {"rotary_emb_base": 10_000}),
        ("nomic_bert", {"rotary_scaling_factor": 2}),
        ("nomic_bert", {"activation_function": "gelu"}),
        ("nomic_bert", {"qkv_proj_bias": True}),
        ("bert", {"emb_pooler": "mean"}),
        ("bert", {"activation_function": "relu"}),
        ("bert", {"is_causal": True}),
        ("qwen3", {"use_bidirectional_attention": True}),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}),
        ("gemma3_text", {"is_causal": False, "use_bidirectional_attention": False}),
        ("qwen3", {"residual_multiplier": 0.2}),
        ("bert", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}),
        ("bert", {"transformers_weights": "other.safetensors"}),
        ("bert", {"configuration_files": ["config.4.0.0.json"]}),
        ("bert", {"fusion_config": {"attention": True}}),
        ("bert", {"auto_map": {"AutoModel": "modeling_bert.JinaBertModel"}}),
        ("qwen3", {"auto_map": {"AutoModel": "modeling_qwen.VoyageModel"}}),
    ],
)
def test_an_entry_that_transformers_would_ignore_is_refused(
    family: str, entries: dict[str, Any], copy_family: Callable[[str], Path]
) -> None:
    folder = copy_family(family)
    edit(folder / "config.json", **entries)
    line = refuse(folder)
    assert "config.json: " in line
    assert next(iter(entries)) in line


@pytest.mark.parametrize(
    ("family", "entries"),
    [
        ("bert", {"position_embedding_type": "absolute", "is_causal": False, "use_bidirectional_attention": True, "num_experts": 0}),
        ("modernbert", {"position_embedding_type": "absolute", "rope_scaling": None}),
        (
            "nomic_bert",
            {"rotary_emb_base": 1000, "rotary_scaling_factor": None, "activation_function": "swiglu", "rotary_emb_fraction": 1.0},
        ),
        ("nomic_bert", {"auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"}}),
        ("qwen3", {"is_causal": False, "use_sliding_window": False, "max_window_layers": 28}),
        ("bert", {"auto_map": {"AutoModelForMaskedLM": "modeling.Other"}, "gradient_checkpointing": False, "emb_pooler": "cls"}),
    ],
)
def test_an_entry_that_changes_nothing_is_let_through(family: str, entries: dict[str, Any], copy_family: Callable[[str], Path]) -> None:
    folder = copy_family(family)
    edit(folder / "config.json", **entries)
    assert read_recipe(folder).family == family


LONG = {"rope_type": "longrope", "long_factor": [1.0] * 8, "short_factor": [1.0] * 8, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("scaling", [LONG, {"rope_type": "dynamic", "factor": 2.0}])
def test_rotary_positions_chosen_by_the_batch_are_refused(scaling: dict[str, Any], copy_family: Callable[[str], Path]) -> None:
    folder = copy_family("qwen3")
    edit(folder / "config.json", rope_parameters={"rope_theta": 10_000.0, **scaling})
    with pytest.raises(ModelError, match=f"rope_type='{scaling['rope_type']}' is not supported"):
        read_recipe(folder)


def add_weights(folder: Path, **weights: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name.replace("__", "."): tensor for name, tensor in weights.items()}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwen3", "linear__weight"),
        ("bert", "encoder__layer__1__mlp__gated_layers__weight"),
        ("bert", "base_model__model__encoder__layer__0__attention__self__query__lora_A__weight"),
    ],
)
def test_weights_that_the_family_does_not_have_are_refused_without_reading_them(
    family: str, name: str, copy_family: Callable[[str], Path]
) -> None:
    folder = copy_family(family)
    add_weights(folder, **{name: torch.zeros(8, 64)})
    line = refuse(folder)
    assert f"the weights hold {name.replace('__', '.')} (1 in all), which family '{family}' does not have" in line


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("bert", ["pooler.dense.weight", "cls.predictions.bias", "embeddings.position_ids", "classifier.weight"]),
        ("xlm-roberta", ["lm_head.dense.weight", "embeddings.position_ids"]),
        ("distilbert", ["vocab_projector.bias", "vocab_transform.weight"]),
        ("modernbert", ["head.norm.weight", "decoder.bias"]),
        ("qwen3", ["lm_head.weight", "score.weight"]),
        ("nomic_bert", ["layers.0.self_attn.rotary_emb.inv_freq"]),
    ],
)
def test_heads_and_old_buffers_are_known(family: str, names: list[str], copy_family: Callable[[str], Path]) -> None:
    folder = copy_family(family)
    add_weights(folder, **{name: torch.zeros(2) for name in names})
    resolve_model(EmbeddingConfig(model=str(folder)), ChunkingConfig())


def test_a_missing_weight_is_refused_when_settings_are_resolved(copy_family: Callable[[str], Path]) -> None:
    folder = copy_family("bert")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.3.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "encoder.layer.3.output.dense.weight, 1 in all" in refuse(folder)


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"auto_map": {"AutoTokenizer": ["tokenization.Slow", None]}}, "auto_map.AutoTokenizer"),
        ({"auto_map": ["tokenization.Slow", None]}, "auto_map.AutoTokenizer"),
        ({"fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.0.0.json"]}, "fast_tokenizer_files names tokenizer.4.0.0.json"),
        ({"split_special_tokens": True}, "split_special_tokens=true"),
    ],
)
def test_entries_of_the_tokenizer_that_would_be_dropped_are_refused(folder: Path, entries: dict[str, Any], named: str) -> None:
    edit(folder / "tokenizer_config.json", **entries)
    assert f"tokenizer_config.json: {named}" in refuse(folder)


def test_a_tokenizer_that_truncates_on_the_left_needs_chunks(folder: Path) -> None:
    whole = ChunkingConfig(enabled=False)
    edit(folder / "tokenizer_config.json", truncation_side="left")
    resolve_model(EmbeddingConfig(model=str(folder)), ChunkingConfig())
    with pytest.raises(ConfigError, match=r"^chunking.enabled=false: the tokenizer truncates on the left"):
        resolve_model(EmbeddingConfig(model=str(folder)), whole)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({name: value for name, value in config.items() if name != "truncation_side"}))
    written = json.loads((folder / "tokenizer.json").read_text())
    truncation = {"direction": "Left", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "truncation": truncation} | written | {"truncation": truncation}))
    with pytest.raises(ConfigError, match=r"^chunking.enabled=false: the tokenizer truncates on the left"):
        resolve_model(EmbeddingConfig(model=str(folder)), whole)

"""A config.json of remote code that transformers replaces gives the vectors of the family; no other remote code is accepted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from embedder.core.errors import ModelError
from embedder.model.files.recipe import read_recipe
from tests.model.conftest import TinyModel
from tests.model.files.test_recipe import edit

Copy = Callable[[str], TinyModel]


@pytest.fixture
def copy_model(tiny_models: Callable[[str], TinyModel], tmp_path: Path) -> Copy:
    """A copy of a family's tiny model to edit."""
    return lambda family: TinyModel(Path(shutil.copytree(tiny_models(family).folder, tmp_path / family)), family)


def write_original_gte(folder: Path, **entries: Any) -> None:
    """Name weights and entries as in Alibaba-NLP/gte-*; transformers already saves one tensor for queries, keys and values, as they do."""
    weights = load_file(folder / "model.safetensors")
    assert {"encoder.layer.3.attention.qkv_proj.weight", "encoder.layer.3.mlp.up_gate_proj.weight"} <= set(weights)
    save_file({f"new.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config |= {
        "model_type": "new",
        "architectures": ["NewModel"],
        "auto_map": {"AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig", "AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
        "position_embedding_type": "rope",
        "layer_norm_type": "layer_norm",
        "pack_qkv": True,
        "logn_attention_scale": False,
        "unpad_inputs": False,
    }
    (folder / "config.json").write_text(json.dumps(config | entries))


def test_the_config_and_weights_of_alibabas_new_give_the_vectors_of_gte(copy_model: Copy, texts: list[str]) -> None:
    model = copy_model("gte")
    edit(model.folder / "config.json", rope_parameters={"rope_type": "linear", "rope_theta": 2000.0 * 8, "factor": 8 ** (2 / 16)})
    ids = model.tokenize(texts)
    expected = model.reference().encode(texts, normalize_embeddings=True)
    write_original_gte(model.folder, rope_theta=2000, rope_scaling={"type": "ntk", "factor": 8.0})
    np.testing.assert_allclose(model.load().encode(ids, 512).vectors_ND, expected, atol=1e-5)
    assert len(model.load(depth=2).layers) == 2
    assert model.resolve().tokenizer_json


@pytest.mark.parametrize(
    "entries",
    [
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.5}},
        {"position_embedding_type": "absolute"},
        {"layer_norm_type": "rms_norm"},
        {"logn_attention_scale": True},
        {"auto_map": {"AutoModel": "modeling.OtherModel"}},
    ],
)
def test_other_settings_of_alibabas_new_are_refused_by_name(copy_model: Copy, entries: dict[str, Any]) -> None:
    folder = copy_model("gte").folder
    write_original_gte(folder, **entries)
    with pytest.raises(ModelError, match="'new'" if "auto_map" in entries else next(iter(entries))):
        read_recipe(folder)


@pytest.mark.parametrize(
    ("family", "entries"),
    [
        ("qwen2", {"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}}),
        ("llama", {"model_type": "llama_bidirec", "auto_map": {"AutoModel": "llama_bidirectional_model.LlamaBidirectionalModel"}}),
    ],
)
def test_a_decoder_is_bidirectional_by_the_name_of_its_remote_code(
    family: str, entries: dict[str, Any], copy_model: Copy, texts: list[str]
) -> None:
    model = copy_model(family)
    ids = model.tokenize(texts)
    bidirectional = model.load().encode(ids, 512).vectors_ND
    config = json.loads((model.folder / "config.json").read_text())
    assert config.pop("is_causal") is False
    (model.folder / "config.json").write_text(json.dumps(config))
    causal = model.load().encode(ids, 512).vectors_ND
    assert (causal * bidirectional).sum(axis=1).min() < 0.9
    edit(model.folder / "config.json", **entries)
    np.testing.assert_array_equal(model.load().encode(ids, 512).vectors_ND, bidirectional)
    edit(model.folder / "config.json", pooling="cls")
    with pytest.raises(ModelError, match="pooling='cls', but the pooling is"):
        read_recipe(model.folder)
    edit(model.folder / "config.json", auto_map={"AutoModel": "modeling_other.OtherModel"})
    with pytest.raises(ModelError, match=r"auto_map\.AutoModel='modeling_other\.OtherModel'|'llama_bidirec' is not supported"):
        read_recipe(model.folder)


def test_the_tokenizer_of_gte_qwen2_is_replaced_by_transformers_own_with_its_end_token(copy_model: Copy) -> None:
    model = copy_model("qwen2")
    before = model.tokenize(["the cat"]).to_pylist()
    edit(
        model.folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2TokenizerFast"]},
    )
    assert model.tokenize(["the cat"]).to_pylist() == before
    assert before[0][-1] == 2

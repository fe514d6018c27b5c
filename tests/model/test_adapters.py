"""An adapter in a model's files is merged as the published code applies it: peft's, jina-embeddings-v3's and jina-embeddings-v5's."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.errors import ConfigError
from embedder.model.encoder import Encoder
from embedder.model.files.recipe import read_recipe
from embedder.model.resolve import resolve_model
from embedder.search.query_encoder import QueryEncoder
from tests.model.conftest import TinyModel
from tests.model.files.test_recipe import edit

PEFT = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["query"], "init_lora_weights": True}
Copy = Callable[[str, str], TinyModel]


@pytest.fixture
def copy_model(tiny_models: Callable[[str], TinyModel], tmp_path: Path) -> Copy:
    return lambda family, name: TinyModel(Path(shutil.copytree(tiny_models(family).folder, tmp_path / name)), family)


def weights_of(model: TinyModel) -> dict[str, Tensor]:
    return load_file(model.folder / "model.safetensors")


def save_weights(model: TinyModel, weights: dict[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, model.folder / "model.safetensors", {"format": "pt"})


def draw_factors(weight: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw A (rank, in) and B (out, rank)."""
    draw = torch.Generator().manual_seed(seed)
    rows, columns = weight.shape
    return torch.randn(rank, columns, generator=draw) * 0.2, torch.randn(rows, rank, generator=draw) * 0.2


def write_peft(folder: Path, weights: dict[str, Tensor], pattern: str, seed: int = 0, **config: Any) -> dict[str, Tensor]:
    """Write an adapter for the weights that match; return the weights after B·A is added."""
    written, factors, merged = PEFT | config, {}, dict(weights)
    scale = written["lora_alpha"] / (math.sqrt(written["r"]) if written.get("use_rslora") else written["r"])
    for number, name in enumerate(name for name in weights if re.search(pattern, name)):
        down, up = draw_factors(weights[name], written["r"], 100 * seed + number)
        module = "base_model.model." + name.removesuffix(".weight")
        factors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        merged[name] = weights[name] + scale * torch.einsum("or,ri->oi", up, down)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return merged


def assert_same(model: TinyModel, expected: TinyModel, texts: list[str], prompt: str = "") -> None:
    texts = texts[:10]
    ids, theirs = model.tokenize(texts), expected.reference().encode(texts, prompt=prompt, normalize_embeddings=True)
    for layout in ("padded", "packed"):
        spec = model.resolve().spec
        ours = Encoder.load(spec, dtype="float32", layout=layout).encode(ids, 512).vectors_ND
        assert (ours * theirs).sum(1).min() >= 0.99999
    shallow, cut = model.load(depth=2), expected.load(depth=2, prompt=prompt)
    np.testing.assert_allclose(shallow.encode(ids, 512).vectors_ND, cut.encode(ids, 512).vectors_ND, atol=2e-5)


@pytest.mark.parametrize(
    ("family", "pattern", "use_rslora"), [("bert", r"(query|output\.dense)\.weight", False), ("qwen3", r"_proj\.weight", True)]
)
def test_an_adapter_of_peft_beside_the_weights_is_merged(
    family: str, pattern: str, use_rslora: bool, copy_model: Copy, texts: list[str]
) -> None:
    model, merged = copy_model(family, "model"), copy_model(family, "merged")
    save_weights(merged, write_peft(model.folder, weights_of(model), pattern, use_rslora=use_rslora))
    assert_same(model, merged, texts)
    assert model.resolve().spec.model_checksum != merged.resolve().spec.model_checksum


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["classifier"]}, r"modules_to_save=\['classifier'\]"),
        ({"use_dora": True}, "use_dora=True"),
        ({"rank_pattern": {"query": 2}}, "rank_pattern="),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"r": 0}, "r=0, lora_alpha=8: expected numbers"),
    ],
)
def test_an_adapter_that_does_more_is_refused(config: dict[str, Any], named: str, folder: Path) -> None:
    write_peft(folder, load_file(folder / "model.safetensors"), r"query\.weight")
    edit(folder / "adapter_config.json", **config)
    with pytest.raises(ConfigError, match=rf"adapter_config\.json: {named}"):
        resolve_model(EmbeddingConfig(model=str(folder)), ChunkingConfig())


@pytest.mark.parametrize(
    "name", ["base_model.model.encoder.layer.9.attention.self.query.lora_A.weight", "base_model.model.x.lora_embedding_A"]
)
def test_an_update_that_fits_no_weight_is_refused(name: str, folder: Path) -> None:
    write_peft(folder, load_file(folder / "model.safetensors"), r"query\.weight")
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {name: torch.zeros(4, 64)}, path)
    with pytest.raises(ConfigError, match=rf"adapter_model\.safetensors: {re.escape(name)} fits no weight"):
        resolve_model(EmbeddingConfig(model=str(folder)), ChunkingConfig())


def test_every_byte_of_an_adapter_is_in_the_checksum(folder: Path) -> None:
    write_peft(folder, load_file(folder / "model.safetensors"), r"query\.weight")
    seen = {read_recipe(folder).checksum}
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    seen.add(read_recipe(folder).checksum)
    edit(folder / "adapter_config.json", lora_alpha=9)
    assert len(seen | {read_recipe(folder).checksum}) == 3


JINA_V3 = {
    r"^embeddings\.LayerNorm": "emb_ln",
    r"^layers\.": "encoder.layers.",
    r"self_attn\.o_proj": "mixer.out_proj",
    "post_attention_layernorm": "norm1",
    "post_mlp_layernorm": "norm2",
}
TASKS = ["retrieval.query", "retrieval.passage", "text-matching"]
QUESTION, PASSAGE = "Represent the query: ", "Represent the document: "


def write_jina_v3(model: TinyModel) -> dict[str, dict[str, Tensor]]:
    """Rewrite a native model as the original stores it, with an adapter a task; return the native weights of each task."""
    native, original = weights_of(model), {}
    of_task = {task: dict(native) for task in TASKS}
    for name, weight in native.items():
        stored, parts = name, [name]
        if ".self_attn.k_proj" in name or ".self_attn.v_proj" in name:
            continue
        if ".self_attn.q_proj" in name:
            parts = [name.replace("q_proj", f"{kind}_proj") for kind in "qkv"]
            stored = name.replace("self_attn.q_proj", "mixer.Wqkv")
            weight = torch.cat([native[part] for part in parts])
        for pattern, new in JINA_V3.items():
            stored = re.sub(pattern, new, stored)
        if weight.ndim == 1 or "LayerNorm" in name or "norm" in name:
            original[f"roberta.{stored}"] = weight
            continue
        base, factors = "roberta." + stored.removesuffix("weight") + "parametrizations.weight", []
        for number, task in enumerate(TASKS):
            down, up = draw_factors(weight, 4, len(original) * 10 + number)
            factors.append((down, up))
            changed = weight + (up @ down) * (2 / 4)
            of_task[task] |= dict(zip(parts, changed.chunk(len(parts)), strict=True))
        downs, ups = (torch.stack(each) for each in zip(*factors, strict=True))
        first, second = (ups, downs) if "embeddings" in stored else (downs, ups)
        original |= {f"{base}.original": weight, f"{base}.0.lora_A": first, f"{base}.0.lora_B": second}
    save_weights(model, original)
    entries = {"lora_adaptations": TASKS, "lora_rank": 4, "lora_alpha": 2, "position_embedding_type": "rotary", "rotary_emb_base": 500.0}
    path = model.folder / "config.json"
    config = json.loads(path.read_text()) | entries | {"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]}
    config |= {"auto_map": {"AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA"}}
    del config["rope_parameters"]
    path.write_text(json.dumps(config))
    use_remote_module(model.folder, {"retrieval.query": QUESTION, "retrieval.passage": PASSAGE, "text-matching": ""})
    return of_task


def use_remote_module(folder: Path, prompts: dict[str, str]) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([modules[0] | {"type": "custom_st.Transformer"}, *modules[1:]]))
    edit(folder / "config_sentence_transformers.json", prompts=prompts)


def test_jina_v3_embeds_documents_and_queries_by_their_own_weights(copy_model: Copy, texts: list[str]) -> None:
    model, passage, query = (copy_model("jina_embeddings_v3", name) for name in ("model", "passage", "query"))
    of_task = write_jina_v3(model)
    for native, task in ((passage, "retrieval.passage"), (query, "retrieval.query")):
        save_weights(native, of_task[task])
        edit(native.folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    spec = model.resolve().spec
    assert (spec.adapter, spec.query_adapter) == ("retrieval.passage", "retrieval.query")
    assert (spec.prompt, spec.query_prompt) == (PASSAGE, QUESTION)
    assert_same(model, passage, texts, PASSAGE)
    encoder = QueryEncoder(spec)
    questions = query.reference().encode(texts[:4], prompt=QUESTION, normalize_embeddings=True)
    passages = passage.reference().encode(texts[:4], prompt=PASSAGE, normalize_embeddings=True)
    assert (encoder.encode(texts[:4]) * questions).sum(1).min() >= 0.99999
    assert (encoder.encode_passages(texts[:4]) * passages).sum(1).min() >= 0.99999
    assert (encoder.encode(texts[:4]) * encoder.encode_passages(texts[:4])).sum(1).max() < 0.999


@pytest.mark.parametrize(("family", "more"), [("eurobert", {}), ("qwen3", {"use_sliding_window": False})])
def test_jina_v5_merges_the_adapter_of_retrieval(family: str, more: dict[str, Any], copy_model: Copy, texts: list[str]) -> None:
    model, merged = copy_model(family, "model"), copy_model(family, "merged")
    write_peft(model.folder / "adapters" / "text-matching", weights_of(model), r"_proj\.weight", seed=1)
    save_weights(merged, write_peft(model.folder / "adapters" / "retrieval", weights_of(model), r"_proj\.weight"))
    remote = {"AutoModel": "modeling_jina_embeddings_v5.JinaEmbeddingsV5Model"}
    tasks = ["retrieval", "text-matching"]
    edit(model.folder / "config.json", model_type="jina_embeddings_v5", auto_map=remote, task_names=tasks, **more)
    (model.folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "transformer", "path": "", "type": "custom_st.Transformer"}]))
    edit(merged.folder / "1_Pooling" / "config.json", pooling_mode="lasttoken")
    edit(model.folder / "config_sentence_transformers.json", prompts={"query": "on ", "document": "the "}, default_prompt_name="document")
    assert model.resolve().spec.normalize
    assert_same(model, merged, texts, "the ")


def test_tasks_in_the_config_of_another_model_are_not_adapters(folder: Path) -> None:
    edit(folder / "config.json", task_names=["sts"])
    assert read_recipe(folder).adapters is None


def test_a_module_of_other_remote_code_is_refused(folder: Path) -> None:
    use_remote_module(folder, {})
    with pytest.raises(ConfigError, match=r"module 'custom_st\.Transformer' is not part of sentence_transformers; remote code is not run"):
        resolve_model(EmbeddingConfig(model=str(folder)), ChunkingConfig())


def test_a_model_without_an_adapter_for_retrieval_is_refused(copy_model: Copy) -> None:
    model = copy_model("jina_embeddings_v3", "model")
    write_jina_v3(model)
    edit(model.folder / "config.json", lora_adaptations=["retrieval.query", "separation", "text-matching"])
    with pytest.raises(
        ConfigError, match=r"config\.json: no adapter 'retrieval\.passage' \(found: retrieval\.query, separation, text-matching\)"
    ):
        model.resolve()

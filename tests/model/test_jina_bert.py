"""jina-embeddings-v2, by its published names, equals its equations, written out for one text at a time."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from embedder.core.errors import ConfigError
from embedder.model.encoder import Encoder
from embedder.model.jina_bert import list_slopes
from tests.model.conftest import TinyModel, build_tokenizer
from tests.model.files.test_recipe import edit
from tests.model.test_exits import calibrate

H, INNER, HEADS, LAYERS, EPS = 64, 96, 4, 4, 1e-6
KINDS = {"jina-bert-implementation": False, "jina-bert-v2-qk-post-norm": True}
CONFIG = {
    "model_type": "bert",
    "architectures": ["JinaBertForMaskedLM"],
    "vocab_size": 64,
    "hidden_size": H,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "feed_forward_type": "geglu",
    "position_embedding_type": "alibi",
    "max_position_embeddings": 128,
    "layer_norm_eps": EPS,
    "emb_pooler": "mean",
    "hidden_act": "gelu",
}


def list_shapes(has_more_norms: bool) -> dict[str, tuple[int, ...]]:
    """Return the published names of weights, and their shapes."""
    norms, linears = ["embeddings.LayerNorm"], []
    shapes = {"embeddings.word_embeddings.weight": (64, H), "embeddings.token_type_embeddings.weight": (2, H)}
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        linears += [f"{layer}.attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense")]
        norms.append(f"{layer}.attention.output.LayerNorm")
        up, down = ("up_gated_layer", "down_layer") if has_more_norms else ("gated_layers", "wo")
        shapes |= {f"{layer}.mlp.{up}.weight": (2 * INNER, H), f"{layer}.mlp.{down}.weight": (H, INNER), f"{layer}.mlp.{down}.bias": (H,)}
        more = ("attention.self.layer_norm_q", "attention.self.layer_norm_k", "layer_norm_1", "layer_norm_2")
        norms += [f"{layer}.{name}" for name in (more if has_more_norms else ("mlp.layernorm",))]
    shapes |= {f"{name}.weight": (H, H) for name in linears}
    return shapes | {f"{name}.{kind}": (H,) for name in norms for kind in ("weight", "bias")} | {f"{name}.bias": (H,) for name in linears}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> TinyModel:
    draw = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=draw) * 0.2 for name, shape in list_shapes(KINDS[request.param]).items()}
    for name, weight in weights.items():
        if "norm" in name.lower() and name.endswith("weight"):
            weight += 1
    folder = tmp_path / "model"
    build_tokenizer("bert").save_pretrained(folder)
    save_file(weights | {"pooler.dense.weight": torch.zeros(H, H)}, folder / "model.safetensors", {"format": "pt"})
    remote = {"AutoModel": f"jinaai/{request.param}--modeling_bert.JinaBertModel"}
    (folder / "config.json").write_text(json.dumps(CONFIG | {"auto_map": remote}))
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    (folder / "modules.json").write_text(
        json.dumps([{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules])
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return TinyModel(folder, "jina_bert")


def norm(weights: dict[str, Tensor], name: str, states: Tensor) -> Tensor:
    centered = states - states.mean(-1, keepdim=True)
    return weights[f"{name}.weight"] * centered / (centered.pow(2).mean(-1, keepdim=True) + EPS).sqrt() + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def states_by_hand(weights: dict[str, Tensor], ids: list[int]) -> list[Tensor]:
    """Return the states of one text at every depth, head by head; slopes of four heads are 1/4, 1/16, 1/64, 1/256."""
    weights = {name: weight.double() for name, weight in weights.items()}
    words = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.token_type_embeddings.weight"][0]
    states = [norm(weights, "embeddings.LayerNorm", words)]
    for number in range(LAYERS):
        layer, x = f"encoder.layer.{number}", states[-1]

        def linear(name: str, states: Tensor, layer: str = layer) -> Tensor:
            return states @ weights[f"{layer}.{name}.weight"].T + weights.get(f"{layer}.{name}.bias", 0)

        query, key, value = (linear(f"attention.self.{name}", x) for name in ("query", "key", "value"))
        has_more_norms = f"{layer}.layer_norm_1.weight" in weights
        if has_more_norms:
            query = norm(weights, f"{layer}.attention.self.layer_norm_q", query)
            key = norm(weights, f"{layer}.attention.self.layer_norm_k", key)
        mixed, size = torch.zeros_like(x), H // HEADS
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            near = torch.tensor([[abs(at - other) for other in range(len(ids))] for at in range(len(ids))])
            scores = query[:, part] @ key[:, part].T / math.sqrt(size) - near / 4 ** (head + 1)
            mixed[:, part] = scores.exp() / scores.exp().sum(1, keepdim=True) @ value[:, part]
        attended = norm(weights, f"{layer}.attention.output.LayerNorm", x + linear("attention.output.dense", mixed))
        if has_more_norms:
            attended = norm(weights, f"{layer}.layer_norm_1", x + attended)
            inner = linear("mlp.up_gated_layer", attended)
            following = linear("mlp.down_layer", inner[:, :INNER] * gelu(inner[:, INNER:]))
            states.append(norm(weights, f"{layer}.layer_norm_2", attended + following))
        else:
            inner = linear("mlp.gated_layers", attended)
            following = linear("mlp.wo", gelu(inner[:, :INNER]) * inner[:, INNER:])
            states.append(norm(weights, f"{layer}.mlp.layernorm", attended + following))
    return states


def test_every_depth_and_tap_equals_the_equations(model: TinyModel, texts: list[str]) -> None:
    few = sorted(texts, key=len)[:12:2]
    ids, weights = model.tokenize(few), load_file(model.folder / "model.safetensors")
    by_hand = [torch.stack([states.mean(0) for states in states_by_hand(weights, row)]) for row in ids.to_pylist()]
    tapped = model.load().tap(ids, 512, range(LAYERS + 1))
    for depth in range(1, LAYERS + 1):
        expected = torch.stack([means[depth] for means in by_hand]).numpy()
        np.testing.assert_allclose(tapped[depth], expected, atol=2e-5)
        vectors = model.load(depth=depth, dim=48).encode(ids, 512).vectors_ND
        cut = expected[:, :48] / np.linalg.norm(expected[:, :48], axis=1, keepdims=True)
        assert (vectors * cut).sum(1).min() >= 0.99999
        assert len(model.load(depth=depth).layers) == depth


def test_neighbors_and_padding_do_not_change_a_vector(model: TinyModel, texts: list[str]) -> None:
    encoder, ids = model.load(), model.tokenize(texts)
    np.testing.assert_allclose(encoder.encode(ids, 4096).vectors_ND, encoder.encode(ids, 1).vectors_ND, atol=1e-5)


@pytest.mark.parametrize("model", [next(iter(KINDS))], indirect=True)
def test_openvino_and_calibrated_exits_follow(model: TinyModel, texts: list[str]) -> None:
    ids, calibration = model.tokenize(texts), calibrate(model)
    spec = model.resolve().spec
    spec = spec.model_copy(update={"depth": 2, "exit": "calibrated", "calibration": calibration.fingerprint})
    ours, torchs = (Encoder.load(spec, dtype="float32", calibration=calibration, backend=each) for each in ("openvino", "torch"))
    np.testing.assert_allclose(ours.encode(ids, 512).vectors_ND, torchs.encode(ids, 512).vectors_ND, atol=1e-5)


def test_slopes_are_those_of_alibi() -> None:
    assert list_slopes(8) == [2.0**-number for number in range(1, 9)]
    assert list_slopes(12) == [2.0**-number for number in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"position_embedding_type": "absolute"}, "position_embedding_type='absolute'"),
        ({"feed_forward_type": "reglu"}, "feed_forward_type='reglu'"),
        ({"emb_pooler": "cls"}, "emb_pooler='cls'"),
        ({"auto_map": {"AutoModel": "acme/other--modeling_bert.JinaBertModel"}}, "position_embedding_type='alibi'|auto_map.AutoModel"),
    ],
)
def test_other_kinds_are_refused(entries: dict[str, Any], named: str, model: TinyModel) -> None:
    edit(model.folder / "config.json", **entries)
    with pytest.raises(ConfigError, match=named):
        model.resolve()


def test_weights_of_the_other_kind_are_refused(model: TinyModel) -> None:
    (remote,) = json.loads((model.folder / "config.json").read_text())["auto_map"].values()
    other = next(kind for kind in KINDS if kind not in remote)
    edit(model.folder / "config.json", auto_map={"AutoModel": f"jinaai/{other}--modeling_bert.JinaBertModel"})
    with pytest.raises(ConfigError, match="the weights do not fit"):
        model.resolve()

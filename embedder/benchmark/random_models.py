"""Encoders of random weights, one a family, of head widths and lengths that a GPU's kernels take."""

import copy
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from torch import nn

from embedder.calibrate.memory import choose_queries
from embedder.core.spec import EmbeddingSpec, Pooling
from embedder.model.attention_pooling import AttentionPooling, start_attention_pooling
from embedder.model.batches import LayoutName
from embedder.model.calibration import ExitMap
from embedder.model.encoder import Encoder
from embedder.model.exits import Exit, ExitPooler
from embedder.model.files.families import position_limit
from embedder.model.pooling import Head

DEPTH = 4
_SHAPE: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "initializer_range": 0.08,
    "max_position_embeddings": 514,
}
_WINDOWED = {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]}
_GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", _SHAPE),
    "bert-narrow-heads": ("BertConfig", _SHAPE | {"num_attention_heads": 4}),
    "roberta": ("RobertaConfig", _SHAPE),
    "xlm-roberta": ("XLMRobertaConfig", _SHAPE),
    "camembert": ("CamembertConfig", _SHAPE),
    "mpnet": ("MPNetConfig", _SHAPE),
    "distilbert": (
        "DistilBertConfig",
        {
            "vocab_size": 1000,
            "dim": 128,
            "n_layers": DEPTH,
            "n_heads": 2,
            "hidden_dim": 256,
            "max_position_embeddings": 512,
            "initializer_range": 0.08,
        },
    ),
    "modernbert": (
        "ModernBertConfig",
        _SHAPE | _WINDOWED | {"local_attention": 128, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "nomic_bert": ("NomicBertConfig", _SHAPE),
    "gte": ("GteConfig", _SHAPE | {"pad_token_id": 0}),
    "qwen2": ("Qwen2Config", _SHAPE | _GROUPED | _WINDOWED | {"sliding_window": 64, "use_sliding_window": True}),
    "qwen3": ("Qwen3Config", _SHAPE | _GROUPED | {"head_dim": 128}),
    "llama": ("LlamaConfig", _SHAPE | _GROUPED | {"is_causal": False, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", _SHAPE | _GROUPED | {"sliding_window": 64}),
    "eurobert": ("EuroBertConfig", _SHAPE | _GROUPED | {"mask_token_id": 3}),
    "gemma3_text": (
        "Gemma3TextConfig",
        _SHAPE
        | _GROUPED
        | _WINDOWED
        | {"head_dim": 256, "use_bidirectional_attention": True, "sliding_window": 64, "query_pre_attn_scalar": 256},
    ),
}
POOLING: dict[str, Pooling] = {"qwen3": "last", "bert": "cls"}


def build_model(name: str) -> Any:
    """Return a seeded transformer on the CPU in float32, with norms that differ from one and zero."""
    class_name, settings = CONFIGS[name]
    torch.manual_seed(0)
    model: Any = transformers.AutoModel.from_config(getattr(transformers, class_name)(**settings))  # type: ignore[no-untyped-call]
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name.lower():
            centre = 0.0 if parameter_name.endswith("bias") or name == "gemma3_text" else 1.0
            nn.init.normal_(parameter, mean=centre, std=0.1)
    return model.eval().requires_grad_(False)


def make_spec(depth: int, dim: int, pooling: Pooling) -> EmbeddingSpec:
    """Return the spec of a model that is in no file."""
    return EmbeddingSpec(
        model="random",
        revision=None,
        model_checksum="",
        depth=depth,
        final_norm="none",
        pooling=pooling,
        layer_norm=False,
        prompt="",
        query_prompt="",
        max_tokens=512,
        chunking=False,
        overlap_tokens=0,
        dim=dim,
        normalize=True,
    )


def build_encoder(
    name: str, device: str, dtype: torch.dtype, layout: LayoutName, depth: int = DEPTH, exit_map: Exit | None = None
) -> Encoder:
    """Return an encoder of the family with the same weights on every call, cut to the depth."""
    model = build_model(name)
    cut_model(model, depth)
    pooling = POOLING.get(name, "mean")
    head = Head(nn.Sequential(), make_spec(depth, 128, pooling))
    return Encoder(model.to(dtype), head, copy.deepcopy(exit_map), pooling, torch.device(device), layout)


def cut_model(model: Any, depth: int) -> None:
    """Drop the layers above the depth."""
    for path in ("encoder.layer", "transformer.layer", "layers"):
        owner_path, _, attribute = path.rpartition(".")
        owner = model
        for part in filter(None, owner_path.split(".")):
            owner = getattr(owner, part, None)
        if owner is not None and isinstance(getattr(owner, attribute, None), nn.ModuleList):
            setattr(owner, attribute, getattr(owner, attribute)[:depth])
            return
    raise AssertionError("no list of layers")


def draw_weighing(vocab_size: int, num_layers: int, hidden_size: int, seed: int = 0) -> AttentionPooling:
    """Return learned means whose queries are random."""
    draw = np.random.default_rng(seed)
    rarity_V = draw.random(vocab_size, dtype=np.float32)
    weighing = start_attention_pooling(rarity_V, num_layers, hidden_size, choose_queries(hidden_size))
    noise_TQX = draw.standard_normal(weighing.queries_TQX.shape).astype(np.float32) * 0.02
    return AttentionPooling(weighing.token_weights_V, weighing.queries_TQX + noise_TQX)


def build_exit(vocab_size: int, depth: int, hidden_size: int, pooling: Pooling) -> Exit:
    """Return a calibrated exit of random weights at the depth, which reads every layer up to it."""
    draw, weighing = np.random.default_rng(1), draw_weighing(vocab_size, depth, hidden_size)
    num_features = (depth + 1) * weighing.num_poolings * hidden_size
    weight_FW = (draw.standard_normal((num_features, hidden_size)) / num_features**0.5).astype(np.float32)
    exit_map = ExitMap(tuple(range(depth + 1)), weight_FW, np.zeros(hidden_size, np.float32))
    return Exit(exit_map, ExitPooler(pooling, weighing), hidden_size)


def draw_rows(lengths: np.ndarray, vocab_size: int, seed: int = 0) -> pa.ListArray:
    """Return rows of random token ids of these lengths; none is a special token."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    token_ids = np.random.default_rng(seed).integers(5, vocab_size, offsets[-1]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, token_ids)


def probe_lengths(name: str) -> np.ndarray:
    """Return lengths that no block of a kernel divides, in no order, some longer than a window."""
    limit = position_limit(build_model(name).config)
    lengths: np.ndarray = np.minimum(np.array([300, 1, 64, 129, 3, 17, 500, 128, 65, 31, 2, 255]), limit)
    return lengths


def least_cosine(vectors_ND: np.ndarray, expected_ND: np.ndarray) -> float:
    """Return the least cosine of two rows; NaN if a vector has one."""
    norms_N = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(expected_ND, axis=1)
    return float(((vectors_ND * expected_ND).sum(axis=1) / norms_N).min())

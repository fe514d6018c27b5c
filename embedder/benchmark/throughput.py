"""An encoder of random weights → tokens a second and the share of the machine's arithmetic it keeps busy (MFU), by profile of lengths.

Speed does not depend on the weights, so that no model is downloaded, and nothing is needed but torch, transformers, numpy,
pyarrow and pydantic.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from embedder.core.spec import EmbeddingSpec
from embedder.model.batches import LayoutName
from embedder.model.encoder import Encoder
from embedder.model.exits import Exit
from embedder.model.files.families import find_family, is_causal
from embedder.model.float8 import check_device, use_float8
from embedder.model.loading import DTYPES, BackendName, resolve_layout
from embedder.model.pooling import Head
from embedder.model.runtime import multiplies_bfloat16

MOST_TOKENS = 512
FLOAT8 = "float8"
"""Of the layers' linear modules, everything else in bfloat16."""
PROFILES = ("64", "512", "mixed")
"""Tokens of every text; mixed is log-normal with a mean of 128, cut at 512."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a transformer is; by default a BERT."""

    layers: int
    hidden_size: int
    heads: int
    family: str = "bert"
    gated_width: int | None = None
    """Inner width of gated feed-forward blocks; None: four times the hidden size, not gated."""
    key_heads: int | None = None
    """Heads of keys; None: as many as of queries."""
    head_width: int | None = None

    def config(self) -> Any:
        """Return transformers' config; the vocabulary is the family's own."""
        optional = {"num_key_value_heads": self.key_heads, "head_dim": self.head_width}
        return AutoConfig.for_model(
            self.family,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.gated_width or 4 * self.hidden_size,
            max_position_embeddings=MOST_TOKENS,
            **{name: value for name, value in optional.items() if value},
        )


SHAPES = {
    "minilm": Shape(6, 384, 12),
    "bert-base": Shape(12, 768, 12),
    "bert-large": Shape(24, 1024, 16),
    "nomic": Shape(12, 768, 12, "nomic_bert", 3072),
    "modernbert-base": Shape(22, 768, 12, "modernbert", 1152),
    "qwen3-0.6b": Shape(28, 1024, 16, "qwen3", 3072, key_heads=8, head_width=128),
}


@dataclass(frozen=True, slots=True)
class Throughput:
    """One profile."""

    profile: str
    tokens: int
    padding: float
    """Share of the tokens computed."""
    tokens_per_second: float
    mfu: float | None
    """Arithmetic of the layers done a second, beside what a large matrix product, for float8 one in bfloat16, reaches on the device.

    None where a processor emulates the dtype: its product in torch, hundreds of times slower than in float32, is no measure.
    """


def build_random_encoder(
    shape: Shape, device: str, dtype: str, layout: LayoutName, backend: BackendName = "torch", leave: Exit | None = None
) -> Encoder:
    """Build a transformer of random weights with mean pooling, or with a calibrated exit."""
    if dtype == FLOAT8:
        check_device(device)
    heads = {"add_pooling_layer": False} if find_family(shape.family).pooler else {}
    with torch.device(device):  # a GPU draws the weights in a moment
        model: Any = AutoModel.from_config(shape.config(), **heads)  # type: ignore[no-untyped-call]
    model = model.to(around(dtype)).eval().requires_grad_(False)
    spec = EmbeddingSpec(
        model="random",
        revision=None,
        model_checksum="",
        depth=shape.layers,
        final_norm="none",
        pooling="mean",
        layer_norm=False,
        prompt="",
        query_prompt="",
        max_tokens=MOST_TOKENS,
        chunking=False,
        overlap_tokens=0,
        dim=shape.hidden_size,
        normalize=True,
    )
    encoder = Encoder(model, Head(nn.Sequential(), spec), leave, spec.pooling, torch.device(device), layout)
    if dtype == FLOAT8:
        use_float8(encoder.layers)
    changes = {"compiled": encoder.compile_layers, "fused": encoder.fuse_layers}
    return changes[backend]() if backend in changes else encoder


def around(dtype: str) -> torch.dtype:
    """Return the dtype of all but linear modules."""
    return torch.bfloat16 if dtype == FLOAT8 else DTYPES[dtype]


def choose_layout(asked: LayoutName | None, device: str, dtype: str) -> LayoutName:
    """Return the layout to measure: packed unless asked otherwise, or unless the device has no packed attention in this dtype."""
    if asked is None and torch.device(device).type == "cpu":
        return "packed"
    return resolve_layout(asked or "auto", device, around(dtype), "bert")


def is_native(device: str, dtype: str) -> bool:
    """Return whether the hardware multiplies in this dtype; for float8, in bfloat16 around it."""
    if around(dtype) is torch.bfloat16:
        return multiplies_bfloat16(device)
    return dtype == "float32" or torch.device(device).type == "cuda"


def draw_lengths(profile: str, num_tokens: int, seed: int = 0) -> np.ndarray:
    """Draw lengths of texts that come to about this many tokens."""
    if profile != "mixed":
        return np.full(max(1, num_tokens // int(profile)), int(profile))
    drawn = np.random.default_rng(seed).lognormal(np.log(128) - 0.32, 0.8, max(1, num_tokens // 128))
    return np.clip(drawn.round(), 4, MOST_TOKENS).astype(np.int64)


def flops_of(shape: Shape, lengths: np.ndarray) -> float:
    """Count the layers' multiplications and additions for sequences of these lengths, padding not counted."""
    config = shape.config()
    heads = shape.heads * (shape.head_width or shape.hidden_size // shape.heads)
    keys = heads * (shape.key_heads or shape.heads) // shape.heads
    widened = 3 * shape.gated_width if shape.gated_width else 8 * shape.hidden_size
    parameters = shape.hidden_size * (2 * heads + 2 * keys + widened)
    squares = 0.0
    for kind in getattr(config, "layer_types", None) or ["full_attention"] * shape.layers:
        seen = np.minimum(lengths, 2 * config.sliding_window + 1) if kind == "sliding_attention" else lengths
        squares += float((lengths.astype(np.float64) * seen).sum())
    return shape.layers * 2 * parameters * float(lengths.sum()) + (2 if is_causal(config) else 4) * heads * squares


def measure_matrix_rate(device: str, dtype: str) -> float:
    """Return the operations per second of a large square matrix product: the best of five after a warm-up, or of those within 2 s."""
    size = 8192 if torch.device(device).type == "cuda" else 1024
    left = torch.randn(size, size, device=device, dtype=around(dtype))
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 6 and sum(seconds) < 2):
        started = time.perf_counter()
        (left @ left)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * float(size) ** 3 / min(seconds[1:])


def measure_profile(encoder: Encoder, shape: Shape, lengths: np.ndarray, token_budget: int, rounds: int) -> tuple[float, float, float]:
    """Return the median seconds of a pass, its operations, and the share of padding."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    token_ids = pa.ListArray.from_arrays(offsets, (np.arange(offsets[-1]) * 97 % 30_000 + 1).astype(np.int32))
    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        computed = encoder.encode(token_ids, token_budget).padded_tokens
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]), flops_of(shape, lengths), 1 - float(lengths.sum()) / computed


def measure_throughput(encoder: Encoder, shape: Shape, dtype: str, num_tokens: int, token_budget: int, rounds: int) -> list[Throughput]:
    """Measure every profile, after one round of warm-up each."""
    rate = measure_matrix_rate(encoder.device_type, dtype) if is_native(encoder.device_type, dtype) else None
    found = []
    for profile in PROFILES:
        lengths = draw_lengths(profile, num_tokens)
        seconds, flops, padding = measure_profile(encoder, shape, lengths, token_budget, rounds)
        tokens = int(lengths.sum())
        found.append(Throughput(profile, tokens, padding, tokens / seconds, flops / seconds / rate if rate else None))
    return found

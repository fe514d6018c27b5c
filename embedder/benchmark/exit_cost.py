"""Measure what the taps and the map of a calibrated exit add to a pass of the same depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from embedder.calibrate.memory import choose_queries
from embedder.calibrate.ridge import choose_layers
from embedder.config.embedding import ChunkingConfig, EmbeddingConfig
from embedder.core.spec import EmbeddingSpec
from embedder.model.attention_pooling import start_attention_pooling
from embedder.model.calibration import Calibration, ExitMap, fitted_for
from embedder.model.encoder import Encoder
from embedder.model.exits import Exit, normalise_states
from embedder.model.files.recipe import find_recipe
from embedder.model.loading import load_head_and_exit, load_transformer, resolve_dtype
from embedder.model.resolve import ResolvedModel, resolve_model
from embedder.sweep.candidates import tokenize
from embedder.sweep.timing import Run, compare


@dataclass(frozen=True, slots=True)
class ExitTiming:
    """Figures of one depth on a CPU."""

    depth: int
    tokens_per_second: float
    """With the calibrated exit."""
    taps: float
    """Time to pool the states that a map reads, as a share of a native pass; median over rounds."""
    price: float
    """The same for the whole exit: the taps and the product with the map."""

    def line(self) -> str:
        """Return the figures as one line."""
        return f"{self.tokens_per_second:9,.0f} tokens/s  {self.taps:+.1%} time for taps, {self.price:+.1%} with the map"


def benchmark_exits(model: str, texts: Sequence[str], token_budget: int, rounds: int) -> list[ExitTiming]:
    """Time each depth below the full one with a native exit, a calibrated exit, and the taps alone, in turn. The map is random."""
    resolved = resolve_model(EmbeddingConfig(model=model), ChunkingConfig())
    token_ids = tokenize(texts, resolved, resolved.spec)
    calibration, timings = make_up_exits(resolved), []
    for depth in calibration.maps:
        native = resolved.spec.model_copy(update={"depth": depth})
        calibrated_spec = native.model_copy(update={"exit": "calibrated", "calibration": calibration.fingerprint})
        encoders = {
            name: Encoder.load(spec, "cpu", "auto", calibration) for name, spec in (("native", native), ("calibrated", calibrated_spec))
        }
        runs: dict[str, Run] = {name: partial(encoder.encode, token_ids, token_budget) for name, encoder in encoders.items()}
        runs["taps"] = partial(load_taps(calibrated_spec, calibration).encode, token_ids, token_budget)
        _, calibrated, taps = compare(runs, len(token_ids.values), rounds)
        timings.append(ExitTiming(depth, calibrated.tokens_per_second, 1 / taps.ratio - 1, 1 / calibrated.ratio - 1))
    return timings


class TapsAlone(Exit):
    """An exit that pools and normalizes what its map reads, and returns a part of it in place of the product."""

    def forward(self, states_BF: Tensor) -> Tensor:
        """Return as many components as the map: (B, W)."""
        return normalise_states(states_BF, self.hidden_size)[:, : self.linear.out_features]


def load_taps(spec: EmbeddingSpec, calibration: Calibration) -> Encoder:
    """Load the encoder of a calibrated exit without its map."""
    recipe = find_recipe(spec)
    head, exit_map = load_head_and_exit(spec, recipe, calibration, None)
    assert exit_map is not None
    layers = load_transformer(recipe, spec.depth, spec.final_norm, resolve_dtype("auto", "cpu", recipe.family), spec.adapter)
    taps = TapsAlone(calibration.maps[spec.depth], exit_map.pool, exit_map.hidden_size)
    return Encoder(layers, head, taps, spec.pooling, torch.device("cpu"))


def make_up_exits(resolved: ResolvedModel) -> Calibration:
    """Return a random calibration of the right shapes."""
    draw, size, width = np.random.default_rng(0), resolved.hidden_size, resolved.spec.dim
    token_weights_V = draw.uniform(0, 9, resolved.vocab_size).astype(np.float32)
    weighing = start_attention_pooling(token_weights_V, resolved.spec.depth, size, choose_queries(size))
    maps, block = {}, weighing.num_poolings * size
    for depth in range(1, resolved.spec.depth):
        layers = choose_layers(depth, block)
        weight_FW = draw.normal(size=(len(layers) * block, width)).astype(np.float32)
        maps[depth] = ExitMap(layers, weight_FW, np.zeros(width, np.float32))
    weighing.queries_TQX[..., :size] = draw.normal(0, size**-0.5, size=(*weighing.queries_TQX.shape[:2], size))
    return Calibration(fitted_for(resolved.spec), resolved.spec.depth, weighing, maps, {})

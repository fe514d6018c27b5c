"""Layers of a model and chunks of a sample → pooled states with gradients, and the steps that train on them.

B = chunks of a batch, F = features, N = chunks, W = the full model's width, X = columns.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from embedder.calibrate.config import AttentionSettings, DistillSettings
from embedder.core.quantization import Floats
from embedder.core.spec import EmbeddingSpec
from embedder.model.attention_pooling import AttentionPooling
from embedder.model.batches import Batch, make_layout
from embedder.model.exits import ExitPooler, normalise_states
from embedder.model.files.families import find_family
from embedder.model.files.recipe import locate_model, read_recipe
from embedder.model.loading import load_transformer, resolve_dtype
from embedder.model.taps import PoolLayer, tap_layers
from embedder.pipeline.calibration_graph import run_steps
from embedder.pipeline.pool import Pool

Rows = npt.NDArray[np.int64]
Result = TypeVar("Result")
Settings = AttentionSettings | DistillSettings

WARM_UP = 0.06
"""Share of the steps over which the learning rate rises, before it falls to 0 along a cosine."""

logger = logging.getLogger("embedder")


class TappedModel(nn.Module):
    """The layers up to the last one that a map reads, and the pooling of their states."""

    def __init__(self, spec: EmbeddingSpec, layers: Sequence[int], pooling: AttentionPooling, pool: Pool, is_trained: bool = False) -> None:
        super().__init__()
        recipe = read_recipe(locate_model(spec.model, spec.revision)[0])
        dtype = resolve_dtype(pool.dtype, pool.device, recipe.family)
        self.autocast = torch.autocast(pool.device, torch.bfloat16, enabled=is_trained and dtype == torch.bfloat16)
        self.model = load_transformer(recipe, max(layers), spec.final_norm, torch.float32 if is_trained else dtype)
        self.family = find_family(recipe.family)
        # embeddings stay frozen: they are most of the weights, and each appears in few texts of a sample
        self.model.get_submodule(self.family.layers).requires_grad_(is_trained)
        self.layout = make_layout("padded", self.model.config, torch.device(pool.device))
        self.model.set_attn_implementation(self.layout.attention)
        self.pool = ExitPooler(spec.pooling, pooling)
        self.layers, self.hidden_size = layers, recipe.hidden_size

    def forward(self, batch: Batch) -> Tensor:
        """Return the (B, F) normalized states of the layers, side by side."""
        final_norm = self.model.get_submodule(self.family.final_norm) if self.family.final_norm else nn.Identity()
        layers: Any = self.model.get_submodule(self.family.layers)
        with tap_layers(layers, final_norm, self._pool_in_float32, self.layers) as taps:
            taps.start(batch)
            with self.autocast:
                self.model(**batch.inputs())
            return normalise_states(taps.collect(self.layers), self.hidden_size)

    def _pool_in_float32(self, batch: Batch) -> PoolLayer:
        pool_layer: PoolLayer = torch.autocast(self.autocast.device, enabled=False)(self.pool()(batch))
        return pool_layer


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Chunks, those held out first: their token ids and the full model's vectors."""

    token_ids: pa.ListArray
    full_NW: Floats  # noqa: N815
    num_held_out: int


class Trainer:
    """Runs chunks through a model in batches: in training steps, or without gradients."""

    def __init__(self, model: TappedModel, chunks: TrainingSet, settings: Settings, optimizer: torch.optim.Optimizer, seed: int) -> None:
        self.layout, self.optimizer = model.layout, optimizer
        self.num_held_out, self.batch_chunks = chunks.num_held_out, settings.batch_chunks
        self.values, self.offsets = chunks.token_ids.values.to_numpy(), chunks.token_ids.offsets.to_numpy()
        self.lengths_N = np.diff(self.offsets)
        self.draw = np.random.default_rng(seed)
        num_steps = settings.epochs * math.ceil((len(self.lengths_N) - chunks.num_held_out) / settings.batch_chunks)
        self.schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(WARM_UP * num_steps), num_steps)

    def train(self, compute_loss: Callable[[Rows], Tensor]) -> float:
        """Train one epoch on the chunks that are not held out; return the mean loss."""
        losses = []
        for rows in self.plan_batches():
            loss = compute_loss(rows)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    def plan_batches(self) -> list[Rows]:
        """Group the rows to train on into batches of similar lengths, differently at each call, in random order; the longest row first."""
        rows_N = np.arange(self.num_held_out, len(self.lengths_N))
        order = rows_N[np.argsort(-self.lengths_N[rows_N] * self.draw.uniform(0.9, 1.1, len(rows_N)))]
        batches = np.array_split(order, math.ceil(len(order) / self.batch_chunks))
        return [batches[number][np.argsort(-self.lengths_N[batches[number]])] for number in self.draw.permutation(len(batches))]

    def make_batch(self, rows: Rows) -> Batch:
        """Lay out rows, which are ordered longest first."""
        return self.layout.collect(self.values, self.offsets[rows], self.lengths_N[rows])

    def run(self, module: Callable[[Batch], Tensor], start: int, stop: int) -> Tensor:
        """Run the chunks from start to stop without gradients; return a row for each on the host, in order."""
        order = np.argsort(-self.lengths_N[start:stop], kind="stable")
        batches = np.array_split(order, math.ceil(len(order) / self.batch_chunks))
        rows_NX = torch.empty(0)
        with torch.no_grad():
            for rows in batches:
                values_BX = module(self.make_batch(start + rows)).float().cpu()
                rows_NX = rows_NX if len(rows_NX) else torch.empty(len(order), values_BX.shape[1])
                rows_NX[rows] = values_BX
        return rows_NX


def run_training(steps: Callable[..., Iterator[str | Result]], task: object, pool: Pool, name: str) -> Result:
    """Run a training where an encoder would run, log its progress, and return its last step, the result."""
    result: Result | None = None
    for step in run_steps(steps, (task, pool), pool):
        if isinstance(step, str):
            logger.info("%s: %s", name, step)
        else:
            result = step
    assert result is not None
    return result

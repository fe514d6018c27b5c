"""Hidden states → vectors: pooling, the model's own modules, LayerNorm, rotation, truncation, L2, all in float32.

B = sequences of a batch, H = hidden size, P = poolings, W = width after the model's modules, D = dim. `hidden` is (B, L, H) in padded
batches and (1, T, H) in packed ones.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from embedder.core.quantization import Floats
from embedder.core.spec import EmbeddingSpec, Pooling
from embedder.model.batches import Batch, PackedBatch, PaddedBatch
from embedder.model.files.checksum import list_weights
from embedder.model.files.json_files import file_errors
from embedder.model.files.st_layout import Step
from embedder.model.pickled import read_pickled
from embedder.model.weights import read_weight

Pooler = Callable[[Tensor, Batch], Tensor]


def pool_mean(hidden: Tensor, batch: Batch) -> Tensor:
    """Return the mean over a sequence's tokens, without padding."""
    return batch.sum_tokens(hidden) / batch.lengths_B.unsqueeze(-1)


def pool_cls(hidden: Tensor, batch: Batch) -> Tensor:
    """Return the first token's state."""
    return hidden.flatten(0, 1)[batch.first_B].float()


def pool_last(hidden: Tensor, batch: Batch) -> Tensor:
    """Return the state of the last token before padding."""
    return hidden.flatten(0, 1)[batch.first_B + batch.lengths_B - 1].float()


def pool_max(hidden: Tensor, batch: Batch) -> Tensor:
    """Return the largest value of each component over a sequence's tokens."""
    return batch.max_tokens(hidden)


def pool_weighted_mean(hidden: Tensor, batch: Batch) -> Tensor:
    """Return the mean over a sequence's tokens, the first weighing 1, the second 2, and so on."""
    weights = (batch.places + 1).unsqueeze(-1)
    return batch.sum_tokens(hidden.float() * weights) / (batch.lengths_B * (batch.lengths_B + 1) / 2).unsqueeze(-1)


def pool_mean_sqrt_len(hidden: Tensor, batch: Batch) -> Tensor:
    """Return the sum over a sequence's tokens, divided by the square root of their number."""
    return batch.sum_tokens(hidden) / batch.lengths_B.sqrt().unsqueeze(-1)


POOLERS: dict[Pooling, Pooler] = {
    "mean": pool_mean,
    "cls": pool_cls,
    "last": pool_last,
    "max": pool_max,
    "weightedmean": pool_weighted_mean,
    "mean_sqrt_len": pool_mean_sqrt_len,
}


def find_pooler(pooling: Pooling) -> Pooler:
    """Return a pooling by its name; of several, (B, P·H) side by side."""
    pools = [POOLERS[name] for name in pooling.split("+")]
    return lambda hidden, batch: torch.cat([pool(hidden, batch) for pool in pools], dim=-1)


def pool_without_first(pool: Pooler, count: int) -> Pooler:
    """Return a pooling that leaves out the first tokens of each sequence; NaN if a sequence has no others."""

    def pool_others(hidden: Tensor, batch: Batch) -> Tensor:
        pooled_BH = pool(*_drop_first(hidden, batch, count))
        return pooled_BH.masked_fill((batch.lengths_B <= count).unsqueeze(-1), float("nan"))

    return pool_others if count else pool


def _drop_first(hidden: Tensor, batch: Batch, count: int) -> tuple[Tensor, Batch]:
    """Return the states without those of each sequence's first tokens, and a batch to pool them by."""
    lengths_B = (batch.lengths_B - count).clamp_min(0)
    if isinstance(batch, PaddedBatch):
        mask_BL = None if batch.mask_BL is None else batch.mask_BL[:, count:]
        return hidden[:, count:], PaddedBatch(batch.ids_BL[:, count:], lengths_B, mask_BL, None)
    assert isinstance(batch, PackedBatch)
    kept_T = (batch.places[0] >= count).nonzero().squeeze(-1)
    offsets_S = functional.pad(lengths_B.cumsum(0), (1, 0)).int()
    segments = replace(batch.segments, offsets_S=offsets_S, longest=batch.segments.longest - count)
    return hidden[:, kept_T], PackedBatch(batch.ids_1T[:, kept_T], batch.positions_1T[:, kept_T], lengths_B, segments)


class Normalize(nn.Module):
    """L2 over the last dimension."""

    def forward(self, vectors_BW: Tensor) -> Tensor:
        """Return the vectors scaled to length 1."""
        return functional.normalize(vectors_BW, dim=-1)


def load_steps(steps: tuple[Step, ...]) -> nn.Sequential:
    """Load the modules after pooling, in float32 and in the order of modules.json."""
    return nn.Sequential(*(_load_step(step) for step in steps)).eval()


class Head(nn.Module):
    """Pooled states → vectors of `dim` components."""

    def __init__(self, steps: nn.Sequential, spec: EmbeddingSpec, rotation_WW: Floats | None = None) -> None:
        super().__init__()
        self.steps = steps
        self.layer_norm, self.dim, self.normalize = spec.layer_norm, spec.dim, spec.normalize
        self.rotation_WD: Tensor | None
        # one product rotates and truncates: only the leading axes are kept
        axes_WD = None if rotation_WW is None else torch.from_numpy(np.ascontiguousarray(rotation_WW[:, : spec.dim]))
        self.register_buffer("rotation_WD", axes_WD)

    def forward(self, pooled_BH: Tensor) -> Tensor:
        """Return the vectors; L2 follows truncation, which would shorten normalized vectors."""
        vectors_BW = self.steps(pooled_BH)
        if self.layer_norm:
            vectors_BW = functional.layer_norm(vectors_BW, vectors_BW.shape[-1:])
        vectors_BD = vectors_BW[:, : self.dim] if self.rotation_WD is None else vectors_BW @ self.rotation_WD
        return functional.normalize(vectors_BD, dim=-1) if self.normalize else vectors_BD


def finish_states(pooled_NH: Floats, head: Head) -> Floats:
    """Return the vectors of tapped states, as an encoder of their depth with this head computes them."""
    with torch.inference_mode():
        vectors_ND: Floats = head.cpu()(torch.from_numpy(np.ascontiguousarray(pooled_NH))).numpy()
    return vectors_ND


def _load_step(step: Step) -> nn.Module:
    if step.kind == "normalize":
        return Normalize()
    modules: dict[str, nn.Module] = {"norm": nn.LayerNorm(step.in_features)}
    if step.kind == "dense":
        modules = {"linear": nn.Linear(step.in_features, step.out_features, bias=step.bias)}
    if step.weight_names:
        linear = modules["linear"]
        linear.load_state_dict({"weight": read_weight(step.folder, step.weight_names).float()})
        return linear
    path = list_weights(step.folder)[0]
    with file_errors(f"{step.folder.name}/{path.name}"):
        weights = load_file(path) if path.suffix == ".safetensors" else read_pickled(path)
        nn.ModuleDict(modules).load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    activation: nn.Module = getattr(nn, step.activation)()
    return nn.Sequential(*modules.values(), activation)

"""Hidden states → vectors: pool, the model's own modules, LayerNorm, rotation, cut, L2; everything from pooling on in float32.

B = sequences of a batch, H = hidden size, W = width after the model's modules, D = dim. `hidden` is (B, L, H) where a batch
is padded and (1, T, H) where it is packed.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from embedder.core.spec import EmbeddingSpec, Pooling
from embedder.model.batches import Batch
from embedder.model.files.st_layout import Step, blaming

Pooler = Callable[[Tensor, Batch], Tensor]


def pool_mean(hidden: Tensor, batch: Batch) -> Tensor:
    """Average over a sequence's own tokens."""
    return batch.sum_tokens(hidden) / batch.lengths_B.unsqueeze(-1)


def pool_cls(hidden: Tensor, batch: Batch) -> Tensor:
    """Take the first token."""
    return hidden.flatten(0, 1)[batch.first_B].float()


def pool_last(hidden: Tensor, batch: Batch) -> Tensor:
    """Take the last token that is not padding."""
    return hidden.flatten(0, 1)[batch.first_B + batch.lengths_B - 1].float()


POOLERS: dict[Pooling, Pooler] = {"mean": pool_mean, "cls": pool_cls, "last": pool_last}


class Normalize(nn.Module):
    """L2 over the last dimension."""

    def forward(self, vectors_BW: Tensor) -> Tensor:
        """Give every vector length 1."""
        return functional.normalize(vectors_BW, dim=-1)


def load_steps(steps: tuple[Step, ...]) -> nn.Sequential:
    """Build the modules after pooling with their weights, in float32 and in the order of modules.json."""
    return nn.Sequential(*(_load_step(step) for step in steps)).eval()


class Head(nn.Module):
    """What turns pooled states into vectors of `dim` components."""

    def __init__(self, steps: nn.Sequential, spec: EmbeddingSpec, rotation_WW: npt.NDArray[np.float32] | None = None) -> None:
        super().__init__()
        self.steps = steps
        self.layer_norm, self.dim, self.normalize = spec.layer_norm, spec.dim, spec.normalize
        self.rotation_WD: Tensor | None
        # turned and cut in one product: of the axes, only those that are kept
        axes_WD = None if rotation_WW is None else torch.from_numpy(np.ascontiguousarray(rotation_WW[:, : spec.dim]))
        self.register_buffer("rotation_WD", axes_WD)

    def forward(self, pooled_BH: Tensor) -> Tensor:
        """Run the model's modules, then LayerNorm, rotation, cut and L2: normalising before the cut would leave shorter vectors."""
        vectors_BW = self.steps(pooled_BH)
        if self.layer_norm:
            vectors_BW = functional.layer_norm(vectors_BW, vectors_BW.shape[-1:])
        vectors_BD = vectors_BW[:, : self.dim] if self.rotation_WD is None else vectors_BW @ self.rotation_WD
        return functional.normalize(vectors_BD, dim=-1) if self.normalize else vectors_BD


def finish_states(pooled_NH: npt.NDArray[np.float32], head: Head) -> npt.NDArray[np.float32]:
    """Turn tapped states into the vectors of an encoder cut at their depth, which ends in the same head."""
    with torch.inference_mode():
        vectors_ND: npt.NDArray[np.float32] = head.cpu()(torch.from_numpy(np.ascontiguousarray(pooled_NH))).numpy()
    return vectors_ND


def _load_step(step: Step) -> nn.Module:
    if step.kind == "normalize":
        return Normalize()
    modules: dict[str, nn.Module] = {"norm": nn.LayerNorm(step.in_features)}
    if step.kind == "dense":
        modules = {"linear": nn.Linear(step.in_features, step.out_features, bias=step.bias)}
    path = step.folder / "model.safetensors"
    with blaming(f"{step.folder.name}/{path.name}"):
        nn.ModuleDict(modules).load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    activation: nn.Module = getattr(nn, step.activation)()
    return nn.Sequential(*modules.values(), activation)

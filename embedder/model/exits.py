"""The states of some layers → vectors of the full model's space, by a linear map that was fitted beforehand.

B = sequences of a batch, L = tokens of its longest, H = hidden size, P = poolings, T = layers read, F = T·P·H features,
W = width of the full model's vectors.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.model.calibration import ExitMap
from embedder.model.pooling import POOLERS
from embedder.spec import Pooling

EXIT_POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last")
"""All three of each layer: the first and last tokens of BERT's kind have gathered what attention found. At depth 3 of
all-MiniLM-L6-v2, on held-out news, the mean alone keeps 50% of the ten nearest neighbours, with the first token 55%."""


def pool_exits(hidden_BLH: Tensor, lengths_B: Tensor, mask_BL: Tensor | None) -> Tensor:
    """Pool in every way, side by side: (B, P·H)."""
    return torch.cat([POOLERS[pooling](hidden_BLH, lengths_B, mask_BL) for pooling in EXIT_POOLINGS], dim=1)


def normalise_states(states_BF: Tensor, hidden_size: int) -> Tensor:
    """Give each pooled state length 1: layers differ in scale by orders of magnitude."""
    states_BTH = states_BF.view(len(states_BF), -1, hidden_size)
    return functional.normalize(states_BTH.float(), dim=-1).flatten(1)


class Exit(nn.Module):
    """An affine map over the normalised states, in float32; what comes out has the full model's width and still needs cut and L2."""

    def __init__(self, exit_map: ExitMap, hidden_size: int) -> None:
        super().__init__()
        self.layers, self.hidden_size = exit_map.layers, hidden_size
        num_features, width = exit_map.weight_FW.shape
        self.linear = nn.Linear(num_features, width)
        self.linear.weight.data = torch.from_numpy(exit_map.weight_FW).T.contiguous()
        self.linear.bias.data = torch.from_numpy(exit_map.bias_W).clone()
        self.requires_grad_(False)

    def forward(self, states_BF: Tensor) -> Tensor:
        """Map (B, F) pooled states of the map's layers, side by side, to (B, W)."""
        mapped_BW: Tensor = self.linear(normalise_states(states_BF, self.hidden_size))
        return mapped_BW

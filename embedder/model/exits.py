"""The states of layers 0 to a depth → vectors of the full model's space, by a linear map that was fitted beforehand.

B = sequences of a batch, H = hidden size, T = layers 0 to depth, F = T·H features, W = width of the full model's vectors.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.model.calibration import ExitMap


def normalise_states(states_BF: Tensor, hidden_size: int) -> Tensor:
    """Give each layer's pooled state length 1: layers differ in scale by orders of magnitude, and so do texts."""
    states_BTH = states_BF.view(len(states_BF), -1, hidden_size)
    return functional.normalize(states_BTH.float(), dim=-1).flatten(1)


class Exit(nn.Module):
    """An affine map over the normalised states, in float32; what comes out has the full model's width and still needs cut and L2."""

    def __init__(self, exit_map: ExitMap, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        num_features, width = exit_map.weight_FW.shape
        self.linear = nn.Linear(num_features, width)
        self.linear.weight.data = torch.from_numpy(exit_map.weight_FW).T.contiguous()
        self.linear.bias.data = torch.from_numpy(exit_map.bias_W).clone()
        self.requires_grad_(False)

    def forward(self, states_BF: Tensor) -> Tensor:
        """Map (B, F) pooled states of layers 0 to depth, side by side, to (B, W)."""
        mapped_BW: Tensor = self.linear(normalise_states(states_BF, self.hidden_size))
        return mapped_BW

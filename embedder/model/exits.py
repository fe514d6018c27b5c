"""The states of some layers → vectors of the full model's space, by a linear map that was fitted beforehand.

B = sequences of a batch, L = tokens of its longest, H = hidden size, P = poolings, T = layers read, F = T·P·H features,
W = width of the full model's vectors, V = token ids, Q = queries. `hidden` and what ends in L are laid out as the batch is.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.model.batches import Batch
from embedder.model.calibration import ExitMap
from embedder.model.pooling import POOLERS
from embedder.model.weighing import LEAD_TOKENS, MOST_LOGIT, NUM_QUERIES, Weighing
from embedder.spec import Pooling

Floats = npt.NDArray[np.float32]

NUM_POOLINGS = 2 + NUM_QUERIES


class ExitPooler(nn.Module):
    """Pools the states of a layer that a map reads, side by side: the mean, the token that gathers the text, two learned means.

    A learned mean is attention with a fixed query: what the softmax divides by is left out, since pooled states are made
    length 1. Queries belong to a layer and not to a depth, so one pass serves every exit.
    """

    def __init__(self, pooling: Pooling, weighing: Weighing) -> None:
        super().__init__()
        self.gathering: Pooling = "last" if pooling == "last" else "cls"
        self.own = 0 if pooling == "mean" else 1
        """Which of these is the model's own pooling."""
        self.log_rarity_V: Tensor
        self.register_buffer("log_rarity_V", torch.from_numpy(weighing.log_rarity_V))
        self.queries_TQX = nn.Parameter(torch.from_numpy(weighing.queries_TQX.copy()), requires_grad=False)

    def forward(self, layer: int, hidden: Tensor, batch: Batch) -> Tensor:
        """Give (B, P·H); learned means are of no certain length."""
        states = hidden.float()
        weights_LQ = torch.exp(self.logits(layer, states, batch).clamp(-MOST_LOGIT, MOST_LOGIT))
        sums_BPH = batch.weigh_tokens(states, (torch.ones_like(weights_LQ[..., 0]), *weights_LQ.unbind(-1)))
        mean_BH = sums_BPH[:, 0] / batch.lengths_B.unsqueeze(-1)
        return torch.cat([mean_BH, POOLERS[self.gathering](states, batch), sums_BPH[:, 1:].flatten(1)], dim=1)

    def logits(self, layer: int, states: Tensor, batch: Batch) -> Tensor:
        """Give the logarithm of what each token counts, by query: (…, L, Q)."""
        queries_QX = self.queries_TQX[layer]
        by_state_QH, (by_rarity_Q, by_place_Q, constant_Q) = queries_QX[:, :-3], queries_QX[:, -3:].T
        rarity_L = self.log_rarity_V[batch.token_ids].unsqueeze(-1)
        place_L = batch.places.unsqueeze(-1) / LEAD_TOKENS
        logits_LQ: Tensor = states @ by_state_QH.T + rarity_L * by_rarity_Q + place_L * by_place_Q + constant_Q
        return logits_LQ


def normalise_states(states_BF: Tensor, hidden_size: int) -> Tensor:
    """Give each pooled state length 1: layers differ in scale by orders of magnitude."""
    states_BTH = states_BF.view(len(states_BF), -1, hidden_size)
    return functional.normalize(states_BTH.float(), dim=-1).flatten(1)


class Exit(nn.Module):
    """An affine map over the normalised states, in float32; what comes out has the full model's width and still needs cut and L2."""

    def __init__(self, exit_map: ExitMap, pool: ExitPooler, hidden_size: int) -> None:
        super().__init__()
        self.layers, self.pool, self.hidden_size = exit_map.layers, pool, hidden_size
        num_features, width = exit_map.weight_FW.shape
        self.linear = nn.Linear(num_features, width)
        self.linear.weight.data = torch.from_numpy(exit_map.weight_FW).T.contiguous()
        self.linear.bias.data = torch.from_numpy(exit_map.bias_W).clone()
        self.requires_grad_(False)

    def forward(self, states_BF: Tensor) -> Tensor:
        """Map (B, F) pooled states of the map's layers, side by side, to (B, W)."""
        mapped_BW: Tensor = self.linear(normalise_states(states_BF, self.hidden_size))
        return mapped_BW

"""The states of some layers → vectors of the full model's space, by a linear map that was fitted beforehand.

B = sequences of a batch, L = tokens of its longest, H = hidden size, P = poolings, T = layers read, F = T·P·H features, G = 3·F,
W = width of the full model's vectors, V = token ids, Q = queries. `hidden` and what ends in L are laid out as the batch is.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedder.core.errors import ConfigError
from embedder.core.spec import Pooling
from embedder.model.attention_pooling import LEAD_TOKENS, UNQUERIED, AttentionPooling
from embedder.model.backends import has_kernels
from embedder.model.batches import Batch
from embedder.model.calibration import ExitMap
from embedder.model.runtime import multiplies_bfloat16
from embedder.model.taps import LayerPooler, PoolLayer

Floats = npt.NDArray[np.float32]

EXIT_POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last")
"""A model's own pooling is one of those that maps read, and the state of a native exit is taken from them."""
NEVER = -1e9
"""Added to what a token counts the exponential of."""


def check_pooling(pooling: Pooling) -> None:
    """Raise ConfigError for a pooling whose states no exit map reads."""
    if pooling not in EXIT_POOLINGS:
        raise ConfigError(f"embedding.pooling={pooling!r}: calibrations are for {', '.join(EXIT_POOLINGS)} only; choose one of these")


class ExitPooler(nn.Module):
    """Pools the states of a layer that a map reads, side by side: the mean, the token that gathers the text, learned means.

    All of them are attention with a fixed query. The first two ask nothing of a state: one sees every token alike, the other sees
    one token alone. Queries belong to a layer and not to a depth, so one pass serves every exit.
    """

    def __init__(self, pooling: Pooling, weighing: AttentionPooling) -> None:
        super().__init__()
        check_pooling(pooling)
        self.gathering: Pooling = "last" if pooling == "last" else "cls"
        self.own = 0 if pooling == "mean" else 1
        """Which of these is the model's own pooling."""
        self.log_rarity_V: Tensor
        self.register_buffer("log_rarity_V", torch.from_numpy(weighing.log_rarity_V))
        self.queries_TQX = nn.Parameter(torch.from_numpy(weighing.queries_TQX.copy()), requires_grad=False)

    def forward(self) -> LayerPooler:
        """Return the function that pools a batch's states, layer by layer, by the current queries: (B, P·H) each."""
        queries_TPX = functional.pad(self.queries_TQX, (0, 2, UNQUERIED, 0))
        queries_TPX[..., -2] = NEVER
        queries_TPX[:, 1, -1] = NEVER
        by_state_TQH, by_token_TPX = self.queries_TQX[..., :-3], queries_TPX[..., -5:]

        def read(batch: Batch) -> PoolLayer:
            bias = torch.unflatten(by_token_TPX.flatten(0, 1) @ self.read(batch), 1, by_token_TPX.shape[:2])
            return lambda layer, hidden: batch.attend(by_state_TQH[layer], bias[:, layer], hidden).flatten(1)

        return read

    def read(self, batch: Batch) -> Tensor:
        """Return a token's features besides its state: rarity, position, one, is padding, is not the gathering token."""
        rarity_L, places_L = self.log_rarity_V[batch.token_ids], batch.places
        apart_L = batch.places_left if self.gathering == "last" else places_L
        return torch.stack((rarity_L, places_L / LEAD_TOKENS, torch.ones_like(rarity_L), batch.padding, apart_L != 0), dim=1)


def normalise_states(states_BF: Tensor, hidden_size: int) -> Tensor:
    """Scale each pooled state to length 1: layers differ in scale by orders of magnitude."""
    states_BTH = states_BF.view(len(states_BF), -1, hidden_size)
    return functional.normalize(states_BTH.float(), dim=-1).flatten(1)


class Exit(nn.Module):
    """An affine map over the normalized states, in float32; the result has the full model's width and still needs truncation and L2."""

    def __init__(self, exit_map: ExitMap, pool: ExitPooler, hidden_size: int) -> None:
        super().__init__()
        self.layers, self.pool, self.hidden_size = exit_map.layers, pool, hidden_size
        num_features, width = exit_map.weight_FW.shape
        self.linear = nn.Linear(num_features, width)
        self.linear.weight.data = torch.from_numpy(exit_map.weight_FW).T.contiguous()
        self.linear.bias.data = torch.from_numpy(exit_map.bias_W).clone()
        self.split_WG: Tensor | None
        self.register_buffer("split_WG", None, persistent=False)
        self.requires_grad_(False)

    def place(self, device: torch.device) -> "Exit":
        """Move to the device. On a GPU with products in bfloat16, split the map for tensor cores, which have none in float32."""
        self.to(device)
        if device.type == "cuda" and has_kernels() and multiplies_bfloat16(str(device)):
            self.split_WG = split_map(self.linear.weight)
        return self

    def forward(self, states_BF: Tensor) -> Tensor:
        """Map (B, F) pooled states of the map's layers, side by side, to (B, W)."""
        if self.split_WG is not None:
            from embedder.model.kernels import normalize_split

            split_BG = normalize_split(states_BF, self.hidden_size)
            return torch.mm(split_BG, self.split_WG.t(), out_dtype=torch.float32) + self.linear.bias
        mapped_BW: Tensor = self.linear(normalise_states(states_BF, self.hidden_size))
        return mapped_BW


def split_map(weight_WF: Tensor) -> Tensor:
    """Return weights as bfloat16 (high, high, low), (W, 3F), to multiply with states split into (high, low, high).

    The sum of the three products leaves out low times low: an error below 2^-16 of the sum of |state times weight|, where TF32 has 2^-10.
    """
    high_WF = weight_WF.bfloat16()
    return torch.cat([high_WF, high_WF, (weight_WF - high_WF.float()).bfloat16()], dim=1)

"""Rows of token ids → batches on the device, padded side by side or packed end to end; both know how to be run and pooled.

B = sequences of a batch, L = tokens of its longest, T = tokens of all of them, H = hidden size, P = poolings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedder.model.backends import has_kernels
from embedder.model.files.families import find_family, first_position, is_causal
from embedder.model.packing import plan_packed, plan_padded, refuse_empty
from embedder.model.varlen_attention import PACKED, Segments

LayoutName = Literal["padded", "packed"]


class Batch(Protocol):
    """One forward pass, however its tokens are laid out."""

    @property
    def num_tokens(self) -> int:
        """Tokens computed, padding included."""

    @property
    def lengths_B(self) -> Tensor:  # noqa: N802
        """Tokens of each sequence."""

    @property
    def first_B(self) -> Tensor:  # noqa: N802
        """Places of the first tokens among all that are computed."""

    @property
    def token_ids(self) -> Tensor:
        """Ids of all tokens computed, laid out as their states are."""

    @property
    def places(self) -> Tensor:
        """How far each token is from its sequence's first, laid out likewise."""

    @property
    def places_left(self) -> Tensor:
        """How far each token is from its sequence's last."""

    @property
    def padding(self) -> Tensor:
        """True where a token is none of a sequence's own."""

    def inputs(self) -> Mapping[str, Any]:
        """Return the model's keyword arguments."""

    def sum_tokens(self, hidden: Tensor) -> Tensor:
        """Add up the states of each sequence's own tokens, in float32: (B, H)."""

    def max_tokens(self, hidden: Tensor) -> Tensor:
        """Return the largest value of each component over a sequence's own tokens, in float32: (B, H)."""

    def attend(self, queries_QH: Tensor, bias: Tensor, hidden: Tensor) -> Tensor:
        """Average a sequence's states by softmax(query · state + bias), in float32: (B, P, H). The first P - Q poolings have no query.

        The bias is (B, P, L) where a batch is padded, padding included, and (1, P, T) where it is packed.
        """


class BatchLayout(Protocol):
    """How rows become batches on a device."""

    attention: str
    """Name of the attention, as transformers knows it."""

    def plan(self, lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
        """Cut rows into batches within the budget, longest first; every row comes once."""

    def collect(self, values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Batch:
        """Lay out rows of `values`, the longest first."""


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Sequences side by side, padding on their right."""

    ids_BL: Tensor  # noqa: N815
    lengths_B: Tensor  # noqa: N815
    mask_BL: Tensor | None  # noqa: N815
    """True where a token is the sequence's own; None where nothing is padding, and attention takes its faster path."""
    attention_mask: Tensor | dict[str, Tensor] | None
    """Of every layer, or by kind of layer."""

    @property
    def num_tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.ids_BL.numel()

    @property
    def first_B(self) -> Tensor:  # noqa: N802
        """Places of the first tokens, row by row."""
        return torch.arange(0, self.ids_BL.numel(), self.ids_BL.shape[1], device=self.ids_BL.device)

    @property
    def token_ids(self) -> Tensor:
        """Ids of all tokens computed, padding included."""
        return self.ids_BL

    @property
    def places(self) -> Tensor:
        """Count along each row, padding included."""
        return torch.arange(self.ids_BL.shape[1], device=self.ids_BL.device).expand_as(self.ids_BL)

    @property
    def places_left(self) -> Tensor:
        """Count back along each row."""
        return self.lengths_B.unsqueeze(-1) - 1 - self.places

    @property
    def padding(self) -> Tensor:
        """Token id that pads rows."""
        return torch.zeros_like(self.ids_BL, dtype=torch.bool) if self.mask_BL is None else ~self.mask_BL

    def inputs(self) -> Mapping[str, Any]:
        """Return token ids and mask."""
        return {"input_ids": self.ids_BL, "attention_mask": self.attention_mask}

    def sum_tokens(self, hidden: Tensor) -> Tensor:
        """Add up along each row, padding as zero."""
        if self.mask_BL is not None:
            hidden = hidden * self.mask_BL.unsqueeze(-1)
        return hidden.sum(dim=1, dtype=torch.float32)

    def max_tokens(self, hidden: Tensor) -> Tensor:
        """Reduce each row, without padding."""
        if self.mask_BL is not None:
            hidden = hidden.masked_fill(~self.mask_BL.unsqueeze(-1), float("-inf"))
        return hidden.amax(dim=1).float()

    def attend(self, queries_QH: Tensor, bias: Tensor, hidden: Tensor) -> Tensor:
        """Attend along each row, by all queries in one product."""
        states_BLH, queries_PH = hidden.float(), _pad_queries(queries_QH, bias)
        logits_BPL = torch.baddbmm(bias, queries_PH.expand(states_BLH.shape[0], -1, -1), states_BLH.transpose(1, 2))
        return torch.bmm(logits_BPL.softmax(dim=-1), states_BLH)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Sequences end to end: one row of T tokens, none of them padding."""

    ids_1T: Tensor  # noqa: N815
    positions_1T: Tensor  # noqa: N815
    lengths_B: Tensor  # noqa: N815
    segments: Segments

    @property
    def num_tokens(self) -> int:
        """Tokens computed: all of them count."""
        return self.ids_1T.numel()

    @property
    def first_B(self) -> Tensor:  # noqa: N802
        """Places of the first tokens."""
        return self.segments.offsets_S[:-1].long()

    @property
    def token_ids(self) -> Tensor:
        """Ids of all tokens."""
        return self.ids_1T

    @property
    def places(self) -> Tensor:
        """Count anew in each segment."""
        return self.positions_1T - self.positions_1T[:, :1]  # families differ in where they start to count

    @property
    def places_left(self) -> Tensor:
        """Count back in each segment."""
        return self._spread(self.lengths_B) - 1 - self.places

    @property
    def padding(self) -> Tensor:
        """Nothing."""
        return torch.zeros_like(self.ids_1T, dtype=torch.bool)

    def inputs(self) -> Mapping[str, Any]:
        """Return token ids, positions that restart with each sequence, and the bounds of attention."""
        return {"input_ids": self.ids_1T, "position_ids": self.positions_1T, "segments": self.segments}

    def sum_tokens(self, hidden: Tensor) -> Tensor:
        """Add up each segment."""
        return self._reduce(hidden[0].float(), "sum")

    def max_tokens(self, hidden: Tensor) -> Tensor:
        """Reduce each segment."""
        return self._reduce(hidden[0].float(), "max")

    def attend(self, queries_QH: Tensor, bias: Tensor, hidden: Tensor) -> Tensor:
        """Attend within each segment: on a GPU by a kernel that reads the states once, else by one query after the other."""
        if hidden.is_cuda and has_kernels():
            from embedder.model.kernels import pool_segments

            return pool_segments(hidden[0], self.segments.offsets_S, self.segments.longest, queries_QH, bias[0])
        states_TH = hidden[0].float()
        logits_TP = states_TH @ _pad_queries(queries_QH, bias).T + bias[0].T
        weights_TP = torch.exp(logits_TP - self._spread(self._reduce(logits_TP.detach(), "max")))
        sums_BPH = torch.stack([self._reduce(states_TH * weights_T.unsqueeze(-1), "sum") for weights_T in weights_TP.unbind(-1)], dim=1)
        return sums_BPH / self._reduce(weights_TP, "sum").unsqueeze(-1)

    def _reduce(self, values_TX: Tensor, how: str) -> Tensor:
        # unsafe leaves out a check of the lengths, for which the host would wait for the device
        return torch.segment_reduce(values_TX, how, lengths=self.lengths_B, unsafe=True)

    def _spread(self, values_BX: Tensor) -> Tensor:
        return values_BX.repeat_interleave(self.lengths_B, dim=0, output_size=self.num_tokens)


def _pad_queries(queries_QH: Tensor, bias: Tensor) -> Tensor:
    return functional.pad(queries_QH, (0, 0, bias.shape[1] - len(queries_QH), 0))


class PaddedLayout:
    """Side by side, as every family can be run."""

    def __init__(self, config: Any, device: torch.device) -> None:
        family = find_family(config.model_type)
        self.attention = family.attention
        self._device = device
        self._pad_id: int = config.pad_token_id or 0
        self._is_causal = is_causal(config)
        self._model_masks = family.sliding or family.attention == "eager"

    def plan(self, lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
        """Count padding against the budget."""
        return plan_padded(lengths, token_budget)

    def collect(self, values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> PaddedBatch:
        """Fill up with the model's pad id."""
        refuse_empty(lengths)
        columns_L = np.arange(lengths[0])
        is_token_BL = columns_L < lengths[:, None]
        ids_BL = np.full(is_token_BL.shape, self._pad_id, dtype=np.int64)
        ids_BL[is_token_BL] = values[(starts[:, None] + columns_L)[is_token_BL]]
        lengths_B = move(lengths.astype(np.int64), self._device)
        is_padded = bool(lengths[-1] < lengths[0])
        mask_BL = torch.arange(len(columns_L), device=self._device) < lengths_B.unsqueeze(-1) if is_padded else None
        return PaddedBatch(move(ids_BL, self._device), lengths_B, mask_BL, self._attention_mask(mask_BL))

    def _attention_mask(self, mask_BL: Tensor | None) -> Tensor | None:
        """Return the attention mask; a causal model needs none, since padding follows every real token."""
        if mask_BL is None or self._is_causal:
            return None
        if self._model_masks:
            return mask_BL
        # Made once a batch and read by every layer; a 2D mask would be checked on the host and expanded to B·L·L.
        return mask_BL[:, None, None, :]


class PackedLayout:
    """End to end: nothing is padded, and attention is by segments."""

    attention = PACKED

    def __init__(self, config: Any, device: torch.device) -> None:
        self._device = device
        self._first_position = first_position(config)
        self._is_causal = is_causal(config)

    def plan(self, lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
        """Count tokens against the budget."""
        return plan_packed(lengths, token_budget)

    def collect(self, values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> PackedBatch:
        """Lay rows end to end."""
        refuse_empty(lengths)
        offsets_S = np.concatenate([[0], np.cumsum(lengths)])
        positions_T = np.arange(offsets_S[-1]) - np.repeat(offsets_S[:-1], lengths)
        ids_T = values[np.repeat(starts, lengths) + positions_T].astype(np.int64)
        segments = Segments(move(offsets_S.astype(np.int32), self._device), int(lengths[0]), is_causal=self._is_causal)
        return PackedBatch(
            move(ids_T[None], self._device),
            move(positions_T[None].astype(np.int64) + self._first_position, self._device),
            move(lengths.astype(np.int64), self._device),
            segments,
        )


def make_layout(name: LayoutName, config: Any, device: torch.device) -> BatchLayout:
    """Make the layout of this name for a model."""
    return PackedLayout(config, device) if name == "packed" else PaddedLayout(config, device)


def move(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

"""Attention over packed sequences, under a name that transformers' models take: no family is rewritten for it.

T = tokens of all sequences of a batch, A = attention heads, K = heads of keys and values, E = components of a head.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PACKED = "packed"


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the sequences of a packed batch begin and end, and what a token sees of its own."""

    offsets_S: Tensor  # noqa: N815
    """int32, on the device: the first token of each sequence, and the end of the last."""
    longest: int
    is_causal: bool


def attend_packed(
    _module: nn.Module,
    query_1ATE: Tensor,
    key_1KTE: Tensor,
    value_1KTE: Tensor,
    _mask: Tensor | None,
    *,
    segments: Segments,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Let every token attend within its own sequence: (1, T, A, E). The keywords that are left are transformers' own and change nothing.

    A sliding window reaches `sliding_window` - 1 tokens back, and as many ahead where attention is not causal.
    """
    attended: Tensor = attend(
        query_1ATE, key_1KTE, value_1KTE, segments.offsets_S, segments.longest, segments.is_causal, scaling, sliding_window
    )
    return attended, None


@torch.library.custom_op("embedder::attend", mutates_args=())
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets_S: Tensor,
    longest: int,
    is_causal: bool,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Attend where the tensors are. To whoever compiles a layer this is one step, however many sequences there are."""
    segments, window = Segments(offsets_S, longest, is_causal), choose_window(sliding_window, is_causal)
    run = attend_on_device if query.is_cuda else attend_by_segment
    return run(query, key, value, segments, scaling, window)


@attend.register_fake
def _(query: Tensor, _key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


def choose_window(sliding_window: int | None, is_causal: bool) -> tuple[int, int]:
    """Return how many tokens back and ahead a token sees, without itself; -1 is all."""
    back = -1 if sliding_window is None else sliding_window - 1
    return back, 0 if is_causal else back


def attend_on_device(
    query_1ATE: Tensor, key_1KTE: Tensor, value_1KTE: Tensor, segments: Segments, scaling: float | None, window: tuple[int, int]
) -> Tensor:
    """Attend by torch's variable-length kernel, which takes half precision only and shares keys among heads by itself."""
    query_TAE, key_TKE, value_TKE = (states[0].transpose(0, 1) for states in (query_1ATE, key_1KTE, value_1KTE))
    has_fewer_keys = query_TAE.shape[1] != key_TKE.shape[1]
    shared: Any = {"enable_gqa": True} if has_fewer_keys and _takes_enable_gqa(varlen_attn) else {}
    attended_TAE = varlen_attn(
        query_TAE,
        key_TKE,
        value_TKE,
        segments.offsets_S,
        segments.offsets_S,
        segments.longest,
        segments.longest,
        scale=scaling,
        window_size=window,
        **shared,
    )
    assert isinstance(attended_TAE, Tensor)
    return attended_TAE.unsqueeze(0)


def attend_segments(
    query_TAE: Tensor,
    key_TKE: Tensor,
    value_TKE: Tensor,
    segments: Segments,
    scaling: float | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Attend within each sequence, without what varlen_attn does on the host at each of its calls: (T, A, E), contiguous."""
    window = choose_window(sliding_window, segments.is_causal)
    if not query_TAE.is_cuda:
        query, key, value = (states.transpose(0, 1).unsqueeze(0) for states in (query_TAE, key_TKE, value_TKE))
        return attend_by_segment(query, key, value, segments, scaling, window)[0]
    offsets_S, longest, (back, ahead) = segments.offsets_S, segments.longest, window
    found: tuple[Tensor, ...] = torch.ops.aten._flash_attention_forward(
        query_TAE,
        key_TKE,
        value_TKE,
        offsets_S,
        offsets_S,
        longest,
        longest,
        0.0,
        window == (-1, 0),
        False,
        scale=scaling,
        window_size_left=back,
        window_size_right=ahead,
    )
    return found[0].contiguous()


@cache
def _takes_enable_gqa(kernel: Callable[..., object]) -> bool:
    """Return whether the kernel has the keyword: torch 2.11 shares keys wherever heads divide, torch 2.12 refuses to unless asked."""
    return "enable_gqa" in inspect.signature(kernel).parameters


def attend_by_segment(
    query_1ATE: Tensor, key_1KTE: Tensor, value_1KTE: Tensor, segments: Segments, scaling: float | None, window: tuple[int, int]
) -> Tensor:
    """Attend by one sequence after the other, on any device and in any dtype."""
    attended = []
    for start, stop in pairwise(segments.offsets_S.tolist()):
        query, key, value = (states[:, :, start:stop] for states in (query_1ATE, key_1KTE, value_1KTE))
        mask_LL = window_mask(stop - start, window).to(query.device) if max(window) >= 0 else None
        shares_keys = query.shape[1] != key.shape[1]
        attended.append(scaled_dot_product_attention(query, key, value, mask_LL, scale=scaling, enable_gqa=shares_keys))
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous()


def window_mask(length: int, window: tuple[int, int]) -> Tensor:
    """Return the mask of tokens (columns) that each token (row) of a sequence sees."""
    ahead_LL = torch.arange(length) - torch.arange(length).unsqueeze(-1)
    back, forward = (length if reach < 0 else reach for reach in window)
    return (ahead_LL >= -back) & (ahead_LL <= forward)


# No mask function goes with it: transformers then makes no mask, and does not wait for the device to look for packed positions.
AttentionInterface.register(PACKED, attend_packed)

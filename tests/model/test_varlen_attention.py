"""Attention over packed sequences: each as if it were alone, by segments and by the call that a device gets."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import embedder.model.varlen_attention as attention
from embedder.model.varlen_attention import Segments, attend_by_segment, attend_on_device, choose_window

LENGTHS = (23, 9, 9, 1)
TOTAL = sum(LENGTHS)
WINDOWS = [(None, False), (None, True), (5, False), (5, True), (1, True)]


def segments(is_causal: bool = False, device: str = "cpu") -> Segments:
    bounds = [sum(LENGTHS[:number]) for number in range(len(LENGTHS) + 1)]
    return Segments(torch.tensor(bounds, dtype=torch.int32, device=device), max(LENGTHS), is_causal)


def states(heads: int = 4, key_heads: int = 2, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, TOTAL, count, 8, **options) for count in (heads, key_heads, key_heads))
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def attend_by_hand(query: Tensor, key: Tensor, value: Tensor, sliding_window: int | None, is_causal: bool, scale: float) -> Tensor:
    """Score every pair of tokens, and leave out those of two sequences or too far apart."""
    key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    sequence = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    behind = torch.arange(TOTAL)[:, None] - torch.arange(TOTAL)
    sees = sequence[:, None] == sequence
    sees &= (behind >= 0) if is_causal else torch.ones_like(sees)
    sees &= (behind.abs() < sliding_window) if sliding_window else torch.ones_like(sees)
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~sees, -math.inf)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize(("sliding_window", "is_causal"), WINDOWS)
def test_a_token_sees_the_window_of_its_own_sequence(sliding_window: int | None, is_causal: bool, key_heads: int) -> None:
    query, key, value = states(key_heads=key_heads)
    attended, weights = attention.attend_packed(
        torch.nn.Identity(), query, key, value, None, segments=segments(is_causal), scaling=0.3, sliding_window=sliding_window
    )
    assert weights is None
    torch.testing.assert_close(attended, attend_by_hand(query, key, value, sliding_window, is_causal, 0.3))


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("torch_version", ["2.11", "2.13"])
@pytest.mark.parametrize(("sliding_window", "is_causal"), WINDOWS)
def test_a_device_is_asked_for_the_same(
    sliding_window: int | None, is_causal: bool, torch_version: str, key_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that follows the documentation of torch's own, in its layout, gives what attention by segments gives."""

    def kernel_of_2_11(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        return_aux: None = None,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:
        back, ahead = window_size
        assert query.shape == (TOTAL, 4, 8)
        assert key.shape == value.shape == (TOTAL, key_heads, 8)
        assert cu_q.dtype == cu_k.dtype == torch.int32
        assert (max_q, max_k) == (23, 23)
        assert ahead == (0 if is_causal else back)
        window = None if back < 0 else back + 1
        by_hand = [each.transpose(0, 1).unsqueeze(0) for each in (query, key, value)]
        assert scale is not None
        return attend_by_hand(by_hand[0], by_hand[1], by_hand[2], window, is_causal, scale)[0]

    def kernel_of_2_13(*states: Any, enable_gqa: bool = False, **keywords: Any) -> Tensor:
        assert enable_gqa == (key_heads != 4)
        return kernel_of_2_11(*states, **keywords)

    monkeypatch.setattr(attention, "varlen_attn", kernel_of_2_11 if torch_version == "2.11" else kernel_of_2_13)
    window = choose_window(sliding_window, is_causal)
    asked = attend_on_device(*states(key_heads=key_heads), segments(is_causal), 0.3, window)
    torch.testing.assert_close(asked, attend_by_segment(*states(key_heads=key_heads), segments(is_causal), 0.3, window))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torch_itself_takes_the_call_and_gives_the_shape(dtype: torch.dtype) -> None:
    query, key, value = states(device="meta", dtype=dtype)
    attended = attend_on_device(query, key, value, segments(device="meta"), None, (4, 0))
    assert (attended.shape, attended.dtype) == ((1, TOTAL, 4, 8), dtype)

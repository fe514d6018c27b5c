"""Kernels in Triton's interpreter give what plain modules give, for odd shapes."""

import os

import pytest
import torch

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="set TRITON_INTERPRET=1 for this process")

from embedder.model.exits import normalise_states, split_map  # noqa: E402
from embedder.model.kernels import normalize_split, pool_segments  # noqa: E402


def draw(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("width", [64, 96])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_queries", [2, 4])
def test_pooling_attends_within_each_segment(width: int, dtype: torch.dtype, num_queries: int) -> None:
    lengths = [1, 23, 8, 64, 65, 200, 9, 3, 128]
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    states, queries = draw(sum(lengths), width, dtype=dtype), draw(num_queries, width, seed=1)
    bias = draw(2 + num_queries, sum(lengths), seed=2)
    bias[1] = -1e9
    bias[1, bounds[:-1].long()] = 0
    found = pool_segments(states, bounds, max(lengths), queries, bias)
    for number, rows in enumerate(states.float().split(lengths)):
        logits = bias[:, bounds[number] : bounds[number + 1]].clone()
        logits[2:] += queries @ rows.T
        torch.testing.assert_close(found[number], logits.softmax(dim=-1) @ rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hidden_size", [64, 96])
def test_split_states_times_a_split_map_are_the_product_in_float32(hidden_size: int) -> None:
    states, weight = draw(5, 3 * hidden_size) * 100, draw(40, 3 * hidden_size, seed=1)
    states[1] = 0
    found = normalize_split(states, hidden_size).double() @ split_map(weight).double().T
    expected = normalise_states(states, hidden_size).double() @ weight.double().T
    absolute = normalise_states(states, hidden_size).double().abs() @ weight.double().abs().T
    assert ((found - expected).abs() <= 2**-16 * absolute).all()
    assert not found[1].any()

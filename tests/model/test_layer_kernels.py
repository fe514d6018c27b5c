"""Kernels of fused layers give in Triton's interpreter what plain modules give, for odd shapes."""

import os

import pytest
import torch
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="set TRITON_INTERPRET=1 for this process")

from embedder.model.float8 import encode_rows as encode_plainly  # noqa: E402
from embedder.model.fused import ACTIVATIONS  # noqa: E402
from embedder.model.layer_kernels import (  # noqa: E402
    Norm,
    add_norm,
    add_norm_encode,
    add_then_norm,
    encode_rows,
    gate_rows,
    norm_rows,
    rotate_heads,
)

CARRY = "Triton's interpreter loses the carry where a code rounds up to a power of two, and gives half of it: 2% of the codes"


def draw(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.float(), expected, rtol=2**-7 if found.dtype == torch.bfloat16 else 1e-3, atol=1e-3)


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (7, 96), (5, 384), (3, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_residual_and_norm_are_layer_norm_of_the_sum(rows: int, width: int, dtype: torch.dtype) -> None:
    product, residual = (draw(rows, width, dtype=dtype, seed=seed) for seed in (1, 2))
    bias, weight, shift = (draw(width, dtype=dtype, seed=seed) for seed in (3, 4, 5))
    found = add_norm(product, bias, residual, Norm(weight, shift, 1e-12, is_rms=False))
    summed = product.float() + bias.float() + residual.float()
    expected = functional.layer_norm(summed, (width,), weight.float(), shift.float(), 1e-12)
    assert found.dtype == dtype
    assert_near(found, expected)


@pytest.mark.parametrize("is_rms", [True, False])
@pytest.mark.parametrize("width", [64, 96, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_is_kept_beside_its_norm_without_bias(is_rms: bool, width: int, dtype: torch.dtype) -> None:
    product, residual = (draw(3, width, dtype=dtype, seed=seed) + 1 for seed in (1, 2))
    weight = draw(width, dtype=dtype, seed=3)
    norm = Norm(weight, None, 1e-6, is_rms)
    plain = functional.rms_norm if is_rms else functional.layer_norm
    total, found = add_then_norm(product, None, residual, norm)
    assert_near(total, product.float() + residual.float())
    assert_near(found, plain(product.float() + residual.float(), (width,), weight.float(), eps=1e-6))
    assert_near(norm_rows(product, norm), plain(product.float(), (width,), weight.float(), eps=1e-6))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # numpy's, of 1 / (1 + inf)
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("width", [48, 1024, 1152])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_rows_are_an_activation_times_the_other_half(name: str, width: int, dtype: torch.dtype) -> None:
    joined = draw(3, 2 * width, dtype=dtype) * 3
    joined[0, 0], joined[0, 1], joined[0, 2] = 200, -200, 0
    gate, up = joined.float().chunk(2, dim=1)
    assert_near(gate_rows(joined, ACTIVATIONS[name]), ACT2FN[name](gate) * up)


@pytest.mark.parametrize(("heads", "key_heads", "width"), [(4, 4, 64), (6, 2, 96), (3, 1, 32), (16, 8, 128)])
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_and_keys_are_normalized_and_rotated_in_place(
    heads: int, key_heads: int, width: int, has_norm: bool, dtype: torch.dtype
) -> None:
    joined = draw(5, (heads + 2 * key_heads) * width, dtype=dtype)
    angles = draw(5, width // 2, seed=1).repeat(1, 2) * 3
    cosines, sines = angles.cos().to(dtype), angles.sin().to(dtype)
    weights = draw(2, width, seed=2) + 1 if has_norm else None
    parts = list(joined.float().view(5, -1, width).split([heads, key_heads, key_heads], dim=1))
    if weights is not None:
        parts[:2] = [functional.rms_norm(part, (width,), weights[place], 1e-6) for place, part in enumerate(parts[:2])]
    query, key = apply_rotary_pos_emb(*parts[:2], cosines.float(), sines.float(), unsqueeze_dim=1)
    rotate_heads(joined, cosines, sines, heads, key_heads, weights, 1e-6)
    assert_near(joined.view(5, -1, width), torch.cat([query, key, parts[2]], dim=1))


@pytest.mark.parametrize("width", [64, 96, 1024])
def test_codes_of_the_norm_are_those_of_its_rows(width: int) -> None:
    product, residual = (draw(9, width, dtype=torch.bfloat16, seed=seed) for seed in (1, 2))
    ones, zeros = torch.ones(width, dtype=torch.bfloat16), torch.zeros(width, dtype=torch.bfloat16)
    found, codes, scales = add_norm_encode(product, residual, Norm(ones, zeros, 1e-12, is_rms=False))
    assert (codes.dtype, scales.shape) == (torch.float8_e4m3fn, (9, 1))
    close = torch.isclose(codes.float() * scales, found.float(), rtol=0.07, atol=0.01)
    assert close.float().mean() >= 0.97, CARRY
    assert (codes.float().abs().amax(dim=1) == 448).all()


@pytest.mark.parametrize("width", [64, 96, 4096])
@pytest.mark.parametrize("has_gelu", [False, True])
def test_codes_are_those_of_plain_torch(width: int, has_gelu: bool) -> None:
    rows = draw(6, width, dtype=torch.bfloat16)
    rows[1], rows[2] = 0, rows[2] * 1e5
    codes, scales = encode_rows(rows, has_gelu)
    plain = functional.gelu(rows.float()) if has_gelu else rows.float()
    expected_codes, expected_scales = encode_plainly(plain)
    torch.testing.assert_close(scales, expected_scales)
    close = torch.isclose(codes.float() * scales, expected_codes.float() * expected_scales, rtol=0.13, atol=1e-3)
    assert close.float().mean() >= 0.97, CARRY

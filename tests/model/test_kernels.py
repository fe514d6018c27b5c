"""Kernels in Triton's interpreter give what plain modules give, for odd shapes."""

import os

import numpy as np
import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="set TRITON_INTERPRET=1 for this process")

from embedder.benchmark.random_models import build_encoder, draw_rows, least_cosine  # noqa: E402
from embedder.model.exits import normalise_states, split_map  # noqa: E402
from embedder.model.float8 import encode_rows as encode_plainly  # noqa: E402
from embedder.model.float8 import use_float8  # noqa: E402
from embedder.model.kernels import add_norm, encode_rows, normalize_split, pool_segments  # noqa: E402

CARRY = "Triton's interpreter loses the carry where a code rounds up to a power of two, and gives half of it: 2% of the codes"


def draw(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (7, 96), (5, 384), (3, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_residual_and_norm_are_layer_norm_of_the_sum(rows: int, width: int, dtype: torch.dtype) -> None:
    product, residual = (draw(rows, width, dtype=dtype, seed=seed) for seed in (1, 2))
    bias, weight, shift = (draw(width, dtype=dtype, seed=seed) for seed in (3, 4, 5))
    found, codes, scales = add_norm(product, bias, residual, weight, shift, 1e-12)
    summed = product.float() + bias.float() + residual.float()
    expected = functional.layer_norm(summed, (width,), weight.float(), shift.float(), 1e-12)
    assert (codes, scales, found.dtype) == (None, None, dtype)
    torch.testing.assert_close(found.float(), expected, rtol=2**-7 if dtype == torch.bfloat16 else 1e-3, atol=1e-3)


@pytest.mark.parametrize("width", [64, 96, 1024])
def test_codes_of_the_norm_are_those_of_its_rows(width: int) -> None:
    product, residual = (draw(9, width, dtype=torch.bfloat16, seed=seed) for seed in (1, 2))
    ones, zeros = torch.ones(width, dtype=torch.bfloat16), torch.zeros(width, dtype=torch.bfloat16)
    found, codes, scales = add_norm(product, zeros, residual, ones, zeros, 1e-12, has_codes=True)
    assert codes is not None
    assert scales is not None
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


@pytest.mark.parametrize("width", [64, 96])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_attends_within_each_segment(width: int, dtype: torch.dtype) -> None:
    lengths = [1, 23, 8, 64, 65, 200, 9, 3, 128]
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    states, queries, bias = draw(sum(lengths), width, dtype=dtype), draw(2, width, seed=1), draw(4, sum(lengths), seed=2)
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


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.999999), (torch.bfloat16, 0.9995)])
def test_fused_layers_give_what_plain_ones_give(family: str, dtype: torch.dtype, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # the interpreter runs in one thread
    rows = draw_rows(np.array([30, 1, 17, 3]), 1000)
    plain, fused = (build_encoder(family, "cpu", dtype, "packed", depth=2) for _ in range(2))
    fused.fuse_layers()
    assert least_cosine(fused.encode(rows, 40).vectors_ND, plain.encode(rows, 40).vectors_ND) >= least
    assert fused.weight_bytes == plain.weight_bytes
    expected, found = (encoder.tap(rows, 40, [0, 1, 2]) for encoder in (plain, fused))
    assert min(least_cosine(found[depth], expected[depth]) for depth in (0, 1, 2)) >= least


def test_fused_float8_is_near_plain_float8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    rows = draw_rows(np.array([30, 1, 17, 3]), 1000)
    plain, fused = (build_encoder("bert", "cpu", torch.bfloat16, "packed", depth=1) for _ in range(2))
    for encoder in (plain, fused):
        use_float8(encoder.layers)
    fused.fuse_layers()
    assert least_cosine(fused.encode(rows, 60).vectors_ND, plain.encode(rows, 60).vectors_ND) >= 0.95


def test_offered_layers_switch_between_torch_and_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr("embedder.model.encoder.has_kernels", lambda: True)
    encoder, rows = build_encoder("bert", "cpu", torch.float32, "packed", depth=1), draw_rows(np.array([9, 4]), 1000)
    expected = encoder.encode(rows, 40).vectors_ND
    encoder.offer_fused()
    assert encoder.backends == ("torch", "fused")
    np.testing.assert_array_equal(encoder.encode(rows, 40).vectors_ND, expected)
    encoder.use_backend("fused")
    fused = encoder.encode(rows, 40).vectors_ND
    assert np.abs(fused - expected).max() > 0
    assert least_cosine(fused, expected) >= 0.999999
    encoder.use_backend("torch")
    np.testing.assert_array_equal(encoder.encode(rows, 40).vectors_ND, expected)

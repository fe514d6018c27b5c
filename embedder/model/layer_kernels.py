"""Kernels of fused layers in Triton, each of one pass: residual and norm, gated activation, norm and rotation of heads, float8 codes.

Import this module only where Triton is installed: on a GPU it comes with torch. TRITON_INTERPRET=1 runs the kernels on a CPU.

N = rows, H = hidden size, I = columns, T = tokens, A = heads, K = heads of keys, E = components of a head, O = (A + 2K) · E.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor, nn
from triton import language as tl

LARGEST_CODE = 448.0
"""Of float8 e4m3."""
LEAST_SCALE = 1e-12
_GATED = 1024
"""Columns that one program gates."""


class Norm(NamedTuple):
    """LayerNorm, or RMSNorm with `is_rms`."""

    weight_H: Tensor  # noqa: N815
    shift_H: Tensor | None  # noqa: N815
    eps: float
    is_rms: bool


def read_norm(module: nn.Module) -> Norm:
    """Return the norm of a module of transformers: LayerNorm, RMSNorm, or Gemma's, whose weights are distances from 1."""
    if isinstance(module, nn.LayerNorm):
        return Norm(module.weight, module.bias, module.eps, is_rms=False)
    weight_H, eps = module.weight, getattr(module, "variance_epsilon", None)
    assert isinstance(weight_H, Tensor)
    if eps is None:
        return Norm(1 + weight_H.float(), None, float(module.eps), is_rms=True)  # type: ignore[arg-type]
    return Norm(weight_H, None, float(eps), is_rms=True)


@triton.jit
def _encode_row(row, codes, scales, number, offsets, inside, largest_code, least_scale):
    scale = tl.maximum(tl.max(tl.abs(row), axis=0) / largest_code, least_scale)
    tl.store(scales + number, scale)
    tl.store(codes + offsets, (row / scale).to(codes.dtype.element_ty), mask=inside)


# fmt: off
@triton.jit
def _add_norm(
    product,
    bias,
    residual,
    weight,
    shift,
    total,
    out,
    codes,
    scales,
    width,
    eps,
    largest_code,
    least_scale,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
    HAS_CODES: tl.constexpr,
    IS_RMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    offsets = number * width + columns
    row = tl.load(product + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        row += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        row += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_TOTAL:
        tl.store(total + offsets, row.to(total.dtype.element_ty), mask=inside)
    if not IS_RMS:
        row = tl.where(inside, row - tl.sum(row, axis=0) / width, 0.0)
    scale = tl.rsqrt(tl.sum(row * row, axis=0) / width + eps)
    row = row * scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        row += tl.load(shift + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + offsets, row.to(out.dtype.element_ty), mask=inside)
    if HAS_CODES:
        _encode_row(row, codes, scales, number, offsets, inside, largest_code, least_scale)
# fmt: on


@triton.jit
def _encode(rows, codes, scales, width, largest_code, least_scale, HAS_GELU: tl.constexpr, BLOCK: tl.constexpr):
    number = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    offsets = number * width + columns
    row = tl.load(rows + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_GELU:
        row = 0.5 * row * (1.0 + tl.erf(row * 0.7071067811865476))
    _encode_row(row, codes, scales, number, offsets, inside, largest_code, least_scale)


@triton.jit
def _gate(joined, out, width, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    number = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    place = joined + number * 2 * width + columns
    gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == 0:
        gate = gate / (1.0 + tl.exp(-gate))
    elif ACTIVATION == 1:
        gate = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    else:  # 1 + tanh(x) is 2 / (1 + exp(-2x))
        gate = gate / (1.0 + tl.exp(-1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)))
    gated = gate * tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + number * width + columns, gated.to(out.dtype.element_ty), mask=inside)


# fmt: off
@triton.jit
def _rotate(
    joined,
    cosines,
    sines,
    weights,
    width,
    num_heads,
    num_rotated,
    half,
    eps,
    HAS_NORM: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # one program a token; a component of the lower half of a head turns with the one at its place in the upper half
    number = tl.program_id(0).to(tl.int64)
    heads, columns = tl.arange(0, HEADS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (heads < num_rotated) & (columns < half)
    place = joined + number * width + heads * 2 * half + columns
    low = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(low * low + high * high, axis=1) / (2 * half) + eps)[:, None]
        weight = weights + tl.where(heads < num_heads, 0, 2 * half) + columns
        low = low * scale * tl.load(weight, mask=inside, other=0.0)
        high = high * scale * tl.load(weight + half, mask=inside, other=0.0)
    angle = number * 2 * half + columns
    cosine = tl.load(cosines + angle, mask=columns < half, other=0.0).to(tl.float32)
    sine = tl.load(sines + angle, mask=columns < half, other=0.0).to(tl.float32)
    tl.store(place, (low * cosine - high * sine).to(joined.dtype.element_ty), mask=inside)
    tl.store(place + half, (high * cosine + low * sine).to(joined.dtype.element_ty), mask=inside)
# fmt: on


def norm_rows(rows_NH: Tensor, norm: Norm) -> Tensor:
    """Return norm(rows)."""
    return _launch_norm(rows_NH, None, None, norm)[0]


def add_norm(product_NH: Tensor, bias_H: Tensor | None, residual_NH: Tensor, norm: Norm) -> Tensor:
    """Return norm(product + bias + residual)."""
    return _launch_norm(product_NH, bias_H, residual_NH, norm)[0]


def add_then_norm(product_NH: Tensor, bias_H: Tensor | None, residual_NH: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Return the sum of product, bias and residual, and its norm."""
    total_NH = torch.empty_like(residual_NH)
    return total_NH, _launch_norm(product_NH, bias_H, residual_NH, norm, total_NH)[0]


def add_norm_encode(product_NH: Tensor, residual_NH: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """Return norm(product + residual) and its float8 codes with a scale a row, (N, 1)."""
    out_NH, codes_NH, scales_N1 = _launch_norm(product_NH, None, residual_NH, norm, has_codes=True)
    assert codes_NH is not None
    assert scales_N1 is not None
    return out_NH, codes_NH, scales_N1


def _launch_norm(
    product_NH: Tensor,
    bias_H: Tensor | None,
    residual_NH: Tensor | None,
    norm: Norm,
    total_NH: Tensor | None = None,
    has_codes: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    num_rows, width = product_NH.shape
    out_NH = torch.empty_like(product_NH)
    codes_NH, scales_N1 = _empty_codes(out_NH) if has_codes else (None, None)
    block = triton.next_power_of_2(width)
    _add_norm[(num_rows,)](
        product_NH,
        bias_H,
        residual_NH,
        norm.weight_H,
        norm.shift_H,
        total_NH,
        out_NH,
        codes_NH,
        scales_N1,
        width,
        norm.eps,
        LARGEST_CODE,
        LEAST_SCALE,
        HAS_BIAS=bias_H is not None,
        HAS_RESIDUAL=residual_NH is not None,
        HAS_SHIFT=norm.shift_H is not None,
        HAS_TOTAL=total_NH is not None,
        HAS_CODES=has_codes,
        IS_RMS=norm.is_rms,
        BLOCK=block,
        num_warps=count_warps(block),
    )
    return out_NH, codes_NH, scales_N1


def encode_rows(rows_NI: Tensor, has_gelu: bool = False) -> tuple[Tensor, Tensor]:
    """Return float8 codes and each row's scale (N, 1), of the rows or of their GELU."""
    codes_NI, scales_N1 = _empty_codes(rows_NI)
    block = triton.next_power_of_2(rows_NI.shape[1])
    _encode[(rows_NI.shape[0],)](
        rows_NI,
        codes_NI,
        scales_N1,
        rows_NI.shape[1],
        LARGEST_CODE,
        LEAST_SCALE,
        HAS_GELU=has_gelu,
        BLOCK=block,
        num_warps=count_warps(block),
    )
    return codes_NI, scales_N1


def gate_rows(joined_NJ: Tensor, activation: int) -> Tensor:
    """Return activation(left half) · right half of each row, (N, 2I) to (N, I): 0 is SiLU, 1 GELU by erf, 2 GELU by tanh."""
    num_rows, width = joined_NJ.shape[0], joined_NJ.shape[1] // 2
    out_NI = joined_NJ.new_empty((num_rows, width))
    grid = (num_rows, triton.cdiv(width, _GATED))
    _gate[grid](joined_NJ, out_NI, width, ACTIVATION=activation, BLOCK=_GATED, num_warps=count_warps(_GATED))
    return out_NI


def rotate_heads(
    joined_TO: Tensor, cosines_TE: Tensor, sines_TE: Tensor, num_heads: int, num_key_heads: int, weights_2E: Tensor | None, eps: float
) -> None:
    """Rotate the heads of queries and keys in place, after an RMSNorm by the weights in float32, if any; values stay as they are."""
    num_tokens, width = joined_TO.shape
    half, num_rotated = cosines_TE.shape[1] // 2, num_heads + num_key_heads
    assert (width, cosines_TE.is_contiguous(), sines_TE.is_contiguous()) == ((num_rotated + num_key_heads) * 2 * half, True, True)
    heads, block = triton.next_power_of_2(num_rotated), triton.next_power_of_2(half)
    _rotate[(num_tokens,)](
        joined_TO,
        cosines_TE,
        sines_TE,
        weights_2E,
        width,
        num_heads,
        num_rotated,
        half,
        eps,
        HAS_NORM=weights_2E is not None,
        HEADS=heads,
        BLOCK=block,
        num_warps=count_warps(heads * block),
    )


def count_warps(block: int) -> int:
    """Return the warps that leave each thread eight components: sixteen bytes in half precision."""
    return min(16, max(1, block // 256))


def _empty_codes(rows_NI: Tensor) -> tuple[Tensor, Tensor]:
    codes_NI = torch.empty(rows_NI.shape, dtype=torch.float8_e4m3fn, device=rows_NI.device)
    return codes_NI, torch.empty((rows_NI.shape[0], 1), dtype=torch.float32, device=rows_NI.device)

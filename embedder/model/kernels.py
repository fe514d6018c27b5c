"""Kernels in Triton: residual and norm in one pass, GELU and float8 codes in one pass, pooling of segments that reads states once.

Import this module only where Triton is installed: on a GPU it comes with torch. TRITON_INTERPRET=1 runs the kernels on a CPU.

N = rows, H = hidden size, I = columns, T = tokens, S = bounds of segments, B = segments, P = poolings.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

LARGEST_CODE = 448.0
"""Of float8 e4m3."""
LEAST_SCALE = 1e-12
WIDEST = 16_384
"""Columns of a row, which one program holds whole."""
_TOKENS = 8
"""Tokens that pooling reads at a time."""


@triton.jit
def _encode_row(row, codes, scales, number, offsets, inside, largest_code, least_scale):  # type: ignore[no-untyped-def]
    scale = tl.maximum(tl.max(tl.abs(row), axis=0) / largest_code, least_scale)
    tl.store(scales + number, scale)
    tl.store(codes + offsets, (row / scale).to(codes.dtype.element_ty), mask=inside)


# fmt: off
@triton.jit
def _add_norm(  # type: ignore[no-untyped-def]
    product,
    bias,
    residual,
    weight,
    shift,
    out,
    codes,
    scales,
    width,
    eps,
    largest_code,
    least_scale,
    HAS_CODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    offsets = number * width + columns
    row = tl.load(product + offsets, mask=inside, other=0.0).to(tl.float32)
    row += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    row += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(row, axis=0) / width
    centred = tl.where(inside, row - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
    row = centred * scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    row += tl.load(shift + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + offsets, row.to(out.dtype.element_ty), mask=inside)
    if HAS_CODES:
        _encode_row(row, codes, scales, number, offsets, inside, largest_code, least_scale)
# fmt: on


@triton.jit
def _encode(rows, codes, scales, width, largest_code, least_scale, HAS_GELU: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    number = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    offsets = number * width + columns
    row = tl.load(rows + offsets, mask=inside, other=0.0).to(tl.float32)
    if HAS_GELU:
        row = 0.5 * row * (1.0 + tl.erf(row * 0.7071067811865476))
    _encode_row(row, codes, scales, number, offsets, inside, largest_code, least_scale)


@triton.jit
def _pool(states, queries, bias, bounds, out, width, num_tokens, POOLINGS: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    # poolings of a segment are neighbours: the second reads its states from the cache
    segment, pooling = tl.program_id(0) // POOLINGS, tl.program_id(0) % POOLINGS
    start, stop = tl.load(bounds + segment), tl.load(bounds + segment + 1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    query = tl.load(queries + pooling * width + columns, mask=inside, other=0.0)
    most = float("-inf")
    total = 0.0
    pooled = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(start, stop, TOKENS):
        tokens = first + tl.arange(0, TOKENS)
        there = tokens < stop
        places = tokens[:, None].to(tl.int64) * width + columns[None, :]
        tile = tl.load(states + places, mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)
        logits = tl.sum(tile * query[None, :], axis=1) + tl.load(bias + pooling * num_tokens + tokens, mask=there, other=0.0)
        logits = tl.where(there, logits, float("-inf"))
        highest = tl.maximum(most, tl.max(logits, axis=0))
        weights = tl.exp(logits - highest)
        kept = tl.exp(most - highest)
        pooled = pooled * kept + tl.sum(tile * weights[:, None], axis=0)
        total = total * kept + tl.sum(weights, axis=0)
        most = highest
    tl.store(out + tl.program_id(0).to(tl.int64) * width + columns, pooled / total, mask=inside)


def add_norm(
    product_NH: Tensor, bias_H: Tensor, residual_NH: Tensor, weight_H: Tensor, shift_H: Tensor, eps: float, has_codes: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return LayerNorm(product + bias + residual), and if asked its float8 codes with a scale a row, (N, 1)."""
    num_rows, width = product_NH.shape
    out_NH = torch.empty_like(residual_NH)
    codes_NH, scales_N1 = _empty_codes(out_NH) if has_codes else (None, None)
    block = triton.next_power_of_2(width)
    _add_norm[(num_rows,)](
        product_NH,
        bias_H,
        residual_NH,
        weight_H,
        shift_H,
        out_NH,
        codes_NH,
        scales_N1,
        width,
        eps,
        LARGEST_CODE,
        LEAST_SCALE,
        HAS_CODES=has_codes,
        BLOCK=block,
        num_warps=_num_warps(block),
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
        num_warps=_num_warps(block),
    )
    return codes_NI, scales_N1


def pool_segments(states_TH: Tensor, bounds_S: Tensor, queries_PH: Tensor, bias_PT: Tensor) -> Tensor:
    """Return each segment's states averaged by softmax(query · state + bias), in float32: (B, P, H)."""
    (num_tokens, width), num_poolings = states_TH.shape, len(queries_PH)
    num_segments = len(bounds_S) - 1
    out_BPH = torch.empty((num_segments, num_poolings, width), dtype=torch.float32, device=states_TH.device)
    block = triton.next_power_of_2(width)
    _pool[(num_segments * num_poolings,)](
        states_TH.contiguous(),
        queries_PH.contiguous(),
        bias_PT.contiguous(),
        bounds_S,
        out_BPH,
        width,
        num_tokens,
        POOLINGS=num_poolings,
        TOKENS=_TOKENS,
        BLOCK=block,
        num_warps=_num_warps(block * 2),
    )
    return out_BPH


def _empty_codes(rows_NI: Tensor) -> tuple[Tensor, Tensor]:
    codes_NI = torch.empty(rows_NI.shape, dtype=torch.float8_e4m3fn, device=rows_NI.device)
    return codes_NI, torch.empty((rows_NI.shape[0], 1), dtype=torch.float32, device=rows_NI.device)


def _num_warps(block: int) -> int:
    """Return the warps that leave each thread eight components: sixteen bytes in half precision."""
    return min(16, max(1, block // 256))

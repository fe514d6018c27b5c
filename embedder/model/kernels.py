"""Kernels in Triton: pooling of segments that reads states once, and the pooled states of an exit split for tensor cores.

Import this module only where Triton is installed: on a GPU it comes with torch. TRITON_INTERPRET=1 runs the kernels on a CPU.

H = hidden size, T = tokens, S = bounds of segments, B = segments, P = poolings, Q = queries. F = pooled components of all layers.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

from embedder.model.attention_pooling import UNQUERIED
from embedder.model.layer_kernels import count_warps

QUERIES = (2, 4)
"""Poolings of an exit that read the states through a query."""
CHUNK = 64
"""Tokens that one program pools."""
_TOKENS = 8
"""Tokens that pooling reads at a time."""
_SEARCHED = 1024
"""Bounds that pooling searches at a time."""


# fmt: off
@triton.jit
def _attend_tile(tile, logits, bias, most, total, pooled, tokens, present):
    # one step of an online softmax
    logits = tl.where(present, logits + tl.load(bias + tokens, mask=present, other=0.0), float("-inf"))
    highest = tl.maximum(most, tl.max(logits, axis=0))
    weights = tl.exp(logits - highest)
    kept = tl.exp(most - highest)
    return highest, total * kept + tl.sum(weights, axis=0), pooled * kept + tl.sum(tile * weights[:, None], axis=0)


@triton.jit
def _store_part(
    out, parts, sums, slot, segment, pooling, columns, inside, width, most, total, pooled, is_whole, POOLINGS: tl.constexpr
):
    if is_whole:
        tl.store(out + (segment.to(tl.int64) * POOLINGS + pooling) * width + columns, pooled / total, mask=inside)
    else:
        number = slot.to(tl.int64) * POOLINGS + pooling
        tl.store(parts + number * width + columns, pooled, mask=inside)
        tl.store(sums + number * 2, most)
        tl.store(sums + number * 2 + 1, total)


@triton.jit
def _pool(
    states,
    queries,
    bias,
    bounds,
    out,
    parts,
    sums,
    width,
    num_tokens,
    num_segments,
    POOLINGS: tl.constexpr,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    SEARCHED: tl.constexpr,
):
    # segment s owns the slots from bounds[s] // CHUNK + s; a slot is a chunk of its tokens, or empty
    slot = tl.program_id(0)
    segment = -1
    for first in range(0, num_segments, SEARCHED):
        numbers = first + tl.arange(0, SEARCHED)
        starts = tl.load(bounds + numbers, mask=numbers < num_segments, other=0)
        segment += tl.sum(((numbers < num_segments) & (starts // CHUNK + numbers <= slot)).to(tl.int32), axis=0)
    segment_start, segment_stop = tl.load(bounds + segment), tl.load(bounds + segment + 1)
    start = segment_start + (slot - segment_start // CHUNK - segment) * CHUNK
    stop = tl.minimum(start + CHUNK, segment_stop)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    query2 = tl.load(queries + columns, mask=inside, other=0.0)
    query3 = tl.load(queries + width + columns, mask=inside, other=0.0)
    nothing = tl.zeros([BLOCK], dtype=tl.float32)
    most0, total0, pooled0 = float("-inf"), 0.0, nothing
    most1, total1, pooled1 = float("-inf"), 0.0, nothing
    most2, total2, pooled2 = float("-inf"), 0.0, nothing
    most3, total3, pooled3 = float("-inf"), 0.0, nothing
    if POOLINGS == 6:
        query4 = tl.load(queries + 2 * width + columns, mask=inside, other=0.0)
        query5 = tl.load(queries + 3 * width + columns, mask=inside, other=0.0)
        most4, total4, pooled4 = float("-inf"), 0.0, nothing
        most5, total5, pooled5 = float("-inf"), 0.0, nothing
    for first in range(start, stop, TOKENS):
        tokens = first + tl.arange(0, TOKENS)
        present = tokens < stop
        offsets = tokens[:, None].to(tl.int64) * width + columns[None, :]
        tile = tl.load(states + offsets, mask=present[:, None] & inside[None, :], other=0.0).to(tl.float32)
        most0, total0, pooled0 = _attend_tile(tile, 0.0, bias, most0, total0, pooled0, tokens, present)
        most1, total1, pooled1 = _attend_tile(tile, 0.0, bias + num_tokens, most1, total1, pooled1, tokens, present)
        logits2 = tl.sum(tile * query2[None, :], axis=1)
        most2, total2, pooled2 = _attend_tile(tile, logits2, bias + 2 * num_tokens, most2, total2, pooled2, tokens, present)
        logits3 = tl.sum(tile * query3[None, :], axis=1)
        most3, total3, pooled3 = _attend_tile(tile, logits3, bias + 3 * num_tokens, most3, total3, pooled3, tokens, present)
        if POOLINGS == 6:
            logits4 = tl.sum(tile * query4[None, :], axis=1)
            most4, total4, pooled4 = _attend_tile(tile, logits4, bias + 4 * num_tokens, most4, total4, pooled4, tokens, present)
            logits5 = tl.sum(tile * query5[None, :], axis=1)
            most5, total5, pooled5 = _attend_tile(tile, logits5, bias + 5 * num_tokens, most5, total5, pooled5, tokens, present)
    if start < stop:
        is_whole = segment_stop - segment_start <= CHUNK
        _store_part(out, parts, sums, slot, segment, 0, columns, inside, width, most0, total0, pooled0, is_whole, POOLINGS)
        _store_part(out, parts, sums, slot, segment, 1, columns, inside, width, most1, total1, pooled1, is_whole, POOLINGS)
        _store_part(out, parts, sums, slot, segment, 2, columns, inside, width, most2, total2, pooled2, is_whole, POOLINGS)
        _store_part(out, parts, sums, slot, segment, 3, columns, inside, width, most3, total3, pooled3, is_whole, POOLINGS)
        if POOLINGS == 6:
            _store_part(out, parts, sums, slot, segment, 4, columns, inside, width, most4, total4, pooled4, is_whole, POOLINGS)
            _store_part(out, parts, sums, slot, segment, 5, columns, inside, width, most5, total5, pooled5, is_whole, POOLINGS)


@triton.jit
def _combine(parts, sums, bounds, out, width, POOLINGS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    segment, pooling = tl.program_id(0).to(tl.int64) // POOLINGS, tl.program_id(0) % POOLINGS
    start, stop = tl.load(bounds + segment), tl.load(bounds + segment + 1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    if stop - start > CHUNK:
        first = start // CHUNK + segment
        most = float("-inf")
        total = 0.0
        pooled = tl.zeros([BLOCK], dtype=tl.float32)
        for slot in range(first, first + tl.cdiv(stop - start, CHUNK)):
            number = slot * POOLINGS + pooling
            part_most = tl.load(sums + number * 2)
            highest = tl.maximum(most, part_most)
            kept, added = tl.exp(most - highest), tl.exp(part_most - highest)
            pooled = pooled * kept + tl.load(parts + number * width + columns, mask=inside, other=0.0) * added
            total = total * kept + tl.load(sums + number * 2 + 1) * added
            most = highest
        tl.store(out + (segment * POOLINGS + pooling) * width + columns, pooled / total, mask=inside)


@triton.jit
def _normalize_split(states, out, width, num_blocks, num_features, BLOCK: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64) // num_blocks, tl.program_id(0) % num_blocks
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    features = block * width + columns
    state = tl.load(states + row * num_features + features, mask=inside, other=0.0)
    state = state / tl.maximum(tl.sqrt_rn(tl.sum(state * state, axis=0)), 1e-12)
    high = state.to(out.dtype.element_ty)
    low = (state - high.to(tl.float32)).to(out.dtype.element_ty)
    place = out + row * 3 * num_features + features
    tl.store(place, high, mask=inside)
    tl.store(place + num_features, low, mask=inside)
    tl.store(place + 2 * num_features, high, mask=inside)
# fmt: on


def pool_segments(states_TH: Tensor, bounds_S: Tensor, longest: int, queries_QH: Tensor, bias_PT: Tensor) -> Tensor:
    """Return each segment's states averaged by softmax(bias), and by softmax(query · state + bias) for the last Q, in float32: (B, P, H).

    Each program pools one chunk of a segment, so that long segments do not run on few multiprocessors; a second kernel combines chunks.
    """
    (num_tokens, width), num_segments, num_poolings = states_TH.shape, len(bounds_S) - 1, len(bias_PT)
    assert len(queries_QH) in QUERIES, queries_QH.shape
    assert num_poolings == UNQUERIED + len(queries_QH), (bias_PT.shape, queries_QH.shape)
    out_BPH = torch.empty((num_segments, num_poolings, width), dtype=torch.float32, device=states_TH.device)
    num_slots = (num_tokens - 1) // CHUNK + num_segments
    has_parts = longest > CHUNK
    parts = out_BPH.new_empty((num_slots if has_parts else 0, num_poolings, width))
    sums = out_BPH.new_empty((num_slots if has_parts else 0, num_poolings, 2))
    block = triton.next_power_of_2(width)
    _pool[(num_slots,)](
        states_TH.contiguous(),
        queries_QH.contiguous(),
        bias_PT.contiguous(),
        bounds_S,
        out_BPH,
        parts,
        sums,
        width,
        num_tokens,
        num_segments,
        POOLINGS=num_poolings,
        CHUNK=CHUNK,
        TOKENS=_TOKENS,
        BLOCK=block,
        SEARCHED=_SEARCHED,
        num_warps=count_warps(block),
    )
    if has_parts:
        _combine[(num_segments * num_poolings,)](
            parts, sums, bounds_S, out_BPH, width, POOLINGS=num_poolings, CHUNK=CHUNK, BLOCK=block, num_warps=count_warps(block)
        )
    return out_BPH


def normalize_split(states_BF: Tensor, hidden_size: int) -> Tensor:
    """Return the states with each H components of length 1 as bfloat16 (high, low, high), side by side: (B, 3F)."""
    states_BF = states_BF.contiguous()
    num_rows, num_features = states_BF.shape
    out_BG = torch.empty((num_rows, 3 * num_features), dtype=torch.bfloat16, device=states_BF.device)
    num_blocks, block = num_features // hidden_size, triton.next_power_of_2(hidden_size)
    _normalize_split[(num_rows * num_blocks,)](
        states_BF, out_BG, hidden_size, num_blocks, num_features, BLOCK=block, num_warps=count_warps(block)
    )
    return out_BG

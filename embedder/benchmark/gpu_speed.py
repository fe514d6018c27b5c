"""Steps that measure a GPU: ceilings, memory, throughput by backend and budget, where the time goes, and a peer."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedder.benchmark.check_record import Bench, Item
from embedder.benchmark.random_models import build_exit, draw_rows, least_cosine
from embedder.benchmark.throughput import SHAPES, Shape, build_random_encoder, draw_lengths, flops_of
from embedder.benchmark.timing import time_once, time_sustained
from embedder.model.batches import LayoutName
from embedder.model.encoder import Encoder
from embedder.model.loading import BackendName

TINY = {
    "minilm": Shape(2, 64, 2),
    "bert-base": Shape(2, 64, 2),
    "bert-large": Shape(4, 64, 2),
    "nomic": Shape(1, 64, 2, "nomic_bert", 96),
    "modernbert-base": Shape(2, 64, 2, "modernbert", 96),
    "qwen3-0.6b": Shape(1, 64, 2, "qwen3", 96, key_heads=1, head_width=64),
}
BUDGETS = (65_536, 16_384, 4_096)
PROFILES = ("mixed", "64", "512")
ROUND_TOKENS = 524_288
VOCABULARY = 30_522
Build = Callable[[], Encoder]


def ceilings(bench: Bench) -> Iterator[Item]:
    """Measure copies, large products, and the products of a BERT-large layer."""
    rows = (256,) if bench.is_tiny else (4_096, 16_384, 65_536)
    yield "matrix product", partial(matrix_rates, bench.device, bench.is_tiny)
    yield "copy", partial(measure_copy, bench)
    for count in rows:
        yield f"products of {count} rows", partial(measure_products, bench, count)


@cache
def matrix_rates(device: str, is_tiny: bool = False) -> dict[str, float]:
    """Return TFLOP/s of a large square product in bfloat16: the median of a burst, and sustained, to which clocks fall."""
    size = 256 if is_tiny else 8192
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    burst = time_once(lambda: left @ right, device, 0.01, 5)
    sustained = time_sustained(lambda: left @ right, device, 0.01 if is_tiny else 2.0)
    return {"burst": 2e-12 * size**3 / burst, "sustained": 2e-12 * size**3 / sustained}


def measure_copy(bench: Bench) -> dict[str, float]:
    """Return TB/s of a copy within the device, bytes read and written."""
    source = torch.empty(2**20 if bench.is_tiny else 2**31, dtype=torch.uint8, device=bench.device).random_()
    target = torch.empty_like(source)
    return {"TB/s": 2e-12 * source.numel() / time_once(lambda: target.copy_(source), bench.device)}


def measure_products(bench: Bench, rows: int) -> dict[str, float]:
    """Return TFLOP/s of a layer's products over so many tokens, and of the one that widens with its GELU in the epilogue and after it."""
    width = 64 if bench.is_tiny else 1024
    found: dict[str, float] = {}
    for name, given, taken in (("qkv", 3, 1), ("q", 1, 1), ("up", 4, 1), ("down", 1, 4)):
        states_NI = _draw(bench, rows, taken * width)
        weight_OI, bias_O = _draw(bench, given * width, taken * width), _draw(bench, given * width)
        flops = 2e-12 * rows * given * taken * width**2
        found[name] = flops / time_once(partial(functional.linear, states_NI, weight_OI, bias_O), bench.device, 0.03)
        if name == "up":
            fused = partial(torch._addmm_activation, bias_O, states_NI, weight_OI.t(), use_gelu=True)
            found["up, GELU in epilogue"] = flops / time_once(fused, bench.device, 0.03)
            found["up, then GELU"] = flops / time_once(partial(_widen, states_NI, weight_OI, bias_O), bench.device, 0.03)
    return found


def _widen(states_NI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    return functional.gelu(functional.linear(states_NI, weight_OI, bias_O))


def _draw(bench: Bench, *size: int) -> Tensor:
    return torch.randn(*size, device=bench.device, dtype=torch.bfloat16)


def memory(bench: Bench) -> Iterator[Item]:
    """Find a token budget, and halve one that is too large for the memory allowed."""
    yield "budget", partial(find_budget, bench)
    if bench.device != "cpu":
        yield "halving", partial(halve_budget, bench)


def find_budget(bench: Bench) -> dict[str, Any]:
    """Return what is found for shares of the device."""
    if bench.device == "cpu":
        return {"skipped": "a CPU has no memory of its own"}
    encoder = build(bench, "bert-large", "bfloat16", "packed", depth=2)
    whole, part = encoder.find_token_budget(), encoder.find_token_budget(0.02)
    return {"ok": 1024 <= part <= whole <= 65_536, "whole": whole, "a fiftieth": part}


def halve_budget(bench: Bench) -> dict[str, Any]:
    """Encode with 600 MB to spare and a budget of gigabytes; the vectors must be those of small batches."""
    encoder = build(bench, "bert-base", "bfloat16", "packed", depth=4)
    rows = draw_rows(draw_lengths("mixed", 131_072), VOCABULARY)
    expected_ND = encoder.encode(rows, 4_096).vectors_ND
    _free()
    total = torch.cuda.get_device_properties(bench.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 6e8) / total))
    try:
        encoded = encoder.encode(rows, 131_072)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    cosine = least_cosine(encoded.vectors_ND, expected_ND)
    return {"ok": encoded.token_budget < 131_072 and cosine >= 0.999, "token_budget": encoded.token_budget, "cosine": cosine}


def measure_encoder(bench: Bench, build: Build, shape: Shape, profile: str, token_budget: int, rounds: int = 3) -> dict[str, Any]:
    """Return tokens a second of whole calls of encode, and the arithmetic beside a burst of large products and sustained ones."""
    lengths = draw_lengths(profile, 2_048 if bench.is_tiny else ROUND_TOKENS)
    rows, encoder = draw_rows(lengths, VOCABULARY), build()
    encoder.encode(rows, token_budget)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        encoded = encoder.encode(rows, token_budget)
        seconds.append(time.perf_counter() - started)
    assert np.isfinite(encoded.vectors_ND).all(), "vectors that are not numbers"
    assert encoded.token_budget == token_budget, "the budget was halved"
    taken, rates = statistics.median(seconds), matrix_rates(bench.device, bench.is_tiny)
    teraflops = flops_of(shape, lengths) / taken / 1e12
    return {
        "tokens/s": float(lengths.sum()) / taken,
        "MFU burst": teraflops / rates["burst"],
        "MFU sustained": teraflops / rates["sustained"],
        "TFLOP/s": teraflops,
        "padding": 1 - float(lengths.sum()) / encoded.padded_tokens,
        "spread": (max(seconds) - min(seconds)) / taken,
    }


def build(
    bench: Bench, name: str, dtype: str, layout: LayoutName, backend: BackendName = "torch", depth: int | None = None, is_exit: bool = False
) -> Encoder:
    """Return an encoder of random weights, after memory of earlier ones is freed."""
    _free()
    shape = shape_of(bench, name, depth)
    leave = build_exit(VOCABULARY, shape.layers, shape.hidden_size, "mean") if is_exit else None
    return build_random_encoder(shape, bench.device, dtype, layout, backend, leave)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def shape_of(bench: Bench, name: str, depth: int | None = None) -> Shape:
    """Return the shape of a model, cut to a depth."""
    shape = (TINY if bench.is_tiny else SHAPES)[name]
    return replace(shape, layers=min(depth or shape.layers, shape.layers))


def sweep(
    bench: Bench, name: str, dtype: str, backend: BackendName, layout: LayoutName = "packed", **cut: Any
) -> Callable[..., Iterator[Item]]:
    """Return what yields an item for each of some profiles and budgets, with one encoder for all of them."""
    build_once = cache(partial(build, bench, name, dtype, layout, backend, **cut))
    shape = shape_of(bench, name, cut.get("depth"))
    depth = f" depth {cut['depth']}" if "depth" in cut else ""

    def items(profiles: tuple[str, ...], budgets: tuple[int, ...]) -> Iterator[Item]:
        for profile in profiles:
            for budget in (512,) if bench.is_tiny else budgets:
                label = f"{name}{depth} {dtype} {layout} {profile} {budget}"
                yield label, partial(measure_encoder, bench, build_once, shape, profile, budget)
        build_once.cache_clear()

    return items


def throughput(bench: Bench) -> Iterator[Item]:
    """Measure layers as transformers builds them."""
    yield from sweep(bench, "bert-large", "bfloat16", "torch")(PROFILES, BUDGETS)
    yield from sweep(bench, "bert-large", "bfloat16", "torch", "padded")(("mixed",), (65_536, 16_384))
    for depth in (16, 12, 6):
        yield from sweep(bench, "bert-large", "bfloat16", "torch", depth=depth)(("mixed",), (65_536,))
    yield from sweep(bench, "bert-base", "bfloat16", "torch")(("mixed",), BUDGETS)
    yield from sweep(bench, "minilm", "bfloat16", "torch")(("mixed",), BUDGETS)
    yield from sweep(bench, "bert-large", "float8", "torch")(("mixed",), (65_536, 16_384))


def fused(bench: Bench) -> Iterator[Item]:
    """Measure fused layers."""
    yield from sweep(bench, "bert-large", "bfloat16", "fused")(PROFILES, (*BUDGETS, 32_768, 8_192))
    for depth in (12, 6):
        yield from sweep(bench, "bert-large", "bfloat16", "fused", depth=depth)(("mixed",), (65_536,))
    yield from sweep(bench, "bert-base", "bfloat16", "fused")(("mixed",), BUDGETS)
    yield from sweep(bench, "minilm", "bfloat16", "fused")(("mixed",), BUDGETS)
    yield from sweep(bench, "bert-large", "float8", "fused")(("mixed",), BUDGETS)
    for dtype in ("bfloat16", "float8"):
        yield f"bert-large {dtype} kernels", partial(profile_batch, bench, partial(build, bench, "bert-large", dtype, "packed", "fused"))


def compiled(bench: Bench) -> Iterator[Item]:
    """Measure layers that torch compiled."""
    yield from sweep(bench, "bert-large", "bfloat16", "compiled")(PROFILES, BUDGETS)
    yield from sweep(bench, "bert-large", "float8", "compiled")(("mixed",), (65_536, 16_384))
    yield from sweep(bench, "minilm", "bfloat16", "compiled")(("mixed",), (65_536, 16_384))
    yield "bert-large kernels", partial(profile_batch, bench, partial(build, bench, "bert-large", "bfloat16", "packed", "compiled"))


def profile(bench: Bench) -> Iterator[Item]:
    """List where the time of one batch goes."""
    yield "bert-large kernels", partial(profile_batch, bench, partial(build, bench, "bert-large", "bfloat16", "packed"))
    yield "bert-large float8 kernels", partial(profile_batch, bench, partial(build, bench, "bert-large", "float8", "packed"))
    yield (
        "bert-large exit kernels",
        partial(profile_batch, bench, partial(build, bench, "bert-large", "bfloat16", "packed", depth=6, is_exit=True)),
    )


def profile_batch(bench: Bench, build: Build) -> dict[str, Any]:
    """Return microseconds by kernel of one batch of mixed lengths, and the share of the time that the device was busy."""
    encoder, budget = build(), 512 if bench.is_tiny else 65_536
    rows = draw_rows(draw_lengths("mixed", budget * 9 // 10), VOCABULARY)
    for _ in range(3):
        encoder.encode(rows, budget)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        started = time.perf_counter()
        encoder.encode(rows, budget)
        wall = time.perf_counter() - started
    of_device = bench.device != "cpu"
    rows_of_table = [
        (event.key, event.self_device_time_total if of_device else event.self_cpu_time_total, event.count)
        for event in profiler.key_averages()
        if not of_device or (event.self_device_time_total > 0 and event.self_cpu_time_total == 0)
    ]
    rows_of_table.sort(key=lambda row: -row[1])
    busy = sum(row[1] for row in rows_of_table)
    listed = [{"kernel": name[:120], "microseconds": round(taken), "calls": calls} for name, taken, calls in rows_of_table[:25]]
    return {"wall ms": wall * 1e3, "busy ms": busy / 1e3, "tokens": len(rows.values), "kernels": listed}

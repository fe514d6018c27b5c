"""Steps that measure a GPU: the cost of calibrated exits, and the choice of compute.backend=auto."""

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from embedder.benchmark.check_record import Bench, Item
from embedder.benchmark.gpu_speed import ROUND_TOKENS, VOCABULARY, build
from embedder.benchmark.random_models import draw_rows
from embedder.benchmark.throughput import draw_lengths
from embedder.benchmark.timing import synchronize, time_once
from embedder.calibrate.memory import choose_queries
from embedder.model.attention_pooling import UNQUERIED
from embedder.model.choose_backend import choose_fastest, list_budgets
from embedder.model.encoder import Encoder
from embedder.model.loading import BackendName

BACKENDS: tuple[BackendName, ...] = ("torch", "fused")


def exits(bench: Bench) -> Iterator[Item]:
    """Compare calibrated exits with plain encoders of the same depth, in turn."""
    for name, depth in (("bert-large", 6), ("bert-large", 12), ("minilm", 6)):
        for backend in BACKENDS if bench.device != "cpu" else BACKENDS[:1]:
            yield f"{name} depth {depth} {backend}", partial(compare_exit_cost, bench, name, depth, backend)
    if bench.device != "cpu":
        for width in (1024, 384):
            yield f"pooling kernel {width}", partial(time_pooling, bench, width)


def compare_exit_cost(bench: Bench, name: str, depth: int, backend: BackendName, rounds: int = 4) -> dict[str, float]:
    """Return tokens a second of both, and the ratio of their seconds."""
    plain, leaving = (build(bench, name, "bfloat16", "packed", backend, depth=depth, is_exit=is_exit) for is_exit in (False, True))
    rows = draw_rows(draw_lengths("mixed", 2_048 if bench.is_tiny else ROUND_TOKENS), VOCABULARY)
    return compare_runs(bench, {"plain": plain, "exit": leaving}, rows, 512 if bench.is_tiny else 65_536, rounds)


def compare_runs(bench: Bench, encoders: dict[str, Encoder], rows: Any, token_budget: int, rounds: int) -> dict[str, float]:
    """Return tokens a second by name, and how many times as long as the first the last one takes, A B A B."""
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for number in range(rounds + 1):
        for name, encoder in encoders.items():
            synchronize(bench.device)
            started = time.perf_counter()
            encoder.encode(rows, token_budget)
            if number:
                seconds[name].append(time.perf_counter() - started)
    first, last = (list(seconds.values())[place] for place in (0, -1))
    ratio = statistics.median(b / a for a, b in zip(first, last, strict=True))
    return {**{name: len(rows.values) / statistics.median(taken) for name, taken in seconds.items()}, "ratio": ratio}


def time_pooling(bench: Bench, width: int, num_tokens: int = 65_536) -> dict[str, float]:
    """Return milliseconds to pool one layer of a batch of mixed lengths, and of one of long texts, beside TB/s of states read once."""
    from embedder.model.kernels import pool_segments

    num_queries = choose_queries(width)
    states = torch.randn(num_tokens, width, device=bench.device, dtype=torch.bfloat16)
    queries = torch.randn(num_queries, width, device=bench.device)
    bias = torch.randn(UNQUERIED + num_queries, num_tokens, device=bench.device)
    found: dict[str, float] = {}
    for profile in ("mixed", "64", "512"):
        lengths = np.sort(draw_lengths(profile, num_tokens))[::-1].cumsum()
        lengths = np.concatenate([[0], lengths[lengths < num_tokens], [num_tokens]])
        bounds, longest = torch.tensor(lengths, dtype=torch.int32, device=bench.device), int(np.diff(lengths).max())
        seconds = time_once(partial(pool_segments, states, bounds, longest, queries, bias), bench.device)
        found |= {f"{profile} ms": 1e3 * seconds, f"{profile} TB/s": 1e-12 * states.nbytes / seconds}
    return found


def rotary(bench: Bench) -> Iterator[Item]:
    """Time layers with rotated heads, plain and fused."""
    for name in ("nomic", "modernbert-base", "qwen3-0.6b"):
        for token_budget in (512,) if bench.is_tiny else (65_536, 16_384):
            yield f"{name} {token_budget}", partial(compare_backends, bench, name, token_budget)


def compare_backends(bench: Bench, name: str, token_budget: int) -> dict[str, float]:
    """Return tokens a second of plain and fused layers, and the ratio of their seconds."""
    plain, changed = (build(bench, name, "bfloat16", "packed", backend) for backend in ("torch", "fused"))
    rows = draw_rows(draw_lengths("mixed", 2_048 if bench.is_tiny else ROUND_TOKENS), VOCABULARY)
    return compare_runs(bench, {"torch": plain, "fused": changed}, rows, token_budget, 2)


def auto(bench: Bench) -> Iterator[Item]:
    """Report the choice of compute.backend=auto by model."""
    for name in ("bert-large", "minilm"):
        yield name, partial(report_choice, bench, name)


def report_choice(bench: Bench, name: str) -> dict[str, Any]:
    """Return the backend and token budget that auto chooses on mixed lengths, and the seconds that it takes to choose."""
    encoder = build(bench, name, "bfloat16", "packed")
    rows = draw_rows(draw_lengths("mixed", 2_048 if bench.is_tiny else ROUND_TOKENS), VOCABULARY)
    if bench.device != "cpu":
        encoder.offer_fused()
    budgets = (512, 256) if bench.is_tiny else list_budgets(encoder.find_token_budget())
    started = time.perf_counter()
    chosen = choose_fastest(encoder, rows, budgets, (name,))
    assert chosen is not None
    return {"backend": chosen.backend, "token_budget": chosen.token_budget, "backends": list(encoder.backends),
            "choosing seconds": time.perf_counter() - started}  # fmt: skip

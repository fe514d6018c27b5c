"""Steps that compare a GPU's vectors with a CPU's in float32: every family, layout and dtype, taps, exits, float8, other backends."""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import torch
import transformers

from embedder.benchmark.check_record import Bench, Item
from embedder.benchmark.random_models import (
    CONFIGS,
    DEPTH,
    build_encoder,
    build_exit,
    draw_rows,
    draw_weighing,
    least_cosine,
    probe_lengths,
)
from embedder.model.batches import LayoutName
from embedder.model.encoder import Encoder
from embedder.model.files.families import FAMILIES
from embedder.model.float8 import use_float8

EXACT, HALF, SAME = 0.9999, 0.99, 0.999
"""Least cosines: of float32 to float32, of half precision to float32, of two ways to compute in half precision."""
FLOAT8_LEAST = 0.98
BUDGET = 2048
PACKAGES = ("torch", "triton", "transformers", "tokenizers", "sentence-transformers", "safetensors", "numpy", "pyarrow", "pydantic")


def env(bench: Bench) -> Iterator[Item]:
    """Describe machine and versions."""
    yield "versions", read_versions
    yield "device", partial(describe_device, bench.device)


def read_versions() -> dict[str, Any]:
    """Return what is installed."""
    found: dict[str, Any] = {"python": platform.python_version(), "cuda": torch.version.cuda, "cpus": os.cpu_count()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found | {"c_compiler": shutil.which("gcc") or shutil.which("clang")}


def describe_device(device: str) -> dict[str, Any]:
    """Return name, memory and clocks of the card."""
    if device == "cpu":
        return {"name": platform.processor() or "cpu"}
    card = torch.cuda.get_device_properties(device)
    query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() if shutil.which("nvidia-smi") else ""
    return {
        "name": card.name,
        "capability": f"{card.major}.{card.minor}",
        "memory_bytes": card.total_memory,
        "multiprocessors": card.multi_processor_count,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        **dict(zip(query.split(","), map(str.strip, told.split(",")), strict=False)),
    }


def rows_of(name: str) -> Any:
    """Return the fixed sequences of a family."""
    return draw_rows(probe_lengths(name), 1000)


def encode_exactly(name: str, depth: int = DEPTH) -> np.ndarray:
    """Return the CPU's vectors in float32."""
    return build_encoder(name, "cpu", torch.float32, "padded", depth).encode(rows_of(name), BUDGET).vectors_ND


def encode_on(bench: Bench, name: str, dtype: torch.dtype, layout: LayoutName) -> np.ndarray:
    """Return the device's vectors."""
    return build_encoder(name, bench.device, dtype, layout).encode(rows_of(name), BUDGET).vectors_ND


def layouts_of(name: str) -> tuple[LayoutName, ...]:
    """Return the layouts that a family runs in."""
    return ("padded", "packed") if FAMILIES[_family(name)].packed else ("padded",)


def parity(bench: Bench) -> Iterator[Item]:
    """Compare every family, in each layout and dtype."""
    for name in _families(bench, CONFIGS):
        yield name, partial(compare_layouts, bench, name)


def compare_layouts(bench: Bench, name: str) -> dict[str, Any]:
    """Return least cosines of a family's vectors."""
    expected_ND = encode_exactly(name)
    family = FAMILIES[_family(name)]
    vectors = {"float32 padded": encode_on(bench, name, torch.float32, "padded")}
    for dtype in [torch.bfloat16, *([torch.float16] if family.float16 else [])]:
        for layout in layouts_of(name):
            vectors[f"{str(dtype).removeprefix('torch.')} {layout}"] = encode_on(bench, name, dtype, layout)
    cosines = {key: least_cosine(found_ND, expected_ND) for key, found_ND in vectors.items()}
    is_ok = all(cosine >= (EXACT if key.startswith("float32") else HALF) for key, cosine in cosines.items())
    if family.packed:
        cosines["packed to padded"] = least_cosine(vectors["bfloat16 packed"], vectors["bfloat16 padded"])
        is_ok = is_ok and cosines["packed to padded"] >= SAME
    return {"ok": is_ok, **cosines}


def taps(bench: Bench) -> Iterator[Item]:
    """Compare pooled states of every depth, and what a calibrated exit gives."""
    for name in ("bert", "modernbert", "qwen3"):
        yield f"taps {name}", partial(compare_taps, bench, name)
        yield f"exit {name}", partial(compare_exit, bench, name)


def compare_taps(bench: Bench, name: str) -> dict[str, Any]:
    """Return least cosines of states pooled for an exit, by depth."""
    depths, weighing = range(DEPTH + 1), draw_weighing(1000, DEPTH, 128)
    expected = build_encoder(name, "cpu", torch.float32, "padded").tap(rows_of(name), BUDGET, depths, weighing)
    cosines: dict[str, float] = {}
    for layout in ("padded", "packed"):
        found = build_encoder(name, bench.device, torch.bfloat16, layout).tap(rows_of(name), BUDGET, depths, weighing)
        cosines[layout] = min(_least_of_blocks(found[depth], expected[depth]) for depth in depths)
    return {"ok": min(cosines.values()) >= HALF, **cosines}


def _least_of_blocks(states_NF: np.ndarray, expected_NF: np.ndarray) -> float:
    return least_cosine(states_NF.reshape(-1, 128), expected_NF.reshape(-1, 128))


def compare_exit(bench: Bench, name: str) -> dict[str, Any]:
    """Return least cosines of vectors out of a calibrated exit at half depth."""
    depth = DEPTH // 2
    leave = build_exit(1000, depth, 128, "last" if name == "qwen3" else "mean")
    expected_ND = build_encoder(name, "cpu", torch.float32, "padded", depth, leave).encode(rows_of(name), BUDGET).vectors_ND
    cosines: dict[str, float] = {}
    for layout in ("padded", "packed"):
        encoder = build_encoder(name, bench.device, torch.bfloat16, layout, depth, leave)
        cosines[layout] = least_cosine(encoder.encode(rows_of(name), BUDGET).vectors_ND, expected_ND)
    return {"ok": min(cosines.values()) >= HALF, **cosines}


def float8(bench: Bench) -> Iterator[Item]:
    """Compare float8 with its emulation on a CPU, which must be nearer than the exact vectors."""
    for name in ("bert", "modernbert", "nomic_bert", "qwen3"):
        yield name, partial(compare_float8, bench, name)


def compare_float8(bench: Bench, name: str) -> dict[str, Any]:
    """Return cosines of one layer in float8."""
    exact_ND = encode_exactly(name, depth=1)
    encoders = [build_encoder(name, device, torch.bfloat16, "packed", depth=1) for device in ("cpu", bench.device)]
    for encoder in encoders:
        use_float8(encoder.layers)
    emulated_ND, found_ND = (encoder.encode(rows_of(name), BUDGET).vectors_ND for encoder in encoders)
    to_exact, to_emulated = (float((found_ND * other_ND).sum(axis=1).mean()) for other_ND in (exact_ND, emulated_ND))
    least = least_cosine(found_ND, exact_ND)
    return {"ok": least >= FLOAT8_LEAST and to_emulated >= to_exact, "least": least, "to exact": to_exact, "to emulated": to_emulated}


KNOWN_WAITS = {
    ("modernbert", "padded"): "transformers' masks read on the host whether there is padding",
    ("qwen3", "padded"): "transformers' masks read on the host whether there is padding",
    ("gemma3_text", "padded"): "transformers' masks copy a part of the sliding window's mask to the device",
    ("mpnet", "padded"): "transformers' MPNet makes its position buckets on the host",
}
"""Waits in transformers itself. These layouts run on a GPU only on request, or for MPNet, which has no packed attention."""


def waits(bench: Bench) -> Iterator[Item]:
    """Queue batches with every wait of the host for the device made an error."""
    for name in ("bert", "modernbert", "qwen3", "gemma3_text", "mpnet"):
        for layout in layouts_of(name):
            yield f"{name} {layout}", partial(queue_without_waiting, bench, name, layout, False)
    yield "bert packed exit", partial(queue_without_waiting, bench, "bert", "packed", True)


def queue_without_waiting(bench: Bench, name: str, layout: LayoutName, is_exit: bool) -> dict[str, Any]:
    """Queue all batches and return their number; if the host would wait, torch raises, and a known wait is returned instead."""
    leave = build_exit(1000, 2, 128, "mean") if is_exit else None
    encoder = build_encoder(name, bench.device, torch.bfloat16, layout, 2 if is_exit else DEPTH, leave)
    encoder.encode(rows_of(name), 600)  # loads kernels, and whatever else happens once
    if bench.device == "cpu":
        return {"batches": encoder.queue(rows_of(name), 600).num_batches}
    torch.cuda.set_sync_debug_mode("error")
    try:
        queued = encoder.queue(rows_of(name), 600)
    except RuntimeError as error:
        if "synchronizing" not in str(error) or (name, layout) not in KNOWN_WAITS:
            raise
        return {"ok": True, "known wait": KNOWN_WAITS[name, layout]}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    queued.fetch()
    return {"ok": True, "batches": queued.num_batches}


def compiled_parity(bench: Bench) -> Iterator[Item]:
    """Compare compiled layers with the same uncompiled, by family; compiling takes seconds each."""
    for name in ("bert", "modernbert", "qwen3", "nomic_bert", "gemma3_text"):
        yield name, partial(compare_changed, bench, name, Encoder.compile_layers)


def fused_parity(bench: Bench) -> Iterator[Item]:
    """Compare fused layers with the same as transformers builds them, in float8 too, and in the taps and exits that read them."""
    for name in ("bert", "bert-narrow-heads", "roberta"):
        yield name, partial(compare_changed, bench, name, Encoder.fuse_layers)
    yield "bert float16", partial(compare_changed, bench, "bert", Encoder.fuse_layers, torch.float16)
    yield "bert float8", partial(compare_fused_float8, bench, "bert")
    yield "bert taps", partial(compare_fused_taps, bench, "bert")


def rotary_parity(bench: Bench) -> Iterator[Item]:
    """Compare fused layers of rotated heads with the same as transformers builds them, and the taps that read them."""
    for name in _families(bench, [name for name in CONFIGS if FAMILIES[_family(name)].fused == "rotary"]):
        yield name, partial(compare_changed, bench, name, Encoder.fuse_layers)
    for name in ("modernbert", "qwen3"):
        yield f"{name} taps", partial(compare_fused_taps, bench, name)


def compare_fused_float8(bench: Bench, name: str) -> dict[str, Any]:
    """Return the least cosines of fused float8 layers to plain float8 ones and to float32."""
    plain, changed = (build_encoder(name, bench.device, torch.bfloat16, "packed") for _ in range(2))
    for encoder in (plain, changed):
        use_float8(encoder.layers)
    changed.fuse_layers()
    expected_ND, found_ND = (encoder.encode(rows_of(name), BUDGET).vectors_ND for encoder in (plain, changed))
    cosines = {"to plain": least_cosine(found_ND, expected_ND), "to float32": least_cosine(found_ND, encode_exactly(name))}
    return {"ok": min(cosines.values()) >= FLOAT8_LEAST, **cosines}


def compare_fused_taps(bench: Bench, name: str) -> dict[str, Any]:
    """Return the least cosine of states pooled out of fused layers to those of plain ones."""
    depths, weighing = range(DEPTH + 1), draw_weighing(1000, DEPTH, 128)
    plain, changed = (build_encoder(name, bench.device, torch.bfloat16, "packed") for _ in range(2))
    expected, found = (encoder.tap(rows_of(name), BUDGET, depths, weighing) for encoder in (plain, changed.fuse_layers()))
    least = min(_least_of_blocks(found[depth], expected[depth]) for depth in depths)
    return {"ok": least >= SAME, "least": least}


def compare_changed(bench: Bench, name: str, change: Callable[[Encoder], Encoder], dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Return the least cosine of layers run another way to the same layers as they were."""
    plain, changed = (build_encoder(name, bench.device, dtype, "packed") for _ in range(2))
    expected_ND = plain.encode(rows_of(name), BUDGET).vectors_ND
    found_ND = change(changed).encode(rows_of(name), BUDGET).vectors_ND
    cosines = {"to plain": least_cosine(found_ND, expected_ND), "to float32": least_cosine(found_ND, encode_exactly(name))}
    return {"ok": cosines["to plain"] >= SAME and cosines["to float32"] >= HALF, **cosines}


def _families(bench: Bench, names: Sequence[str] | dict[str, Any]) -> list[str]:
    present = [name for name in names if hasattr(transformers, CONFIGS[name][0])]  # older versions lack some
    return present[:2] if bench.is_tiny else present


def _family(name: str) -> str:
    return "bert" if name == "bert-narrow-heads" else name

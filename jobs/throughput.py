"""Measure the encoder alone with random weights, on a bare machine: torch, transformers, numpy, pyarrow and pydantic are enough.

python -m jobs.throughput bert-large [--depth 12] [--device cuda] [--dtype float8] [--layout packed] [--backend compiled] [--json]
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from embedder.benchmark.throughput import SHAPES, build_random_encoder, choose_layout, measure_throughput
from embedder.config.cli import run_job
from embedder.model.backends import check_triton


def main(args: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m jobs.throughput", description="Tokens a second and MFU, by profile of lengths.")
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("--depth", type=int, help="layers built; default: all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16", "float8"], default="bfloat16",
                        help="float8: in the layers' linear modules, else bfloat16; MFU is relative to a product in bfloat16")  # fmt: skip
    parser.add_argument("--layout", choices=["padded", "packed"], help="default: packed, but padded for float32 on cuda")
    parser.add_argument("--backend", choices=["torch", "compiled", "fused"], default="torch")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="approximate number per round")
    parser.add_argument("--token-budget", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(args)
    if any(each is not None and each < 1 for each in (options.depth, options.tokens, options.token_budget, options.rounds)):
        parser.error("--depth, --tokens, --token-budget and --rounds: must be 1 or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA here; choose cpu")
    shape = replace(SHAPES[options.model], layers=options.depth or SHAPES[options.model].layers)
    options.layout = choose_layout(options.layout, options.device, options.dtype)
    if options.backend == "fused":
        check_triton(options.layout)
    encoder = build_random_encoder(shape, options.device, options.dtype, options.layout, options.backend)
    found = measure_throughput(encoder, shape, options.dtype, options.tokens, options.token_budget, options.rounds)
    if options.json:
        print(json.dumps({**vars(options), "shape": asdict(shape), "profiles": [asdict(each) for each in found]}))
        return 0
    size = f"{shape.layers} x {shape.hidden_size}"
    print(f"{options.model}, {size}, {options.dtype}, {options.layout}, {options.backend}, on {options.device}")
    if found[0].mfu is None:
        print(f"no MFU: this processor emulates {options.dtype}; try --dtype float32")
    elif options.dtype == "float8":
        print("MFU is relative to a matrix product in bfloat16")
    for each in found:
        mfu = f"  {each.mfu:6.1%} MFU" if each.mfu is not None else ""
        print(f"{each.profile:>6}  {each.tokens_per_second:12,.0f} tokens/s{mfu}  {each.padding:5.1%} padding")
    return 0


if __name__ == "__main__":
    run_job(main)

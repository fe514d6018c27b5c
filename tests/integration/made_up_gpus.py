"""A run for GPUs on a cluster with simulated GPUs: each stage records where it ran, and CPUs compute.

python -m tests.integration.made_up_gpus FOLDER FLAG…     (flags as for jobs.embed, for device cuda)
"""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ray

import embedder.pipeline.graph
import embedder.run.embed
from embedder.config.compute import ComputeConfig
from embedder.pipeline.actors import EncoderActor
from embedder.pipeline.cluster import choose_pool
from embedder.pipeline.graph import prepare_tasks, write_unit
from embedder.pipeline.pool import Pool
from embedder.pipeline.rows import EncodedRow, LandedRow, PreparedRow, StageContext, TasksRow
from jobs.embed import main

# definitions of the main script are pickled by value for the workers, this one included
FOLDER = sys.argv[1] if __name__ == "__main__" else ""


def note(stage: str) -> None:
    """Write a file named by stage, node, GPUs held and process."""
    gpus = "+".join(map(str, ray.get_gpu_ids())) or "none"
    Path(FOLDER, f"{stage} {ray.get_runtime_context().get_node_id()} {gpus} {os.getpid()}").touch()


def prepare(row: TasksRow, context: StageContext) -> Iterator[PreparedRow]:
    note("read")
    yield from prepare_tasks(row, context)


class Encode(EncoderActor):
    inside = 0

    def __call__(self, row: PreparedRow) -> EncodedRow:
        """Record the call, and whether another one ran beside it."""
        note("encode")
        self.inside += 1
        time.sleep(0.2)  # as long as a device takes, so that the next call starts
        if self.inside == 2:
            note("side-by-side")
        self.inside -= 1
        return super().__call__(row)


def write(row: EncodedRow, context: StageContext) -> LandedRow:
    note("write")
    return write_unit(row, context)


def choose(compute: ComputeConfig, is_api: bool = False) -> Pool:
    """Keep the layout, but compute on the CPU."""
    return replace(choose_pool(compute, is_api), device="cpu", dtype="float32", token_budget=4_096, layout="padded")


if __name__ == "__main__":
    embedder.run.embed.choose_pool = choose
    embedder.pipeline.graph.prepare_tasks = prepare
    embedder.pipeline.graph.write_unit = write
    embedder.pipeline.graph.EncoderActor = Encode
    sys.exit(main(sys.argv[2:]))

"""The same stages one after the other in this process: for a small corpus on one CPU machine, the start of Ray takes longer than the work.

A document that kills the encoder kills the run. Its mark stays, and the next run takes Ray, whose workers isolate the document.
A calibration runs here wherever there is one encoder, since each of its steps would wait for a worker to start.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import pyarrow as pa

from embedder.config.compute import ComputeConfig
from embedder.config.embed import EmbedConfig
from embedder.core.columns import Shards
from embedder.core.plan import Plan
from embedder.core.spec import EmbeddingSpec
from embedder.core.units import Shard, Task
from embedder.pipeline.actors import EncoderActor
from embedder.pipeline.pool import Pool, lay_out_pool
from embedder.pipeline.rows import LandedRow, StageContext
from embedder.pipeline.stages import prepare_units, task_row, write_unit
from embedder.pipeline.tap_actor import (
    TapActor,
    TappedUnit,
    Tapping,
    Units,
    count_documents,
    make_rows,
    read_tapped,
    sum_counts,
    tokenize_documents,
)
from embedder.table.attempts import Attempts
from embedder.text.token_idf import Counts

Step = TypeVar("Step")

MOST_BYTES = 2 << 20
"""Of text to read: some thousand documents."""
RATIO = 4
"""Of text to its compressed bytes."""


def suits(config: EmbedConfig, listed: Iterable[Shard]) -> bool:
    """Return whether a run needs no Ray: little to read, on one CPU machine, without marks of units that killed a worker."""
    shards = Shards.of(listed)
    text_bytes = shards.sizes.sum() + (RATIO - 1) * shards.compressed_bytes
    if text_bytes > MOST_BYTES or config.embedding.is_api or not is_alone(config.compute):
        return False
    return not Attempts.listed(config.output.location).any


def is_alone(compute: ComputeConfig) -> bool:
    """Return whether there is one encoder, on the CPUs of this machine: no cluster named or joined, no GPU, no other settings."""
    if os.environ.get("RAY_ADDRESS") or is_ray_running() or compute.actors not in (None, (1, 1)):
        return False
    return compute.device == "cpu" or (compute.device == "auto" and not _has_gpu())


def is_ray_running() -> bool:
    """Return whether this process started Ray or joined a cluster."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _has_gpu() -> bool:
    from embedder.model.runtime import has_gpu  # imports torch

    return has_gpu()


def choose_pool(compute: ComputeConfig) -> Pool:
    """Return one actor with all CPUs of this process."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return lay_out_pool(compute, [{"CPU": float(cpus)}])


def embed_units(tasks: Iterable[Task], plan: Plan, context: StageContext, pool: Pool) -> Iterator[LandedRow]:
    """Read, embed and write the units of all tasks, in their order; see `graph.embed_units`."""
    actor = EncoderActor(context, pool)
    for task in tasks:
        for unit in prepare_units(task_row(task, plan), context):
            yield write_unit(actor(unit), context)


def run_steps(steps: Callable[..., Iterator[Step]], args: Sequence[object], _pool: Pool) -> Iterator[Step]:
    """Run a generator; see `graph.run_steps`."""
    return steps(*args)


def count_units(units: Sequence[pa.Table], spec: EmbeddingSpec, tokenizer_json: str, vocab_size: int, _pool: Pool) -> tuple[int, Counts]:
    """Tokenize and count the units of a calibration; see `calibration_graph.count_units`."""
    rows = make_rows([("fitted", unit) for unit in units])
    return sum_counts((count_documents(row, spec, tokenizer_json, vocab_size) for row in rows), vocab_size)


def tap_units(units: Units, tapping: Tapping, pool: Pool) -> Iterator[TappedUnit]:
    """Tap the units of a calibration, in their order; see `calibration_graph.tap_units`."""
    actor = TapActor(tapping, pool)
    for row in make_rows(units):
        yield read_tapped(actor(tokenize_documents(row, tapping)), tapping)

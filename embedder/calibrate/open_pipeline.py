"""Chooses where a calibration computes: in this process where there is one encoder, else on Ray."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from embedder.config.compute import ComputeConfig
from embedder.core.spec import EmbeddingSpec
from embedder.pipeline import in_process
from embedder.pipeline.pool import Pool, RunSteps
from embedder.pipeline.tap_actor import TappedUnit, Tapping, Units
from embedder.text.token_idf import Counts


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The encoder actors, and the functions that count and tap units and run single steps."""

    pool: Pool
    count_units: Callable[[Sequence[pa.Table], EmbeddingSpec, str, int, Pool], tuple[int, Counts]]
    tap_units: Callable[[Units, Tapping, Pool], Iterator[TappedUnit]]
    run_steps: RunSteps
    is_local: bool
    """Whether all runs in this process, so that what a step yields is at hand for the next one."""


def open_pipeline(compute: ComputeConfig) -> Pipeline:
    """Return the pipeline of a calibration."""
    if in_process.is_alone(compute):
        pool = in_process.choose_pool(compute)
        return Pipeline(pool, in_process.count_units, in_process.tap_units, in_process.run_steps, is_local=True)
    from embedder.pipeline import calibration_graph, cluster, graph

    cluster.start_ray()
    pool = cluster.choose_pool(compute)
    return Pipeline(pool, calibration_graph.count_units, calibration_graph.tap_units, graph.run_steps, is_local=False)

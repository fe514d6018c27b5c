"""Chooses where a run computes: in this process if that suits, else on Ray."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from embedder.core.plan import Plan
from embedder.core.units import Task
from embedder.observe.metrics import Sample
from embedder.pipeline import in_process
from embedder.pipeline.pool import Pool, RunSteps
from embedder.pipeline.rows import LandedRow, StageContext
from embedder.run.prepare import RunPlan

EmbedUnits = Callable[[Iterable[Task], Plan, StageContext, Pool], Iterator[LandedRow]]
Report = Callable[[Iterable[Sample]], None]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The encoder actors, the functions that run stages and single steps, and the receiver of metrics."""

    pool: Pool
    embed_units: EmbedUnits
    run_steps: RunSteps
    report: Report


def open_pipeline(run_plan: RunPlan, run_id: str, stack: ExitStack) -> Pipeline:
    """Return the pipeline of a run. Ray Data's settings are this run's own until the stack is closed."""
    config, read = run_plan.config, run_plan.plan.read
    if in_process.suits(config, read.all_shards):
        pool = in_process.choose_pool(config.compute).suited_to(read.size_bytes)
        return Pipeline(pool, in_process.embed_units, in_process.run_steps, lambda _: None)
    from embedder.pipeline import cluster, graph

    stack.enter_context(cluster.own_data_context())
    cluster.start_ray()
    pool = cluster.choose_pool(config.compute, run_plan.spec.is_api).suited_to(read.size_bytes)
    reporter = cluster.Reporter({"table": config.output.uri, "run_id": run_id})
    return Pipeline(pool, graph.embed_units, graph.run_steps, reporter.report)

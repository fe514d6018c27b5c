"""The Ray Data graph: tasks are read into units, units are encoded on actors, and encoded units are written as parts.

One row is one unit: Ray can neither split nor merge it, an empty unit survives, and the encoder's stage needs no batch
size. The first stage is a generator, so a unit is encoded while the next one is read. For a large fleet a row is several units, since
the driver spends as long on each row; toward the end of a run rows hold fewer, so that a slow actor keeps no others waiting.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.data._internal.block_batching.iter_batches import BatchIterator
from ray.exceptions import RayError

from embedder.core.errors import EmbedderError
from embedder.core.plan import Plan, batch_tasks
from embedder.core.units import Task
from embedder.pipeline.actors import EncoderActor
from embedder.pipeline.pool import Pool, choose_units
from embedder.pipeline.rows import LandedRow, Row, StageContext, TasksRow
from embedder.pipeline.stages import prepare_tasks, tasks_row, write_unit
from embedder.table.hash_index import NO_INDEX

Stage = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function or an actor's class, and its arguments besides rows."""

Step = TypeVar("Step")

_RAYS_ADVICE = "\nFailed to apply UDF"
"""Start of the debugging advice that Ray appends to the message of an error."""


def embed_units(tasks: Iterable[Task], plan: Plan, context: StageContext, pool: Pool) -> Iterator[LandedRow]:
    """Read, embed and write the units of all tasks; yield each as it lands, in no order.

    Units whose part is already on storage (`plan.done`) are skipped by the reader, and yielded like the others.
    """
    rows = plan_rows(tasks, plan, pool, context.source.rows_per_unit)
    read: Stage = (prepare_tasks, (context,))
    context = replace(context, index=NO_INDEX)  # up to a gigabyte
    embed: Stage = (EncoderActor, (context, pool))
    if context.spec.is_api:
        from embedder.pipeline.api_actor import ApiActor  # extra openai

        embed = (ApiActor, (context,))
    yield from iterate_units(rows, read, embed, (write_unit, (context,)), pool)


def plan_rows(tasks: Iterable[Task], plan: Plan, pool: Pool, rows_per_unit: int) -> list[TasksRow]:
    """Return a row for each batch of tasks; the less is left to read after it, the fewer units its reader yields a row."""
    rows, left = [], plan.read.size_bytes
    for batch in batch_tasks(tasks, left):
        rows.append(tasks_row(batch, plan, choose_units(pool, left, rows_per_unit)))
        left -= sum(task.size_bytes for task in batch if task.ends)
    return rows


def iterate_units(rows: Sequence[TasksRow], read: Stage, embed: Stage, write: Stage, pool: Pool) -> Iterator[Any]:
    """Run the stages, each of which takes and returns a unit, over rows of as many units as the rows of tasks ask for."""
    if all(row["size"] == 1 for row in rows):
        yield from iterate(connect(rows, read, embed, write, pool))
        return
    for row in iterate(connect(rows, (gather_units, read), (EachUnit, embed), (map_units, write), pool)):
        yield from row["units"]


def gather_units(row: TasksRow, read: Callable[..., Iterator[Row]], args: Sequence[object]) -> Iterator[Row]:
    """Yield the units of a row of tasks, some in each row."""
    units = read(row, *args)
    while some := [*islice(units, row["size"])]:
        yield {"units": some}


class EachUnit:
    """Holds an actor, which takes the units of a row one after the other."""

    def __init__(self, actor: Callable[..., Callable[[Row], Row]], args: Sequence[object]) -> None:
        self._actor = actor(*args)

    def __call__(self, row: Row) -> Row:
        """Return the row of what the actor makes of its units."""
        return {"units": [self._actor(unit) for unit in row["units"]]}


def map_units(row: Row, function: Callable[..., Row], args: Sequence[object]) -> Row:
    """Return the row of what a function makes of its units."""
    return {"units": [function(unit, *args) for unit in row["units"]]}


def iterate(graph: Dataset) -> Iterator[Any]:
    """Run a graph and yield its rows as they arrive; an error of a worker is raised as it was raised there.

    Ray prints the death of a worker on stdout, whatever its log settings. It is redirected: stdout is for the job's result.
    """
    try:
        with redirect_stdout(sys.stderr), _without_statistics():
            for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from batch.to_pylist()
    except RayError as error:
        raise find_cause(error) from error


@contextmanager
def _without_statistics() -> Iterator[None]:
    """Keep Ray from pickling the statistics of all blocks so far every five seconds, for metrics of its own."""
    seconds = BatchIterator.UPDATE_METRICS_INTERVAL_S
    BatchIterator.UPDATE_METRICS_INTERVAL_S = math.inf
    try:
        yield
    finally:
        BatchIterator.UPDATE_METRICS_INTERVAL_S = seconds


def connect(rows: Sequence[Row], read: Stage, embed: Stage, write: Stage, pool: Pool) -> Dataset:
    """Connect a generator of rows, an actor, and a last function for each row."""
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .flat_map(read[0], fn_args=read[1], num_cpus=pool.reader_cpus)
        .map(embed[0], fn_constructor_args=embed[1], **actor_options(pool))
        .map(write[0], fn_args=write[1], num_cpus=pool.reader_cpus / 4)
    )


def actor_options(pool: Pool) -> dict[str, Any]:
    """Return Ray's options for the pool: number of actors, their resources, and calls at a time."""
    actors = ActorPoolStrategy(
        min_size=pool.actors[0],
        max_size=pool.actors[1],
        initial_size=pool.initial,
        # Ray's default is twice as many: on a slow node they would wait behind others while fast nodes have none left
        max_tasks_in_flight_per_actor=pool.calls,
        max_concurrent_calls_per_actor=pool.calls,
        enable_true_multi_threading=pool.calls > 1,
    )
    return {"compute": actors, "num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus or None}


def run_steps(steps: Callable[..., Iterator[Step]], args: Sequence[object], pool: Pool) -> Iterator[Step]:
    """Run a generator with the resources of an encoder actor, and yield its values as they arrive."""
    remote = ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus or None, max_retries=0)(steps)
    try:
        for reference in remote.remote(*args):
            yield ray.get(reference)
    except RayError as error:
        raise find_cause(error) from error


def find_cause(error: BaseException) -> BaseException:
    """Return our own error that Ray wrapped, without Ray's advice; any other error is returned as it is."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None)
        if inner is None and isinstance(cause, EmbedderError):
            return type(cause)(str(cause).partition(_RAYS_ADVICE)[0])
        cause = inner if isinstance(inner, BaseException) else cause.__cause__
    return error

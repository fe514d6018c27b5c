"""The Ray Data graph: tasks are read into units, units are encoded on actors, parts are written. The only ray import.

One row is one unit: Ray can neither split nor merge it, an empty unit survives, and the encoder's stage needs no batch
size. A task's reader is a generator, so a unit is encoded while the next one is read.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.exceptions import RayError

from embedder.core.errors import EmbedderError
from embedder.core.plan import Plan
from embedder.core.units import Part, Stats, Task
from embedder.pipeline.actors import EncoderActor
from embedder.pipeline.pool import Pool
from embedder.pipeline.rows import Row, StageContext
from embedder.pipeline.stages import prepare_units, task_row, write_unit

Stage = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function or an actor's class, and what it is called or made with besides rows."""

_RAYS_ADVICE = "\nFailed to apply UDF"
"""Ray appends to whatever a worker raises how to make Ray repeat it."""


@dataclass(frozen=True, slots=True)
class Landed:
    """What became of one unit (`part`), or of one task that could not be read to its end (`error`)."""

    key: str
    part: Part | None
    error: str | None
    reasons: Mapping[str, int]
    probe: tuple[float, ...] | None
    attempt: int = 1
    """Counted from 1 over the workers that it took down, in earlier runs too."""
    tokens: int = 0
    """Embedded in this run: none of a part that was on storage already."""
    broken: tuple[str, ...] = ()
    """Of a bucket that failed: its shards that cannot be read."""


def embed_units(tasks: Sequence[Task], plan: Plan, context: StageContext, pool: Pool) -> Iterator[Landed]:
    """Read, embed and write the units of all tasks; yield each as it lands, in no order.

    Units whose part is on storage already (`plan.done`) are read past, and reported like the others. What a
    worker raises comes out as it was raised there.
    """
    for row in iterate(build_graph(tasks, plan, context, pool)):
        yield landed(row)


def iterate(graph: Dataset) -> Iterator[Row]:
    """Run a graph and give its rows as they come; what a worker raises comes out as it was raised there.

    Ray says on stdout when a worker dies, whatever its log settings; stdout is for what a job was asked for.
    """
    try:
        with redirect_stdout(sys.stderr):
            for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from batch.to_pylist()
    except RayError as error:
        raise find_cause(error) from error


def build_graph(tasks: Sequence[Task], plan: Plan, context: StageContext, pool: Pool) -> Dataset:
    """Lay out the three stages, without running them."""
    return connect(
        [task_row(task, plan) for task in tasks], (prepare_units, (context,)), choose_actor(context, pool), (write_unit, (context,)), pool
    )


def connect(rows: Sequence[Row], read: Stage, embed: Stage, write: Stage, pool: Pool) -> Dataset:
    """Connect what makes rows of one, an actor, and what ends each row."""
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .flat_map(read[0], fn_args=read[1], num_cpus=pool.reader_cpus)
        .map(embed[0], fn_constructor_args=embed[1], **ask_for(pool))
        .map(write[0], fn_args=write[1], num_cpus=pool.reader_cpus / 4)
    )


def ask_for(pool: Pool) -> dict[str, Any]:
    """Say to Ray how many actors there are to be, what each holds, and how many calls each takes at a time."""
    actors = ActorPoolStrategy(
        min_size=pool.actors[0],
        max_size=pool.actors[1],
        initial_size=pool.initial,
        max_concurrent_calls_per_actor=pool.calls,
        enable_true_multi_threading=pool.calls > 1,
    )
    return {"compute": actors, "num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus or None}


def choose_actor(context: StageContext, pool: Pool) -> tuple[type[Any], tuple[Any, ...]]:
    """Choose what embeds, and what it is made from."""
    if not context.spec.is_api:
        return EncoderActor, (context, pool)
    from embedder.pipeline.api_actor import ApiActor  # extra openai

    return ApiActor, (context,)


def find_cause(error: BaseException) -> BaseException:
    """Find our own error in what Ray wraps around it; what is not ours stays as it is."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None)
        if inner is None and isinstance(cause, EmbedderError):
            return type(cause)(str(cause).partition(_RAYS_ADVICE)[0])
        cause = inner if isinstance(inner, BaseException) else cause.__cause__
    return error


def landed(row: Row) -> Landed:
    """Read what the last stage says of a unit."""
    part = json.loads(row["part"]) if row["part"] else None
    probe = tuple(np.frombuffer(row["probe"], np.float32).tolist()) if row["probe"] else None
    return Landed(
        key=row["key"],
        part=Part(**{**part, "stats": Stats(**part["stats"])}) if part else None,
        error=row["error"],
        broken=tuple(json.loads(row["broken"])),
        reasons=json.loads(row["reasons"]),
        probe=probe,
        attempt=row["attempt"],
        tokens=row["tokens"],
    )

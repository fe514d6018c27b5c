"""Settings and the cluster's nodes → the number of encoder actors, and the resources that each holds."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from embedder.config.compute import CPU_TOKENS, Backend, ComputeConfig, Layout
from embedder.core.errors import ConfigError

Step = TypeVar("Step")

API_ACTORS = 4
"""Default number of requests in flight; each takes some seconds."""
API_ACTOR_CPUS = 0.1
"""An actor behind an API mostly waits."""
GPU_CALLS = 2
"""Units in an actor on a GPU at a time. With one, a device that takes 1 s for a unit of 8,192 documents waits 0.1 s for the next."""
CONVERSION_BYTES = 250_000
"""Source bytes from which converting a model for OpenVINO pays. For MiniLM on two cores it takes 1.5 to 3 s and then saves a seventh of
the time: it pays from 400,000 bytes of text, or a quarter as many compressed. Larger models take longer, and gain more per byte."""
ROWS_A_SECOND, MOST_ROWS_A_SECOND = 16, 64
"""That a driver is given, and toward the end of a run: each costs it some 20 ms of one core. An encoder on a GPU may take a second for a
unit."""
MOST_UNITS = 16
"""Of a row: some 60 MB each, and an actor holds two rows."""
UNIT_ROWS = 8192
"""Documents that these units have. Of larger ones, which take an encoder longer, a row holds fewer."""
LEAST_ROWS = 12
"""Of what is left for each actor: with two rows in an actor five times as slow as the others, all end together."""
UNIT_BYTES = 16 << 20
"""Of the source in a unit, roughly."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Encoder actors, and the resources of each."""

    device: str
    dtype: str
    token_budget: int | None
    """None: each actor chooses its own by the free memory of its device."""
    actors: tuple[int, int]
    """Fewest and most."""
    num_gpus: float
    num_cpus: float
    threads: int
    reader_cpus: float
    layout: Layout = "auto"
    backend: Backend = "auto"
    initial: int | None = None
    """Actors at the start, if the cluster has room for more than the fewest."""
    calls: int = 1
    """Units in an actor at a time: of two, one is prepared or packed while the device runs the other."""

    def suited_to(self, source_bytes: int) -> "Pool":
        """Return a pool without the auto backend's conversion to OpenVINO if the source is too small for it to pay."""
        return replace(self, backend="torch") if self.backend == "auto" and source_bytes < CONVERSION_BYTES else self


class RunSteps(Protocol):
    """Runs a generator where an encoder would run."""

    def __call__(self, steps: Callable[..., Iterator[Step]], args: Sequence[object], pool: Pool, /) -> Iterator[Step]:
        """Yield the generator's values."""
        ...


def lay_out_pool(compute: ComputeConfig, nodes: Sequence[Mapping[str, float]]) -> Pool:
    """Return a pool whose open settings are filled in from the nodes' resources; nodes without any, such as a head, do no work.

    If a growing cluster has no worker yet, workers are assumed to have at least 4 CPUs.
    """
    node_cpus = [node["CPU"] for node in nodes if node.get("CPU")]
    num_gpus = sum(node.get("GPU", 0.0) for node in nodes)
    device = compute.device if compute.device != "auto" else "cuda" if num_gpus else "cpu"
    most_cpus = max(node_cpus, default=4.0)
    if device == "cuda":
        if compute.backend == "openvino":
            raise ConfigError("compute.backend=openvino: runs on CPUs, and compute.device=auto takes the cluster's GPUs; set it to cpu")
        held, cpus = compute.num_gpus or 1.0, compute.num_cpus or 1.0
        fitting = int(num_gpus / held)
        actors = compute.actors or (1, max(1, fitting))
        # all at once: Ray itself adds them one by one, each after the one before has loaded its model
        initial, calls = min(actors[1], max(actors[0], fitting)), GPU_CALLS
        threads = max(1, int(cpus))
    else:
        initial, calls = None, 1
        if not node_cpus and compute.actors is None:
            raise ConfigError(
                "compute.actors: the cluster has no worker yet by which to choose; set it, as [1, 8], and compute.device to cuda "
                "if GPUs are to come"
            )
        # leaves room for one reader and two writers on a node of two cores, where they mostly wait
        full_nodes = sum(1 for each in node_cpus if each >= most_cpus)
        # if an actor loses its node, no other node has room for it: two actors would leave no CPU for their readers
        least = 0.5 if full_nodes < 2 else most_cpus / 2 + 0.01
        held, cpus = 0.0, compute.num_cpus or max(least, most_cpus - 1.5)
        actors = compute.actors or (full_nodes, full_nodes)
        threads = max(1, int(compute.num_cpus or most_cpus / max(1, actors[1] // max(1, full_nodes))))
    budget = compute.token_budget or (None if device == "cuda" else CPU_TOKENS)
    # Ray fuses stages with equal resources, and the encoder would then wait for the reader
    reader_cpus = 0.99 * min(1.0, most_cpus / 4)
    return Pool(device, compute.dtype, budget, actors, held, cpus, threads, reader_cpus, compute.layout, compute.backend, initial, calls)


def choose_units(pool: Pool, size_bytes: int, rows_per_unit: int) -> int:
    """Return the units of a row for what is left of the source: one where a unit takes minutes (on CPUs, behind an API)."""
    return 1 if pool.calls == 1 else fill_row(pool.actors[1], size_bytes, rows_per_unit)


def fill_row(actors: int, size_bytes: int, rows_per_unit: int) -> int:
    """Return the units of a row for actors on GPUs: one where a driver keeps up with them."""
    if actors <= MOST_ROWS_A_SECOND // 2:
        return 1
    larger = max(1.0, rows_per_unit / UNIT_ROWS)
    least, most = (math.ceil(actors / (rows * larger)) for rows in (MOST_ROWS_A_SECOND, ROWS_A_SECOND))
    return min(math.ceil(MOST_UNITS / larger), most, max(least, int(size_bytes / (actors * LEAST_ROWS * UNIT_BYTES * larger))))

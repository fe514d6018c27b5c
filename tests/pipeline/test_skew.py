"""A slow node and a huge shard in simulation: rows as the job plans them, and actors that each take what is ready next."""

import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from embedder.config.compute import ComputeConfig
from embedder.core.plan import Plan
from embedder.core.units import Shard, Task
from embedder.pipeline.graph import plan_rows
from embedder.pipeline.pool import UNIT_BYTES, UNIT_ROWS, Pool, lay_out_pool
from embedder.pipeline.rows import TasksRow
from tests.tables import as_columns

SLOWER = 5
LARGER = 100
SHARD_UNITS = 4
READ_SECONDS = 0.1
"""For a unit that encoders cut; an encoder on a fast node takes a second."""
DRIVER_SECONDS = 0.02
"""For a row of Ray."""
MOST_TIMES_IDEAL = 1.15


@dataclass(frozen=True)
class Cluster:
    """Nodes of GPUs, the last of which is slower."""

    nodes: int
    gpus: int

    @property
    def unit_seconds(self) -> list[float]:
        """Seconds that each GPU takes for a unit."""
        return [1.0] * (self.gpus * (self.nodes - 1)) + [float(SLOWER)] * self.gpus

    @property
    def pool(self) -> Pool:
        """The actors that the job lays out."""
        return lay_out_pool(ComputeConfig(), [{"CPU": 2.0 * self.gpus, "GPU": float(self.gpus)}] * self.nodes)


def plan_corpus(num_units: int, pool: Pool) -> list[TasksRow]:
    """Return the rows of tasks for a corpus of small shards, and one that is 100 times as large."""
    shards = [LARGER * SHARD_UNITS] + [SHARD_UNITS] * (num_units // SHARD_UNITS - LARGER)
    tasks = [Task(f"{n:016x}", "1" * 32, (Shard(f"{n}.jsonl", "v", units * UNIT_BYTES),)) for n, units in enumerate(shards)]
    return plan_rows(tasks, Plan(as_columns(tasks), {}, (), None, None, {}), pool, UNIT_ROWS)  # type: ignore[arg-type]


def list_units(row: TasksRow) -> list[int]:
    """Return the units of each row that the reader of some tasks yields."""
    units = sum(shard["size_bytes"] for each in json.loads(row["tasks"]) for shard in each["task"]["shards"]) // UNIT_BYTES
    return [min(row["size"], units - first) for first in range(0, units, row["size"])]


def simulate(rows: Sequence[Sequence[int]], unit_seconds: Sequence[float], calls: int) -> float:
    """Return the seconds until the last unit: a reader for each actor, and up to `calls` rows in an actor, one after the other."""
    readers = [0.0] * len(unit_seconds)
    ready: list[tuple[float, int]] = []
    for batch in rows:
        now = heapq.heappop(readers)
        for units in batch:
            now += units * READ_SECONDS
            ready.append((now, units))
        heapq.heappush(readers, now)
    slots = [(0.0, call, actor) for call in range(calls) for actor in range(len(unit_seconds))]
    done, driver = [0.0] * len(unit_seconds), 0.0
    for now, units in sorted(ready):
        free, _, actor = heapq.heappop(slots)
        driver = max(driver + DRIVER_SECONDS, now)
        done[actor] = max(done[actor], free, driver) + units * unit_seconds[actor]
        heapq.heappush(slots, (done[actor], 0, actor))
    return max(done)


def times_ideal(cluster: Cluster, rows: Sequence[Sequence[int]]) -> float:
    """Return the simulated time as a multiple of the time in which the GPUs alone would encode all units."""
    ideal = sum(map(sum, rows)) / sum(1 / seconds for seconds in cluster.unit_seconds)
    return simulate(rows, cluster.unit_seconds, cluster.pool.calls) / ideal


@pytest.mark.parametrize("units_a_gpu", [128, 256])
def test_on_16_nodes_a_slow_one_and_a_shard_a_hundred_times_larger_cost_a_seventh(units_a_gpu: int) -> None:
    cluster = Cluster(16, 8)
    rows = plan_corpus(128 * units_a_gpu, cluster.pool)
    assert times_ideal(cluster, list(map(list_units, rows))) <= MOST_TIMES_IDEAL


@pytest.mark.parametrize(("nodes", "units_a_gpu", "most"), [(8, 64, 1.1), (32, 64, 1.9), (32, 256, 1.15), (64, 512, 1.15)])
def test_rows_of_large_fleets_stay_large_enough_for_one_driver(nodes: int, units_a_gpu: int, most: float) -> None:
    cluster = Cluster(nodes, 8)
    assert times_ideal(cluster, list(map(list_units, plan_corpus(nodes * 8 * units_a_gpu, cluster.pool)))) <= most


@pytest.mark.parametrize(("num_units", "expected"), [(60, 1.2), (120, 1.1), (240, 1.05)])
def test_with_few_units_the_last_two_of_a_slow_gpu_decide(num_units: int, expected: float) -> None:
    assert times_ideal(Cluster(2, 2), [[1]] * num_units) == pytest.approx(expected, abs=0.01)


def test_rows_hold_fewer_units_toward_the_end_of_a_run() -> None:
    rows = plan_corpus(32_768, Cluster(16, 8).pool)
    sizes = [row["size"] for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (8, 2)
    assert sum(sum(list_units(row)) for row in rows) == 32_768

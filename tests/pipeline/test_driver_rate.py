"""One driver takes units from a cluster of many nodes: stages that do nothing, and all that the driver does for a unit.

python -m tests.pipeline.test_driver_rate UNITS NODES ACTORS prints units a second, and what a unit costs the driver. The nodes have a GPU
each; more actors than that are never placed, but a row holds as many units as for so many.
"""

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedder.core.plan import Plan
from embedder.core.units import Part, PartName, Shard, Stats, Task
from embedder.observe.progress import Meter
from embedder.pipeline.cluster import Reporter, start_ray
from embedder.pipeline.graph import iterate_units, plan_rows
from embedder.pipeline.pool import UNIT_ROWS, Pool
from embedder.pipeline.rows import LandedRow
from embedder.run.embed import check_complete, collect
from tests.tables import as_columns

UNITS_A_TASK = 100
ROWS_A_UNIT = 10
SHARD_BYTES = 1 << 40
MOST_MILLISECONDS = 25
MOST_STORED = 100_000_000
"""Bytes in the object store at once, of units that each pass it three times with 14 kB."""


def read(row: Any) -> Iterator[dict[str, Any]]:
    """Yield made-up units of some tasks."""
    for each in json.loads(row["tasks"]):
        task = Task.from_fields(each["task"])
        for number in range(UNITS_A_TASK):
            first, is_last = number * ROWS_A_UNIT, number == UNITS_A_TASK - 1
            name = str(PartName(task.key, task.version, first, first + ROWS_A_UNIT, is_last))
            yield {"key": task.key, "name": name, "documents": b"x" * 10_000}


class Encode:
    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the unit with a probe vector."""
        return {**row, "probe": [0.1] * 384}


def write(row: dict[str, Any]) -> LandedRow:
    """Return a landed unit."""
    part = Part(row["name"], ROWS_A_UNIT, 150_000, Stats(documents=ROWS_A_UNIT, chunks=ROWS_A_UNIT, tokens=1_000), checksum="0" * 32)
    return {"key": row["key"], "part": asdict(part), "error": None, "broken": [], "reasons": [], "probe": row["probe"], "attempt": 1,
            "tokens": 1_000, "sample": b""}  # fmt: skip


def measure_driver(num_units: int, num_nodes: int, num_actors: int) -> dict[str, float]:
    """Run a graph on made-up nodes as if it had so many actors; return the driver's figures over the second half of the units."""
    from ray.cluster_utils import Cluster

    workers_stay = {"num_workers_soft_limit": 64, "idle_worker_killing_time_threshold_ms": 600_000}  # not one per CPU, of few CPUs
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": workers_stay})
    for _ in range(num_nodes):
        cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=200 << 20)
    import ray

    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    start_ray()
    tasks = [Task(f"{number:016x}", "1" * 32, (Shard(f"{number}.jsonl", "v", SHARD_BYTES),)) for number in range(num_units // UNITS_A_TASK)]
    columns = as_columns(tasks)
    plan = Plan(columns, {}, (), None, None, {})  # type: ignore[arg-type]
    pool = Pool("cuda", "bfloat16", 1, (num_nodes, num_actors), 1.0, 0.5, 1, 0.49, initial=num_nodes, calls=2)
    meter, reporter = Meter(columns, None, num_nodes), Reporter({"table": "made-up", "run_id": "0"})
    figures: list[tuple[float, float, int, int]] = []
    stored = [0]
    landings = iterate_units(plan_rows(tasks, plan, pool, UNIT_ROWS), (read, ()), (Encode, ()), (write, ()), pool)

    def noted() -> Iterator[LandedRow]:
        for number, row in enumerate(landings):
            if number == num_units // 2:  # the workers have started
                figures.append((time.monotonic(), time.process_time(), peak_bytes(), ray_bytes()))
            if number % 100 == 0:
                stored.append(shutil.disk_usage("/dev/shm").used)
            yield row

    watch: Any = SimpleNamespace(land=lambda *_: None)
    parts, _, _ = collect(noted(), meter, reporter.report, watch)
    figures.append((time.monotonic(), time.process_time(), peak_bytes(), ray_bytes()))
    seconds, cpu, memory, of_ray = (after - before for before, after in zip(*figures, strict=True))
    ray.shutdown()  # before its nodes end, which would end this process with an error
    cluster.shutdown()
    check_complete(columns, parts, {})
    num = len(parts) - num_units // 2
    return {
        "units": len(parts),
        "units_per_second": num / seconds,
        "driver_ms_per_unit": cpu * 1000 / num,
        "driver_bytes_per_unit": memory / num,
        "ray_bytes_per_unit": of_ray / num,
        "object_store_bytes": max(stored),
    }


def peak_bytes() -> int:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ray_bytes() -> int:
    """Return the memory of the processes that schedule tasks and keep their states and metrics, those of the nodes included."""
    listed = subprocess.run(["ps", "-eo", "rss=,comm="], stdout=subprocess.PIPE, text=True, check=True).stdout
    processes = [line.split(maxsplit=1) for line in listed.splitlines()]
    return 1024 * sum(int(size) for size, name in processes if name.startswith(("gcs_server", "raylet", "ray-dashboard", "ray::Dashboard")))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(("num_actors", "most_milliseconds"), [(2, MOST_MILLISECONDS), (128, MOST_MILLISECONDS / 5)])
def test_a_unit_costs_the_driver_milliseconds_and_less_the_more_actors_there_are(
    num_actors: int, most_milliseconds: float, record_property: Callable[[str, object], None]
) -> None:
    command = [sys.executable, "-m", "tests.pipeline.test_driver_rate", "1600", "2", str(num_actors)]
    printed = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=True).stdout
    figures = json.loads(printed.splitlines()[-1])
    record_property("figures", figures)
    assert figures["units"] == 1600
    assert figures["driver_ms_per_unit"] < most_milliseconds
    assert figures["object_store_bytes"] < MOST_STORED


if __name__ == "__main__":
    print(json.dumps(measure_driver(*map(int, sys.argv[1:]))))

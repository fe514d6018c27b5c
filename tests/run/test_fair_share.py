"""A shard whose one reader would keep the encoders waiting is cut by the encoders."""

import math
from dataclasses import replace

from embedder.core.units import Shard, Task
from embedder.pipeline.pool import Pool
from embedder.run.embed import find_fair_share
from tests.tables import as_columns

GPUS = Pool("cuda", "bfloat16", 1, (1, 8), 1.0, 1.0, 1, 0.5, calls=2)
CPUS = replace(GPUS, device="cpu", calls=1)
MIB = 1 << 20


def share(sizes: list[int], pool: Pool) -> float:
    tasks = [Task(f"{number:016x}", "1" * 32, (Shard(f"{number}.jsonl", "v", size),)) for number, size in enumerate(sizes)]
    return find_fair_share(as_columns(tasks), pool)


def test_one_shard_a_hundred_times_the_others_is_above_its_share() -> None:
    sizes = [10_000 * MIB, *[100 * MIB] * 100]
    assert sizes[1] < share(sizes, GPUS) < sizes[0]


def test_equal_shards_are_below_their_share_while_there_are_enough_of_them() -> None:
    assert share([500 * MIB] * 100, GPUS) > 500 * MIB
    assert share([500 * MIB] * 8, GPUS) < 500 * MIB


def test_a_shard_that_is_read_in_seconds_is_below_it() -> None:
    assert share([60 * MIB], GPUS) > 60 * MIB


def test_on_cpus_none_is_above_it() -> None:
    assert share([10_000 * MIB], CPUS) == math.inf

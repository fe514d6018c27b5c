"""Tasks survive serialization for a worker."""

from dataclasses import asdict

import pyarrow as pa
import pytest

from embedder.core.units import Shard, Task

SHARDS = (Shard("s3://bucket/ümlaut “quoted”.parquet", "etag-1", 2**40), Shard("/local/b.jsonl", "3-1.5", 0))


@pytest.mark.parametrize("task", [Task("0" * 16, "1" * 32, SHARDS), Task("0" * 16, "1" * 32, SHARDS[:1], (3, 9), 70_000, ends=False)])
def test_a_task_is_equal_after_serialization(task: Task) -> None:
    assert Task.from_fields(pa.array([asdict(task)]).to_pylist()[0]) == task

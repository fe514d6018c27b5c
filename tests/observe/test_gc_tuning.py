"""Garbage: a job does not spend its start and its end on looking for it, and an encoder looks as Python does once it has begun."""

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from embedder.config.cli import run_job
from embedder.observe.process import THRESHOLD, gc_tuned


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    usual = gc.get_threshold()
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.set_threshold(*usual)


def test_a_job_looks_rarely_from_before_its_first_import() -> None:
    shown = subprocess.run([sys.executable, "-c", "import jobs, gc; print(gc.get_threshold()[0])"], capture_output=True, check=True)
    assert int(shown.stdout) == THRESHOLD


def test_what_was_loaded_is_never_looked_at_again_and_what_comes_later_as_usual() -> None:
    gc.set_threshold(600)
    with gc_tuned():
        assert gc.get_threshold()[0] == THRESHOLD
        loaded = [[number] for number in range(1000)]
    assert gc.get_threshold()[0] == 600
    assert gc.get_freeze_count() >= len(loaded)


def test_a_job_that_ends_leaves_everything_to_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "duckdb", raising=False)
    with pytest.raises(SystemExit):
        run_job(lambda _: 0)
    assert gc.get_freeze_count() > 0


@pytest.mark.real
def test_duckdb_ends_in_silence() -> None:
    code = (
        "import gc; from embedder.config.load import run_job; from embedder.collector import collected_rarely\n"
        "import duckdb; connection = duckdb.connect(); connection.execute('select 1')\n"
        "with collected_rarely(): pass\n"
        "run_job(lambda _: 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stderr == b""

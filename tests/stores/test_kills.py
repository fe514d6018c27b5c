"""A load that is killed with -9 in the middle is ended by the next one, with every row once: real processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.stores.conftest import Loader, corpus_of
from tests.stores.test_load import assert_in_step

pytestmark = pytest.mark.slow

LOAD = "import sys; from embedder.stores import loading; loading.GROUP_ROWS = 40; from jobs.load import main; main(sys.argv[1:])"
"""jobs.load, but recorded after every 40 rows."""


def test_a_load_killed_in_the_middle_is_ended_by_the_next(loader: Loader, tmp_path: Path) -> None:
    corpus = corpus_of(16, 10)
    loader.table.follow(corpus)
    config = tmp_path / "load.yaml"
    config.write_text(yaml.safe_dump({"table": {"uri": loader.table.uri}, **loader.section}))
    kill_after(["rows written"] * 3, config)
    loaded = loader.loaded()
    assert loaded is not None
    assert loaded.version is None
    assert loaded.done >= 3
    report = loader.load()
    assert report.outcome == "loaded"
    assert report.upserted < report.rows, "what was recorded is not written again"
    assert_in_step(loader, 0)


def kill_after(said: list[str], config: Path) -> None:
    """Start a load and kill it when its log has said these things."""
    command = [sys.executable, "-c", LOAD, str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stderr is not None
        left, lines = list(said), []
        for line in process.stderr:
            lines.append(line)
            if left[0] in line:
                left.pop(0)
            if not left:
                break
        process.kill()
        assert not left, "".join(lines)

"""Guards changes that must not show in a table: names, spaces, rows, vectors, records and settings equal those in golden.json.

Uses command lines and files only, so that modules may move. If a change is meant to show, write the golden values anew:

python -m tests.golden.scenario make
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.golden.facts import find_differences

ROOT = Path(__file__).parents[2]
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))


def run_parts(folder: Path, *parts: str) -> dict[str, Any]:
    """Run parts of the scenario in a process of their own, whose signals, log and warnings are not those of the tests."""
    out = folder / "found.json"
    command = [sys.executable, "-m", "tests.golden.scenario", *parts, str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(out.read_text(encoding="utf-8")))


def assert_golden(part: str, found: dict[str, Any]) -> None:
    """Fail with a line for each value that differs."""
    differences = find_differences(GOLDEN[part], found[part], part)
    assert not differences, "\n".join([f"{len(differences)} differences", *differences[:40]])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Values of the code as it is."""
    return run_parts(tmp_path_factory.mktemp("golden"), "settings", "spaces", "stored", "runs")


@pytest.mark.real
def test_jobs_flags_and_settings_are_all_there(found: dict[str, Any]) -> None:
    assert_golden("settings", found)


@pytest.mark.real
def test_every_spec_names_the_space_that_it_named(found: dict[str, Any]) -> None:
    assert_golden("spaces", found)


@pytest.mark.real
def test_tables_of_earlier_code_are_up_to_date_and_can_be_read(found: dict[str, Any]) -> None:
    assert_golden("stored", found)


@pytest.mark.real
def test_a_run_and_a_refresh_write_what_they_wrote(found: dict[str, Any]) -> None:
    assert_golden("runs", found)


def test_a_change_is_found() -> None:
    changed = json.loads(json.dumps(GOLDEN))
    changed["runs"]["first"]["table"]["vectors"][0][0] += 0.5
    changed["runs"]["first"]["table"]["rows"][3][0] = "another"
    del changed["settings"]["flags"]["embed"]["--dry-run"]
    changed["spaces"]["depth"]["out"]["space_id"] = "another"
    assert len(find_differences(GOLDEN, changed)) == 4

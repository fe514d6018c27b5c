"""The shape of the code: import contracts and sizes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOBS = sorted(path for path in (ROOT / "jobs").glob("*.py") if path.name != "__init__.py")
MODULES = sorted((ROOT / "embedder").rglob("*.py"))
TOP_LEVEL = {"pyproject.toml", "README.md", "Makefile", "LICENSE", "jobs", "embedder", "configs", "tests", "deploy"}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _num_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_import_contracts_hold() -> None:
    # a process of its own: import-linter configures logging and changes sys.path
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("job", JOBS, ids=_name)
def test_job_is_thin(job: Path) -> None:
    assert _num_lines(job) <= 60


@pytest.mark.parametrize("module", MODULES, ids=_name)
def test_module_is_short(module: Path) -> None:
    assert _num_lines(module) <= 300


def test_top_level_holds_what_is_agreed() -> None:
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert found - {"__pycache__", "build", "dist"} <= TOP_LEVEL, f"move {sorted(found - TOP_LEVEL)}"


def test_constraints_name_no_build_of_one_machine() -> None:
    pins = [line for line in (ROOT / "deploy/constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(line.count("==") == 1 and not set(line) & set("+@/ ") for line in pins)
    names = [line.split("==")[0].lower() for line in pins]
    assert {"torch", "ray", "aiobotocore", "botocore"} <= set(names)
    versions = dict(line.split("==") for line in pins)
    assert versions["boto3"] == versions["botocore"]  # which aiobotocore chooses


@pytest.mark.real
@pytest.mark.parametrize(("module", "spared"), [("jobs.embed", "torch"), ("embedder.pipeline.stages", "torch")])
def test_drivers_and_readers_are_spared_what_takes_seconds_to_import(module: str, spared: str) -> None:
    code = f"import sys, {module}; sys.exit({spared!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0

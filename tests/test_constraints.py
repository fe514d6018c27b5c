"""deploy/constraints.txt pins whatever pyproject.toml needs, for running and for testing, down to the last dependency."""

import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in (ROOT / "deploy/constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
PINS = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}
MACHINE = "nvidia-", "cuda-", "triton"
"""Packages that torch's metadata pins exactly, and only its CUDA build needs."""


def walk(requirements: list[Requirement]) -> Iterator[str]:
    """Return the names of all installed requirements, and of their requirements."""
    seen: set[tuple[str, frozenset[str]]] = set()
    while requirements:
        needed = requirements.pop()
        name = canonicalize_name(needed.name)
        if (name, frozenset(needed.extras)) in seen or name.startswith(MACHINE):
            continue
        seen.add((name, frozenset(needed.extras)))
        yield name
        try:
            listed = metadata.distribution(name).requires or []
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        extras = {"", *needed.extras}
        requirements += [
            each
            for each in map(Requirement, listed)
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)
        ]


def needed_names(*extras: str) -> set[str]:
    listed = PROJECT["dependencies"] + [each for extra in extras for each in PROJECT["optional-dependencies"][extra]]
    return set(walk([Requirement(each) for each in listed]))


def test_everything_needed_to_run_and_to_test_is_pinned() -> None:
    names = needed_names(*PROJECT["optional-dependencies"])
    assert len(names) > 100
    assert sorted(names - set(PINS)) == []


def test_the_tests_run_with_the_pinned_versions() -> None:
    found = reversed([*metadata.distributions()])  # the first on the path counts: setuptools, once imported, adds copies of its own
    installed = {canonicalize_name(each.metadata["Name"]): each.version.partition("+")[0] for each in found}
    differ = {name: (PINS[name], installed[name]) for name in needed_names("test") if name in installed and installed[name] != PINS[name]}
    assert differ == {}, "pinned, installed; pip install -c deploy/constraints.txt -e '.[test]', or pin what was tested"

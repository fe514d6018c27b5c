"""The versions and the git commit that a run was started with; the commit is read from git's files."""

import importlib.metadata
import os
import platform
from importlib.util import find_spec
from pathlib import Path

from embedder import __version__

VARIABLE = "EMBEDDER_REVISION"
"""Names the commit where git's files are missing: in an image, or after `ray job submit`."""


def read_revision(folder: Path) -> str | None:
    """Return EMBEDDER_REVISION, else the commit checked out in a folder or above it; None without either."""
    if given := os.environ.get(VARIABLE):
        return given
    marks = (parent / ".git" for parent in (folder.absolute(), *folder.absolute().parents))
    mark = next((each for each in marks if each.exists()), None)
    return _read_head(mark) if mark else None


def _read_head(mark: Path) -> str | None:
    git = mark if mark.is_dir() else mark.parent / mark.read_text().removeprefix("gitdir:").strip()
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head
    name = head.removeprefix("ref:").strip()
    # a worktree's branches are in the folder of its repository
    shared = git / (git / "commondir").read_text().strip() if (git / "commondir").exists() else git
    for place in (git / name, shared / name):
        if place.exists():
            return place.read_text().strip()
    packed = shared / "packed-refs"
    lines = packed.read_text().splitlines() if packed.exists() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {name}")), None)


def describe_environment() -> dict[str, str]:
    """Return the versions of the packages that decide vectors, and the commit if it is known."""
    names = ("ray", "torch", "transformers", "tokenizers", "pyarrow", "deltalake", *(["openvino"] if find_spec("openvino") else []))
    versions = {"embedder": __version__, "python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}
    revision = read_revision(Path.cwd())
    return versions | ({"revision": revision} if revision else {})

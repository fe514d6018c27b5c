"""The fixed folder that the golden runs work in, the archive it is filled from, and command lines run in this process.

A part's name holds a digest of its shards' absolute paths and modification times, so both have to be the same on every machine.
"""

import fcntl
import io
import os
import runpy
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from tests.golden.models import FAMILIES, write_family, write_layout, write_run_model

PLACE = Path("/tmp/embedder-golden")
"""Not below TMPDIR, which differs between machines."""
LOCK = Path("/tmp/embedder-golden.lock")
ARCHIVE = Path(__file__).parent / "tables.zip"
ARCHIVED = ("corpus", "texts", "calibration", "old")
MODIFIED = 1_700_000_000


@dataclass(frozen=True)
class Done:
    """Result of one command line."""

    code: int
    out: str
    err: str


@contextmanager
def locked_place() -> Iterator[Path]:
    """Yield the folder, empty but for the models, while no other process uses it; remove it afterwards."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(PLACE, ignore_errors=True)
        PLACE.mkdir()
        write_run_model(PLACE / "models/run")
        write_layout(PLACE / "models/layout")
        for family in FAMILIES:
            write_family(PLACE / "models" / family, family)
        try:
            yield PLACE
        finally:
            shutil.rmtree(PLACE)


def unpack() -> None:
    """Fill the folder from the archive, in place of all but the models."""
    for folder in PLACE.iterdir():
        if folder.name != "models":
            shutil.rmtree(folder)
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(PLACE)
    set_times()


def set_times() -> None:
    """Set one modification time for all shards, of which a shard's version is made."""
    for name in ("corpus", "texts"):
        for path in (PLACE / name).rglob("*"):
            os.utime(path, (MODIFIED, MODIFIED))


def pack() -> None:
    """Write the archive, with the same bytes for the same files."""
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(path for name in ARCHIVED for path in (PLACE / name).rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(str(path.relative_to(PLACE)), (2024, 1, 1, 0, 0, 0))
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)


def run(job: str, *args: str) -> Done:
    """Run `python -m jobs.JOB ARGS` in this process, which spares it the seconds of its imports."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with patch.object(sys, "argv", [job, *args]), redirect_stdout(out), redirect_stderr(err):
        try:
            runpy.run_module(f"jobs.{job}", run_name="__main__")
        except SystemExit as end:
            code = end.code
    return Done(code if isinstance(code, int) else 0 if code is None else 1, out.getvalue(), err.getvalue())

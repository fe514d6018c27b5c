"""This process's memory, its garbage collector, and its descendants."""

import gc
import os
import resource
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024
"""Unit of `ru_maxrss`."""

THRESHOLD = 100_000
"""New objects before a collection, instead of 700: importing torch and transformers makes millions, which stay."""


def peak_bytes() -> int:
    """Return the peak memory of this process, in bytes.

    On Linux, `ru_maxrss` starts at the value of the parent process, so the process's own high-water mark is read.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES


def tune_gc() -> None:
    """Collect less often in this process from now on."""
    gc.set_threshold(THRESHOLD)


@contextmanager
def gc_tuned() -> Iterator[None]:
    """Collect less often while the block imports libraries and loads a model, and exclude their objects from later collections."""
    usual = gc.get_threshold()
    tune_gc()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*usual)


def freeze_gc() -> None:
    """Leave all objects to the operating system, which frees them at once when the process ends.

    Not with DuckDB, whose binding reports the remaining objects as leaks, in dozens of lines.
    """
    if "duckdb" in sys.modules:
        gc.unfreeze()
    else:
        gc.freeze()


def kill_descendants() -> None:
    """Kill the processes that this one started, and those that they started; no effect where there is no /proc."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            parent = file.read_text(errors="replace").rpartition(")")[2].split()[1]
            children[int(parent)].append(int(file.parent.name))
    found = [os.getpid()]
    for pid in found:
        found += children[pid]
    for pid in found[1:]:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)

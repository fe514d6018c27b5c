"""How much memory this process has held at most."""

import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024
"""What the operating system counts `ru_maxrss` in."""


def peak_bytes() -> int:
    """Give the most memory that this process has held, in bytes.

    Linux begins a process's `ru_maxrss` with what the one that started it had held, so there its own high-water mark is read.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES


THRESHOLD = 100_000
"""Objects made before it looks for cycles again, in place of 700: importing torch and transformers makes millions, which stay."""


def tune_gc() -> None:
    """Look for cycles less often, from now on and in this process."""
    gc.set_threshold(THRESHOLD)


@contextmanager
def gc_tuned() -> Iterator[None]:
    """Look less often while libraries are imported and a model is loaded, and then never again at what these made."""
    usual = gc.get_threshold()
    tune_gc()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*usual)


def freeze_gc() -> None:
    """Leave all that there is to the operating system, which takes it back at once when the process ends.

    Not beside DuckDB, whose binding counts what is left and reports it as leaked, in dozens of lines.
    """
    if "duckdb" in sys.modules:
        gc.unfreeze()
    else:
        gc.freeze()

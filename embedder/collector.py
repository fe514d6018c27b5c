"""Python's garbage collector, kept from going through what never becomes garbage: a sixth of the time of a short job."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLD = 100_000
"""Objects made before it looks for cycles again, in place of 700: importing torch and transformers makes millions, which stay."""


def collect_rarely() -> None:
    """Look for cycles less often, from now on and in this process."""
    gc.set_threshold(THRESHOLD)


@contextmanager
def collected_rarely() -> Iterator[None]:
    """Look less often while libraries are imported and a model is loaded, and then never again at what these made."""
    usual = gc.get_threshold()
    collect_rarely()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*usual)


def collect_no_more() -> None:
    """Leave all that there is to the operating system, which takes it back at once when the process ends.

    Not beside DuckDB, whose binding counts what is left and reports it as leaked, in dozens of lines.
    """
    if "duckdb" in sys.modules:
        gc.unfreeze()
    else:
        gc.freeze()

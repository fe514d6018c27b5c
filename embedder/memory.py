"""How much memory this process has held at most."""

import resource
import sys
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

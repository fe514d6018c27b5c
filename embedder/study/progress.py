"""What a person sees while a sweep runs: the step at work in a terminal, a line a step in a log."""

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

LOG_SECONDS = 10.0

logger = logging.getLogger("embedder")


class Steps:
    """Shows steps on stderr while the block runs."""

    def __init__(self) -> None:
        self._name = ""
        self._next_line = 0.0
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (BarColumn(30), TimeElapsedColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task("starting", total=None)

    def __enter__(self) -> "Steps":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def report(self, name: str, done: int, total: int) -> None:
        """Show a step, and how far it is where it has a length."""
        line = f"{name}: {done:,} of {total:,} texts" if total else name
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=line, completed=done, total=total or None)
        elif name != self._name or time.monotonic() >= self._next_line:
            self._name, self._next_line = name, time.monotonic() + LOG_SECONDS
            logger.info("%s", line)

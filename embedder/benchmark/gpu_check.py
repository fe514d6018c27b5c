"""A GPU → one JSON file with versions, parity of every path, ceilings and throughput, within a budget of seconds.

The steps run in a process of their own. If it ends or hangs, another one continues with the item after the one at fault.
"""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from embedder.benchmark.check_record import Record

MOST_WORKERS = 12
"""Processes that may end before the check gives up."""
ITEM_SECONDS = 120.0
"""An item that takes longer hangs."""


def supervise(output: Path, command: Sequence[str], deadline: float, item_seconds: float = ITEM_SECONDS) -> Record:
    """Run workers by the command until one finishes the check or the deadline, in seconds since the epoch; return the record."""
    output.unlink(missing_ok=True)
    for _ in range(MOST_WORKERS):
        fault = _run_worker(command, output, deadline, item_seconds)
        record = Record.open(output)
        if record.running is None and not record.is_finished:
            record.finish("worker", "start", {"error": fault or "the worker ended between items"})
            break
        if record.running is not None:
            step, item = record.running["step"], record.running["item"]
            record.finish(step, item, {"error": fault or "the worker ended", "seconds": time.time() - record.running["started"]})
        if record.is_finished or time.time() >= deadline:
            break
    return record


def _run_worker(command: Sequence[str], output: Path, deadline: float, item_seconds: float) -> str | None:
    """Wait for a worker; end it where an item hangs or the time is long up, and return the reason."""
    worker = subprocess.Popen(command)
    while worker.poll() is None:
        time.sleep(0.2)
        running = Record.open(output).running if output.is_file() else None
        now = time.time()
        if running is None or (now - running["started"] < item_seconds and now < deadline + 20):
            continue
        worker.kill()
        worker.wait()
        return f"ended after {now - running['started']:.0f} s"
    return f"the worker ended with exit status {worker.returncode}"


def print_summary(record: Record) -> None:
    """Print a line an item, and what failed last."""
    for step, items in record.steps.items():
        spent = sum(result.get("seconds", 0.0) for result in items.values())
        print(f"{step}  ({spent:.1f} s)")
        for item, result in items.items():
            print(f"  {item:<44} {_describe(result)}")
    failed = record.failed()
    print(f"FAILED: {'; '.join(failed)}" if failed else "all ok")


def _describe(result: dict[str, object]) -> str:
    if "error" in result:
        return f"ERROR {str(result['error'])[:160]}"
    if "not_run" in result:
        return f"not run: {result['not_run']}"
    found = result["result"]
    if not isinstance(found, dict):
        return str(found)
    return "  ".join(f"{name} {_number(value)}" for name, value in found.items() if not isinstance(value, dict | list))[:200]


def _number(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"

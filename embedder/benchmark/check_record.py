"""Items of a check → one JSON file, written anew after each: a fault loses one item, never what was measured before it."""

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEVICE_FAILED = 70
"""Exit status of a worker whose device failed: every later call in its process would fail too."""

Item = tuple[str, Callable[[], object]]
"""A name, and what measures it."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where steps run, and whether at sizes for a dry run."""

    device: str
    is_tiny: bool = False


Step = Callable[[Bench], Iterator[Item]]


@dataclass(slots=True)
class Record:
    """Results by step and item."""

    path: Path
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    running: dict[str, Any] | None = None
    """Step, item and start of the item that runs."""
    is_finished: bool = False

    @classmethod
    def open(cls, path: Path) -> "Record":
        """Read what a worker wrote, or begin anew."""
        if not path.is_file():
            return cls(path)
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(path, content["steps"], content["running"], content["is_finished"])

    def save(self) -> None:
        """Write the file, whole or not at all."""
        content = {"is_finished": self.is_finished, "running": self.running, "failed": self.failed(), "steps": self.steps}
        draft = self.path.with_suffix(".partial")
        draft.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
        draft.replace(self.path)

    def run(self, step: str, item: str, measure: Callable[[], object]) -> None:
        """Run an item, unless it has a result; an exception becomes its result. A device that failed ends the process."""
        if item in self.steps.setdefault(step, {}):
            return
        self.running = {"step": step, "item": item, "started": time.time()}
        self.save()
        started, failure = time.perf_counter(), None
        try:
            result: dict[str, Any] = {"result": measure()}
        except Exception as error:  # noqa: BLE001 - one item's fault is its result
            failure = error
            result = {"error": f"{type(error).__name__}: {error}"[:2000], "trace": traceback.format_exc()[-3000:]}
        self.finish(step, item, result | {"seconds": round(time.perf_counter() - started, 2)})
        if type(failure).__name__ == "AcceleratorError":  # torch's; the process that supervises does not import it
            os._exit(DEVICE_FAILED)

    def finish(self, step: str, item: str, result: dict[str, Any]) -> None:
        """Keep an item's result."""
        self.steps.setdefault(step, {})[item] = result
        self.running = None
        self.save()

    def failed(self) -> list[str]:
        """Name the items that raised, or whose result is not ok."""
        return [
            f"{step}: {item}"
            for step, items in self.steps.items()
            for item, result in items.items()
            if "error" in result or (isinstance(result.get("result"), dict) and result["result"].get("ok") is False)
        ]


def run_steps(steps: dict[str, Step], names: Sequence[str], bench: Bench, record: Record, deadline: float) -> None:
    """Run the steps in order until the deadline, in seconds since the epoch; what is left is recorded as not run."""
    for name in names:
        record.steps.setdefault(name, {})
        for item, measure in steps[name](bench):
            if time.time() < deadline:
                record.run(name, item, measure)
            elif item not in record.steps[name]:
                record.finish(name, item, {"not_run": "no time left"})
    record.is_finished = True
    record.save()

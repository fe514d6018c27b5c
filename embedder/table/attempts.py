"""Attempts marked on storage, to find work that kills its worker every time, across any number of runs.

A mark is an empty object, written before an attempt and removed after it. A worker that dies leaves its mark behind.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping

from embedder.core.storage import Location, Store
from embedder.table.parts import list_by_name

ATTEMPTS_FOLDER = "_attempts"

SPLITS = 16
"""Ranges that a suspect range is split into: 8,192 documents come down to one in four deaths."""
MOST_POISON_DOCUMENTS = 4
"""Poison documents accepted in one unit: beyond, the machine is at fault and not the documents."""

PAUSE_SECONDS = 3.0
"""Longer than an attempt at one document takes: of a run beside this one, the mark is gone by then."""

_MARK = re.compile(r"(?P<name>.+)\.(?P<number>\d+)")


class Attempts:
    """The marks of one table; `failed` counts the marks found when they were listed, by name."""

    def __init__(self, table: Location, failed: Mapping[str, int] | None = None) -> None:
        self._folder, self._failed = table.child(ATTEMPTS_FOLDER), failed or {}

    @classmethod
    def listed(cls, table: Location) -> "Attempts":
        """List the existing marks: attempts that failed, and those of other workers in progress."""
        return cls(table, Counter(name for name in map(_name_of, list_by_name(table.child(ATTEMPTS_FOLDER))) if name))

    @property
    def any(self) -> bool:
        """Whether a mark was there."""
        return bool(self._failed)

    def failed(self, name: str) -> int:
        """Return the number of attempts at `name` that started and did not end."""
        return self._failed.get(name, 0)

    def failed_after_pause(self, name: str) -> int:
        """List again after a pause and return the number of attempts that did not end, those of a run beside this one left out."""
        time.sleep(PAUSE_SECONDS)
        self._failed = {**self._failed, name: sum(_name_of(file) == name for file in list_by_name(self._folder))}
        return self.failed(name)

    def begin(self, name: str) -> int:
        """Mark an attempt and return its number, counted from 1 over all workers and runs."""
        number = self.failed(name) + 1
        while not self._mark(name, number).write_once(b""):
            number += 1
        return number

    def end(self, name: str, number: int) -> None:
        """Remove the marks of a finished attempt and of those before it."""
        for each in range(1, number + 1):
            self._mark(name, each).remove()

    def forget_listed(self, prefix: str) -> None:
        """Remove all marks whose names start with the prefix; no request if none was there when marks were listed."""
        if any(name.startswith(prefix) for name in self._failed):
            self.forget(prefix)

    def forget(self, prefix: str) -> None:
        """List again and remove all marks whose names start with the prefix."""
        for name in list_by_name(self._folder):
            if name.startswith(prefix):
                self._folder.child(name).open().remove()

    def _mark(self, name: str, number: int) -> Store:
        return self._folder.child(f"{name}.{number}").open()


def _name_of(file: str) -> str | None:
    found = _MARK.fullmatch(file)
    return found["name"] if found else None


def isolate_poison_documents(
    name: str, num_documents: int, attempts: Attempts, max_attempts: int, try_range: Callable[[range], None]
) -> list[int]:
    """Try a unit range by range, each marked; return the documents that killed their worker `max_attempts` times alone.

    If a worker dies, the next one finds the mark and splits that range. Stops after MOST_POISON_DOCUMENTS.
    """
    poison_documents: list[int] = []
    ranges = split_range(range(num_documents))
    while ranges and len(poison_documents) < MOST_POISON_DOCUMENTS:
        documents = ranges.pop()
        mark = f"{name}.{documents.start}-{documents.stop}"
        failed = attempts.failed(mark)
        if failed and len(documents) > 1:
            ranges += split_range(documents)
        elif failed >= max_attempts and attempts.failed_after_pause(mark) >= max_attempts:
            poison_documents.append(documents.start)
        else:
            number = attempts.begin(mark)
            try_range(documents)
            attempts.end(mark, number)
    return sorted(poison_documents)


def split_range(whole: range) -> list[range]:
    """Split a range into at most SPLITS equal ones, in reverse order so that the first is popped first."""
    size = max(1, -(-len(whole) // SPLITS))
    return [range(start, min(start + size, whole.stop)) for start in range(whole.start, whole.stop, size)][::-1]

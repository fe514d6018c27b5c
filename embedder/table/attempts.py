"""Attempts marked on storage: what kills its worker every time is found out, however many runs it takes.

A mark is an empty object put before something is tried and removed when it is done; a worker that dies leaves it behind.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping

from embedder.core.storage import Location, Store

ATTEMPTS_FOLDER = "_attempts"

PIECES = 16
"""A unit under suspicion is taken apart so many ways at a time: 8,192 documents come down to one in four deaths."""
MOST_POISON_DOCUMENTS = 4
"""Documents of one unit that may be given up: beyond, it is the machine that fails and not the documents."""

_MARK = re.compile(r"(?P<name>.+)\.(?P<number>\d+)")


class Attempts:
    """The marks of one table; `failed` counts those that were there when they were listed, by name."""

    def __init__(self, folder: Location, failed: Mapping[str, int] | None = None) -> None:
        self._store = Store(f"{folder.uri}/{ATTEMPTS_FOLDER}", folder.options)
        self._options = folder.options
        self._failed = failed or {}

    @classmethod
    def listed(cls, folder: Location) -> "Attempts":
        """List the marks there are: attempts that failed, and those of other workers in flight."""
        store = Store(f"{folder.uri}/{ATTEMPTS_FOLDER}", folder.options)
        found = (_MARK.fullmatch(each.uri.rsplit("/", 1)[-1]) for each in store.list_folder())
        return cls(folder, Counter(mark["name"] for mark in found if mark))

    def failed(self, name: str) -> int:
        """Count the attempts at `name` that had been begun and not ended."""
        return self._failed.get(name, 0)

    def begin(self, name: str) -> int:
        """Mark an attempt; give its number, counted from 1 over all workers, and all runs that call it so."""
        number = self.failed(name) + 1
        while not self._mark(name, number).write_once(b""):
            number += 1
        return number

    def end(self, name: str, number: int) -> None:
        """Remove the marks of an attempt that its worker survived, and of those before it."""
        for each in range(1, number + 1):
            self._mark(name, each).remove()

    def forget_listed(self, prefix: str) -> None:
        """Remove all marks of names that begin so, if any were there when marks were listed: no request where none was."""
        if any(name.startswith(prefix) for name in self._failed):
            self.forget(prefix)

    def forget(self, prefix: str) -> None:
        """Remove all marks of names that begin so, listed anew."""
        for found in self._store.list_folder():
            if found.uri.rsplit("/", 1)[-1].startswith(prefix):
                Store(found.uri, self._options).remove()

    def _mark(self, name: str, number: int) -> Store:
        return Store(self._store.child(f"{name}.{number}"), self._options)


def isolate_poison_documents(
    name: str, num_documents: int, attempts: Attempts, max_attempts: int, try_piece: Callable[[range], None]
) -> list[int]:
    """Try a unit piece by piece, each piece marked; give the documents that killed their worker `max_attempts` times alone.

    Where a piece was tried and its worker died, the next worker comes here again, finds the mark, and takes that piece
    apart. Stops after MOST_KILLERS documents.
    """
    poison_documents: list[int] = []
    pieces = split_range(range(num_documents))
    while pieces and len(poison_documents) < MOST_POISON_DOCUMENTS:
        piece = pieces.pop()
        mark = f"{name}.{piece.start}-{piece.stop}"
        failed = attempts.failed(mark)
        if failed and len(piece) > 1:
            pieces += split_range(piece)
        elif failed >= max_attempts:
            poison_documents.append(piece.start)
        else:
            number = attempts.begin(mark)
            try_piece(piece)
            attempts.end(mark, number)
    return sorted(poison_documents)


def split_range(whole: range) -> list[range]:
    """Cut a range into at most PIECES equal ones; the first comes last, to be popped first."""
    size = max(1, -(-len(whole) // PIECES))
    return [range(start, min(start + size, whole.stop)) for start in range(whole.start, whole.stop, size)][::-1]

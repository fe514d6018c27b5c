"""Blocks of bytes → lines of bounded size."""

from collections.abc import Iterator

START_BYTES = 512
"""Bytes kept of a line that is too long."""


class CutLine(bytes):
    """The start of a line that is longer than allowed."""

    num_quotes = 0
    """Quotes in the whole line, which tell a CSV reader whether the line ends inside a field."""


class LastLine(bytes):
    """A line at the end of the file without a newline: the file may have been cut off in it."""


def read_lines(blocks: Iterator[bytes], most_bytes: int) -> Iterator[bytes]:
    """Yield lines without their newline. Of a line of more than `most_bytes` only its start is kept, as a `CutLine`."""
    line = _Line(most_bytes)
    for block in blocks:
        first, *others = block.split(b"\n")
        line.append(first)
        if others:
            yield line.take()
            if len(block) <= most_bytes:
                yield from others[:-1]
            else:
                for other in others[:-1]:
                    line.append(other)
                    yield line.take()
            line.append(others[-1])
    if line.size_bytes:
        last = line.take()
        yield last if isinstance(last, CutLine) else LastLine(last)


class _Line:
    """A line that arrives in pieces; memory is bounded by the longest allowed line and one piece."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._clear()

    def _clear(self) -> None:
        self._pieces: list[bytes] = []
        self._start = b""
        self._num_quotes = 0
        self.size_bytes = 0

    def append(self, piece: bytes) -> None:
        self.size_bytes += len(piece)
        self._pieces.append(piece)
        if self.size_bytes > self._most_bytes:
            self._num_quotes += sum(each.count(b'"') for each in self._pieces)
            self._start = self._start or b"".join(self._pieces)[:START_BYTES]
            self._pieces = []

    def take(self) -> bytes:
        """Return the line and begin the next."""
        line = b"".join(self._pieces)
        if self.size_bytes > self._most_bytes:
            line = CutLine(self._start)
            line.num_quotes = self._num_quotes
        self._clear()
        return line

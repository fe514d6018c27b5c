"""Blocks of CSV → its header and records. A record that cannot be parsed does not take the records after it with it."""

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from embedder.core.schema import Reason
from embedder.source.formats.plain_csv import count_lines, find_end, parse_plain
from embedder.source.formats.rows import EXCERPT_CHARS
from embedder.source.lines import CutLine, LastLine, read_lines

MOST_REREAD_BYTES = 256 << 20
"""Lines below stray quotes are read again. Beyond this many bytes a shard is refused: its quotes cost more time than its records."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that cannot be read, and its excerpt."""

    reason: Reason
    met: str


class _TooLargeError(Exception):
    """The current record is longer than allowed."""


class CsvRecords:
    """Parses plain blocks as columns and all others by record; holds the lines of the current one."""

    def __init__(self, blocks: Iterator[bytes], most_bytes: int, delimiter: str) -> None:
        csv.field_size_limit(sys.maxsize)
        self._blocks = filter(None, blocks)
        self._data, self._position = b"", 0
        """The current block, and the place in it up to which it was taken."""
        self._is_exact = False
        """Whether the rest of the block is read by record."""
        self._most_bytes = most_bytes
        self._delimiter = delimiter
        self._parser = csv.reader(self, delimiter=delimiter, strict=True)
        self._again: list[bytes] = []
        """Lines to read again, in reverse."""
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._reread_bytes = 0
        self._num_lines = 0
        self._ended = False

    def __iter__(self) -> "CsvRecords":
        return self

    def __next__(self) -> str:
        """Return the next line to the parser."""
        line = self._next_line()
        if line is None:
            raise StopIteration
        self._held.append(line)
        self._held_bytes += len(line)
        if self._held_bytes > self._most_bytes or type(line) is CutLine:
            raise _TooLargeError
        # bytes that are not UTF-8 become surrogates, which are refused only if their column is read
        return line.decode(errors="surrogateescape") + "\n"

    def _next_line(self) -> bytes | None:
        line = self._again.pop() if self._again else self._take_line()
        if line is None:
            self._ended = True
        else:
            self._num_lines += 1
        return line

    def _take_line(self) -> bytes | None:
        newline = self._data.find(b"\n", self._position)
        if not 0 <= newline <= self._position + self._most_bytes:
            return next(read_lines(self._feed_line(), self._most_bytes), None)
        line = self._data[self._position : newline]
        self._position = newline + 1
        return line

    def _feed_line(self) -> Iterator[bytes]:
        """Yield the pieces of a line from block to block."""
        while True:
            start, newline = self._position, self._data.find(b"\n", self._position)
            self._position = newline + 1 or len(self._data)
            yield self._data[start : self._position]
            if newline >= 0:
                return
            self._data, self._position, self._is_exact = next(self._blocks, b""), 0, False
            if not self._data:
                return

    def read_header(self) -> list[str]:
        """Return the column names, [] if the file is empty; OSError if the first line is not CSV."""
        try:
            return next((names for names in self._parser if names), [])
        except (csv.Error, _TooLargeError) as error:
            excerpt = b"\n".join(self._held)[:EXCERPT_CHARS].decode(errors="replace")
            reason = "it is too long" if isinstance(error, _TooLargeError) else "its lines end in \\r" if "\r" in excerpt else str(error)
            raise OSError(f"no CSV header in its first line, {reason}: {excerpt!r}") from error

    def read(self, num_fields: int, wanted: list[int]) -> Iterator[tuple[list[str] | Refused | pa.RecordBatch, int]]:
        """Yield each record of `num_fields` fields, or its refusal, with its size in bytes; of a plain block its `wanted` fields as
        columns that are named by their numbers. Skip blank lines.

        Raise EOFError if the file ends inside quotes, or its last line has no newline and too few fields.
        """
        while True:
            if not self._again and (batch := self._read_plain(num_fields, wanted)) is not None:
                yield batch, batch.nbytes
                continue
            self._held, self._held_bytes = [], 0
            try:
                record = next(self._parser)
            except StopIteration:
                return
            except _TooLargeError:
                yield self._skip_record(), EXCERPT_CHARS
            except csv.Error as error:
                yield self._refuse_first_line(error), EXCERPT_CHARS
            else:
                if len(record) == num_fields:
                    yield record, self._held_bytes
                elif record:
                    yield self._refuse_fields(record, num_fields), EXCERPT_CHARS

    def _read_plain(self, num_fields: int, wanted: list[int]) -> pa.RecordBatch | None:
        """Return the whole records of the next block; None, with nothing taken, if Python's parser must decide about one of them."""
        if self._is_exact and self._position < len(self._data):
            return None
        self._data, self._position = self._data[self._position :] + next(self._blocks, b""), 0
        stop = find_end(self._data, self._delimiter) if len(self._data) <= self._most_bytes else 0
        block = memoryview(self._data)[:stop]
        batch = parse_plain(block, num_fields, self._delimiter, wanted) if stop else None
        self._is_exact = batch is None
        if batch is not None:
            self._num_lines += count_lines(block)
            self._position = stop
        return batch

    def _skip_record(self) -> Refused:
        """Read to the end of a record that is too long: the line that closes the quotes of those before it."""
        start = b"\n".join(self._held)[: 4 * EXCERPT_CHARS]
        first_line, num_quotes = self._num_lines - len(self._held) + 1, sum(map(_count_quotes, self._held))
        while num_quotes % 2:
            line = self._next_line()
            if line is None:
                raise EOFError(f"the quote that opens in line {first_line} is not closed at the end")
            num_quotes += _count_quotes(line)
        lines = f"lines {first_line} to {self._num_lines}: " if self._num_lines > first_line else ""
        return Refused(Reason.TOO_LARGE, lines + start.decode(errors="replace"))

    def _refuse_first_line(self, error: csv.Error) -> Refused:
        """Refuse only the line that a record begins with, and read the lines again that its stray quote took."""
        first, *others = self._held
        first_line = self._num_lines - len(others)
        if self._ended or type(first) is LastLine:
            where = f"the record that begins in line {first_line} is cut off, or its quote is not closed"
            raise EOFError(f"{where}: {first[:EXCERPT_CHARS].decode(errors='replace')!r}") from error
        self._reread_bytes += self._held_bytes - len(first)
        if self._reread_bytes > MOST_REREAD_BYTES:
            raise OSError(f"too many of its quotes are not closed, the last in line {first_line}") from error
        self._again += reversed(others)
        self._num_lines -= len(others)
        return Refused(Reason.MALFORMED, first[: 4 * EXCERPT_CHARS].decode(errors="replace"))

    def _refuse_fields(self, record: list[str], num_fields: int) -> Refused:
        first_line = self._num_lines - len(self._held) + 1
        if len(record) < num_fields and type(self._held[-1]) is LastLine:
            raise EOFError(f"its last record, in line {first_line}, is cut off: {len(record)} fields, not {num_fields}")
        lines = f"lines {first_line} to {self._num_lines}: " if len(self._held) > 1 else ""
        return Refused(Reason.MALFORMED, f"{lines}{len(record)} fields, not {num_fields}: {','.join(record)[:EXCERPT_CHARS]}")


def _count_quotes(line: bytes) -> int:
    return line.num_quotes if isinstance(line, CutLine) else line.count(b'"')

"""Blocks of JSON in any layout → the text of each record: JSON lines, an array, or objects one after another."""

import re
from collections.abc import Iterator
from itertools import chain

from embedder.source.formats.json_values import parse_json
from embedder.source.lines import START_BYTES, CutLine, read_lines

_GAP = re.compile(rb"[\s,]*+")
_SCALAR = re.compile(rb'[^\s,\[\]{}"]*+')
_TO_BRACKET = re.compile(rb'[^"\[\]{}]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"\[\]{}]*+)*+', re.DOTALL)
"""Up to the next bracket outside a string, or to a string that the block does not end."""
_TO_QUOTE = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
"""Up to the quote that ends a string."""


def read_values(blocks: Iterator[bytes], most_bytes: int) -> Iterator[bytes]:
    """Yield the text of each record in the layout that the blocks begin with.

    Lines if the first line is JSON by itself, or if no object begins there; blank lines are left out. The elements of an array if the
    first character is a bracket. Else objects that may span lines. A record of more than `most_bytes` is a `CutLine`.
    """
    start = b""
    while not start and (block := next(blocks, None)) is not None:
        start = block.lstrip()
    if start.startswith(b"<"):
        raise OSError(f"it is HTML or XML, not JSON: {start[:100].decode(errors='replace')!r}")
    spans, start = (True, start) if start.startswith(b"[") else _spans_lines(start, blocks, most_bytes)
    blocks = chain([start], blocks)
    if spans:
        yield from split_values(blocks, most_bytes)
    else:
        yield from (line for line in read_lines(blocks, most_bytes) if line and not line.isspace())


def _spans_lines(start: bytes, blocks: Iterator[bytes], most_bytes: int) -> tuple[bool, bytes]:
    """Return whether the first object spans lines, or is followed by another on its line; and the bytes read to find out."""
    line, newline, _ = start.partition(b"\n")
    if not start.startswith(b"{") or (newline and _is_object(line)):
        return False, start
    pieces, size_bytes = [start], len(start)

    def read_pieces() -> Iterator[bytes]:
        nonlocal size_bytes
        yield start
        for block in blocks:
            pieces.append(block)
            size_bytes += len(block)
            yield block
            if size_bytes > most_bytes:
                return

    try:
        first = next(split_values(read_pieces(), most_bytes), b"")
    except (EOFError, OSError):
        first = b""
    met = b"".join(pieces)
    follows = _GAP.sub(b"", met[len(first) : len(first) + 100], count=1)[:1]
    spans = _is_object(first) and (b"\n" in first or (b"\n" not in met and follows == b"{"))
    return spans, met


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(parse_json(text.decode()), dict)
    except (ValueError, RecursionError):
        return False


def split_values(blocks: Iterator[bytes], most_bytes: int) -> Iterator[bytes]:
    """Yield the text of values that follow each other, and of the elements of arrays among them. A text is balanced, not checked.

    Raise EOFError if the blocks end inside a value or an array, and OSError for a bracket that closes nothing.
    """
    scanner, inside = _Scanner(blocks), False
    while first := scanner.skip_gap():
        if first in b"[]" and inside != (first == b"["):
            inside = not inside
            scanner.position += 1
        elif first in b"]}":
            raise OSError(f"it is not JSON: {scanner.data[scanner.position :][:50].decode(errors='replace')!r} closes nothing")
        else:
            yield scanner.take_value(most_bytes)
    if inside:
        raise EOFError("it ends inside a JSON array")


class _Scanner:
    """Finds the ends of values in blocks; holds one value and one block."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self.data = b""
        self.position = 0

    def _read_more(self, kept_from: int) -> bool:
        block = next(self._blocks, None)
        self.data = self.data[kept_from:] + (block or b"")
        return block is not None

    def skip_gap(self) -> bytes:
        """Move past blanks and commas, and return the next byte; b"" at the end."""
        while (position := _find_end(_GAP, self.data, self.position)) == len(self.data):
            self.position = 0
            if not self._read_more(len(self.data)):
                return b""
        self.position = position
        return self.data[position : position + 1]

    def take_value(self, most_bytes: int) -> bytes:
        """Move past the value that begins here and return its text; a `CutLine` if it is longer than allowed."""
        start, head = self.position, b""
        first = self.data[start : start + 1]
        ends = _scan_scalar(self) if first not in b'{["' else _scan_brackets(self, in_string=first == b'"')
        while not next(ends):
            if self.position - start > most_bytes:
                head = head or self.data[start : self.position][:START_BYTES]
                start = self.position
            self.position -= start
            if not self._read_more(start):
                if first in b'{["':
                    raise EOFError("it ends inside a JSON value")
                break
            start = 0
        text = self.data[start : self.position]
        return CutLine(head or text[:START_BYTES]) if head or len(text) > most_bytes else text


def _scan_scalar(scanner: _Scanner) -> Iterator[bool]:
    """Move to the end of a number or word; yield False where the data end before it."""
    while True:
        scanner.position = _find_end(_SCALAR, scanner.data, scanner.position)
        yield scanner.position < len(scanner.data)


def _scan_brackets(scanner: _Scanner, in_string: bool) -> Iterator[bool]:
    """Move to the end of an object, array or string; yield False where the data end before it."""
    depth = 0
    scanner.position += in_string
    while True:
        position = _find_end(_TO_QUOTE if in_string else _TO_BRACKET, scanner.data, scanner.position)
        met = scanner.data[position : position + 1]
        if not met or met == b"\\":
            scanner.position = position
            yield False
            continue
        scanner.position = position + 1
        if met == b'"':
            in_string = not in_string
        else:
            depth += 1 if met in b"[{" else -1
        if not in_string and not depth:
            yield True


def _find_end(pattern: re.Pattern[bytes], data: bytes, position: int) -> int:
    found = pattern.match(data, position)
    return found.end() if found else position

"""The first bytes of a shard → its compression and encoding, or a refusal. A file is never judged by its name alone."""

import codecs
import re
from collections.abc import Iterator

START_BYTES = 512
"""Enough to recognize every kind of file; the mark of a tar archive is at byte 257."""

_COMPRESSIONS = {
    "gz": re.compile(rb"\x1f\x8b"),
    "zst": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
    "bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
}
_FOREIGN = {
    "a parquet file": re.compile(rb"PAR1\x15|PARE"),
    "a ZIP archive": re.compile(rb"PK(\x03\x04|\x05\x06)"),
    "an ORC file": re.compile(rb"ORC[\x00-\x08\x0e-\x1f\x80-\xff]"),
    "an Avro file": re.compile(rb"Obj\x01"),
    "an Arrow file": re.compile(rb"ARROW1\0"),
    "Feather of version 1, which is not read": re.compile(rb"FEA1"),
    "a PDF": re.compile(rb"%PDF-"),
    "an SQLite database": re.compile(rb"SQLite format 3\0"),
    "a DuckDB database": re.compile(rb"(?s).{8}DUCK"),
    "a 7z archive": re.compile(rb"7z\xbc\xaf\x27\x1c"),
    "a RAR archive": re.compile(rb"Rar!\x1a\x07"),
    "a tar archive": re.compile(rb"(?s).{257}ustar[\0 ]"),
    "LZ4, which is not read": re.compile(rb"\x04\x22\x4d\x18"),
    "Snappy, which is not read": re.compile(rb"\xff\x06\x00\x00sNaPpY"),
    "compress (.Z), which is not read": re.compile(rb"\x1f\x9d"),
    "an Office document": re.compile(rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    "an image": re.compile(rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a"),
    "a Git LFS pointer in place of the file": re.compile(rb"version https://git-lfs\.github\.com/spec/"),
}
ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
ENCODINGS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""By byte order mark. UTF-32 precedes UTF-16: one of its marks begins with one of UTF-16."""


def find_compression(start: bytes) -> str | None:
    """Return the suffix, without its dot, of the compression that the bytes begin with; None if there is none."""
    return next((codec for codec, mark in _COMPRESSIONS.items() if mark.match(start)), None)


def to_utf8(start: bytes, others: Iterator[bytes]) -> Iterator[bytes]:
    """Yield text as UTF-8 without a byte order mark. Raise OSError if the start is not text or its encoding has no mark."""
    if kind := _find_kind(start):
        raise OSError(f"it is {kind}")
    mark = find_byte_order_mark(start)
    if not mark and _is_wide(start[:START_BYTES]):
        raise OSError("it is UTF-16 or UTF-32 without a byte order mark; convert it to UTF-8")
    if len(mark) in (2, 4):
        yield from _transcode(start, others, ENCODINGS[mark])
    else:
        yield start.removeprefix(mark)
        yield from others


def _find_kind(start: bytes) -> str | None:
    return next((kind for kind, mark in _FOREIGN.items() if mark.match(start)), None)


def find_byte_order_mark(start: bytes) -> bytes:
    """Return the mark that a text begins with, empty if it has none."""
    return next((mark for mark in ENCODINGS if start.startswith(mark)), b"")


def require_mark(start: bytes, kind: str, *marks: bytes) -> bytes:
    """Return the mark that a file of a kind begins with; OSError if it has none of them."""
    found = next((mark for mark in marks if start.startswith(mark)), None)
    if found is None:
        raise OSError(f"it is {_find_kind(start)}" if _find_kind(start) else f"it does not begin as {kind} does")
    return found


def _is_wide(start: bytes) -> bool:
    """Return whether NUL bytes fill one half of all positions, as in ASCII text of two or four bytes a character."""
    if len(start) < 4 or len(start) % 2:
        return False
    odd, even = start[1::2].count(0), start[::2].count(0)
    return max(odd, even) * 4 > len(start) and (min(odd, even) == 0 or odd + even > len(start) / 2)


def _transcode(start: bytes, others: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    yield decoder.decode(start).encode()
    for block in others:
        yield decoder.decode(block).encode()
    yield decoder.decode(b"", final=True).encode()

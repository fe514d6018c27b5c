"""WARC → Rows: pages of a crawl, and the plain texts of WET files. A row is a record's number, other records included.

A document is a response of type text/html, application/xhtml+xml or text/plain, or a conversion or resource record of one of these
types. Any other record is left out and counted. A page is decoded by its byte order mark, else by the charset of its header, else by
its own meta element, else as UTF-8; its text is that of its visible elements, blocks on lines of their own. `id` is WARC-Record-ID.
"""

import io
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import IO, Any

import numpy as np
import pyarrow as pa
from fastwarc.stream_io import BrotliReader
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

from embedder.core.errors import SourceError
from embedder.core.schema import Reason
from embedder.source.contents import ENCODINGS, find_byte_order_mark, require_mark
from embedder.source.decompression import open_decompressed
from embedder.source.formats.records import Getter, Records, batch_by_size, check_getter, refuse_broken, to_rows
from embedder.source.formats.rows import Columns, Reading, ReadSamples, Rows, ShardColumns, excerpt
from embedder.source.metadata_types import TIMESTAMP

COLUMNS = {
    "text": pa.string(),
    "title": pa.string(),
    "id": pa.string(),
    "url": pa.string(),
    "date": TIMESTAMP,
    "status": pa.int32(),
    "content_type": pa.string(),
    "truncated": pa.string(),
}
"""`status`: of a response. `truncated`: why the crawler cut the page off, in the words of WARC-Truncated; null: it did not."""
_MARK = b"WARC/"
_FIELDS = {"url": "target-uri", "date": "date", "truncated": "truncated"}
_KINDS = ("response", "conversion", "resource")
_HTML = ("text/html", "application/xhtml+xml")
_TYPES = (*_HTML, "text/plain")
_META = re.compile(rb"<meta[^>]{1,200}?charset\s*=\s*[\"']?\s*([\w:.-]{1,40})", re.IGNORECASE)
_META_BYTES = 1024
"""A browser looks no further for a meta element with a charset."""
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w:.-]{1,40})", re.IGNORECASE)
_STATUS = re.compile(rb"HTTP/\S+\s+(\d{3})\b")
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_FOLD = re.compile(rb"\r?\n[ \t]+")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})\s*(;.*)?\r?\n$")
_BLOCK_BYTES = _MOST_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Page:
    """A document by its columns; refused for a reason, it has no text."""

    columns: dict[str, Any]
    refused: tuple[Reason, bytes] | None = None


def inspect_warc(read_samples: ReadSamples) -> list[ShardColumns]:
    """Return the columns, which every shard has."""
    samples = read_samples(lambda file, reading: _open(file, reading.compression))
    return [ShardColumns(uri, list(COLUMNS), COLUMNS.get, "declared") for uri, _ in samples]


def read_warc(file: IO[bytes], reading: Reading) -> Iterator[Rows]:
    """Read the documents of a shard. Raise EOFError if a record is cut off, SourceError if most documents cannot be decoded."""
    columns = _find_columns(reading)
    pages = _read_pages(_open(file, reading.compression), reading.source.max_record_bytes)
    yield from refuse_broken(_to_rows(batch_by_size(pages), columns, reading), reading.shard.uri)


def _open(file: IO[bytes], compression: str | None) -> io.BufferedReader:
    stream = open_decompressed(file, compression)
    require_mark(stream.peek(), "a WARC file", _MARK)
    return stream


def _find_columns(reading: Reading) -> Columns[Getter]:
    def find(key: str, setting: str) -> Getter:
        if key in COLUMNS:
            return check_getter(itemgetter(key), key, reading)
        if not reading.may_lack(key):
            raise SourceError(f"{reading.shard.uri}: no column {key!r} (found: {', '.join(COLUMNS)}); set {setting}")
        return check_getter(lambda _: None, key, reading)

    return reading.find_columns(find)


def _to_rows(batches: Iterable[list[_Page | None]], columns: Columns[Getter], reading: Reading) -> Iterator[Rows]:
    first_row = 0
    for batch in batches:
        numbered = [(number, page) for number, page in enumerate(batch) if page]
        refused = {position: page.refused for position, (_, page) in enumerate(numbered) if page.refused}
        records = Records([page.columns for _, page in numbered])
        for position, (reason, met) in refused.items():
            records.refused[position] = reason, excerpt(met)
        kept = np.array([number for number, _ in numbered], np.int64)
        for rows in to_rows([records], columns, reading):
            yield replace(rows, first_row=first_row, kept=kept, num_read=len(batch))
        first_row += len(batch)


def _read_pages(stream: IO[bytes], most_bytes: int) -> Iterator[tuple[_Page | None, int]]:
    """Yield each record as a page, or None if it is not a document, with the bytes that it takes in memory."""
    while line := stream.readline(_MOST_HEADER_BYTES):
        if not line.strip():
            continue
        headers = _read_headers(line, stream)
        left_bytes = int(headers["content-length"])
        block = stream.read(min(left_bytes, most_bytes + 1))
        left_bytes -= len(block)
        while left_bytes and (others := stream.read(min(left_bytes, _BLOCK_BYTES))):
            left_bytes -= len(others)
        if left_bytes:
            raise EOFError(f"record {headers.get('warc-record-id')} is cut off: {left_bytes:,} of its bytes are missing")
        yield _to_page(headers, block, most_bytes), len(block)


def _read_headers(line: bytes, stream: IO[bytes]) -> dict[str, str]:
    """Read the header of a record up to its blank line; raise OSError if it is not one, or does not state its length."""
    if not line.startswith(_MARK):
        raise OSError(f"no record begins with {line[:50]!r}")
    lines: list[bytes] = []
    while (following := stream.readline(_MOST_HEADER_BYTES)).strip():
        lines.append(following)
        if sum(map(len, lines)) > _MOST_HEADER_BYTES:
            raise OSError(f"the header of a record is longer than {_MOST_HEADER_BYTES:,} bytes")
    headers = _parse_headers(b"".join(lines))
    if not following or not headers.get("content-length", "").isdecimal():
        raise EOFError(f"the header of record {headers.get('warc-record-id')} is cut off, or states no length")
    return headers


def _parse_headers(lines: bytes) -> dict[str, str]:
    """Return the fields by lower-case name, a folded line as one; bytes that are not UTF-8 become surrogates."""
    fields = (line.partition(":") for line in _FOLD.sub(b" ", lines).decode(errors="surrogateescape").split("\n"))
    return {name.strip().lower(): value.strip() for name, colon, value in fields if colon}


def _to_page(record: dict[str, str], block: bytes, most_bytes: int) -> _Page | None:
    """Return a record as a page; None if it is not of a kind and type that is read."""
    status, payload, headers = None, block, record
    if record.get("warc-type") == "response":
        status, headers, payload = _split_http(block)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if record.get("warc-type") not in _KINDS or kind not in _TYPES:
        return None
    own: dict[str, Any] = {name: record.get(f"warc-{field}") for name, field in _FIELDS.items()}
    own |= {"id": record.get("warc-record-id", "").strip("<>"), "status": status, "content_type": kind, "text": None, "title": None}
    try:
        body = _decode_payload(payload, headers, most_bytes)
        if max(len(block), len(body)) > most_bytes:
            return _Page(own, (Reason.TOO_LARGE, body))
        text = body.decode(_find_charset(body, headers, kind in _HTML))
    except UnicodeDecodeError:
        return _Page(own, (Reason.UNDECODABLE, payload))
    except (OSError, EOFError, zlib.error) as error:
        return _Page(own, (Reason.MALFORMED, f"{error}: ".encode() + payload))
    if kind not in _HTML:
        return _Page(own | {"text": text})
    tree = HTMLTree.parse(text)
    return _Page(own | {"text": extract_plain_text(tree), "title": tree.title or None})


def _split_http(block: bytes) -> tuple[str | None, dict[str, str], bytes]:
    """Return the status, the headers and the body of a response; one that is not of HTTP has no type."""
    head, *body = _BLANK_LINE.split(block, maxsplit=1)
    line, _, fields = head.partition(b"\n")
    status = _STATUS.match(line)
    return (status[1].decode(), _parse_headers(fields), body[0] if body else b"") if status else (None, {}, block)


def _decode_payload(payload: bytes, headers: dict[str, str], most_bytes: int) -> bytes:
    """Undo chunks and compression, the latter up to one byte beyond the limit; raise OSError, EOFError or zlib.error if that fails."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        payload = b"".join(_read_chunks(io.BytesIO(payload)))
    encoding = headers.get("content-encoding", "").lower()
    if encoding in ("", "identity") or not payload:
        return payload
    if encoding == "br":
        return bytes(BrotliReader(io.BytesIO(payload)).read(most_bytes + 1))
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise OSError(f"Content-Encoding {encoding} is not read")
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
    body = decoder.decompress(payload, most_bytes + 1)
    if len(body) <= most_bytes and not decoder.eof:
        raise EOFError(f"its {encoding} is cut off")
    return body


def _read_chunks(payload: IO[bytes]) -> Iterator[bytes]:
    while size := _CHUNK_SIZE.match(line := payload.readline(_MOST_HEADER_BYTES)):
        if not (num_bytes := int(size[1], 16)):
            return
        chunk = payload.read(num_bytes)
        payload.readline(2)
        yield chunk
    raise OSError(f"a chunk begins with {line[:50]!r}")


def _find_charset(body: bytes, headers: dict[str, str], is_html: bool) -> str:
    """Return the encoding of a text; a name that browsers do not know counts as none."""
    if mark := find_byte_order_mark(body):
        return ENCODINGS[mark]
    stated = _CHARSET.search(headers.get("content-type", ""))
    meta = _META.search(body, 0, _META_BYTES) if is_html else None
    names = (stated and stated[1], meta and meta[1].decode("ascii", "replace"))
    found = (map_encoding_to_html5(name, fallback_utf8=False) for name in names if name)
    return next(filter(None, found), "utf-8")

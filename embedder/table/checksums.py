"""The checksum of a parquet file: of all its bytes, and yet known from its footer alone, so that adopting a part does not read it.

The footer holds the sha256 of the pages before it. The checksum is the sha256 of that digest and of the rest of the file.
"""

import hashlib
import io
import json
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from embedder.core.retry import is_transient
from embedder.core.storage import READ_BLOCK_BYTES

PAGES_KEY = b"embedder.pages"
"""Footer key: the number of bytes before page index and footer, and their sha256."""


def describe_pages(sink: io.BytesIO) -> dict[bytes, bytes]:
    """Return the footer's entry for the pages written so far."""
    written = sink.getbuffer()
    return {PAGES_KEY: json.dumps([len(written), hashlib.sha256(written).hexdigest()]).encode()}


def checksum_of(data: bytes) -> str:
    """Return the checksum of a file's bytes."""
    return compute_checksum(io.BytesIO(data))


def compute_checksum(file: IO[bytes], trusts_pages: bool = False) -> str:
    """Return the checksum of an open file, as 64 hexadecimal digits.

    `trusts_pages` takes the digest of the pages from the footer, and reads nothing before it. A file without one, from an earlier
    embedder or not parquet, has the sha256 of its bytes.
    """
    try:
        pages = (pq.ParquetFile(file).metadata.metadata or {}).get(PAGES_KEY)
    except (pa.ArrowException, OSError) as error:  # pyarrow raises both for a damaged footer
        if is_transient(error):
            raise
        pages = None
    num_bytes, digest = (0, "") if pages is None else json.loads(pages)
    if pages is not None and not trusts_pages:
        digest = _hash(file, 0, num_bytes)
    return _hash(file, num_bytes, None, digest)


def _hash(file: IO[bytes], start: int, stop: int | None, prefix: str = "") -> str:
    """Return the sha256 of a prefix and the file's bytes from start to stop, or to the end."""
    hashed, left = hashlib.sha256(prefix.encode()), stop - start if stop is not None else None
    file.seek(start)
    while left != 0 and (block := file.read(READ_BLOCK_BYTES if left is None else min(left, READ_BLOCK_BYTES))):
        hashed.update(block)
        left = None if left is None else left - len(block)
    return hashed.hexdigest()

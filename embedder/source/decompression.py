"""A shard → its bytes, decompressed to the last one: what is cut off or damaged is a SourceError, never a shorter shard."""

import bz2
import gzip
import io
import lzma
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa

from embedder.core.errors import SourceError
from embedder.core.storage import Options, Store
from embedder.core.units import Shard

BLOCK_BYTES = 1 << 20
SMALL_SHARD_BYTES = 1 << 20
NUM_AHEAD = 32
"""Small shards of a bucket are fetched ahead, 32 at a time: an object store takes some 50 ms for each, however small,
and 32 MiB is all that can wait in memory."""

_BOM = b"\xef\xbb\xbf"
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, UnicodeError, OverflowError, MemoryError)


@contextmanager
def damage_explained(uri: str) -> Iterator[None]:
    """Turn what decoders raise on bytes they cannot follow into a SourceError that names the shard."""
    try:
        yield
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        advice = "it is cut off, damaged or not what its name says: replace it and run again"
        raise SourceError(f"{uri}: cannot be read to its end ({reason}); {advice}") from error


def open_each(shards: Sequence[Shard], options: Options) -> Iterator[tuple[Shard, IO[bytes]]]:
    """Open one after the other, in order; after the last byte of each, see that it is still the version that was listed."""
    if len(shards) == 1:
        yield from _open_one(shards[0], options)
        return
    waiting: deque[tuple[Shard, Future[bytes] | None]] = deque()
    pool = ThreadPoolExecutor(NUM_AHEAD)
    try:
        for shard in shards:
            waiting.append((shard, pool.submit(_fetch, shard, options) if shard.size_bytes <= SMALL_SHARD_BYTES else None))
            if len(waiting) > NUM_AHEAD:
                yield from _open_next(waiting, options)
        while waiting:
            yield from _open_next(waiting, options)
    finally:
        pool.shutdown(cancel_futures=True)


def _open_next(waiting: deque[tuple[Shard, Future[bytes] | None]], options: Options) -> Iterator[tuple[Shard, IO[bytes]]]:
    shard, fetched = waiting.popleft()
    if fetched is None:
        yield from _open_one(shard, options)
    else:
        yield shard, io.BytesIO(fetched.result())


def _open_one(shard: Shard, options: Options) -> Iterator[tuple[Shard, IO[bytes]]]:
    store = Store(shard.uri, options)
    with store.open_input() as file:
        yield shard, file
    _check_unchanged(shard, store)


def _fetch(shard: Shard, options: Options) -> bytes:
    store = Store(shard.uri, options)
    with store.open_input() as file:
        data = file.read()
    _check_unchanged(shard, store)
    return data


def _check_unchanged(shard: Shard, store: Store) -> None:
    found = store.info()
    if found is None or found.version != shard.version:
        now = "gone" if found is None else f"version {found.version}"
        raise SourceError(f"{shard.uri}: changed while it was read (listed as version {shard.version}, now {now}); run again")


def read_blocks(file: IO[bytes], compression: str | None) -> Iterator[bytes]:
    """Decompress block by block, all members or frames of the file, without a byte order mark at its start."""
    blocks = _DECODERS[compression](file)
    start = b""
    for block in blocks:
        start += block
        if len(start) >= len(_BOM):
            break
    yield start.removeprefix(_BOM)
    yield from blocks


def read_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Split at newlines, which are left out; a line may be longer than any block."""
    pending: list[bytes] = []
    for block in blocks:
        first, *others = block.split(b"\n")
        pending.append(first)
        if others:
            yield b"".join(pending)
            yield from others[:-1]
            pending = others[-1:]
    if any(pending):
        yield b"".join(pending)


def _read_plain(file: Any) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block


def _read_gzip(file: IO[bytes]) -> Iterator[bytes]:
    """The standard library's: unlike pyarrow's, it allows the zeros that some writers pad with; both detect a cut."""
    with gzip.GzipFile(fileobj=_not_empty(file)) as stream:
        yield from _read_plain(stream)


def _read_zstd(file: IO[bytes]) -> Iterator[bytes]:
    """pyarrow's: it goes on over several frames, and raises at a cut and at bytes after the last frame that start no other."""
    with pa.CompressedInputStream(_not_empty(file), "zstd") as stream:
        yield from _read_plain(stream)


def _read_streams(make: Callable[[], Any]) -> Callable[[IO[bytes]], Iterator[bytes]]:
    """Not bz2.BZ2File or lzma.LZMAFile, which take a damaged second stream for the end of the file, nor pyarrow's bz2, which
    stumbles over a stream of no bytes."""

    def read(file: IO[bytes]) -> Iterator[bytes]:
        decompressor = make()
        for block in _read_plain(_not_empty(file)):
            data = block
            while data or not decompressor.needs_input:
                if decompressor.eof:
                    data = data.lstrip(b"\0")  # what pads the end of a stream
                    if not data:
                        break
                    decompressor = make()
                yield decompressor.decompress(data, BLOCK_BYTES)
                data = decompressor.unused_data
        if not decompressor.eof:
            raise EOFError("ended before the end-of-stream marker")

    return read


def _not_empty(file: IO[bytes]) -> IO[bytes]:
    """Refuse zero bytes, which no compressor writes and most decoders take for an empty file."""
    if not file.read(1):
        raise EOFError("0 bytes, not even a header")
    file.seek(0)
    return file


_DECODERS: Mapping[str | None, Callable[[Any], Iterator[bytes]]] = {
    None: _read_plain,
    "gz": _read_gzip,
    "zst": _read_zstd,
    "bz2": _read_streams(bz2.BZ2Decompressor),
    "xz": _read_streams(lzma.LZMADecompressor),
}

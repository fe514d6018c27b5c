"""Open shards and decompress them to the last byte. A truncated or damaged shard is a SourceError, never a shorter shard."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa

from embedder.config.source import SourceConfig
from embedder.core.errors import SourceError, StorageError
from embedder.core.storage import Location, Store
from embedder.core.units import Shard

BLOCK_BYTES = 1 << 20
SMALL_SHARD_BYTES = 1 << 20
NUM_AHEAD = 32
"""Small shards are fetched 32 at a time: an object store takes about 50 ms for each, whatever its size, and at most 32 MiB wait in
memory."""

_BOM = b"\xef\xbb\xbf"
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, UnicodeError, OverflowError, MemoryError)


@contextmanager
def open_shard(shard: Shard, source: SourceConfig, narrow: bool = False) -> Iterator[IO[bytes]]:
    """Open one shard; raise SourceError if it cannot be opened, read or decoded. `narrow`: see `Store.open_input`."""
    try:
        with _locate(shard, source).open_input(narrow) as file, damage_explained(shard.uri):
            yield file
    except StorageError as error:
        raise SourceError(str(error)) from error


def open_each(shards: Sequence[Shard], source: SourceConfig) -> Iterator[tuple[Shard, IO[bytes]]]:
    """Open shards in order. Raise SourceError after the last byte of one whose version is not the listed one."""
    pool = ThreadPoolExecutor(NUM_AHEAD)
    fetched: list[Future[bytes] | None] = []
    try:
        for number, shard in enumerate(shards):
            ahead = shards[len(fetched) : number + NUM_AHEAD]
            fetched += [pool.submit(_fetch, each, source) if each.size_bytes <= SMALL_SHARD_BYTES else None for each in ahead]
            future, fetched[number] = fetched[number], None
            if future:
                yield shard, io.BytesIO(future.result())
            else:
                store = _locate(shard, source)
                with store.open_input() as file:
                    yield shard, file
                _check_unchanged(shard, store)
    finally:
        pool.shutdown(cancel_futures=True)


def _locate(shard: Shard, source: SourceConfig) -> Store:
    return Location(shard.uri, source.storage_options).open()


def _fetch(shard: Shard, source: SourceConfig) -> bytes:
    store = _locate(shard, source)
    with store.open_input() as file:
        data = file.read()
    _check_unchanged(shard, store)
    return data


def _check_unchanged(shard: Shard, store: Store) -> None:
    found = store.info()
    if found is None or found.version != shard.version:
        now = "gone" if found is None else f"version {found.version}"
        raise SourceError(f"{shard.uri}: changed while it was read (listed as version {shard.version}, now {now}); run again")


@contextmanager
def damage_explained(uri: str) -> Iterator[None]:
    """Turn a decoder's exception into a SourceError that names the shard."""
    try:
        yield
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        advice = "it is truncated, damaged or not in the format of its name; replace it and run again"
        raise SourceError(f"{uri}: cannot be read to its end ({reason}); {advice}") from error


def read_blocks(file: IO[bytes], compression: str | None) -> Iterator[bytes]:
    """Yield decompressed blocks of all members or frames of the file, without a byte order mark at the start."""
    blocks = DECODERS[compression](file) if compression else _read_plain(file)
    start = b""
    for block in blocks:
        start += block
        if len(start) >= len(_BOM):
            break
    yield start.removeprefix(_BOM)
    yield from blocks


def read_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield lines without their newline; a line can be longer than a block."""
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
    # not pyarrow's decoder, which refuses the zeros that some writers pad with; both detect truncation
    with gzip.GzipFile(fileobj=_not_empty(file)) as stream:
        yield from _read_plain(stream)


def _read_zstd(file: IO[bytes]) -> Iterator[bytes]:
    # pyarrow's decoder reads several frames, and raises on truncation and on trailing bytes that are not a frame
    with pa.CompressedInputStream(_not_empty(file), "zstd") as stream:
        yield from _read_plain(stream)


def _read_streams(make: Callable[[], Any]) -> Callable[[IO[bytes]], Iterator[bytes]]:
    # not BZ2File or LZMAFile, which take a damaged second stream for the end of the file; nor pyarrow's bz2, which fails on an empty stream
    def read(file: IO[bytes]) -> Iterator[bytes]:
        decompressor = make()
        for block in _read_plain(_not_empty(file)):
            data = block
            while data or not decompressor.needs_input:
                if decompressor.eof:
                    data = data.lstrip(b"\0")  # padding after a stream
                    if not data:
                        break
                    decompressor = make()
                yield decompressor.decompress(data, BLOCK_BYTES)
                data = decompressor.unused_data
        if not decompressor.eof:
            raise EOFError("ended before the end-of-stream marker")

    return read


def _not_empty(file: IO[bytes]) -> IO[bytes]:
    """Refuse a file of zero bytes: compressors never write one, but most decoders accept it."""
    if not file.read(1):
        raise EOFError("0 bytes, not even a header")
    file.seek(0)
    return file


DECODERS: Mapping[str, Callable[[IO[bytes]], Iterator[bytes]]] = {
    "gz": _read_gzip,
    "zst": _read_zstd,
    "bz2": _read_streams(bz2.BZ2Decompressor),
    "xz": _read_streams(lzma.LZMADecompressor),
}
"""By file suffix, without its dot."""

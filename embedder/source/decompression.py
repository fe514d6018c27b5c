"""Open shards and decompress them to the last byte. A truncated or damaged shard is a SourceError, never a shorter shard."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import IO, Any, cast

import pyarrow as pa

from embedder.config.source import SourceConfig
from embedder.core.errors import SourceError, StorageError
from embedder.core.storage import Location, Store
from embedder.core.units import Shard
from embedder.source.contents import START_BYTES, find_compression, to_utf8

BLOCK_BYTES = 1 << 20
SMALL_SHARD_BYTES = 1 << 20
NUM_AHEAD = 32
"""Small shards are fetched 32 at a time: an object store takes about 50 ms for each, whatever its size, and at most 32 MiB wait in
memory."""

MOST_LAYERS = 2
"""A file that was compressed twice is read; a file that unpacks to itself forever is not."""

_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, UnicodeError, OverflowError, MemoryError)


@contextmanager
def open_shard(shard: Shard, source: SourceConfig, narrow: bool = False) -> Iterator[IO[bytes]]:
    """Open one shard; raise SourceError if it cannot be opened, read or decoded. `narrow`: see `Store.open_input`."""
    if shard.fragment:
        with damage_explained(shard.uri):
            yield io.BytesIO()
        return
    try:
        with _open_input(shard, _locate(shard, source), narrow) as file, damage_explained(shard.uri):
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
            fetched += [
                pool.submit(_fetch, each, source) if each.size_bytes <= SMALL_SHARD_BYTES and not each.fragment else None for each in ahead
            ]
            future, fetched[number] = fetched[number], None
            if shard.fragment:
                yield shard, io.BytesIO()
            elif future:
                yield shard, io.BytesIO(future.result())
            else:
                store = _locate(shard, source)
                with _open_input(shard, store) as file:
                    yield shard, file
                _check_unchanged(shard, store)
    finally:
        pool.shutdown(cancel_futures=True)


def _locate(shard: Shard, source: SourceConfig) -> Store:
    return Location(shard.uri, source.storage_options).open()


@contextmanager
def _open_input(shard: Shard, store: Store, narrow: bool = False) -> Iterator[IO[bytes]]:
    try:
        with store.open_input(narrow) as file:
            yield file
    except StorageError as error:
        if shard.is_logged and isinstance(error.__cause__, FileNotFoundError):
            advice = "it was vacuumed or deleted; restore it, or read a version that does not need it"
            raise SourceError(f"{shard.uri}: the table's log names this file, but it is gone: {advice}") from error
        raise


def _fetch(shard: Shard, source: SourceConfig) -> bytes:
    store = _locate(shard, source)
    with _open_input(shard, store) as file:
        # a size, if it is known: the hub's file is otherwise read around the retries
        data = file.read(shard.size_bytes or -1)
    _check_unchanged(shard, store)
    return data


def _check_unchanged(shard: Shard, store: Store) -> None:
    found = store.info()
    if shard.is_logged:
        if found is None or found.size_bytes != shard.size_bytes:
            now = "gone" if found is None else f"{found.size_bytes} bytes"
            raise SourceError(f"{shard.uri}: the table's log names {shard.size_bytes} bytes (now {now}); restore it, or run again")
        return
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
    """Yield the text of the file in blocks of UTF-8, without a byte order mark.

    The bytes decide whether and how the file is compressed; `compression` is only the claim of its name. Raise one of the errors
    that `damage_explained` explains if the bytes are not text.
    """
    yield from to_utf8(*_peek(_decompress(file, compression)))


def open_decompressed(file: IO[bytes], compression: str | None) -> io.BufferedReader:
    """Return the bytes of the file as a stream that cannot be rewound."""
    return io.BufferedReader(_Blocks(_decompress(file, compression)), BLOCK_BYTES)


def read_start(file: IO[bytes]) -> bytes:
    """Return the first bytes of a file, and rewind it."""
    start = file.read(START_BYTES)
    file.seek(0)
    return start


def _decompress(file: IO[bytes], named: str | None) -> Iterator[bytes]:
    start = read_start(file)
    codec = find_compression(start) or named
    if codec and not start:
        # compressors never write an empty file, but most decoders accept it
        raise EOFError("0 bytes, not even a header")
    blocks = DECODERS[codec](file) if codec else _read_plain(file)
    for _ in range(MOST_LAYERS if codec else 0):
        start, others = _peek(blocks)
        blocks = chain([start], others)
        codec = find_compression(start)
        if codec is None:
            return blocks
        blocks = DECODERS[codec](cast(IO[bytes], io.BufferedReader(_Blocks(blocks))))
    if codec:
        raise OSError(f"it is compressed more than {MOST_LAYERS} times")
    return blocks


def _peek(blocks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return at least START_BYTES, or all there is, and the blocks after them."""
    start = b""
    for block in blocks:
        start += block
        if len(start) >= START_BYTES:
            break
    return start, blocks


class _Blocks(io.RawIOBase):
    """Blocks of bytes as a file, for a decoder of what another decoder returns."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and (block := next(self._blocks, None)) is not None:
            self._rest = block
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)


def _read_plain(file: Any) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block


def _read_gzip(file: IO[bytes]) -> Iterator[bytes]:
    # not pyarrow's decoder, which refuses the zeros that some writers pad with; both detect truncation
    with gzip.GzipFile(fileobj=file) as stream:
        yield from _read_plain(stream)


def _read_zstd(file: IO[bytes]) -> Iterator[bytes]:
    # pyarrow's decoder reads several frames, and raises on truncation and on trailing bytes that are not a frame
    with pa.CompressedInputStream(file, "zstd") as stream:
        yield from _read_plain(stream)


def _read_streams(make: Callable[[], Any]) -> Callable[[IO[bytes]], Iterator[bytes]]:
    # not BZ2File or LZMAFile, which take a damaged second stream for the end of the file; nor pyarrow's bz2, which fails on an empty stream
    def read(file: IO[bytes]) -> Iterator[bytes]:
        decompressor = make()
        for block in _read_plain(file):
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


DECODERS: Mapping[str, Callable[[IO[bytes]], Iterator[bytes]]] = {
    "gz": _read_gzip,
    "zst": _read_zstd,
    "bz2": _read_streams(bz2.BZ2Decompressor),
    "xz": _read_streams(lzma.LZMADecompressor),
}
"""By file suffix, without its dot."""

"""Index of a table's documents by content hash, a cache beside the parts: any of its files may be missing, stale or damaged.

A file lists the documents of some parts, sorted by hash, and is named by these parts, so that concurrent runs write equal files. The index
only suggests a part: vectors are taken where the whole hash in the part itself is equal.
"""

import logging
import math
import re
from binascii import unhexlify
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from embedder.core.errors import TableDamagedError
from embedder.core.spec import digest
from embedder.core.storage import Location, map_threads
from embedder.table.parts import list_by_name, open_parquet, part_file, why_damaged

Uint64s = npt.NDArray[np.uint64]
Names = npt.NDArray[np.bytes_]

INDEX_FOLDER = "_hashes"
INDEX_FILE = re.compile(r"[0-9a-f]{32}\.parquet")
MOST_BYTES = 1 << 30
"""Of entries in memory: 134 million documents at 8 bytes. Of a larger table a share is loaded, the smallest hashes."""
LEAST_BYTES = 16 << 20
MOST_FILE_ROWS = 12_000_000
"""96 MB, which S3 takes in one request."""
MOST_SMALL_FILES = 8
"""More files of less than a quarter of MOST_FILE_ROWS are replaced by one."""

_PART_BITS = 20
_PART_MASK = np.uint64((1 << _PART_BITS) - 1)
_ROW_GROUP_ROWS = 1 << 19
_PARTS = b"parts"

logger = logging.getLogger("embedder")


@dataclass(frozen=True, slots=True)
class IndexedParts:
    """Documents of some parts, sorted: the first 44 bits of a hash, then the part's number in 20."""

    names: Names
    entries: Uint64s

    def find(self, hashes: Uint64s) -> Names:
        """Return the name of a part for each hash, empty if there is none."""
        if not len(self.entries):
            return np.full(len(hashes), b"", "S1")
        place = np.minimum(np.searchsorted(self.entries, hashes & ~_PART_MASK), len(self.entries) - 1)
        found = self.entries[place]
        return np.where(found >> _PART_BITS == hashes >> _PART_BITS, self.names[(found & _PART_MASK).astype(np.int64)], b"")


@dataclass(frozen=True, slots=True)
class HashIndex:
    """The index of one version, or of a share of its documents."""

    files: tuple[IndexedParts, ...] = ()
    share: float = 1.0

    def find(self, hashes: Uint64s) -> Names:
        """Return the name of a part for each hash, empty if there is none. With 10^8 documents, 1 unknown hash in 10^5 gets a name."""
        found = np.full(len(hashes), b"", "S1")
        for file in self.files:
            found = np.where(found == b"", file.find(hashes), found)
        return found


NO_INDEX = HashIndex()
"""Finds no part: there is no table, or one of another space."""


def open_index(table: Location, rows: Mapping[str, int], most_bytes: int) -> HashIndex:
    """Load the index of these parts, given by name with their rows, and first write it for those that it lacks.

    Reads at most `most_bytes` of the index, and the hashes of the parts it lacks. Holds MOST_FILE_ROWS entries besides.
    """
    folder, share = table.child(INDEX_FOLDER), min(1.0, most_bytes / 8 / max(1, sum(rows.values())))
    stored = read_files(folder)
    chosen = choose_files(stored, rows)
    loaded = map_threads(lambda name: _load_file(folder.child(name), stored[name], rows, share), chosen, 4)
    files = {name: file for name, file in zip(chosen, loaded, strict=True) if file is not None}
    known = {part for name in files for part in stored[name]}
    lacking = [part for part in rows if part not in known]
    if lacking:
        logger.info("%s: reading the content hashes of %d parts, to find copies of their documents", folder.uri, len(lacking))
    written = [_write_file(table, parts, share) for parts in split_parts(lacking, rows)]
    return HashIndex((*files.values(), *written), share)


def read_files(folder: Location) -> dict[str, list[str]]:
    """Read the names of the parts that each file of the index lists; files that cannot be read are left out."""
    names = [name for name in list_by_name(folder) if INDEX_FILE.fullmatch(name)]
    parts = map_threads(lambda name: _read_parts(folder.child(name)), names)
    return {name: found for name, found in zip(names, parts, strict=True) if found}


def choose_files(stored: Mapping[str, Sequence[str]], rows: Mapping[str, int]) -> list[str]:
    """Return the files to use: each lists at least as many parts of the table, new to those before it, as others."""
    chosen, small, known = list[str](), list[str](), set[str]()
    for name, parts in sorted(stored.items(), key=lambda item: (-len(item[1]), item[0])):
        new = [part for part in parts if part in rows and part not in known]
        if new and 2 * len(new) >= len(parts):
            known.update(new)
            (small if sum(rows[part] for part in new) < MOST_FILE_ROWS // 4 else chosen).append(name)
    return chosen if len(small) > MOST_SMALL_FILES else [*chosen, *small]


def split_parts(names: Iterable[str], rows: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield parts that fit into one file, at least one."""
    held, held_rows = list[str](), 0
    for name in names:
        if held and (held_rows + rows[name] > MOST_FILE_ROWS or len(held) > _PART_MASK):
            yield held
            held, held_rows = [], 0
        held.append(name)
        held_rows += rows[name]
    if held:
        yield held


def _read_parts(file: Location) -> list[str] | None:
    try:
        with open_parquet(file.open(), narrow=True) as opened:
            parts: list[str] = opened.metadata.metadata[_PARTS].decode().split("\n")
            if not file.uri.endswith(f"/{_file_name(parts)}"):
                raise ValueError("not named by its parts")
            return parts
    except TableDamagedError as error:
        logger.warning("%s: an index file that cannot be read (%s); it is left out and made anew", file.uri, why_damaged(error))
        return None


def _load_file(file: Location, parts: Sequence[str], rows: Mapping[str, int], share: float) -> IndexedParts | None:
    """Load the smallest hashes of the file's parts that the table still has."""
    try:
        with open_parquet(file.open(), narrow=True) as opened:
            count = math.ceil(share * opened.metadata.num_rows)
            groups = range(math.ceil(count / _ROW_GROUP_ROWS))
            entries = opened.read_row_groups([*groups])["entry"].to_numpy()[:count]
    except TableDamagedError as error:
        logger.warning("%s: an index file that cannot be read (%s); it is left out and made anew", file.uri, why_damaged(error))
        return None
    is_held = np.array([part in rows for part in parts])
    return IndexedParts(np.array(parts, "S"), entries if is_held.all() else entries[is_held[(entries & _PART_MASK).astype(np.int64)]])


def _write_file(table: Location, parts: Sequence[str], share: float) -> IndexedParts:
    """Write the index of these parts and return a share of it; a file of this name, which could not be read, is replaced."""
    hashes = map_threads(partial(_read_hashes, table), list(parts))
    entries = np.concatenate([found & ~_PART_MASK | np.uint64(number) for number, found in enumerate(hashes)])
    entries.sort()
    is_first = np.ones(len(entries), np.bool_)
    is_first[1:] = entries[1:] != entries[:-1]
    entries = entries[is_first]  # a document has an entry for each of its chunks
    sink = pa.BufferOutputStream()
    rows = pa.table({"entry": entries})
    with pq.ParquetWriter(
        sink, rows.schema, compression="none", use_dictionary=False, write_statistics=False, write_page_checksum=True
    ) as writer:
        writer.write_table(rows, row_group_size=_ROW_GROUP_ROWS)
        writer.add_key_value_metadata({_PARTS: "\n".join(parts)})
    file, data = table.child(f"{INDEX_FOLDER}/{_file_name(parts)}").open(), bytes(sink.getvalue())
    if not file.write_once(data):
        file.remove()
        file.write_once(data)
    return IndexedParts(np.array(parts, "S"), entries[: math.ceil(share * len(entries))])


def _file_name(parts: Sequence[str]) -> str:
    return f"{digest(list(parts))}.parquet"


def _read_hashes(table: Location, name: str) -> Uint64s:
    try:
        with open_parquet(part_file(table, name), narrow=True) as file:
            return to_uint64(file.read(columns=["content_hash"])["content_hash"])
    except TableDamagedError as error:
        logger.warning("%s; its documents are not found by their hashes", error)
        return np.zeros(0, np.uint64)


def to_uint64(content_hashes: pa.ChunkedArray) -> Uint64s:
    """Return the first 8 bytes of each 16-byte hex hash as a number."""
    chunks = [chunk for chunk in content_hashes.chunks if len(chunk)]
    firsts = [np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset] for chunk in chunks]
    digits = (chunk.buffers()[2][first : first + 32 * len(chunk)] for chunk, first in zip(chunks, firsts, strict=True))
    data = b"".join(map(unhexlify, digits))
    return np.frombuffer(data, ">u8")[::2].astype(np.uint64)

"""Shards are read in tasks, tasks yield units, each unit is written as one part."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any

from embedder.core.spec import digest

KEY_BYTES = 8
"""64 bits: among a million tasks, the chance that two share a key is 1 in 37 million."""
VERSION_BYTES = 16


@dataclass(frozen=True, slots=True)
class Shard:
    """One input object. `version` changes when its content does: etag, or size and modification time."""

    uri: str
    version: str
    size_bytes: int
    constants: tuple[tuple[str, str | None], ...] = ()
    """Columns with one value for all records, from its folders' names or its table's log, as text; only those that the settings use."""
    optional: tuple[str, ...] = ()
    """Columns of its table: they are null if the file, which may be older than the column, does not have them."""
    num_rows: int | None = None
    """None: unknown before it is opened."""
    row_filter: str = ""
    """A filter that its records must pass and the types of its columns, as JSON; empty: all records are wanted."""
    is_logged: bool = False
    """Whether the log of a table names it. `version` is then the log's, and must not be compared with that of its storage."""
    columns: str = ""
    """Where its file holds the columns of its table, by field id, as JSON; empty: under their own names."""
    deleted: str = ""
    """Rows of its file that its table deleted, as `source/table_files.py` packs them. They are not records, and are not numbered."""
    fragment: str = ""
    """The fragment of a Lance dataset, or the rows of a database, that it stands for, as JSON; it is then not a file, and its uri is a name
    only."""

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that differ from their defaults; most shards have three, and a run may have millions."""
        return {name: value for name in Shard.__slots__ if (value := getattr(self, name)) != _DEFAULTS.get(name)}

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> "Shard":
        """Return the shard of `fields`, whose tuples may have become lists."""
        constants = tuple((name, value) for name, value in fields.get("constants", ()))
        return Shard(**{**fields, "constants": constants, "optional": tuple(fields.get("optional", ()))})


_DEFAULTS = {each.name: each.default for each in fields(Shard)[3:]}


@dataclass(frozen=True, slots=True)
class Task:
    """A shard, a slice of a large parquet shard, or a bucket of small shards, streamed by one reader.

    `key` does not depend on content, so that a changed shard or bucket finds its previous parts by name. `version` changes
    with the content of its shards and with everything else that decides a part's bytes (space, columns).
    """

    key: str
    version: str
    shards: tuple[Shard, ...]
    row_groups: tuple[int, int] | None = None
    """First and stop row group of a slice of a parquet shard."""
    first_row: int = 0
    """The shard's row at which the slice starts."""
    ends: bool = True
    """Whether this task holds the last row of its key: false for every slice but the final one."""
    cut_by_encoders: bool = False
    """Whether encoders chunk and tokenize its documents, and its reader only reads: a large shard that cannot be split, whose one reader
    would otherwise be what the run waits for."""

    @property
    def size_bytes(self) -> int:
        """Stored bytes of all its shards."""
        return sum(shard.size_bytes for shard in self.shards)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields, and those of the shards."""
        return {name: getattr(self, name) for name in Task.__slots__} | {"shards": [shard.fields for shard in self.shards]}

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> "Task":
        """Return the task of `fields`, whose tuples may have become lists."""
        shards = tuple(map(Shard.from_fields, fields["shards"]))
        return Task(**{**fields, "shards": shards, "row_groups": tuple(fields["row_groups"]) if fields["row_groups"] else None})


_LATER = frozenset({"filtered", "chunks_reused", "tokens_reused"})
"""Counts of `Stats` that older tables lack."""

PART = re.compile(r"(?P<key>[0-9a-f]{16})-(?P<version>[0-9a-f]{32})-(?P<first>[0-9]{12})-(?P<stop>[0-9]{12})(?P<last>-last)?\.parquet")


@dataclass(frozen=True, slots=True)
class PartName:
    """A part's file name: its shard or bucket, the version, the rows, and whether they are the last.

    Rows are counted over the shard or bucket from 0, quarantined ones included. Its parts form a chain: each starts at the
    stop row of the one before, and the chain is complete when it reaches a last one.
    """

    key: str
    version: str
    first_row: int
    stop_row: int
    last: bool

    def __str__(self) -> str:
        return f"{self.key}-{self.version}-{self.first_row:012d}-{self.stop_row:012d}{'-last' if self.last else ''}.parquet"

    @staticmethod
    def parse(name: str) -> "PartName | None":
        """Return the parsed file name; None if the file is not a part."""
        found = PART.fullmatch(name)
        if found is None:
            return None
        return PartName(found["key"], found["version"], int(found["first"]), int(found["stop"]), found["last"] is not None)


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of one unit; their sums are the run's figures."""

    documents: int = 0
    """Source records read, quarantined ones included."""
    quarantined: int = 0
    chunks: int = 0
    """Chunks whose vectors were computed."""
    tokens: int = 0
    """Tokens of these chunks, special tokens and prompt included, padding excluded."""
    padded_tokens: int = 0
    """Tokens computed, padding included."""
    truncated: int = 0
    """Documents truncated at max_tokens because chunking is off."""
    reused: int = 0
    """Documents whose vectors came from a previous part."""
    text_bytes: int = 0
    encode_seconds: float = 0.0
    read_seconds: float = 0.0
    """Reading, chunking and tokenizing."""
    write_seconds: float = 0.0
    """Parts written in this run only: a part's footer is made before its write is timed."""
    filtered: int = 0
    """Records that source.filter leaves out."""
    chunks_reused: int = 0
    """Chunks whose vectors came from a previous part, or from an equal chunk of the unit."""
    tokens_reused: int = 0
    """Tokens of these chunks."""

    def record(self) -> dict[str, Any]:
        """Return the counts for a record or footer; later ones only if they are not 0, as earlier versions of this code write none."""
        return {name: value for name, value in asdict(self).items() if value or name not in _LATER}

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(*(getattr(self, name) + getattr(other, name) for name in Stats.__slots__))


@dataclass(frozen=True, slots=True)
class Part:
    """One complete parquet file on storage, which a commit may name."""

    name: str
    rows: int
    size_bytes: int
    stats: Stats
    quarantine_bytes: int = 0
    """Size of the file of the same name in the quarantine table; 0: no row was quarantined."""
    checksum: str = ""
    """Of the file, by `table/checksums.py`; empty only before the file was read."""

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> "Part":
        """Return the part of `dataclasses.asdict`."""
        return Part(**{**fields, "stats": Stats(**fields["stats"])})

    @property
    def key(self) -> str:
        """Key of its task."""
        return self.name.split("-", 1)[0]


def task_key(*names: str) -> str:
    """Return a task's key, from names that do not depend on content."""
    return digest(*names, num_bytes=KEY_BYTES)


def shard_key(uri: str) -> str:
    """Return the key of a shard that is read on its own."""
    return task_key("shard", uri)


def bucket_key(uri: str, bits: int) -> str:
    """Return the key of the bucket of a small shard."""
    return numbered_bucket_key(int(digest(uri, num_bytes=8), 16) >> (64 - bits), bits)


@cache
def numbered_bucket_key(number: int, bits: int) -> str:
    """Return the key of a bucket by its number."""
    return task_key("bucket", str(bits), str(number))


def complete_parts(names: Iterable[PartName]) -> list[PartName]:
    """Return one task's parts from row 0 to the last; [] if one is missing.

    If parts and the part they were merged into are both there, the longest part that leads to the end is taken.
    """
    following: dict[int, PartName] = {}
    for name in sorted(names, key=lambda each: (-each.first_row, each.stop_row)):
        if name.last or (name.stop_row > name.first_row and name.stop_row in following):
            following[name.first_row] = name
    chain: list[PartName] = []
    row = 0
    while (part := following.get(row)) is not None:
        chain.append(part)
        if part.last:
            return chain
        row = part.stop_row
    return []

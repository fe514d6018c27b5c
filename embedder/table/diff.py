"""Two versions of a table → the rows that came, changed and left: only parts that differ between them are read.

Parts are named by content, so parts of one task and version hold equal rows however they are cut: a compaction is no change.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedder.core.errors import CommitError, VersionGoneError
from embedder.core.storage import Location, map_threads
from embedder.core.units import PartName, bucket_key
from embedder.table.delta import list_committed, read_table
from embedder.table.parts import list_parts, part_file, read_batches

KEY = ("shard", "doc_id", "chunk")
"""What names a row for good: ids are unique within a shard only."""

_NOT_COMPARED = frozenset({*KEY, "row", "embedding"})
"""`row` moves whenever a line is put before it, which makes no other row of it; the vector is compared by its bytes."""

_HASH_BYTES = 16
Digests = npt.NDArray[np.bytes_]


@dataclass(frozen=True, slots=True)
class PartGroup:
    """Parts that may hold the same shards' rows before and after: those of one task, or of a shard that left or entered a bucket."""

    removed: tuple[PartName, ...]
    added: tuple[PartName, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """Rows to upsert, all columns of the newer version; `known` says of each whether its key was there before."""

    rows: pa.Table
    known: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference between two versions. Each access to `upserts` or `deletes` is a new pass, so a failed load may ask again.

    Memory: 32 bytes for each removed row of one group (a shard, or a bucket of small ones), or 16 for each added one, and a batch
    of 16,384 rows.
    """

    folder: Location
    groups: tuple[PartGroup, ...]
    old: int | None
    new: int

    @property
    def upserts(self) -> Iterator[pa.Table]:
        """Rows that came or changed, all columns, in order within a shard; no key comes twice, and none is also in `deletes`.

        Changed is a row whose hash, offsets, tokens, metadata or vector differ; the same row at another `row` of its shard is not.
        """
        return (each.rows for each in self.compared())

    @property
    def deletes(self) -> Iterator[pa.Table]:
        """Keys (`shard`, `doc_id`, `chunk`) of rows that left. A shard that was moved leaves under its old name."""
        for group in self.groups:
            after = np.sort(np.concatenate([_EMPTY, *map(digest_keys, self._read(group.added, KEY))]))
            for keys in self._read(group.removed, KEY):
                gone = _find(after, digest_keys(keys)) < 0
                if gone.any():
                    yield keys.filter(pa.array(gone))

    def compared(self) -> Iterator[Compared]:
        """Give the upserts, each told apart: a row that came, or one that changed."""
        for group in self.groups:
            keys, contents = self._index(group.removed)
            for rows in self._read(group.added):
                place = _find(keys, digest_keys(rows))
                known = place >= 0
                wanted = ~known
                if known.any():
                    wanted[known] = contents[place[known]] != digest_contents(rows.filter(pa.array(known)))
                if wanted.any():
                    yield Compared(rows.filter(pa.array(wanted)), known[wanted])

    def _index(self, names: Iterable[PartName]) -> tuple[Digests, Digests]:
        keys, contents = [_EMPTY], [_EMPTY]
        for rows in self._read(names):
            keys.append(digest_keys(rows))
            contents.append(digest_contents(rows))
        every = np.concatenate(keys)
        order = np.argsort(every, kind="stable")
        return every[order], np.concatenate(contents)[order]

    def _read(self, names: Iterable[PartName], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        return (table for name in names for table in read_batches(part_file(self.folder, str(name)), columns))


_EMPTY: Digests = np.zeros(0, f"S{_HASH_BYTES}")


def read_changes(location: Location, old: int | None, new: int | None) -> Changes:
    """Compare version `old` (None: before the first) with `new` (None: the newest); what is read is proportional to what changed.

    Apply `upserts` and `deletes` in either order, in batches of any size, again after a failure: both are idempotent.
    VersionGoneError if a version, or a part that left since, is no longer on storage: then the table must be loaded anew.
    """
    state = read_table(location)
    if state is None:
        raise CommitError(f"{location.uri}: no table there; make one with jobs.embed")
    new = state.version if new is None else new
    before = [] if old is None else list_committed(location, old)
    removed, added = plan_changes(before, state.parts if new == state.version else list_committed(location, new))
    folder = location
    check_present(folder, map(str, removed), old)
    check_present(folder, map(str, added), new)
    buckets = _find_buckets(folder, removed, added, int(state.info["bucket_bits"]))
    return Changes(folder, group_parts(removed, added, buckets), old, new)


def name_rows(changes: Changes) -> Iterator[dict[str, Any]]:
    """Name every row that came, changed or left: `change` and the KEY columns."""
    for each in changes.compared():
        for row, known in zip(each.rows.select(KEY).to_pylist(), each.known.tolist(), strict=True):
            yield {"change": "changed" if known else "came", **row}
    for keys in changes.deletes:
        yield from ({"change": "left", **row} for row in keys.select(KEY).to_pylist())


def plan_changes(before: Iterable[PartName], after: Iterable[PartName]) -> tuple[tuple[PartName, ...], tuple[PartName, ...]]:
    """Give the parts that left and those that came, leaving out tasks that are whole in both, cut into other parts."""
    old, new = list(before), list(after)
    tasks_old, tasks_new = ({(name.key, name.version) for name in names} for names in (old, new))
    removed = tuple(name for name in old if (name.key, name.version) not in tasks_new)
    return removed, tuple(name for name in new if (name.key, name.version) not in tasks_old)


def group_parts(removed: Sequence[PartName], added: Sequence[PartName], buckets: dict[str, str]) -> tuple[PartGroup, ...]:
    """Group by task key; `buckets` leads a key to that of the bucket its shard was in, or is in, while it is small."""
    groups: defaultdict[str, tuple[list[PartName], list[PartName]]] = defaultdict(lambda: ([], []))
    for side, names in enumerate((removed, added)):
        for name in sorted(names, key=lambda each: (each.key, each.first_row)):
            groups[buckets.get(name.key, name.key)][side].append(name)
    return tuple(PartGroup(tuple(left), tuple(came)) for _, (left, came) in sorted(groups.items()))


def digest_keys(rows: pa.Table) -> Digests:
    """KEY columns → 16 bytes a row."""
    keys = zip(*(rows[name].to_pylist() for name in KEY), strict=True)
    return _pack(blake2b(repr(key).encode(errors="surrogatepass"), digest_size=_HASH_BYTES).digest() for key in keys)


def digest_contents(rows: pa.Table) -> Digests:
    """All columns that make a row what it is, the vector to the bit → 16 bytes a row; rows of other columns digest differently."""
    names = [name for name in rows.schema.names if name not in _NOT_COMPARED]
    salt = blake2b(repr([(name, str(rows.schema.field(name).type)) for name in (*names, "embedding")]).encode(), digest_size=_HASH_BYTES)
    plain = zip(*(rows[name].to_pylist() for name in names), strict=True)
    digests = []
    for values, vector in zip(plain, _vector_bytes(rows["embedding"]), strict=True):
        hashed = salt.copy()
        hashed.update(repr(values).encode(errors="surrogatepass"))
        hashed.update(vector)
        digests.append(hashed.digest())
    return _pack(digests)


def _vector_bytes(column: pa.ChunkedArray) -> Iterator[bytes | memoryview]:
    """Give each vector's bytes, be it a list of numbers or packed bits."""
    for chunk in column.chunks:
        if not pa.types.is_list(chunk.type):
            yield from chunk.to_pylist()
            continue
        bounds = chunk.offsets.to_numpy() * (chunk.type.value_type.bit_width // 8)
        data = memoryview(chunk.values.to_numpy(zero_copy_only=False)).cast("B")
        yield from (data[start:stop] for start, stop in pairwise(bounds.tolist()))


def _pack(digests: Iterable[bytes]) -> Digests:
    return np.array([*digests], f"S{_HASH_BYTES}")


def _find(ordered: Digests, wanted: Digests) -> npt.NDArray[np.int64]:
    """Give each digest's place among the ordered ones, −1 where there is none."""
    if not len(ordered):
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[place] == wanted, place, -1)


def check_present(folder: Location, names: Iterable[str], version: int | None) -> None:
    """Refuse before the first row what could not be read to the last."""
    wanted = set(names)
    gone = wanted.difference(map(str, list_parts(folder))) if wanted else wanted
    if gone:
        raise VersionGoneError(
            f"{folder.uri}: version {version} can no longer be read: {len(gone)} of its parts were vacuumed ({min(gone)}); "
            "name a later version, or load the table anew"
        )


def _find_buckets(folder: Location, removed: Sequence[PartName], added: Sequence[PartName], bits: int) -> dict[str, str]:
    """Lead each key that only left or only came to the bucket of its shard: a shard that grows or shrinks leaves one for the other."""
    left, came = ({name.key for name in names} for names in (removed, added))
    if not left or not came:
        return {}
    by_key: defaultdict[str, list[PartName]] = defaultdict(list)
    for name in (*removed, *added):
        if name.key in left ^ came:
            by_key[name.key].append(name)
    keys = list(by_key)
    shards = map_threads(lambda key: _first_shard(folder, by_key[key]), keys)
    return {key: bucket_key(shard, bits) for key, shard in zip(keys, shards, strict=True) if shard is not None}


def _first_shard(folder: Location, names: Iterable[PartName]) -> str | None:
    """Read a shard that these parts hold rows of; None if they hold none. All shards of a bucket lead to the same one."""
    for name in names:
        for table in read_batches(part_file(folder, str(name)), ("shard",)):
            return str(table["shard"][0])
    return None

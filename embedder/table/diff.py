"""Compares two versions of a table: rows that were added, changed or removed. Only parts that differ are read.

Parts are named by content: parts of one task and version hold equal rows however they are split, so a compaction changes nothing.
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

from embedder.core.columns import PartNames, is_among
from embedder.core.errors import TableDamagedError, VersionGoneError
from embedder.core.storage import Location, map_threads
from embedder.core.units import PartName, bucket_key
from embedder.table.delta import list_committed, require_table
from embedder.table.parts import REPAIR, group_by_task, list_by_name, part_file, read_batches
from embedder.table.run_record import find_info

KEY = ("shard", "doc_id", "chunk")
"""Columns that identify a row: ids are unique within a shard only."""

_NOT_COMPARED = frozenset({*KEY, "row", "embedding"})
"""`row` moves whenever a line is inserted before it, which changes nothing else in the row; the vector is compared by its bytes."""

_HASH_BYTES = 16
Digests = npt.NDArray[np.bytes_]
NO_DIGESTS: Digests = np.zeros(0, f"S{_HASH_BYTES}")


PartGroup = tuple[list[PartName], list[PartName]]
"""Removed and added parts that may hold rows of the same shards: those of one task, or of a shard that left or entered a bucket."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference between two versions. Each access to `upserts` or `deletes` starts a new pass, so a load can be retried.

    Memory: 32 bytes for each removed row of one group (a shard, or a bucket of small ones), or 16 for each added one, and a batch
    of 16,384 rows.
    """

    table: Location
    groups: tuple[PartGroup, ...]
    old: int | None
    new: int

    @property
    def upserts(self) -> Iterator[pa.Table]:
        """New and changed rows, all columns, in order within a shard; each key occurs once, and none is also in `deletes`.

        A row is changed if its hash, offsets, tokens, metadata or vector differ, not if only its `row` in the shard does.
        """
        return (rows for rows, _ in self.compared())

    @property
    def deletes(self) -> Iterator[pa.Table]:
        """Keys (`shard`, `doc_id`, `chunk`) of removed rows. A moved shard is removed under its old name."""
        for removed, added in self.groups:
            after = np.sort(np.concatenate([NO_DIGESTS, *map(digest_keys, self._read(added, KEY))]))
            for keys in self._read(removed, KEY):
                gone = find_sorted(after, digest_keys(keys)) < 0
                if gone.any():
                    yield keys.filter(pa.array(gone))

    def compared(self) -> Iterator[tuple[pa.Table, npt.NDArray[np.bool_]]]:
        """Yield the upserts, and whether the key of each row existed before."""
        for removed, added in self.groups:
            keys, contents = self._index(removed)
            for rows in self._read(added):
                place = find_sorted(keys, digest_keys(rows))
                known = place >= 0
                wanted = ~known
                if known.any():
                    wanted[known] = contents[place[known]] != digest_contents(rows.filter(pa.array(known)))
                if wanted.any():
                    yield rows.filter(pa.array(wanted)), known[wanted]

    def _index(self, names: Iterable[PartName]) -> tuple[Digests, Digests]:
        digests = [(digest_keys(rows), digest_contents(rows)) for rows in self._read(names)]
        keys, contents = (np.concatenate(each) for each in zip((NO_DIGESTS, NO_DIGESTS), *digests, strict=True))
        order = np.argsort(keys, kind="stable")
        return keys[order], contents[order]

    def _read(self, names: Iterable[PartName], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        return (rows for name in names for rows in read_batches(part_file(self.table, str(name)), columns))


def read_changes(location: Location, old: int | None, new: int | None) -> Changes:
    """Compare version `old` (None: before the first) with `new` (None: the newest); reads in proportion to the difference.

    Apply `upserts` and `deletes` in either order, in batches of any size; repeating either is safe.
    VersionGoneError if a version, or a part removed since, is gone from storage: then the table must be loaded again.
    """
    state = require_table(location)
    new = state.version if new is None else new
    before = [] if old is None else list_committed(location, old)
    removed, added = plan_changes(before, state.parts if new == state.version else list_committed(location, new))
    check_present(location, map(str, removed), old, old == state.version)
    check_present(location, map(str, added), new, new == state.version)
    # a table that was replaced may have other buckets: of the fewest, each holds whole ones of the others
    infos = [state.info, *(find_info(location, each) for each in (old, new) if each not in (None, state.version))]
    bits = min(int(info["bucket_bits"]) for info in infos if info is not None)
    return Changes(location, group_parts(removed, added, _find_buckets(location, removed, added, bits)), old, new)


def name_rows(changes: Changes) -> Iterator[dict[str, Any]]:
    """Yield every new, changed and removed row by name: `change` and the KEY columns."""
    for rows, existed in changes.compared():
        for row, known in zip(rows.select(KEY).to_pylist(), existed.tolist(), strict=True):
            yield {"change": "changed" if known else "came", **row}
    for keys in changes.deletes:
        yield from ({"change": "left", **row} for row in keys.select(KEY).to_pylist())


def plan_changes(before: Iterable[PartName], after: Iterable[PartName]) -> tuple[PartNames, PartNames]:
    """Return the removed and the added parts, without tasks that are complete in both, split differently."""
    old, new = PartNames.of(before), PartNames.of(after)
    return old.select(~is_among(old.tasks, new.tasks)), new.select(~is_among(new.tasks, old.tasks))


def group_parts(removed: Sequence[PartName], added: Sequence[PartName], buckets: dict[str, str]) -> tuple[PartGroup, ...]:
    """Group by task key; `buckets` maps a key to that of the bucket its shard was in, or is in, while it is small."""
    groups: defaultdict[str, PartGroup] = defaultdict(lambda: ([], []))
    for side, names in enumerate((removed, added)):
        for parts in group_by_task(names):
            groups[buckets.get(parts[0].key, parts[0].key)][side].extend(parts)
    return tuple(group for _, group in sorted(groups.items()))


def digest_keys(rows: pa.Table) -> Digests:
    """KEY columns → 16 bytes a row."""
    keys = zip(*(rows[name].to_pylist() for name in KEY), strict=True)
    return _pack(blake2b(repr(key).encode(errors="surrogatepass"), digest_size=_HASH_BYTES).digest() for key in keys)


def digest_contents(rows: pa.Table) -> Digests:
    """All columns that decide whether a row changed, the vector to the bit → 16 bytes a row; the column types count too."""
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
    """Yield each vector's bytes, from a list of numbers or from packed bits."""
    for chunk in column.chunks:
        if not pa.types.is_list(chunk.type):
            yield from chunk.to_pylist()
            continue
        bounds = chunk.offsets.to_numpy() * (chunk.type.value_type.bit_width // 8)
        data = memoryview(chunk.values.to_numpy(zero_copy_only=False)).cast("B")
        yield from (data[start:stop] for start, stop in pairwise(bounds.tolist()))


def _pack(digests: Iterable[bytes]) -> Digests:
    return np.array([*digests], f"S{_HASH_BYTES}")


def find_sorted(ordered: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the position of each wanted value among the ordered ones, −1 if absent."""
    if not len(ordered):
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[place] == wanted, place, -1)


def check_present(table: Location, names: Iterable[str], version: int | None, is_newest: bool) -> None:
    """Refuse, before the first row, parts that are no longer on storage; of the newest version nothing may be missing."""
    wanted = set(names)
    gone = wanted.difference(list_by_name(table)) if wanted else wanted
    if gone and is_newest:
        raise TableDamagedError(f"{table.uri}: {len(gone)} parts of the newest version are not on storage ({min(gone)}); {REPAIR}")
    if gone:
        raise VersionGoneError(
            f"{table.uri}: version {version} can no longer be read: {len(gone)} of its parts were vacuumed ({min(gone)}); "
            "name a later version, or load the table anew"
        )


def _find_buckets(table: Location, removed: Sequence[PartName], added: Sequence[PartName], bits: int) -> dict[str, str]:
    """Map each key on one side only to the bucket of its shard: a shard that grows or shrinks leaves one for the other."""
    left, came = ({name.key for name in names} for names in (removed, added))
    if not left or not came:
        return {}
    groups = group_by_task(name for name in (*removed, *added) if name.key in left ^ came)
    shards = map_threads(lambda names: _first_shard(table, names), groups)
    return {names[0].key: bucket_key(shard, bits) for names, shard in zip(groups, shards, strict=True) if shard is not None}


def _first_shard(table: Location, names: Iterable[PartName]) -> str | None:
    """Read one shard of these parts' rows; None if they hold none. All shards of a bucket lead to the same one."""
    for name in names:
        for rows in read_batches(part_file(table, str(name)), ("shard",)):
            return str(rows["shard"][0])
    return None

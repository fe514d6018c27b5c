"""Shards and committed parts become a plan: what to read, adopt, keep and remove. Pure: touches no storage."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedder.core.columns import Numbers, PartNames, Shards, Tasks, is_among
from embedder.core.digests import BATCH_ROWS, digest_each, digest_groups, escape, join_texts
from embedder.core.spec import canonical
from embedder.core.units import KEY_BYTES, VERSION_BYTES, PartName, Shard, Task, complete_parts, numbered_bucket_key

SMALL_SHARD_BYTES = 256 << 10
"""Smaller shards are grouped: alone, each would be less than a second of work and a tiny part."""

BATCHES = 1_000
"""A row of tasks, for one reader, holds one in so many of the bytes that are left; readers are some hundred."""

BUCKET_BYTES = 8 << 20
BUCKET_SHARDS = 512
"""A bucket is opened shard by shard: at 50 ms a request, 512 take one reader half a minute."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The difference between what the table should hold and what it holds."""

    read: Tasks
    """Tasks to read, largest first, so that the last one to finish is small."""
    done: dict[str, frozenset[str]]
    """By task key: names of stored parts whose units need not be embedded again, if there are any."""
    adopt: tuple[PartName, ...]
    """Complete parts on storage, from a run that ended before its commit."""
    keep: PartNames
    """Committed and still wanted: neither opened nor changed."""
    remove: PartNames
    """Committed and no longer wanted."""
    previous: dict[str, tuple[str, ...]]
    """By task key: removed parts that may hold vectors of its documents, its own and those of a shard that moved, if there are any."""

    @property
    def is_empty(self) -> bool:
        """Whether the table already matches the source."""
        return not (self.read or self.adopt or self.remove)


def choose_bucket_bits(shards: Iterable[Shard]) -> int:
    """Return b such that 2^b buckets hold the small shards; chosen once and stored with the table."""
    sizes = Shards.of(shards).sizes
    small = sizes[sizes < SMALL_SHARD_BYTES]
    return math.ceil(math.log2(max(int(small.sum()) / BUCKET_BYTES, len(small) / BUCKET_SHARDS, 1)))


def group_shards(shards: Iterable[Shard], layout: str, bucket_bits: int) -> Tasks:
    """Return tasks: a large shard alone, small ones bucketed by a hash of their uri; `layout` is part of every version.

    The version of a large shard leaves out its uri, so that a shard that moved is recognized.
    """
    shards = Shards.of(shards)
    is_small = shards.sizes < SMALL_SHARD_BYTES
    large, small = np.flatnonzero(~is_small), np.flatnonzero(is_small)
    small, numbers, stops = _fill_buckets(shards, small, bucket_bits)
    names = _name_large(shards.select(large), layout) + [
        f"{numbered_bucket_key(number, bucket_bits)}-{version}"
        for number, version in zip(numbers, _digest_buckets(shards, small, stops, layout), strict=True)
    ]
    members, ends = np.concatenate([large, small]), np.concatenate([np.arange(1, len(large) + 1), len(large) + stops])
    starts = np.concatenate([[0], ends])[:-1]
    reached = np.concatenate([[0], np.cumsum(shards.sizes[members])])
    return Tasks(shards, pa.array(names, pa.string()), members, starts, ends, reached[ends] - reached[starts])


def _name_large(shards: Shards, layout: str) -> list[str]:
    versions = digest_each([f'[{canonical(layout)},"', escape(shards.versions), *_filters_of(shards), "]"], VERSION_BYTES)
    return [f"{key}-{bytes(version).hex()}" for key, version in zip(shard_keys(shards.uris), versions, strict=True)]


def _fill_buckets(shards: Shards, small: Numbers, bits: int) -> tuple[Numbers, list[int], Numbers]:
    """Return rows in order of bucket and uri, the number of each bucket, and the end of each bucket among the rows."""
    uris = shards.uris.take(pa.array(small))
    if not pc.all(pc.less_equal(uris[:-1], uris[1:])).as_py():
        small = small[pc.sort_indices(uris).to_numpy()]
        uris = shards.uris.take(pa.array(small))
    numbers = _number_buckets(uris, bits)
    order = np.argsort(numbers, kind="stable")
    found, firsts = np.unique(numbers[order], return_index=True)
    return small[order], found.tolist(), np.append(firsts, len(small))[1:]


def _number_buckets(uris: pa.LargeStringArray, bits: int) -> npt.NDArray[np.uint64]:
    hashes = digest_each(['["', escape(uris), '"]'], KEY_BYTES).view(">u8").ravel().astype(np.uint64)
    return hashes >> np.uint64(64 - bits) if bits else np.zeros(len(uris), np.uint64)


def _digest_buckets(shards: Shards, rows: Numbers, stops: Numbers, layout: str) -> Iterator[str]:
    """Yield the version of each bucket, hashing the shards of some buckets at a time."""
    before = f"[{canonical(layout)},"
    first = 0
    while first < len(stops):
        start = int(stops[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(stops, start + BATCH_ROWS, side="right")))
        some = shards.select(rows[start : stops[last - 1]])
        pairs = join_texts('["', escape(some.uris), '","', escape(some.versions), *_filters_of(some), "],")
        yield from digest_groups(before, pairs, stops[first:last] - start, VERSION_BYTES)
        first = last


def _filters_of(shards: Shards) -> tuple[str | pa.LargeStringArray]:
    """Return the end of a version as JSON: with the filter only if records are filtered, so that other parts stay as they are."""
    ends = [f'",{canonical(kind.row_filter)}' if kind.row_filter else '"' for kind in shards.kinds]
    return (ends[0] if len(set(ends)) == 1 else pa.array(ends, pa.large_string()).take(pa.array(shards.kind)),)


def shard_keys(uris: pa.LargeStringArray) -> list[str]:
    """Return `shard_key` of each uri."""
    return [bytes(key).hex() for key in digest_each(['["shard","', escape(uris), '"]'], KEY_BYTES)]


def plan_work(wanted: Tasks, committed: Iterable[PartName], stored: Iterable[PartName]) -> Plan:
    """Return the difference, by name, between the wanted tasks and the parts of the table and its folder."""
    committed, stored = PartNames.of(committed), PartNames.of(stored)
    missing = wanted.select(~is_among(wanted.names, committed.tasks))
    found: defaultdict[str, list[PartName]] = defaultdict(list)
    for name in stored.select(is_among(stored.tasks, missing.names)):
        found[f"{name.key}-{name.version}"].append(name)
    adopted: list[str] = []
    adopt: list[PartName] = []
    done = {}
    for task, parts in found.items():
        if chain := complete_parts(parts):
            adopted.append(task)
            adopt += chain
        else:
            done[parts[0].key] = frozenset(map(str, parts))
    is_kept = is_among(committed.tasks, wanted.names)
    keep, remove = committed.select(is_kept), committed.select(~is_kept)
    read = missing.select(~is_among(missing.names, pa.array(adopted, pa.string())))
    order = pc.sort_indices(pa.table({"size": read.sizes, "name": read.names}), [("size", "descending"), ("name", "ascending")])
    read = read.select(order.to_numpy())
    return Plan(read, done, tuple(adopt), keep, remove, find_previous(read, remove))


def find_previous(read: Tasks, remove: PartNames) -> dict[str, tuple[str, ...]]:
    """Return, by task key, the removed parts that the task wrote before it changed, and those of a shard with its content that moved."""
    by_key: defaultdict[str, list[str]] = defaultdict(list)
    by_version: defaultdict[str, list[str]] = defaultdict(list)
    for name in remove:
        by_key[name.key].append(str(name))
        by_version[name.version].append(str(name))
    named = (text.split("-") for text in (read.names.to_pylist() if by_key else ()))
    return {key: tuple(found) for key, version in named if (found := by_key.get(key, []) + by_version.get(version, []))}


def batch_tasks(tasks: Iterable[Task], size_bytes: int) -> Iterator[list[Task]]:
    """Group neighboring tasks of so many bytes in all: each batch holds a thousandth of the bytes that are left, or one task or slice.

    A million tasks are handed out as some thousand batches, and the last ones are small, so that readers end together (guided
    self-scheduling, Polychronopoulos and Kuck 1987).
    """
    batch: list[Task] = []
    held, left = 0, size_bytes
    for task in tasks:
        batch.append(task)
        held += task.size_bytes if task.ends else 0
        if task.row_groups or held * BATCHES >= left:
            yield batch
            batch, held, left = [], 0, left - held
    if batch:
        yield batch


def slice_task(task: Task, slices: Sequence[tuple[int, int, int]]) -> list[Task]:
    """Return one task per slice of a large parquet shard: (first row group, stop row group, first row). Part names do not change."""
    last = len(slices) - 1
    return [
        Task(task.key, task.version, task.shards, (start, stop), first_row, ends=number == last)
        for number, (start, stop, first_row) in enumerate(slices)
    ]


def protected_keys(failed: Tasks, bucket_bits: int, committed: Collection[str]) -> set[str]:
    """Return the keys of parts that must stay, because they may hold rows of shards that could not be read.

    Besides the keys of the failed tasks: a shard's own key if it has committed parts, else its bucket's, as it may have been small before.
    """
    held = set(failed.keys.to_pylist())
    if committed:
        uris = failed.all_shards.uris
        buckets = (numbered_bucket_key(number, bucket_bits) for number in _number_buckets(uris, bucket_bits).tolist())
        held |= {own if own in committed else bucket for own, bucket in zip(shard_keys(uris), buckets, strict=True)}
    return held

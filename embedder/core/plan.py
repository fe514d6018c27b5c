"""Shards and committed parts become a plan: what to read, adopt, keep and remove. Pure: touches no storage."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from embedder.core.spec import digest
from embedder.core.units import PartName, Shard, Task, bucket_key, complete_parts, shard_key

SMALL_SHARD_BYTES = 256 << 10
"""Smaller shards are grouped: alone, each would be less than a second of work and a tiny part."""

BUCKET_BYTES = 8 << 20
BUCKET_SHARDS = 512
"""A bucket is opened shard by shard: at 50 ms a request, 512 take one reader half a minute."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The difference between what the table should hold and what it holds."""

    read: tuple[Task, ...]
    """Tasks to read, largest first, so that the last one to finish is small."""
    done: Mapping[str, frozenset[str]]
    """By task key: names of stored parts whose units need not be embedded again."""
    adopt: tuple[PartName, ...]
    """Complete parts on storage, from a run that ended before its commit."""
    keep: tuple[PartName, ...]
    """Committed and still wanted: neither opened nor changed."""
    remove: tuple[PartName, ...]
    """Committed and no longer wanted."""
    previous: Mapping[str, tuple[str, ...]]
    """By task key: removed parts that may hold vectors of its documents, its own and those of a shard that moved."""

    @property
    def is_empty(self) -> bool:
        """Whether the table already matches the source."""
        return not (self.read or self.adopt or self.remove)


def choose_bucket_bits(shards: Iterable[Shard]) -> int:
    """Return b such that 2^b buckets hold the small shards; chosen once and stored with the table."""
    small = [shard.size_bytes for shard in shards if shard.size_bytes < SMALL_SHARD_BYTES]
    return math.ceil(math.log2(max(sum(small) / BUCKET_BYTES, len(small) / BUCKET_SHARDS, 1)))


def group_shards(shards: Sequence[Shard], layout: str, bucket_bits: int) -> list[Task]:
    """Return tasks: a large shard alone, small ones bucketed by a hash of their uri; `layout` is part of every version.

    The version of a large shard leaves out its uri, so that a shard that moved is recognized.
    """
    buckets: defaultdict[str, list[Shard]] = defaultdict(list)
    tasks = []
    for shard in shards:
        if shard.size_bytes < SMALL_SHARD_BYTES:
            buckets[bucket_key(shard.uri, bucket_bits)].append(shard)
        else:
            tasks.append(Task(shard_key(shard.uri), digest(layout, *_version_of(shard)), (shard,)))
    for key, members in buckets.items():
        ordered = tuple(sorted(members, key=lambda shard: shard.uri))
        tasks.append(Task(key, digest(layout, *((shard.uri, *_version_of(shard)) for shard in ordered)), ordered))
    return tasks


def _version_of(shard: Shard) -> tuple[str, ...]:
    """Return the version and, only if its records are filtered, the filter: a filter that cannot change a shard leaves its parts alone."""
    return (shard.version, shard.row_filter) if shard.row_filter else (shard.version,)


def plan_work(wanted: Sequence[Task], committed: Sequence[PartName], stored: Sequence[PartName]) -> Plan:
    """Return the difference, by name, between the wanted tasks and the parts of the table and its folder."""
    have = {(name.key, name.version) for name in committed}
    found: defaultdict[tuple[str, str], list[PartName]] = defaultdict(list)
    for name in stored:
        found[name.key, name.version].append(name)
    read, adopt, done = [], [], {}
    for task in wanted:
        if (task.key, task.version) in have:
            continue
        parts = found.get((task.key, task.version), [])
        if chain := complete_parts(parts):
            adopt += chain
            continue
        read.append(task)
        done[task.key] = frozenset(map(str, parts))
    named = {(task.key, task.version) for task in wanted}
    keep = tuple(name for name in committed if (name.key, name.version) in named)
    remove = tuple(name for name in committed if (name.key, name.version) not in named)
    read.sort(key=lambda task: (-task.size_bytes, task.key))
    return Plan(tuple(read), done, tuple(adopt), keep, remove, find_previous(read, remove))


def find_previous(read: Iterable[Task], remove: Iterable[PartName]) -> dict[str, tuple[str, ...]]:
    """Return, by task key, the removed parts that the task wrote before it changed, and those of a shard with its content that moved."""
    by_key, by_version = defaultdict(list), defaultdict(list)
    for name in remove:
        by_key[name.key].append(str(name))
        by_version[name.version].append(str(name))
    return {task.key: tuple(by_key[task.key] + by_version[task.version]) for task in read}


def slice_task(task: Task, slices: Sequence[tuple[int, int, int]]) -> list[Task]:
    """Return one task per slice of a large parquet shard: (first row group, stop row group, first row). Part names do not change."""
    last = len(slices) - 1
    return [
        Task(task.key, task.version, task.shards, (start, stop), first_row, ends=number == last)
        for number, (start, stop, first_row) in enumerate(slices)
    ]


def protected_keys(failed: Iterable[Task], bucket_bits: int, committed: Collection[str]) -> set[str]:
    """Return the keys of parts that must stay, because they may hold rows of shards that could not be read.

    Besides the keys of the failed tasks: a shard's own key if it has committed parts, else its bucket's, as it may have been small before.
    """
    tasks = list(failed)
    held = {task.key for task in tasks}
    if committed:
        shards = [shard for task in tasks for shard in task.shards]
        own = {shard.uri: shard_key(shard.uri) for shard in shards}
        held |= {own[shard.uri] if own[shard.uri] in committed else bucket_key(shard.uri, bucket_bits) for shard in shards}
    return held

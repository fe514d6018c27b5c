"""Shards and committed parts become a plan: what to read, adopt, keep and remove. Pure: no storage is touched."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from embedder.core.spec import digest
from embedder.core.units import PartName, Shard, Task, bucket_key, complete_parts, shard_key

SMALL_SHARD_BYTES = 256 << 10
"""Shards below this are grouped: alone they would be less than a second of work and a tiny part each."""

BUCKET_BYTES = 8 << 20
BUCKET_SHARDS = 512
"""A bucket is opened shard by shard: at 50 ms a request, 512 are half a minute of one reader."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The difference between what the table should hold and what it holds."""

    read: tuple[Task, ...]
    """To be read, largest first, so that the last one to finish is a small one."""
    done: Mapping[str, frozenset[str]]
    """By task key: names of parts on storage whose units need not be embedded again."""
    adopt: tuple[PartName, ...]
    """Complete and on storage, from a run that did not get to its commit."""
    keep: tuple[PartName, ...]
    """Committed and still wanted: neither opened nor touched."""
    remove: tuple[PartName, ...]
    """Committed and no longer wanted."""
    previous: Mapping[str, tuple[str, ...]]
    """By task key: parts to be removed that may hold vectors of its documents, its own and those of a shard that moved."""

    @property
    def is_empty(self) -> bool:
        """Whether the table already matches the source."""
        return not (self.read or self.adopt or self.remove)


def choose_bucket_bits(shards: Iterable[Shard]) -> int:
    """Choose b so that 2^b buckets of small shards are of fitting size; chosen once and kept with the table."""
    small = [shard.size_bytes for shard in shards if shard.size_bytes < SMALL_SHARD_BYTES]
    needed = max(sum(small) / BUCKET_BYTES, len(small) / BUCKET_SHARDS, 1)
    return math.ceil(math.log2(needed))


def group_shards(shards: Sequence[Shard], layout: str, bucket_bits: int) -> list[Task]:
    """Turn shards into tasks: a large one alone, small ones by the hash of their uri; `layout` joins every version.

    A large shard's version does not hold its uri, so that one that was only moved is recognised by it.
    """
    buckets: defaultdict[str, list[Shard]] = defaultdict(list)
    tasks = []
    for shard in shards:
        if shard.size_bytes < SMALL_SHARD_BYTES:
            buckets[bucket_key(shard.uri, bucket_bits)].append(shard)
        else:
            tasks.append(Task(shard_key(shard.uri), digest(layout, shard.version), (shard,)))
    for key, members in buckets.items():
        ordered = tuple(sorted(members, key=lambda shard: shard.uri))
        tasks.append(Task(key, digest(layout, *((shard.uri, shard.version) for shard in ordered)), ordered))
    return tasks


def plan_work(wanted: Sequence[Task], committed: Sequence[PartName], stored: Sequence[PartName]) -> Plan:
    """Compare by name what is wanted with what the table and its folder hold."""
    have = {(name.key, name.version) for name in committed}
    found: defaultdict[tuple[str, str], list[PartName]] = defaultdict(list)
    for name in stored:
        found[name.key, name.version].append(name)
    read, adopt, done = [], [], {}
    for task in wanted:
        if (task.key, task.version) in have:
            continue
        chain = complete_parts(found.get((task.key, task.version), ()))
        if chain:
            adopt += chain
            continue
        read.append(task)
        done[task.key] = frozenset(str(name) for name in found.get((task.key, task.version), ()))
    named = {(task.key, task.version) for task in wanted}
    keep = tuple(name for name in committed if (name.key, name.version) in named)
    remove = tuple(name for name in committed if (name.key, name.version) not in named)
    read.sort(key=lambda task: (-task.size_bytes, task.key))
    return Plan(tuple(read), done, tuple(adopt), keep, remove, find_previous(read, remove))


def find_previous(read: Iterable[Task], remove: Iterable[PartName]) -> dict[str, tuple[str, ...]]:
    """Find for each task the parts that it wrote before it changed, and those of a shard with the same content that moved."""
    by_key, by_version = defaultdict(list), defaultdict(list)
    for name in remove:
        by_key[name.key].append(str(name))
        by_version[name.version].append(str(name))
    return {task.key: tuple(by_key[task.key] + by_version[task.version]) for task in read}


def slice_task(task: Task, slices: Sequence[tuple[int, int, int]]) -> list[Task]:
    """Split the reading of one large parquet shard: (first row group, stop row group, first row) each, names unchanged."""
    last = len(slices) - 1
    return [
        Task(task.key, task.version, task.shards, (start, stop), first_row, ends=number == last)
        for number, (start, stop, first_row) in enumerate(slices)
    ]


def protected_keys(failed: Iterable[Task], bucket_bits: int, committed: Collection[str]) -> set[str]:
    """Keys of parts that must stay as they are, because they may hold rows of shards that could not be read.

    Besides the failed tasks' own: a shard with committed parts of its own has its rows there, any other may have been
    small before and have them in its bucket.
    """
    tasks = list(failed)
    held = {task.key for task in tasks}
    if committed:
        shards = [shard for task in tasks for shard in task.shards]
        own = {shard.uri: shard_key(shard.uri) for shard in shards}
        held |= {own[shard.uri] if own[shard.uri] in committed else bucket_key(shard.uri, bucket_bits) for shard in shards}
    return held

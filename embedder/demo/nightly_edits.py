"""A corpus that people edit by day: what it holds each night when its refresh starts, and what was done to it since the night before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from embedder.core.storage import Store
from embedder.demo.corpus import SHARDS, Document, encode_shard, shard_of

NUM_EDITED, NUM_DELETED = 3, 5
_FIRST = (0, 1, 2, 4)
"""Shards of the demo corpus that are there from the first night on; _NEW comes later."""
_NEW = 7
_Shards = Mapping[str, Sequence[Document]]


@dataclass(frozen=True, slots=True)
class Night:
    """The corpus as a refresh finds it."""

    name: str
    said: str
    """What was done to it, in words."""
    shards: _Shards


def plan_nights(documents: Sequence[Document], documents_per_shard: int | None = None) -> list[Night]:
    """Lay out four nights: the first run, a day of additions and edits, a day of removals, and a day without work."""
    by_number = {number: [each for each in documents if shard_of(each) == number][:documents_per_shard] for number in (*_FIRST, _NEW)}
    edited, pruned, moved, added = SHARDS[_FIRST[0]], SHARDS[_FIRST[1]], SHARDS[_FIRST[3]], SHARDS[_NEW]
    first: dict[str, Sequence[Document]] = {SHARDS[number]: by_number[number] for number in _FIRST}
    rewritten = [replace(each, text=f"{each.text}\n\nSee also the module {each.module}.") for each in first[edited][:NUM_EDITED]]
    second = first | {edited: [*rewritten, *first[edited][NUM_EDITED:]], added: by_number[_NEW]}
    third = {name: shard for name, shard in second.items() if name != moved}
    third |= {pruned: second[pruned][NUM_DELETED:], f"archive/{moved}": second[moved]}
    return [
        Night("Monday", f"{len(first)} shards, {sum(map(len, first.values())):,} documents", first),
        Night("Tuesday", f"{added} is new, {NUM_EDITED} documents of {edited} were rewritten", second),
        Night("Wednesday", f"{moved} was renamed to archive/{moved}, {NUM_DELETED} documents of {pruned} were deleted", third),
        Night("Thursday", "nobody changed anything", third),
    ]


def change_corpus(uri: str, before: _Shards, after: _Shards) -> None:
    """Make a folder that holds one night's shards hold another's: shards that differ are written anew, those that are gone removed."""
    for name in before:
        if before[name] != after.get(name):
            Store(f"{uri}/{name}").remove()
    for name, shard in after.items():
        if before.get(name) != shard:
            Store(f"{uri}/{name}").write_once(encode_shard(name, shard))

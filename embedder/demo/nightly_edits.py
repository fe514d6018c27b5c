"""Simulates daily edits of the demo corpus: its shards each night when the refresh starts, and the edits since the night before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from embedder.core.storage import Location
from embedder.demo.corpus import SHARDS, Document, encode_shard, shard_of

NUM_EDITED, NUM_DELETED = 3, 5
_FIRST, _NEW = (0, 1, 2, 4), 7
"""Shards of the demo corpus that exist from the first night on, and the one added later."""
_Shards = Mapping[str, Sequence[Document]]


@dataclass(frozen=True, slots=True)
class Night:
    """The corpus when a refresh starts."""

    name: str
    edits: str
    """Summary of the edits."""
    shards: _Shards


def plan_nights(documents: Sequence[Document], documents_per_shard: int | None = None) -> list[Night]:
    """Return four nights: the first run, a day of additions and edits, a day of removals, and a day without changes."""
    by_number = {number: [each for each in documents if shard_of(each) == number][:documents_per_shard] for number in (*_FIRST, _NEW)}
    edited, pruned, moved, added = (SHARDS[number] for number in (_FIRST[0], _FIRST[1], _FIRST[3], _NEW))
    first: dict[str, Sequence[Document]] = {SHARDS[number]: by_number[number] for number in _FIRST}
    rewritten = [replace(each, text=f"{each.text}\n\nSee also the module {each.module}.") for each in first[edited][:NUM_EDITED]]
    second = first | {edited: [*rewritten, *first[edited][NUM_EDITED:]], added: by_number[_NEW]}
    third = {name: shard for name, shard in second.items() if name != moved}
    third |= {pruned: second[pruned][NUM_DELETED:], f"archive/{moved}": second[moved]}
    return [
        Night("Monday", f"{len(first)} shards, {sum(map(len, first.values())):,} documents", first),
        Night("Tuesday", f"{added} is new, {NUM_EDITED} documents of {edited} were rewritten", second),
        Night("Wednesday", f"{moved} was renamed to archive/{moved}, {NUM_DELETED} documents of {pruned} were deleted", third),
        Night("Thursday", "no changes", third),
    ]


def change_corpus(uri: str, before: _Shards, after: _Shards) -> None:
    """Turn a folder with the shards of one night into another night's: rewrite shards that differ, remove those that are gone."""
    folder = Location(uri)
    for name in before:
        if before[name] != after.get(name):
            folder.child(name).open().remove()
    for name, shard in after.items():
        if before.get(name) != shard:
            folder.child(name).open().write_once(encode_shard(name, shard))

"""Entries of a listing → shards, and all others by the reason why they are not read."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder.config.source import SourceConfig
from embedder.core.columns import Mask, Shards
from embedder.core.errors import ConfigError
from embedder.core.listing import Entries, Files, Found, Kind, is_utf8
from embedder.core.units import Shard
from embedder.source.formats.registry import find_encoding, find_formats
from embedder.source.partitions import Constants, find_keys, parse_folders

HIDDEN, JOB_MARKER, UNKNOWN_SUFFIX, MATCHED_FOLDER = "hidden", "job marker", "unknown suffix", "folder matched by the pattern"
_JOB_MARKER = re.compile(r"_SUCCESS|_committed_[0-9]+|_started_[0-9]+|_metadata|_common_metadata|\.[^/]*\.crc")
"""Files that Spark and others write beside the data."""
_HIDDEN = re.compile(r"\.[^/]*|_[^/=]*|[^/]*\._COPYING_")
"""Spark's rule: a partition such as _date=2024 is not hidden, and a file that is still copied is."""
SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True)
class Ignored:
    """Files passed over for one reason, and the uris of the first few."""

    count: int = 0
    uris: tuple[str, ...] = ()


def count_ignored(ignored: Mapping[str, Ignored]) -> dict[str, int]:
    """Return the number of ignored files by reason."""
    return {reason: each.count for reason, each in ignored.items()}


def describe_ignored(counts: Mapping[str, int]) -> str:
    """Return the numbers of ignored files by reason as words."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def sort_files(entries: Entries, root: str | None, source: SourceConfig) -> tuple[Shards, dict[str, Ignored]]:
    """Sort entries into shards and ignored files; ConfigError for a shard whose name cannot be stored or opened."""
    found: defaultdict[str, list[tuple[int, Sequence[str]]]] = defaultdict(list)
    wanted: list[Found] = []
    for each in entries.others:
        if reason := _reason(each, root, source):
            found[reason].append((1, [each.uri]))
        else:
            wanted.append(each)
    if strange := [each.uri for each in wanted if each.kind != Kind.BROKEN_LINK or not is_utf8(each.uri)]:
        names = ", ".join(map(repr, strange[:8]))
        raise ConfigError(f"source.uri={source.uri!r}: names that are not UTF-8, or hold ?versionId=; rename them: {names}")
    files = Files.concat([entries.files, Files.of(wanted)]) if wanted else entries.files
    left = np.ones(len(files), np.bool_)
    for reason, mask in _reasons(files.uris, root, source):
        rows = np.flatnonzero(mask & left)
        left[rows] = False
        if len(rows):
            found[reason].append((len(rows), files.uris.take(pa.array(rows[:SHOWN_NAMES])).to_pylist()))
    ignored = {reason: _count(each) for reason, each in found.items()}
    files = files if left.all() else files.select(pa.array(left))
    return _to_shards(files, find_keys(source)), dict(sorted(ignored.items(), key=lambda each: each[1].uris))


def _count(found: Sequence[tuple[int, Sequence[str]]]) -> Ignored:
    uris = sorted(uri for _, uris in found for uri in uris)
    return Ignored(sum(count for count, _ in found), tuple(uris[:SHOWN_NAMES]))


def _to_shards(files: Files, keys: Collection[str]) -> Shards:
    """Return files as shards, with the columns that the names of their folders give."""
    if not keys or not pc.any(pc.match_substring(files.uris, "=")).as_py():
        return Shards(files.uris, files.versions, files.sizes, np.zeros(len(files), np.int32), (Shard("", "", 0),))
    folders = pc.replace_substring_regex(files.uris, "[^/]*$", "").dictionary_encode()
    kinds: dict[Constants, int] = {}
    kind = np.array([kinds.setdefault(parse_folders(folder, keys), len(kinds)) for folder in folders.dictionary.to_pylist()], np.int32)
    return Shards(
        files.uris, files.versions, files.sizes, kind[folders.indices.to_numpy()], tuple(Shard("", "", 0, each) for each in kinds)
    )


def _reasons(uris: pa.LargeStringArray, root: str | None, source: SourceConfig) -> Iterator[tuple[str, Mask]]:
    """Yield reasons not to read a file, and the files to which each applies unless an earlier one does; as `_reason` for one entry."""
    if root:
        below = pc.if_else(pc.starts_with(uris, root), pc.utf8_slice_codeunits(uris, len(root)), uris)
        is_hidden = _match(below, f"(?:^|/)(?:{_HIDDEN.pattern})(?:/|$)")
        yield JOB_MARKER, is_hidden & _match(uris, f"/(?:{_JOB_MARKER.pattern})$")
        yield HIDDEN, is_hidden
    formats, places = find_formats(uris, source.format)
    yield UNKNOWN_SUFFIX, np.array([each is None for each in formats], np.bool_)[places]


def _match(texts: pa.LargeStringArray, pattern: str) -> Mask:
    return np.asarray(pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False), np.bool_)


def _reason(found: Found, root: str | None, source: SourceConfig) -> str | None:
    """Return why an entry that is not a plain file is not read; None: it is a shard. A broken link of a known suffix cannot be read."""
    if found.kind in (Kind.FOLDER_MARKER, Kind.LINK_CYCLE, Kind.SPECIAL_FILE):
        return found.kind
    if found.kind == Kind.FOLDER:
        return MATCHED_FOLDER
    name = found.uri.rpartition("/")[2]
    if root and any(map(is_hidden, found.uri.removeprefix(root).split("/"))):
        return JOB_MARKER if _JOB_MARKER.fullmatch(name) else HIDDEN
    if find_encoding(found.uri, source.format):
        return None
    return Kind.BROKEN_LINK if found.kind == Kind.BROKEN_LINK else UNKNOWN_SUFFIX


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden."""
    return _HIDDEN.fullmatch(name) is not None

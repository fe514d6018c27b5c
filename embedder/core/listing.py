"""A pattern → the entries it matches, found folder by folder, and the kinds of entries in a listing.

fsspec's own glob and local find pass over a folder that cannot be listed: an outage would look like a source without those files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from itertools import compress
from operator import itemgetter, not_
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedder.core.digests import join_texts

WILDCARDS = "*?["


class Kind(StrEnum):
    """Kind of an entry of a listing; FILE and FOLDER are fsspec's own words."""

    FILE = "file"
    FOLDER = "directory"
    BESIDE = "beside"
    """A file or folder beside a pattern's matches."""
    FOLDER_MARKER = "folder marker"
    """An object whose name ends with a slash."""
    SPECIAL_FILE = "not a regular file"
    BROKEN_LINK = "broken link"
    LINK_CYCLE = "link to a folder above it"
    UNOPENABLE = "name that cannot be opened"


_TAGS = ("ETag", "etag", "generation", "md5Hash", "blob_id", "xet_hash")
"""Names under which filesystems report a hash or number that changes with the content; the last two are the hub's."""
Info = dict[str, Any]
"""fsspec's description of an entry."""
List = Callable[[str], list[Info]]
Threads = Callable[[List, list[str]], list[list[Info]]]


_STRANGE = r"//|/\.{0,2}$|/\.{1,2}/|[^A-Za-z0-9_=./+@, -]"
"""Found in each name that a filesystem might open as another one."""

SPLIT_FOLDERS, SPLIT_LEVELS, MOST_FOLDERS = 16, 3, 1_000
"""A listing is split by folders until there are so many, at most so many levels deep, and into at most so many: each is a request."""


@dataclass(frozen=True, slots=True)
class Found:
    """An object in a listing; `version` changes with its content."""

    uri: str
    version: str
    size_bytes: int
    modified: float | None = None
    """Seconds since 1970 by the storage's clock; None if the filesystem does not report it."""
    kind: str = Kind.FILE
    """A Kind."""


@dataclass(frozen=True, slots=True, eq=False)
class Files:
    """Files as columns."""

    uris: pa.LargeStringArray
    versions: pa.LargeStringArray
    sizes: npt.NDArray[np.int64]

    @staticmethod
    def of(found: Sequence[Found]) -> "Files":
        """Return files as columns."""
        uris, versions = (pa.array(texts, pa.large_string()) for texts in ([each.uri for each in found], [each.version for each in found]))
        return Files(uris, versions, np.array([each.size_bytes for each in found], np.int64))

    @staticmethod
    def concat(each: Sequence["Files"]) -> "Files":
        """Return the files of all, of at least one, in order of uri."""
        uris, versions = (pa.concat_arrays([getattr(files, name) for files in each]) for name in ("uris", "versions"))
        files = Files(uris, versions, np.concatenate([files.sizes for files in each]))
        is_sorted = pc.all(pc.less_equal(uris[:-1], uris[1:])).as_py()
        return files if is_sorted else files.select(pc.sort_indices(uris))

    def select(self, rows: pa.Array) -> "Files":
        """Return some rows, by number or by mask."""
        take = pc.filter if pa.types.is_boolean(rows.type) else pc.take
        return Files(take(self.uris, rows), take(self.versions, rows), self.sizes[rows.to_numpy(zero_copy_only=False)])

    def __len__(self) -> int:
        return len(self.uris)


@dataclass(frozen=True, slots=True)
class Entries:
    """A listing, in order of uri."""

    files: Files
    others: tuple[Found, ...]
    """Entries that are not files, or whose name is not UTF-8."""

    def __len__(self) -> int:
        return len(self.files) + len(self.others)

    @property
    def uris(self) -> list[str]:
        """All uris, in order."""
        return sorted([*self.files.uris.to_pylist(), *(each.uri for each in self.others)])


NOTHING = Entries(Files.of(()), ())


def split_folders(path: str, ls: List, map_threads: Threads) -> tuple[list[Info], list[str]]:
    """Return the entries in a folder and the upper ones below it, and the folders that hold all others.

    The folder itself is returned if a name below it has an empty component, which no path of a folder can have.
    """
    found: list[Info] = []
    folders = [path]
    for _ in range(SPLIT_LEVELS):
        if not 0 < len(folders) < SPLIT_FOLDERS:
            break
        listed = [info for infos in map_threads(ls, folders) for info in infos]
        below = [info["name"] for info in listed if info["type"] == Kind.FOLDER]
        if any("//" in f"{folder}/" for folder in below):
            return [], [path]
        if len(below) > MOST_FOLDERS:
            break
        folders = below
        found += [info for info in listed if info["type"] != Kind.FOLDER]
    return found, folders


def list_matches(pattern: str, ls: List, find: List, map_threads: Threads) -> list[Info]:
    """Return the pattern's matches, folders included, and the entries beside them as Kind.BESIDE.

    `ls` lists a folder, `find` the files below one at any depth. Only folders that match so far are listed.
    """
    parts = pattern.split("/")
    first = next(number for number, part in enumerate(parts) if is_pattern(part))
    folders, beside = ["/".join(parts[:first])], list[Info]()
    for number, part in enumerate(parts[first:], first):
        if part == "**":
            found = zip(folders, map_threads(find, folders), strict=True)
            return beside + [_mark(info, matches(_split_below(info, folder), parts[number:])) for folder, infos in found for info in infos]
        if number < len(parts) - 1 and not is_pattern(part):
            folders = [f"{folder}/{part}" for folder in folders]
            continue
        listed = [info for infos in map_threads(ls, folders) for info in infos]
        names = [info["name"].rpartition("/")[2] for info in listed]
        # a name with brackets that is there as written is meant, as it is for a whole uri
        is_literal = part in names and not fnmatchcase(part, part)
        marked = [_mark(info, name == part if is_literal else fnmatchcase(name, part)) for info, name in zip(listed, names, strict=True)]
        if number == len(parts) - 1:
            return beside + marked
        folders = [info["name"] for info in marked if info["type"] == Kind.FOLDER]
        beside += [_mark(info, False) for info in marked if info["type"] != Kind.FOLDER]
    raise AssertionError(pattern)


def _split_below(info: Info, folder: str) -> list[str]:
    return str(info["name"]).removeprefix(f"{folder}/").split("/")


def _mark(info: Info, is_match: bool) -> Info:
    return info if is_match else {**info, "type": Kind.BESIDE}


def is_pattern(part: str) -> bool:
    """Return whether a component of a path holds a wildcard."""
    return any(character in part for character in WILDCARDS)


def matches(file: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path's components match the pattern's, in which `**` is any number of folders."""
    if not pattern or not file:
        return not pattern and not file
    if pattern[0] == "**":
        return len(pattern) == 1 or any(matches(file[first:], pattern[1:]) for first in range(len(file)))
    return (file[0] == pattern[0] or fnmatchcase(file[0], pattern[0])) and matches(file[1:], pattern[1:])


def mark_names(infos: list[Info], strip: Callable[[str], str]) -> list[Info]:
    """Mark keys that stand for folders, and names that their filesystem would open as other ones: those that `strip` changes."""
    is_strange = pc.match_substring_regex(pa.array(_column(infos, "name"), pa.large_string()), _STRANGE)
    if not pc.any(is_strange).as_py():
        return infos
    return [_mark_name(info, strip) if strange else info for info, strange in zip(infos, is_strange.to_pylist(), strict=True)]


def _mark_name(info: Info, strip: Callable[[str], str]) -> Info:
    name = info["name"]
    if info["type"] != Kind.FILE:
        return info
    if name.endswith("/"):
        return {**info, "type": Kind.FOLDER_MARKER}
    # s3fs takes ?versionId= in a key for a version of the key before it
    return info if strip(name) == name and "?versionId=" not in name else {**info, "type": Kind.UNOPENABLE}


def sort_entries(infos: list[Info], before: str) -> Entries:
    """Return the files among some entries as columns, and the others; `before` stands before each name in its uri."""
    files, others = infos, list[Info]()
    if _column(infos, "type").count(Kind.FILE) < len(infos) or not is_utf8("".join(_column(infos, "name"))):
        is_file = [info["type"] == Kind.FILE and is_utf8(info["name"]) for info in infos]
        files, others = [list(compress(infos, mask)) for mask in (is_file, map(not_, is_file))]
    sizes = [size or 0 for size in _column(files, "size")]
    uris = join_texts(before, pa.array(_column(files, "name"), pa.large_string()))
    found = (to_found(info, before + info["name"]) for info in others)
    return Entries(Files(uris, _find_versions(files, sizes), np.array(sizes, np.int64)), tuple(found))


def _column(infos: list[Info], name: str) -> list[Any]:
    """Return a field of all entries, by a loop in C: listings are of millions."""
    return list(map(itemgetter(name), infos))


def to_found(info: Info, uri: str) -> Found:
    """Return an entry of fsspec as an object."""
    size = int(info["size"] or 0)
    version, modified = find_version(info, size)
    return Found(uri, version, size, modified, info["type"])


def find_version(info: Mapping[str, Any], size_bytes: int) -> tuple[str, float | None]:
    """Return an entry's version, which changes with its content, and when it was modified, in seconds since 1970."""
    tag = next((info[name] for name in _TAGS if info.get(name)), None)
    changed = next((info[name] for name in ("mtime", "LastModified", "last_modified", "updated") if info.get(name)), None)
    return str(tag).strip('"') if tag else f"{size_bytes}-{changed}", to_seconds(changed)


def _find_versions(infos: Sequence[Info], sizes: Sequence[int]) -> pa.LargeStringArray:
    """Return `find_version` of each entry, as one operation if all have the tag that comes first."""
    tags = [info.get(_TAGS[0]) for info in infos]
    if all(tags) and {*map(type, tags)} <= {str}:
        return pc.utf8_trim(pa.array(tags, pa.large_string()), '"')
    return pa.array([find_version(info, size)[0] for info, size in zip(infos, sizes, strict=True)], pa.large_string())


def to_seconds(moment: Any) -> float | None:
    """Return a modification time in seconds since 1970; filesystems report seconds, a datetime, or ISO text."""
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if isinstance(moment, datetime):
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return None if moment is None else float(moment)


def is_utf8(name: str) -> bool:
    """Check for lone surrogates, by which Python represents bytes of a local name that are not UTF-8. They cannot be stored."""
    try:
        return name.isascii() or name.encode() is not None
    except UnicodeEncodeError:
        return False

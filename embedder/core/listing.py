"""A pattern → the entries it matches, found folder by folder, and the kinds of entries in a listing.

fsspec's own glob and local find pass over a folder that cannot be listed: an outage would look like a source without those files.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

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


def find_version(info: Mapping[str, Any], size_bytes: int) -> tuple[str, float | None]:
    """Return an entry's version, which changes with its content, and when it was modified, in seconds since 1970."""
    tag = next((info[name] for name in _TAGS if info.get(name)), None)
    changed = next((info[name] for name in ("mtime", "LastModified", "last_modified", "updated") if info.get(name)), None)
    return str(tag).strip('"') if tag else f"{size_bytes}-{changed}", to_seconds(changed)


def to_seconds(moment: Any) -> float | None:
    """Return a modification time in seconds since 1970; filesystems report seconds, a datetime, or ISO text."""
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if isinstance(moment, datetime):
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return None if moment is None else float(moment)

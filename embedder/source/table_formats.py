"""Files of a listing → the table that they belong to: its folder also holds rows that were deleted or replaced."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from embedder.config.source import Format
from embedder.core.errors import StorageError
from embedder.core.storage import Location, Options, map_threads

_MARKS = {
    "Delta": r"_delta_log/",
    "Hudi": r"\.hoodie/|\.hoodie_partition_metadata/?$",
    "Iceberg": r"metadata/(?:(?:v\d+|\d{5,}-[0-9a-f-]+)(?:\.gz)?\.metadata\.json(?:\.gz)?|version-hint\.text)/?$",
    "Lance": r"_versions/(?:[^/]+\.manifest)?/?$|data/[^/]+\.lance/?$",
}
MARK = re.compile("/(?:" + "|".join(f"(?P<{name}>{mark})" for name, mark in _MARKS.items()) + ")")

_LOGS = {"Delta": "_delta_log", "Hudi": ".hoodie", "Lance": "_versions"}

FORMATS_BY_KIND: dict[str, Format] = {"Delta": "delta", "Iceberg": "iceberg", "Lance": "lance"}
"""Tables that are read, and the setting for it."""
PARENTS = 4
"""Folders above a source that are looked into, besides partitions: a table's files lie at most so deep."""
MOST_PLACES = 8
"""Folders of a pattern's matches whose parents are looked into."""


@dataclass(frozen=True, slots=True)
class FoundTable:
    """A table of another format and its folder."""

    kind: str
    folder: str


def find_tables(uris: Iterable[str]) -> Iterator[FoundTable]:
    """Yield the tables that these files belong to, without a request. A folder, and an entry of unknown kind, ends with a slash."""
    for uri in uris:
        found = MARK.search(uri)
        if found:
            yield FoundTable(str(found.lastgroup), uri[: found.start()])


def find_delta_table(folder: str, options: Options) -> FoundTable | None:
    """Return the Delta table in a folder, by one request in place of a listing; None if there is none."""
    return FoundTable("Delta", folder) if _exists(Location(f"{folder}/{_LOGS['Delta']}", options)) else None


def find_table_above(places: Sequence[str], options: Options) -> FoundTable | None:
    """Look for the log of a table in the folders above these files or folders: a few small requests for each, at once.

    A place with a slash at its end is itself looked into. A folder that this run may not look into is passed over.
    """
    chosen = places[:: max(1, len(places) // MOST_PLACES)]
    above = {folder: None for place in chosen for folder in _list_parents(place)}
    logs = [(kind, folder, log) for folder in above for kind, log in _LOGS.items()]
    found = map_threads(lambda each: _exists(Location(f"{each[1]}/{each[2]}", options)), logs)
    tables = [FoundTable(kind, folder) for (kind, folder, _), is_there in zip(logs, found, strict=True) if is_there]
    # a listing, not a look: only of a folder beside data/
    beside = [folder for folder in above if any(f"{place}/".startswith(f"{folder}/data/") for place in chosen)]
    listed = map_threads(lambda folder: _list_uris(Location(f"{folder}/metadata", options)), beside)
    tables += [table for uris in listed for table in find_tables(uris)]
    return tables[0] if tables else None


def _list_parents(uri: str) -> list[str]:
    """Return the nearest folders above, without partitions such as year=2024."""
    # a repository of the hub is hf://datasets/ORG/NAME: nothing can be looked for above it
    start = len("/".join(uri.split("/")[:5])) - 1 if uri.startswith("hf://") else uri.index("://") + 3 if "://" in uri else 0
    found: list[str] = []
    while len(found) < PARENTS and len(uri := uri.rpartition("/")[0]) > start:
        if "=" not in uri.rpartition("/")[2]:
            found.append(uri)
    return found


def _exists(location: Location) -> bool:
    try:
        return location.open().info() is not None
    except StorageError as error:
        if isinstance(error.__cause__, PermissionError | NotADirectoryError):
            return False
        raise


def _list_uris(folder: Location) -> list[str]:
    try:
        return [found.uri for found in folder.open().list_folder()]
    except StorageError as error:
        if isinstance(error.__cause__, PermissionError):
            return []
        raise

"""The Delta log as objects on storage: when versions were published, by the storage's own clock, and what they removed."""

import json
import re
from dataclasses import dataclass

from embedder.core.storage import Location, Store, map_threads

_COMMIT = re.compile(r"(\d{20})\.json")


@dataclass(frozen=True, slots=True)
class RecentLog:
    """What a table's log says of the time since some moment."""

    removed: frozenset[str]
    """Files that left the table since: a version that was the newest then still names them."""
    first_version: int | None
    """The version that was the newest at that moment, or the first that still has a log; None if there is no log."""


def read_recent_log(location: Location, since: float) -> RecentLog:
    """Read the commits published since a moment; older ones are not opened, and those that were cleaned up are not missed."""
    commits = []
    for found in Store(f"{location.uri.rstrip('/')}/_delta_log", location.options).list_folder():
        match = _COMMIT.fullmatch(found.uri.rsplit("/", 1)[-1])
        if match:
            commits.append((int(match[1]), found))
    recent = [found.uri for _, found in commits if found.modified is None or found.modified >= since]
    older = [version for version, found in commits if found.modified is not None and found.modified < since]
    removed = (name for names in map_threads(lambda commit: _read_removed(Location(commit, location.options)), recent) for name in names)
    return RecentLog(frozenset(removed), max(older, default=min((version for version, _ in commits), default=None)))


def _read_removed(location: Location) -> list[str]:
    with location.open().open_input() as file:
        actions = [json.loads(line) for line in file if b'"remove"' in line]
    return [action["remove"]["path"] for action in actions if "remove" in action]

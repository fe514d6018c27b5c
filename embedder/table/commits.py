"""Opens a Delta log, and lists its commits with their run records."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from embedder.core.delta_options import delta_options
from embedder.core.errors import StorageError, TableDamagedError
from embedder.core.retry import is_transient, one_line
from embedder.core.storage import Location
from embedder.table.log_files import describe_log_damage
from embedder.table.run_record import INFO_KEY, missing_table

MAINTENANCE_KEY = "maintenance"
"""Marks a run record that a maintenance commit carried forward: its figures are those of an earlier run."""

FOLLOWING_COMMITS = 10
"""Commits searched for one whose response was lost: others may have followed it."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One version of the log."""

    version: int
    published: str
    """UTC, by the committer's clock."""
    operation: str
    info: Mapping[str, Any] | None
    """Its run record; None: a commit of another tool, or one that only follows ours."""


def open_delta(location: Location, version: int | None = None) -> DeltaTable:
    """Load a table for reading; TableNotFoundError if there is none."""
    uri = location.open().uri
    return DeltaTable(uri, version=version, storage_options=delta_options(uri, location.options))


def is_delta_table(location: Location) -> bool:
    """Return whether the location holds a Delta log."""
    uri = location.open().uri
    return DeltaTable.is_deltatable(uri, storage_options=delta_options(uri, location.options))


def read_files(delta: DeltaTable) -> dict[str, tuple[int, int]]:
    """Return size and rows of each committed file, by name."""
    adds = pa.table(delta.get_add_actions())
    columns = (adds[name].to_pylist() for name in ("path", "size_bytes", "num_records"))
    return {name: (size, rows) for name, size, rows in zip(*columns, strict=True)}


def unreadable(location: Location, error: Exception) -> StorageError:
    """Return the error for a table that cannot be opened: the file of its log that is damaged, or an outage."""
    damage = "" if is_transient(error) else describe_log_damage(location)
    if damage:
        return TableDamagedError(damage)
    reason = one_line(error).partition(" 0: <unknown>")[0]
    return StorageError(f"{location.uri}: the table cannot be opened ({reason}); check the uri and the credentials in the environment")


def list_commits(location: Location, most: int) -> list[Commit]:
    """List the newest commits, newest first; StorageError if there is no table."""
    try:
        entries = open_delta(location).history(most)
    except TableNotFoundError as error:
        raise missing_table(location) from error
    except (DeltaError, OSError) as error:
        raise unreadable(location, error) from error
    return [
        Commit(
            entry["version"],
            datetime.fromtimestamp(entry.get("timestamp", 0) / 1000, UTC).isoformat(" ", "seconds").removesuffix("+00:00"),
            entry.get("operation", ""),
            entry[INFO_KEY] if isinstance(entry.get(INFO_KEY), dict) else None,
        )
        for entry in entries
    ]


def list_records(location: Location, most_commits: int = 100) -> list[Mapping[str, Any]]:
    """List the records of the newest runs, newest first, without those that maintenance carried forward."""
    return [commit.info for commit in list_commits(location, most_commits) if commit.info and MAINTENANCE_KEY not in commit.info]


def find_commit(location: Location, commit_id: str) -> int | None:
    """Return the version of a commit, if it is among the newest."""
    commits = list_commits(location, FOLLOWING_COMMITS) if is_delta_table(location) else []
    return next((commit.version for commit in commits if commit.info and commit.info.get("commit_id") == commit_id), None)

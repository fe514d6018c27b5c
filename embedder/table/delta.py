"""Reads the state of the Delta table, and publishes each change in one commit."""

import json
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from embedder.core.errors import CommitError, VersionGoneError
from embedder.core.retry import one_line, with_retries
from embedder.core.schema import QUARANTINE
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location, delta_options, map_threads
from embedder.core.units import Part, PartName
from embedder.table.parts import QUARANTINE_FOLDER, find_missing, list_by_name, quarantine_file, read_metadata
from embedder.table.run_record import INFO_KEY, find_info, missing_table

MAINTENANCE_KEY = "maintenance"
"""Marks a run record that a maintenance commit carried forward: its figures are those of an earlier run."""

FOLLOWING_COMMITS = 10
"""Commits searched for one whose response was lost: others may have followed it."""

_APP_ID = "embedder"
"""Each commit carries it with a rising number, so that of two runs planned on one version the second conflicts."""


@dataclass(frozen=True, slots=True)
class TableState:
    """A version of the table, with the facts that planning needs."""

    version: int
    rows: Mapping[str, int]
    """Rows by part name."""
    sizes: Mapping[str, int]
    schema: pa.Schema
    info: Mapping[str, Any]
    """The run record of this version: that of its commit, or of the newest earlier commit that has one."""
    run_number: int

    @property
    def spec(self) -> EmbeddingSpec:
        """The spec of all its vectors."""
        return EmbeddingSpec.model_validate(self.info["spec"])

    @property
    def parts(self) -> list[PartName]:
        """The committed parts."""
        return [_parse(name) for name in self.rows]


@dataclass(frozen=True, slots=True)
class Change:
    """The parts that one commit adds and removes; `replaces` swaps everything, schema included.

    `rearranges`: the rows stay the same, so the change feed shows no change.
    """

    add: tuple[Part, ...]
    remove: tuple[str, ...]
    schema: pa.Schema
    info: Mapping[str, Any]
    replaces: bool = False
    rearranges: bool = False


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


def read_table(location: Location) -> TableState | None:
    """Read the newest version; None if there is no table yet."""
    try:
        return with_retries(lambda: _read_state(location), location.uri)
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        raise _unreadable(location, error) from error


def require_table(location: Location) -> TableState:
    """Read the newest version; StorageError if there is no table."""
    state = read_table(location)
    if state is None:
        raise missing_table(location)
    return state


def _unreadable(location: Location, error: Exception) -> CommitError:
    return CommitError(
        f"{location.uri}: the table cannot be opened ({one_line(error)}); check the uri and the credentials in the environment"
    )


def _read_state(location: Location) -> TableState:
    delta = open_delta(location)
    info = find_info(location, delta.version())
    if info is None:
        raise CommitError(
            f"{location.uri}: a Delta table that embedder did not write (no run record in its log); choose another output.uri, or, if "
            "another tool cleaned up the log, restore the commits it removed"
        )
    files = read_files(delta)
    for name in files:
        _parse(name, location.uri)
    return TableState(
        version=delta.version(),
        rows={name: rows for name, (_, rows) in files.items()},
        sizes={name: size for name, (size, _) in files.items()},
        schema=pa.schema(delta.schema().to_arrow()),
        info=info,
        run_number=delta.transaction_version(_APP_ID) or 0,
    )


def read_files(delta: DeltaTable) -> dict[str, tuple[int, int]]:
    """Return size and rows of each committed file, by name."""
    adds = pa.table(delta.get_add_actions())
    columns = (adds[name].to_pylist() for name in ("path", "size_bytes", "num_records"))
    return {name: (size, rows) for name, size, rows in zip(*columns, strict=True)}


def read_quarantined(location: Location) -> dict[str, tuple[int, int]]:
    """Read size and rows of each file of the quarantine table, by name; {} if there is none yet."""
    quarantine = location.child(QUARANTINE_FOLDER)
    return read_files(open_delta(quarantine)) if is_delta_table(quarantine) else {}


def list_commits(location: Location, most: int) -> list[Commit]:
    """List the newest commits, newest first; StorageError if there is no table."""
    try:
        entries = open_delta(location).history(most)
    except TableNotFoundError as error:
        raise missing_table(location) from error
    except (DeltaError, OSError) as error:
        raise _unreadable(location, error) from error
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


def list_committed(location: Location, version: int) -> list[PartName]:
    """List the parts of one version; VersionGoneError if its log is gone."""
    try:
        delta = open_delta(location, version)
    except (DeltaError, OSError) as error:
        newest = open_delta(location).version()
        if version > newest:
            raise CommitError(f"{location.uri}: there is no version {version}; the newest is {newest}") from error
        raise VersionGoneError(f"{location.uri}: version {version} can no longer be opened ({error}); its log was cleaned up") from error
    return [_parse(name, location.uri) for name in read_files(delta)]


def commit_table(location: Location, change: Change, before: TableState | None) -> int:
    """Publish a change in one atomic commit and return the new version. Readers see the table before it or after it.

    If a commit's response is lost, the repeated commit conflicts with itself and is recognized by its id.
    """
    info = {**change.info, "commit_id": uuid.uuid4().hex}
    try:
        return with_retries(lambda: _commit(location, replace(change, info=info), before), location.uri)
    except (DeltaError, OSError) as error:
        published = with_retries(lambda: _find_commit(location, info["commit_id"]), location.uri)
        if published is not None:
            return published
        if isinstance(error, CommitFailedError):
            raise CommitError(
                f"{location.uri}: another run published first ({one_line(error)}); nothing was lost, run again to see what is left to do"
            ) from error
        if before is None and read_table(location):
            raise CommitError(f"{location.uri}: another run created the table first; run again to see what is left to do") from error
        raise CommitError(
            f"{location.uri}: the commit failed ({one_line(error)}); finished parts are kept, run again to publish them"
        ) from error


def _find_commit(location: Location, commit_id: str) -> int | None:
    """Return the version of a commit, if it is among the newest."""
    commits = list_commits(location, FOLLOWING_COMMITS) if is_delta_table(location) else []
    return next((commit.version for commit in commits if commit.info and commit.info.get("commit_id") == commit_id), None)


def _commit(location: Location, change: Change, before: TableState | None) -> int:
    uri = location.open().uri
    gone = find_missing([part.name for part in change.add], location)
    if gone:
        raise CommitError(
            f"{uri}: {len(gone)} parts were deleted during this run ({gone[0]}), nothing was published; "
            "run again to write them again, and vacuum with a larger --older-than-hours"
        )
    adds = [_add_action(part.name, part.size_bytes, part.rows, not change.rearranges) for part in change.add]
    number = (before.run_number if before else 0) + 1
    record, spec = {INFO_KEY: dict(change.info)}, json.dumps(change.info["spec"], sort_keys=True)
    properties = CommitProperties(custom_metadata=record, app_transactions=[Transaction(_APP_ID, number)])
    schema = Schema.from_arrow(change.schema)
    if before is None:
        storage = delta_options(uri, location.options)
        create_table_with_add_actions(
            uri, schema, adds, mode="error", description=spec, storage_options=storage, commit_properties=properties
        )
        return 0
    removes = [] if change.replaces else _remove_actions(change.remove, before.sizes, not change.rearranges)
    mode = "overwrite" if change.replaces else "append"
    open_delta(location, before.version).create_write_transaction([*adds, *removes], mode, schema, commit_properties=properties)
    if change.replaces:
        # for other tools: embedder itself reads the spec from the commit, which is already published
        open_delta(location).alter.set_table_description(spec, commit_properties=CommitProperties(custom_metadata=record))
    return open_delta(location).version()


def sync_quarantine(location: Location, rearranges: bool = False) -> int:
    """Make the quarantine table hold exactly the quarantine files of the table's parts; return its rows.

    It follows the table's own commit and depends on storage alone, so the next run completes it after a run that died in between.
    """
    try:
        return with_retries(lambda: _sync_quarantine(location, not rearranges), location.uri)
    except (DeltaError, OSError) as error:
        raise CommitError(
            f"{location.uri}: its quarantine cannot be brought up to date ({one_line(error)}); run again, the rest is published"
        ) from error


def _sync_quarantine(location: Location, data_change: bool) -> int:
    committed, quarantine = read_files(open_delta(location)), location.child(QUARANTINE_FOLDER)
    wanted = {name: found for name, found in list_by_name(quarantine).items() if name in committed}
    schema = Schema.from_arrow(QUARANTINE)
    if not is_delta_table(quarantine):
        uri = quarantine.open().uri
        create_table_with_add_actions(uri, schema, [], mode="ignore", storage_options=delta_options(uri, location.options))
    delta = open_delta(quarantine)
    sizes = {name: size for name, (size, _) in read_files(delta).items()}
    missing = [name for name in wanted if name not in sizes]
    rows = map_threads(lambda name: read_metadata(quarantine_file(location, name)).num_rows, missing)
    adds = [_add_action(name, wanted[name].size_bytes, num_rows, data_change) for name, num_rows in zip(missing, rows, strict=True)]
    removes = _remove_actions([name for name in sizes if name not in wanted], sizes, data_change)
    if adds or removes:
        delta.create_write_transaction([*adds, *removes], "append", schema)
        delta.update_incremental()
    return sum(num_rows for _, num_rows in read_files(delta).values())


def _add_action(name: str, size_bytes: int, rows: int, data_change: bool) -> AddAction:
    return AddAction(name, size_bytes, {}, int(time.time() * 1000), data_change, json.dumps({"numRecords": rows}))


def _remove_actions(names: Iterable[str], sizes: Mapping[str, int], data_change: bool) -> list[RemoveAction]:
    return [RemoveAction(name, data_change, int(time.time() * 1000), sizes[name], {}) for name in names]


def _parse(name: str, uri: str = "") -> PartName:
    parsed = PartName.parse(name)
    if parsed is None:
        raise CommitError(
            f"{uri}: the table holds {name!r}, which embedder did not write (was it optimized by another tool?); restore the version before"
        )
    return parsed

"""The Delta table: what it holds now, and the one commit that changes it."""

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
from embedder.core.storage import Location, Store, delta_options, map_threads
from embedder.core.units import Part, PartName
from embedder.table.parts import QUARANTINE_FOLDER, count_rows, find_missing
from embedder.table.run_record import INFO_KEY, find_info

MAINTENANCE_KEY = "maintenance"
"""Marks a run record that a maintenance commit carried forward: its figures are those of an earlier run."""

FOLLOWING_COMMITS = 10
"""How far back a commit whose answer was lost is looked for: others may have followed it."""

_APP_ID = "embedder"
"""Every commit names it with a rising number, so that of two runs planned on one version the second conflicts."""


@dataclass(frozen=True, slots=True)
class TableState:
    """A version of the table, as far as planning needs it."""

    version: int
    rows: Mapping[str, int]
    """Rows by part name."""
    sizes: Mapping[str, int]
    schema: pa.Schema
    info: Mapping[str, Any]
    """The run record that holds at this version: of its commit, or of the newest before that has one."""
    run_number: int

    @property
    def spec(self) -> EmbeddingSpec:
        """The spec all of its vectors were made with."""
        return EmbeddingSpec.model_validate(self.info["spec"])

    @property
    def parts(self) -> list[PartName]:
        """The committed parts."""
        return [_parse(name) for name in self.rows]


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit adds to and removes from the table; `replaces` swaps everything, schema included.

    `rearranges`: the rows stay as they are, so that readers of the change feed see nothing.
    """

    add: tuple[Part, ...]
    remove: tuple[str, ...]
    schema: pa.Schema
    info: Mapping[str, Any]
    replaces: bool = False
    rearranges: bool = False


def open_delta(location: Location, version: int | None = None) -> DeltaTable:
    """Open a table for reading; TableNotFoundError if there is none."""
    uri = location.open().uri
    return DeltaTable(uri, version=version, storage_options=delta_options(uri, location.options))


def read_table(location: Location) -> TableState | None:
    """Read the newest version; None if there is no table yet."""
    try:
        return with_retries(lambda: _read_state(location), location.uri)
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        raise CommitError(
            f"{location.uri}: the table cannot be opened ({one_line(error)}); check output.uri and the credentials in the environment"
        ) from error


def _read_state(location: Location) -> TableState:
    delta = open_delta(location)
    info = find_info(location, delta.version())
    if info is None:
        raise CommitError(
            f"{location.uri}: a Delta table that embedder did not write (no run record in its log); choose another output.uri, or, if "
            "another tool cleaned up the log, restore the commits it removed"
        )
    adds = pa.table(delta.get_add_actions(flatten=True))
    names = adds["path"].to_pylist()
    for name in names:
        _parse(name, location.uri)
    return TableState(
        version=delta.version(),
        rows=dict(zip(names, adds["num_records"].to_pylist(), strict=True)),
        sizes=dict(zip(names, adds["size_bytes"].to_pylist(), strict=True)),
        schema=pa.schema(delta.schema().to_arrow()),
        info=info,
        run_number=delta.transaction_version(_APP_ID) or 0,
    )


@dataclass(frozen=True, slots=True)
class Commit:
    """One version of the log, as it stands there."""

    version: int
    published: str
    """UTC, by the clock of whoever committed it."""
    operation: str
    info: Mapping[str, Any] | None
    """Its run record; None: another tool's commit, or one that only follows ours."""


def list_commits(location: Location, most: int) -> list[Commit]:
    """List the newest commits, newest first; CommitError if there is no table."""
    try:
        entries = open_delta(location).history(most)
    except (DeltaError, OSError) as error:
        raise CommitError(f"{location.uri}: the table cannot be opened ({one_line(error)}); check the uri and the credentials") from error
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
    entries = open_delta(location).history(most_commits)
    records = (entry.get(INFO_KEY) for entry in entries)
    return [record for record in records if isinstance(record, dict) and MAINTENANCE_KEY not in record]


def list_committed(location: Location, version: int) -> list[PartName]:
    """List the parts of one version; VersionGoneError if its log is no longer there."""
    try:
        delta = open_delta(location, version)
    except (DeltaError, OSError) as error:
        newest = open_delta(location).version()
        if version > newest:
            raise CommitError(f"{location.uri}: there is no version {version}; the newest is {newest}") from error
        raise VersionGoneError(f"{location.uri}: version {version} can no longer be opened ({error}); its log was cleaned up") from error
    return [_parse(name, location.uri) for name in pa.table(delta.get_add_actions())["path"].to_pylist()]


def commit_table(location: Location, change: Change, before: TableState | None) -> int:
    """Publish a change in one atomic commit; give the new version. Readers see the table before it or after it.

    A commit whose answer was lost is repeated, conflicts with itself, and is known by its id.
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
    """Find the version of a commit among the newest ones; None if it is not there."""
    try:
        entries = open_delta(location).history(FOLLOWING_COMMITS)
    except TableNotFoundError:
        return None
    found = (
        entry["version"] for entry in entries if isinstance(entry.get(INFO_KEY), dict) and entry[INFO_KEY].get("commit_id") == commit_id
    )
    return next(found, None)


def _commit(location: Location, change: Change, before: TableState | None) -> int:
    uri = location.open().uri
    gone = find_missing([part.name for part in change.add], location)
    if gone:
        raise CommitError(
            f"{uri}: {len(gone)} parts were deleted while this run went on ({gone[0]}), nothing was published; "
            "run again to write them anew, and vacuum with a larger --older-than-hours"
        )
    adds = [_add_action(part.name, part.size_bytes, part.rows, not change.rearranges) for part in change.add]
    number = (before.run_number if before else 0) + 1
    properties = CommitProperties(custom_metadata={INFO_KEY: dict(change.info)}, app_transactions=[Transaction(_APP_ID, number)])
    schema = Schema.from_arrow(change.schema)
    if before is None:
        spec = json.dumps(change.info["spec"], sort_keys=True)
        storage = delta_options(uri, location.options)
        create_table_with_add_actions(
            uri, schema, adds, mode="error", description=spec, storage_options=storage, commit_properties=properties
        )
        return 0
    delta = open_delta(location, before.version)
    if change.replaces:
        delta.create_write_transaction([*adds], "overwrite", schema, commit_properties=properties)
    else:
        removes = _remove_actions(change.remove, before.sizes, not change.rearranges)
        delta.create_write_transaction([*adds, *removes], "append", schema, commit_properties=properties)
    if change.replaces:
        # for other tools' eyes: embedder itself reads the spec from the commit, which is already out
        record = CommitProperties(custom_metadata={INFO_KEY: dict(change.info)})
        open_delta(location).alter.set_table_description(json.dumps(change.info["spec"], sort_keys=True), commit_properties=record)
    return open_delta(location).version()


def sync_quarantine(location: Location, rearranges: bool = False) -> int:
    """Make the quarantine table hold the namesakes of the table's parts, no more and no less; give its rows.

    It follows the table's own commit and depends on nothing but storage, so a run that died in between is mended by
    the next one, whether or not that has anything else to do.
    """
    try:
        return with_retries(lambda: _sync_quarantine(location, rearranges), location.uri)
    except (DeltaError, OSError) as error:
        raise CommitError(
            f"{location.uri}: its quarantine cannot be brought up to date ({one_line(error)}); run again, the rest is published"
        ) from error


def _sync_quarantine(location: Location, rearranges: bool) -> int:
    committed = set(pa.table(open_delta(location).get_add_actions())["path"].to_pylist())
    folder = location.child(QUARANTINE_FOLDER).open()
    wanted = {found.uri.rsplit("/", 1)[-1]: found for found in folder.list_folder()}
    wanted = {name: found for name, found in wanted.items() if name in committed}
    storage = delta_options(folder.uri, location.options)
    schema = Schema.from_arrow(QUARANTINE)
    if not DeltaTable.is_deltatable(folder.uri, storage_options=storage):
        create_table_with_add_actions(folder.uri, schema, [], mode="ignore", storage_options=storage)
    delta = DeltaTable(folder.uri, storage_options=storage)
    present = pa.table(delta.get_add_actions())
    sizes = dict(zip(present["path"].to_pylist(), present["size_bytes"].to_pylist(), strict=True))
    missing = [name for name in wanted if name not in sizes]
    rows = dict(zip(missing, map_threads(lambda name: count_rows(Store(wanted[name].uri, location.options)), missing), strict=True))
    adds = [_add_action(name, wanted[name].size_bytes, rows[name], not rearranges) for name in missing]
    removes = _remove_actions([name for name in sizes if name not in wanted], sizes, not rearranges)
    if adds or removes:
        delta.create_write_transaction([*adds, *removes], "append", schema)
        delta.update_incremental()
    return sum(pa.table(delta.get_add_actions())["num_records"].to_pylist())


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

"""Reads the state of the Delta table, and publishes each change in one commit."""

import json
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from embedder.core.columns import PartNames, find_foreign
from embedder.core.delta_options import delta_options
from embedder.core.errors import CommitError, TableDamagedError, VersionGoneError
from embedder.core.retry import is_transient, one_line, with_retries
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location
from embedder.core.units import Part
from embedder.table.commits import find_commit, open_delta, read_files, unreadable
from embedder.table.parts import find_missing
from embedder.table.run_record import INFO_KEY, find_info, missing_table
from embedder.table.seal import Problem, check_record, check_seal, find_problems, seal_record

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
    foreign: Mapping[str, int] = field(default_factory=dict)
    """Sizes of files that another tool added, by name; none in a table that `read_table` returns."""
    problems: tuple[Problem, ...] = ()
    """How the log differs from the run record; none in a table that `read_table` returns."""

    @property
    def spec(self) -> EmbeddingSpec:
        """The spec of all its vectors."""
        return EmbeddingSpec.model_validate(self.info["spec"])

    @property
    def parts(self) -> PartNames:
        """The committed parts."""
        return PartNames.parse(self.rows)


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


def read_table(location: Location) -> TableState | None:
    """Read the newest version; None if there is no table yet. TableDamagedError if its log is not as embedder wrote it."""
    state = read_unchecked(location)
    if state:
        _refuse_problems(location, state.version, state.problems)
    return state


def read_unchecked(location: Location) -> TableState | None:
    """Read the newest version with its problems, for a check or a repair; None if there is no table yet."""
    try:
        return with_retries(lambda: _read_state(location), location.uri)
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        raise unreadable(location, error) from error


def require_table(location: Location) -> TableState:
    """Read the newest version; StorageError if there is no table."""
    state = read_table(location)
    if state is None:
        raise missing_table(location)
    return state


def _refuse_problems(location: Location, version: int, problems: Iterable[Problem]) -> None:
    for problem in problems:
        repair = ", or run jobs.maintain with --check --repair, then the job that made the table" if problem.is_mendable else ""
        raise TableDamagedError(
            f"{location.uri}: version {version}: {problem.what}: another tool changed the table, or its log is damaged; "
            f"restore the version before, DeltaTable(uri).restore(VERSION){repair}"
        )


def _read_state(location: Location) -> TableState:
    delta = open_delta(location)
    info = find_info(location, delta.version())
    if info is None:
        raise CommitError(
            f"{location.uri}: a Delta table that embedder did not write (no run record in its log); choose another output.uri, or, if "
            "another tool cleaned up the log, restore the commits it removed"
        )
    check_record(info, location.uri)
    files, schema = read_files(delta), pa.schema(delta.schema().to_arrow())
    foreign = {name: files[name][0] for name in find_foreign(files)}
    return TableState(
        version=delta.version(),
        rows={name: rows for name, (_, rows) in files.items() if name not in foreign},
        sizes={name: size for name, (size, _) in files.items() if name not in foreign},
        schema=schema,
        info=info,
        run_number=delta.transaction_version(_APP_ID) or 0,
        foreign=foreign,
        problems=tuple(find_problems(delta, files, info)),
    )


def open_checked(location: Location) -> DeltaTable:
    """Load the newest version for reading its rows; as `read_table`, but the run record may have been cleaned up."""

    def open_once() -> DeltaTable:
        delta = open_delta(location)
        info = find_info(location, delta.version())
        if info is not None:
            check_record(info, location.uri)
        _refuse_problems(location, delta.version(), find_problems(delta, read_files(delta), info))
        return delta

    try:
        return with_retries(open_once, location.uri)
    except TableNotFoundError as error:
        raise missing_table(location) from error
    except (DeltaError, OSError) as error:
        raise unreadable(location, error) from error


def list_committed(location: Location, version: int) -> PartNames:
    """List the parts of one version; VersionGoneError if its log is gone."""
    try:
        delta = open_delta(location, version)
    except (DeltaError, OSError) as error:
        newest = require_table(location).version
        if version > newest:
            raise CommitError(f"{location.uri}: there is no version {version}; the newest is {newest}") from error
        if is_transient(error):
            raise unreadable(location, error) from error
        reason = one_line(error).partition(" 0: <unknown>")[0]
        raise VersionGoneError(
            f"{location.uri}: version {version} can no longer be opened ({reason}); its log was cleaned up, or is damaged"
        ) from error
    files, info = read_files(delta), find_info(location, version)
    if info is not None:
        check_seal(info, location.uri)
    _refuse_problems(location, version, find_problems(delta, files, info))
    return PartNames.parse(files)


def commit_table(location: Location, change: Change, before: TableState | None) -> int:
    """Publish a change in one atomic commit and return the new version. Readers see the table before it or after it.

    If a commit's response is lost, the repeated commit conflicts with itself and is recognized by its id.
    """
    info = _seal({**change.info, "commit_id": uuid.uuid4().hex}, change, before)
    try:
        return with_retries(lambda: _commit(location, replace(change, info=info), before), location.uri)
    except (DeltaError, OSError) as error:
        published = with_retries(lambda: find_commit(location, info["commit_id"]), location.uri)
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


def _seal(info: Mapping[str, Any], change: Change, before: TableState | None) -> dict[str, Any]:
    """Return the record of a commit, sealed for the parts and columns of the version that it makes."""
    old = before if before and not change.replaces else None
    kept = set(old.rows if old else ()).difference(change.remove)
    rows = {name: old.rows[name] for name in kept} if old else {}
    sizes = {name: old.sizes[name] for name in kept} if old else {}
    rows |= {part.name: part.rows for part in change.add}
    sizes |= {part.name: part.size_bytes for part in change.add}
    schema = old.schema if old else change.schema
    return seal_record(info, rows, sizes, pa.schema(Schema.from_arrow(schema).to_arrow()))  # as Delta stores the columns


def _commit(location: Location, change: Change, before: TableState | None) -> int:
    uri = location.open().uri
    gone = find_missing([part.name for part in change.add], location)
    if gone:
        raise CommitError(
            f"{uri}: {len(gone)} parts were deleted during this run ({gone[0]}), nothing was published; "
            "run again to write them again, and vacuum with a larger --older-than-hours"
        )
    adds = [add_action(part.name, part.size_bytes, part.rows, not change.rearranges, part.checksum) for part in change.add]
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
    sizes = {**before.sizes, **before.foreign}
    removes = [] if change.replaces else remove_actions(change.remove, sizes, not change.rearranges)
    mode = "overwrite" if change.replaces else "append"
    open_delta(location, before.version).create_write_transaction([*adds, *removes], mode, schema, commit_properties=properties)
    if change.replaces:
        # for other tools: embedder itself reads the spec from the commit, which is already published
        open_delta(location).alter.set_table_description(spec, commit_properties=CommitProperties(custom_metadata=record))
    return open_delta(location).version()


def add_action(name: str, size_bytes: int, rows: int, data_change: bool, checksum: str) -> AddAction:
    """Return the action that adds a file. Its checksum is one more key of the stats, which every Delta writer and checkpoint carries on."""
    stats = {"numRecords": rows} | ({"checksum": checksum} if checksum else {})
    return AddAction(name, size_bytes, {}, int(time.time() * 1000), data_change, json.dumps(stats))


def remove_actions(names: Iterable[str], sizes: Mapping[str, int], data_change: bool) -> list[RemoveAction]:
    """Return the actions that remove files."""
    return [RemoveAction(name, data_change, int(time.time() * 1000), sizes[name], {}) for name in names]

"""Reads the Delta log as plain JSON: commits, and the run record that holds the spec of a table's vectors. No Delta reader needed."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedder.core.errors import StorageError, TableDamagedError
from embedder.core.listing import Found
from embedder.core.quantization import Ranges, read_ranges
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location
from embedder.table.parts import list_by_name, open_parquet, part_file, read_footer
from embedder.table.seal import RESTORE, check_record, parse_spec

INFO_KEY = "embedder"
"""Key of the run record in a commit's metadata."""

PARTIAL_KEY = "is_partial"
"""Key of the record of a commit that a run made before its end: its figures are those of the run so far."""

LOG_FOLDER = "_delta_log"
_COMMIT = re.compile(r"(\d{20})\.json")


@dataclass(frozen=True, slots=True)
class Record:
    """The spec of a table's vectors, and the ranges of int8 ones."""

    spec: EmbeddingSpec
    ranges: Ranges | None


def read_record(location: Location) -> Record:
    """Read the record of the newest version; if the log was cleaned up, the spec that the newest checkpoint keeps."""
    names = list_by_name(location.child(LOG_FOLDER))
    if not names:
        raise missing_table(location)
    info = find_info(location, max(find_commits(names), default=-1))
    if info is not None:
        check_record(info, location.uri)
        return Record(parse_spec(info["spec"], location.uri), read_ranges(info.get("ranges")))
    for name in sorted((name for name in names if ".checkpoint" in name and name.endswith(".parquet")), reverse=True):
        with open_parquet(location.child(f"{LOG_FOLDER}/{name}").open(), narrow=True) as file:
            actions = file.read(columns=["metaData.description", "add.path"])
        for action in actions["metaData"].to_pylist():
            if action and action["description"]:
                paths = [add["path"] for add in actions["add"].to_pylist() if add and add["path"]]
                return _read_described(action["description"], paths, location)
    raise StorageError(f"{location.uri}: a Delta table that embedder did not write; give one that jobs.embed made")


def _read_described(description: str, paths: Sequence[str], location: Location) -> Record:
    """Return the spec of a table's description; the footer of a part must name its space, and holds the ranges."""
    try:
        values = json.loads(description)
    except ValueError as error:
        raise StorageError(f"{location.uri}: a Delta table that embedder did not write; give one that jobs.embed made") from error
    spec, ranges = parse_spec(values, location.uri), None
    stored = list_by_name(location)
    for path in [each for each in paths if each in stored][:1]:
        _, footer = read_footer(part_file(location, path))
        ranges = read_ranges(footer.get("ranges"))
        if footer["space_id"] != spec.space_id:
            raise TableDamagedError(
                f"{location.uri}: its description gives space {spec.space_id}, {path} is of {footer['space_id']}; {RESTORE}"
            )
    return Record(spec, ranges)


def missing_table(location: Location) -> StorageError:
    """Return the error for a location without a table."""
    return StorageError(f"{location.uri}: no table there; make one with jobs.embed")


def find_commits(names: Mapping[str, Found]) -> dict[int, Found]:
    """Return the commits among a log's files, by version."""
    return {int(match[1]): found for name, found in names.items() if (match := _COMMIT.fullmatch(name))}


def read_actions(commit: Location, kind: str) -> list[dict[str, Any]]:
    """Read the actions of one kind in a commit."""
    try:
        with commit.open().open_input() as file:
            actions = [json.loads(line) for line in file if f'"{kind}"'.encode() in line]
    except ValueError as error:
        raise TableDamagedError(f"{commit.uri}: a commit of the log that is not JSON ({error}); {RESTORE}") from error
    return [action[kind] for action in actions if kind in action]


def find_info(location: Location, version: int) -> Mapping[str, Any] | None:
    """Find the run record of a version, searching back from its commit; a restoring commit leads to the version it restored.

    None if there is none, or it was cleaned up. (For an older version, DeltaTable.history also lists the commits after it.)
    """
    restored = None
    while version >= 0:
        commit = location.child(f"{LOG_FOLDER}/{version:020d}.json")
        found = commit.open().info()
        if found is None:
            break
        if not found.size_bytes:
            raise TableDamagedError(f"{commit.uri}: a commit of the log that is empty; {RESTORE}")
        entry = next(iter(read_actions(commit, "commitInfo")), {})
        info = entry.get(INFO_KEY)
        if isinstance(info, dict) and "spec" in info:
            return info
        if entry.get("operation") == "RESTORE":
            version = restored = _restored_version(location.uri, version, entry)
        else:
            version -= 1
    if restored is not None:
        raise StorageError(
            f"{location.uri}: version {restored} was restored, whose run record is no longer in the log; restore a later one"
        )
    return None


def _restored_version(uri: str, version: int, entry: Mapping[str, Any]) -> int:
    target = str(entry.get("operationParameters", {}).get("version"))
    if not target.isdigit() or int(target) >= version:
        raise StorageError(
            f"{uri}: version {version} restored the table as of a time, which does not identify the spec of its vectors; "
            "restore it by number: DeltaTable(uri).restore(VERSION)"
        )
    return int(target)

"""Reads the Delta log as plain JSON: commits, and the run record that holds the spec of a table's vectors. No Delta reader needed."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from embedder.core.errors import StorageError
from embedder.core.quantization import Ranges, read_ranges
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Found, Location
from embedder.table.parts import list_by_name

INFO_KEY = "embedder"
"""Key of the run record in a commit's metadata."""

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
        return Record(EmbeddingSpec.model_validate(info["spec"]), read_ranges(info.get("ranges")))
    for name in sorted((name for name in names if ".checkpoint" in name and name.endswith(".parquet")), reverse=True):
        with location.child(f"{LOG_FOLDER}/{name}").open().open_input(narrow=True) as file:
            actions = pq.read_table(file, columns=["metaData"])["metaData"].drop_null().to_pylist()
        for action in actions:
            try:
                return Record(EmbeddingSpec.model_validate_json(action["description"] or ""), None)
            except ValueError:  # another tool's description
                break
    raise StorageError(f"{location.uri}: a Delta table that embedder did not write; give one that jobs.embed made")


def missing_table(location: Location) -> StorageError:
    """Return the error for a location without a table."""
    return StorageError(f"{location.uri}: no table there; make one with jobs.embed")


def find_commits(names: Mapping[str, Found]) -> dict[int, Found]:
    """Return the commits among a log's files, by version."""
    return {int(match[1]): found for name, found in names.items() if (match := _COMMIT.fullmatch(name))}


def read_actions(commit: Location, kind: str) -> list[dict[str, Any]]:
    """Read the actions of one kind in a commit."""
    with commit.open().open_input() as file:
        actions = [json.loads(line) for line in file if f'"{kind}"'.encode() in line]
    return [action[kind] for action in actions if kind in action]


def find_info(location: Location, version: int) -> Mapping[str, Any] | None:
    """Find the run record of a version, searching back from its commit; a restoring commit leads to the version it restored.

    None if there is none, or it was cleaned up. (For an older version, DeltaTable.history also lists the commits after it.)
    """
    restored = None
    while version >= 0:
        commit = location.child(f"{LOG_FOLDER}/{version:020d}.json")
        if commit.open().info() is None:
            break
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

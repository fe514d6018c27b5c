"""The spec of a table, read from its log as plain JSON: what a query needs to know, without a Delta reader."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from embedder.core.errors import StorageError
from embedder.core.quantization import Ranges, read_ranges
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location, Store

INFO_KEY = "embedder"
"""Key of the run record in a commit's metadata. It holds the spec of the table's vectors."""

_COMMIT = re.compile(r"/(\d{20})\.json$")


@dataclass(frozen=True, slots=True)
class Record:
    """What a table's vectors are."""

    spec: EmbeddingSpec
    ranges: Ranges | None
    """Of int8."""


def read_spec(location: Location) -> EmbeddingSpec:
    """Give the spec of the newest version."""
    return read_record(location).spec


def read_record(location: Location) -> Record:
    """Read the record of the newest version, or, where records were cleaned up, what the checkpoint keeps of it: the spec."""
    log = location.child("_delta_log").open()
    names = sorted((found.uri for found in log.list_folder()), reverse=True)
    if not names:
        raise StorageError(f"{location.uri}: no table there; make one with jobs.embed")
    newest = next((int(found[1]) for found in map(_COMMIT.search, names) if found), -1)
    info = find_info(location, newest)
    if info is not None:
        return Record(EmbeddingSpec.model_validate(info["spec"]), read_ranges(info.get("ranges")))
    for name in (each for each in names if ".checkpoint" in each and each.endswith(".parquet")):
        with Store(name, location.options).open_input(narrow=True) as file:
            actions = pq.read_table(file, columns=["metaData"])["metaData"].drop_null().to_pylist()
        for action in actions:
            return Record(EmbeddingSpec.model_validate_json(action["description"]), None)
    raise StorageError(f"{location.uri}: a Delta table that embedder did not write; give one that jobs.embed made")


def find_info(location: Location, version: int) -> Mapping[str, Any] | None:
    """Find the run record that holds at a version, from its commit back; a commit that restored a version leads to that one.

    None where there is none, or it was cleaned up. (Of a version that is not the newest, DeltaTable.history gives the newer commits too.)
    """
    log, restored = location.child("_delta_log").open(), None
    while version >= 0:
        commit = Store(log.child(f"{version:020d}.json"), location.options)
        if commit.info() is None:
            break
        entry = _read_entry(commit)
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


def _read_entry(commit: Store) -> dict[str, Any]:
    with commit.open_input() as file:
        actions = (json.loads(line) for line in file if b'"commitInfo"' in line)
        return next((dict(action["commitInfo"]) for action in actions if "commitInfo" in action), {})


def _restored_version(uri: str, version: int, entry: Mapping[str, Any]) -> int:
    target = str(entry.get("operationParameters", {}).get("version"))
    if not target.isdigit() or int(target) >= version:
        raise StorageError(
            f"{uri}: version {version} restored the table as of a time, which does not say whose vectors these are; "
            "restore it by number: DeltaTable(uri).restore(VERSION)"
        )
    return int(target)

"""Reads the files of a Delta log themselves: to name the one that is damaged, to mend it, and to find the checksum of every part."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from embedder.core.errors import StorageError, TableDamagedError
from embedder.core.listing import Found
from embedder.core.storage import Location, map_threads
from embedder.table.parts import list_by_name, open_parquet, why_damaged
from embedder.table.run_record import INFO_KEY, LOG_FOLDER, find_commits
from embedder.table.seal import RESTORE

LAST_CHECKPOINT = "_last_checkpoint"
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\..*parquet|(\d{20})\.checkpoint\.parquet")


class LogDamage(NamedTuple):
    """A file of the log that cannot be read; `is_spare`: the other files of the log hold all that it does."""

    name: str
    what: str
    is_spare: bool


def read_checksums(location: Location) -> dict[str, str]:
    """Return the checksum of each part that the log gives one, by name: from the newest checkpoint and the commits after it."""
    adds = (add for add in read_adds(location) if "checksum" in (add["stats"] or ""))
    return {add["path"]: str(json.loads(add["stats"])["checksum"]) for add in adds}


def read_adds(location: Location) -> Iterator[Mapping[str, Any]]:
    """Yield the path, the stats and the deletion vector of every file that the log adds, oldest first."""
    names = list_by_name(location.child(LOG_FOLDER))
    commits, checkpoints = find_commits(names), find_checkpoints(names)
    newest = max(checkpoints, default=-1)
    for found in checkpoints.get(newest, []):
        with open_parquet(Location(found.uri, location.options).open()) as file:
            for batch in file.iter_batches(columns=["add.path", "add.stats"]):
                yield from (add for add in batch["add"].to_pylist() if add is not None and add["path"] is not None)
    later = [Location(found.uri, location.options) for version, found in sorted(commits.items()) if version > newest]
    for actions in map_threads(read_commit, later):
        yield from (action["add"] for action in actions if "add" in action)


def find_checkpoints(names: Mapping[str, Found]) -> dict[int, list[Found]]:
    """Return the files of each checkpoint among a log's files, by version."""
    found: dict[int, list[Found]] = {}
    for name in sorted(names):
        if match := _CHECKPOINT.fullmatch(name):
            found.setdefault(int(match[1] or match[2]), []).append(names[name])
    return found


def read_commit(commit: Location) -> list[dict[str, Any]]:
    """Read all actions of a commit; TableDamagedError if a line is not a JSON object, or there is none."""
    with commit.open().open_input() as file:
        data = file.read()
    try:
        actions = [json.loads(line) for line in data.splitlines() if line.strip()]
    except ValueError as error:
        raise TableDamagedError(f"{commit.uri}: a commit of the log that is not JSON ({error}); {RESTORE}") from error
    if not actions or not all(isinstance(action, dict) for action in actions):
        raise TableDamagedError(f"{commit.uri}: a commit of the log that is empty or not JSON; {RESTORE}")
    return actions


def find_log_damage(location: Location) -> list[LogDamage]:
    """Read every file of the log; return those that are damaged, and the commits that are gone from between two others."""
    folder = location.child(LOG_FOLDER)
    names = list_by_name(folder)
    commits, checkpoints = find_commits(names), find_checkpoints(names)
    read = _read_commits(commits, location)
    bad = {version: each for version, each in read.items() if isinstance(each, str)}
    recorded = max((version for version, each in read.items() if each is True), default=-1)
    bad_checkpoints = {version: why for version, files in checkpoints.items() if (why := _read_checkpoint(files, location))}
    good = [version for version in checkpoints if version not in bad_checkpoints]
    covered = max(good, default=-1)
    found = []
    if why := _read_hint(folder, checkpoints) if LAST_CHECKPOINT in names else "":
        found.append(LogDamage(LAST_CHECKPOINT, why, True))
    for version, why in sorted(bad_checkpoints.items()):
        start = max((each for each in good if each < version), default=-1)
        replayed = set(range(start + 1, version + 1))
        is_spare = covered > version or (replayed <= set(commits) and not replayed & set(bad))
        found += [LogDamage(each.uri.rsplit("/", 1)[-1], why, is_spare) for each in checkpoints[version]]
    found += [LogDamage(f"{version:020d}.json", why, version <= covered and version < recorded) for version, why in sorted(bad.items())]
    span = range(max(min(commits, default=0), covered + 1), max(commits, default=-1))
    return found + [LogDamage(f"{version:020d}.json", "not on storage", False) for version in span if version not in commits]


def _read_commits(commits: Mapping[int, Found], location: Location) -> dict[int, str | bool]:
    """Return, for each commit, whether it holds a run record, or why it cannot be read."""

    def read(version: int) -> str | bool:
        try:
            actions = read_commit(Location(commits[version].uri, location.options))
        except TableDamagedError as error:
            return str(error).removeprefix(f"{commits[version].uri}: ").partition(";")[0]
        return any(INFO_KEY in action["commitInfo"] for action in actions if "commitInfo" in action)

    versions = sorted(commits)
    return dict(zip(versions, map_threads(read, versions), strict=True))


def _read_checkpoint(files: list[Found], location: Location) -> str:
    for found in files:
        try:
            with open_parquet(Location(found.uri, location.options).open()) as file:
                for _ in file.iter_batches():
                    pass
        except TableDamagedError as error:
            return f"a checkpoint that cannot be read ({why_damaged(error)})"
    return ""


def _read_hint(folder: Location, checkpoints: Mapping[int, object]) -> str:
    with folder.child(LAST_CHECKPOINT).open().open_input() as file:
        data = file.read()
    try:
        version = json.loads(data)["version"]
    except (ValueError, KeyError, TypeError):
        return "not the JSON of a checkpoint's version"
    return "" if version in checkpoints else f"names checkpoint {version}, which is not on storage"


def describe_log_damage(location: Location) -> str:
    """Return the damaged files of a table's log in one line, with the remedy; empty if there are none or it cannot be listed."""
    try:
        damage = find_log_damage(location)
    except (StorageError, pa.ArrowException, OSError):
        return ""
    if not damage:
        return ""
    listed = ", ".join(f"{LOG_FOLDER}/{each.name} ({each.what})" for each in damage[:3])
    remedy = "run jobs.maintain with --check --repair" if all(each.is_spare for each in damage) else RESTORE
    return f"{location.uri}: the log is damaged: {listed}; {remedy}"


def remove_spare_files(location: Location) -> list[str]:
    """Delete damaged files of the log that its other files replace; return their names."""
    spare = [each.name for each in find_log_damage(location) if each.is_spare]
    folder = location.child(LOG_FOLDER)
    if any(".checkpoint" in name for name in spare):
        spare.append(LAST_CHECKPOINT)  # it may name the one that goes
    for name in sorted(set(spare)):
        folder.child(name).open().remove()
    return sorted(set(spare))

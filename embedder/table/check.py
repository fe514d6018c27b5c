"""Compares a table with its storage: its log, every committed part, its quarantine file, and the chain of parts of every task."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from embedder.core.errors import CommitError, ModelError, StorageError
from embedder.core.listing import Found
from embedder.core.rotation import ROTATION_FOLDER, read_rotation, rotation_uri
from embedder.core.storage import Location, Store, map_threads
from embedder.core.units import PartName, Stats, complete_parts
from embedder.observe.progress import align
from embedder.table.check_rows import Fault, check_checksum, check_rows
from embedder.table.commits import MAINTENANCE_KEY
from embedder.table.delta import Change, TableState, commit_table, read_unchecked
from embedder.table.log_files import find_log_damage, read_checksums, remove_spare_files
from embedder.table.parts import (
    QUARANTINE_FOLDER,
    group_by_task,
    list_by_name,
    parse_footer,
    part_file,
    quarantine_file,
    read_metadata,
    why_damaged,
)
from embedder.table.quarantine import read_quarantined, remove_log, sync_quarantine
from embedder.table.run_record import LOG_FOLDER, missing_table
from embedder.table.vacuum import kind_of

LONGEST_LIST = 5
"""Names printed of files that are not embedder's."""


@dataclass(frozen=True, slots=True)
class Checked:
    """Result of a check."""

    version: int
    parts: int
    rows: int
    deep: bool
    made_by: str
    """The job that rebuilds parts."""
    faults: tuple[Fault, ...]
    without_checksum: int = 0
    """Parts that an earlier embedder wrote; no fault."""
    unknown: tuple[str, ...] = ()
    """Files in the table's folder that embedder did not write; they change nothing."""

    def text(self) -> str:
        """Return it as text, with every fault."""
        how = "every row" if self.deep else "footers"
        found = f"{len(self.faults):,} faults" if self.faults else "no fault"
        rows = [(fault.name, fault.what) for fault in self.faults]
        summary = [("check", f"version {self.version}, {self.parts:,} parts, {self.rows:,} rows, {how} read: {found}")]
        if self.without_checksum:
            old = f"{self.without_checksum:,} parts without a checksum, of an earlier embedder: only their rows are checked"
            summary.append(("old", old))
        if self.unknown:
            more = f" and {len(self.unknown) - LONGEST_LIST:,} more" if len(self.unknown) > LONGEST_LIST else ""
            summary.append(("unknown", f"files that embedder did not write: {', '.join(self.unknown[:LONGEST_LIST])}{more}"))
        return "\n".join([*([align(rows)] if rows else []), align(summary)])


def check_table(location: Location, deep: bool = False) -> Checked:
    """Compare the newest version with storage; `deep` reads every row of it, and compares every file with its checksum."""
    state = read_unchecked(location)
    if state is None:
        raise missing_table(location)
    stored, rejects = list_by_name(location), list_by_name(location.child(QUARANTINE_FOLDER))
    names = sorted(state.parts, key=str)
    faults = [Fault(LOG_FOLDER, problem.what) for problem in state.problems]
    faults += [Fault(f"{LOG_FOLDER}/{each.name}", each.what) for each in find_log_damage(location)]
    quarantined, log_faults = _read_quarantined(location)
    by_part = map_threads(lambda name: list(check_part(name, state, stored.get(str(name)), rejects, quarantined, location)), names)
    faults += [*check_chains(names), *(fault for each in by_part for fault in each)]
    faults += log_faults or check_quarantine(state, rejects, quarantined)
    try:
        read_rotation(state.spec, location)  # queries need it
    except (StorageError, ModelError) as error:
        faults.append(Fault(f"{ROTATION_FOLDER}/{state.spec.rotation}", str(error)))
    checksums = {} if any(each.name.startswith(f"{LOG_FOLDER}/") for each in faults) else read_checksums(location)
    if deep:
        broken = {fault.name for fault in faults}
        faults += check_rows(names, state.spec, location, broken, checksums)
        faults += [] if log_faults else check_rejects(location, quarantined.keys() & state.rows.keys() - broken)
    return Checked(
        version=state.version,
        parts=len(state.rows),
        rows=sum(state.rows.values()),
        deep=deep,
        made_by="jobs.recut" if "parent" in state.info else "jobs.embed",
        faults=tuple(dict.fromkeys(faults)),
        without_checksum=sum(name not in checksums for name in state.rows) if checksums or not faults else 0,
        unknown=tuple(sorted(name for name, found in stored.items() if kind_of(found.uri, False) is None and name not in state.foreign)),
    )


def _read_quarantined(location: Location) -> tuple[Mapping[str, tuple[int, int]], list[Fault]]:
    """Read the files of the quarantine table; if its log is damaged, return that as faults."""
    quarantine = location.child(QUARANTINE_FOLDER)
    found = [Fault(f"{QUARANTINE_FOLDER}/{LOG_FOLDER}/{each.name}", each.what) for each in find_log_damage(quarantine)]
    try:
        return read_quarantined(location), found
    except StorageError as error:
        return {}, found or [Fault(f"{QUARANTINE_FOLDER}/{LOG_FOLDER}", str(error))]


def check_rejects(location: Location, names: Collection[str]) -> Iterator[Fault]:
    """Compare quarantine files with the checksums in the log of the quarantine table; a fault names the part."""
    checksums = read_checksums(location.child(QUARANTINE_FOLDER))
    wanted = sorted(name for name in names if name in checksums)
    found = map_threads(lambda name: list(check_checksum(quarantine_file(location, name), checksums[name])), wanted)
    for name, what in zip(wanted, found, strict=True):
        yield from (Fault(name, f"its quarantine file: {each}") for each in what)


def check_part(
    part: PartName,
    state: TableState,
    found: Found | None,
    rejects: Collection[str],
    quarantined: Mapping[str, tuple[int, int]],
    table: Location,
) -> Iterator[Fault]:
    """Yield the faults of one part: its file and footer against the log, its name and its quarantine file."""
    name, documents = str(part), part.stop_row - part.first_row
    if found is None:
        yield Fault(name, "not on storage")
        return
    if found.size_bytes != state.sizes[name]:
        yield Fault(name, f"{found.size_bytes:,} bytes on storage, {state.sizes[name]:,} in the log")
    try:
        metadata = read_metadata(part_file(table, name))
        rows, footer = metadata.num_rows, parse_footer(metadata, found.uri)
    except StorageError as error:
        yield Fault(name, f"cannot be read ({why_damaged(error)})")
        return
    columns = metadata.schema.to_arrow_schema().names
    if columns != state.schema.names:
        yield Fault(name, f"its columns are {', '.join(columns)}, those of the table {', '.join(state.schema.names)}")
    stats = Stats(**footer["stats"])
    if rows != state.rows[name]:
        yield Fault(name, f"{rows:,} rows in the file, {state.rows[name]:,} in the log")
    if footer["space_id"] != state.info["space_id"]:
        yield Fault(name, f"of space {footer['space_id']}, the table is of {state.info['space_id']}")
    if stats.documents != documents:
        yield Fault(name, f"{stats.documents:,} documents in the footer, {documents:,} in its name")
    if stats.quarantined and name not in rejects:
        yield Fault(name, f"{stats.quarantined:,} records were quarantined, but {QUARANTINE_FOLDER} has no file of its name")
    _, num_rejects = quarantined.get(name, (0, stats.quarantined))
    if num_rejects != stats.quarantined:
        yield Fault(name, f"{stats.quarantined:,} records were quarantined, {num_rejects:,} are in its quarantine file")


def check_quarantine(state: TableState, rejects: Mapping[str, Found], quarantined: Mapping[str, tuple[int, int]]) -> Iterator[Fault]:
    """Compare the files that the quarantine table names, by size and rows, with those of committed parts."""
    wanted = {name: found for name, found in rejects.items() if name in state.rows}
    for name in sorted(wanted.keys() | quarantined.keys()):
        where = f"{QUARANTINE_FOLDER}/{name}"
        size, _ = quarantined.get(name, (None, 0))
        if name not in wanted:
            yield Fault(where, "in the quarantine table, but of no part of the table" if name in rejects else "not on storage")
        elif size is None:
            yield Fault(where, "not in the quarantine table")
        elif size != wanted[name].size_bytes:
            yield Fault(name, f"its quarantine file: {wanted[name].size_bytes:,} bytes on storage, {size:,} in the log")


def check_chains(names: Iterable[PartName]) -> Iterator[Fault]:
    """Find tasks whose parts do not cover the first row to the last, each row once, at one version."""
    for parts in group_by_task(names):
        versions, first = {part.version for part in parts}, str(parts[0])
        if len(versions) > 1:
            yield Fault(first, f"its task has parts of {len(versions)} versions")
        elif not (chain := complete_parts(parts)):
            yield Fault(first, f"the {len(parts):,} parts of its task do not reach from row 0 to its end")
        elif len(chain) != len(parts):
            yield Fault(first, f"{len(parts) - len(chain):,} parts of its task hold rows that others hold too")


def mend_log(location: Location) -> list[str]:
    """Delete damaged files of the logs that can be replaced: checkpoints whose commits are there, and the quarantine's log.

    Returns a line for each; the rest must come from a backup.
    """
    removed = [f"{LOG_FOLDER}/{name}" for name in remove_spare_files(location)]
    _, log_faults = _read_quarantined(location)
    if log_faults:
        remove_log(location)
    return [*removed, *(fault.name for fault in log_faults)]


def repair_table(location: Location, checked: Checked) -> int:
    """Remove tasks with faults from the table, and broken files from storage, so that the next run rebuilds them.

    Files of other tools leave the table and stay on storage. Returns the number of parts removed. Faults of the quarantine table
    alone are fixed at once.
    """
    state = read_unchecked(location)
    if state is None or state.version != checked.version:
        raise CommitError(f"{location.uri}: the table changed while it was checked; check it again")
    broken = {fault.name for fault in checked.faults}.intersection(state.rows)
    tasks = {name.key for name in state.parts if str(name) in broken}
    remove = (*(str(name) for name in state.parts if name.key in tasks), *state.foreign)
    is_mendable = bool(state.problems) and all(problem.is_mendable for problem in state.problems)
    if is_mendable or (remove and not state.problems):
        commit_table(location, Change((), remove, state.schema, {**state.info, MAINTENANCE_KEY: "repair"}), state)
        # parts first: a part on storage always has its quarantine file
        map_threads(lambda name: part_file(location, name).remove(), sorted(broken))
        map_threads(lambda name: quarantine_file(location, name).remove(), sorted(broken))
    else:
        remove = ()
    if state.spec.rotation and any(fault.name.startswith(f"{ROTATION_FOLDER}/") for fault in checked.faults):
        Store(rotation_uri(state.spec.rotation, location.uri), location.options).remove()
    sync_quarantine(location)
    return len(remove)

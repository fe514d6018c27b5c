"""Compares a table with its storage: every committed part, its quarantine file, and the chain of parts of every task."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from embedder.core.errors import CommitError, ModelError, StorageError
from embedder.core.rotation import ROTATION_FOLDER, read_rotation
from embedder.core.storage import Found, Location, map_threads
from embedder.core.units import PartName, Stats, complete_parts
from embedder.observe.progress import align
from embedder.table.check_rows import Fault, check_rows
from embedder.table.commits import MAINTENANCE_KEY
from embedder.table.delta import Change, TableState, commit_table, require_table
from embedder.table.parts import QUARANTINE_FOLDER, group_by_task, list_by_name, part_file, quarantine_file, read_footer
from embedder.table.quarantine import read_quarantined, sync_quarantine


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

    def text(self) -> str:
        """Return it as text, with every fault."""
        how = "every row" if self.deep else "footers"
        found = f"{len(self.faults):,} faults" if self.faults else "no fault"
        rows = [(fault.name, fault.what) for fault in self.faults]
        summary = align([("check", f"version {self.version}, {self.parts:,} parts, {self.rows:,} rows, {how} read: {found}")])
        return "\n".join([*([align(rows)] if rows else []), summary])


def check_table(location: Location, deep: bool = False) -> Checked:
    """Compare the newest version with storage; `deep` reads every row of it."""
    state = require_table(location)
    stored, rejects = list_by_name(location), list_by_name(location.child(QUARANTINE_FOLDER))
    names = sorted(state.parts, key=str)
    quarantined = read_quarantined(location)
    by_part = map_threads(lambda name: list(check_part(name, state, stored.get(str(name)), rejects, quarantined, location)), names)
    faults = [*check_chains(names), *(fault for faults in by_part for fault in faults)]
    faults += check_quarantine(state, rejects, quarantined)
    try:
        read_rotation(state.spec, location)  # queries need it
    except (StorageError, ModelError) as error:
        faults.append(Fault(f"{ROTATION_FOLDER}/{state.spec.rotation}", str(error)))
    if deep:
        broken = {fault.name for fault in faults}
        faults += check_rows(names, state.spec, location, broken)
    made_by = "jobs.recut" if "parent" in state.info else "jobs.embed"
    return Checked(state.version, len(state.rows), sum(state.rows.values()), deep, made_by, tuple(faults))


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
        rows, footer = read_footer(part_file(table, name))
    except (StorageError, OSError, ValueError) as error:
        yield Fault(name, f"cannot be read ({error})")
        return
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
            yield Fault(where, f"{wanted[name].size_bytes:,} bytes on storage, {size:,} in the log")


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


def repair_table(location: Location, checked: Checked) -> int:
    """Remove tasks with faults from the table, and broken files from storage, so that the next run rebuilds them.

    Returns the number of parts removed. Faults of the quarantine table alone are fixed at once.
    """
    state = require_table(location)
    if state.version != checked.version:
        raise CommitError(f"{location.uri}: the table changed while it was checked; check it again")
    broken = {fault.name for fault in checked.faults}.intersection(state.rows)
    tasks = {name.key for name in state.parts if str(name) in broken}
    remove = tuple(str(name) for name in state.parts if name.key in tasks)
    if remove:
        commit_table(location, Change((), remove, state.schema, {**state.info, MAINTENANCE_KEY: "repair"}), state)
        # parts first: a part on storage always has its quarantine file
        map_threads(lambda name: part_file(location, name).remove(), sorted(broken))
        map_threads(lambda name: quarantine_file(location, name).remove(), sorted(broken))
    sync_quarantine(location)
    return len(remove)

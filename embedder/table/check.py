"""A table against its storage: every committed part, its namesake in the quarantine, and the chain of every task."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from embedder.core.errors import CommitError, ModelError, StorageError
from embedder.core.rotation import ROTATION_FOLDER, read_rotation
from embedder.core.storage import Found, Location, Store, map_threads
from embedder.core.units import PartName, Stats, complete_parts
from embedder.observe.progress import align
from embedder.table.check_rows import check_rows
from embedder.table.delta import MAINTENANCE_KEY, Change, TableState, commit_table, read_table, sync_quarantine
from embedder.table.log_checkpoint import read_quarantined
from embedder.table.parts import QUARANTINE_FOLDER, part_file, quarantine_file, read_footer


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one file, or with one task."""

    name: str
    """Of the part, or of the first part of a task."""
    what: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found."""

    version: int
    parts: int
    rows: int
    deep: bool
    made_by: str
    """The job that makes parts anew."""
    faults: tuple[Fault, ...]

    def text(self) -> str:
        """Lay it out for a person, every fault by name."""
        how = "every row" if self.deep else "footers"
        found = f"{len(self.faults):,} faults" if self.faults else "no fault"
        rows = [(fault.name, fault.what) for fault in self.faults]
        summary = align([("check", f"version {self.version}, {self.parts:,} parts, {self.rows:,} rows, {how} read: {found}")])
        return "\n".join([*([align(rows)] if rows else []), summary])


@dataclass(frozen=True, slots=True)
class OnStorage:
    """What lies in the table's folder, by name."""

    parts: Mapping[str, Found]
    rejects: Mapping[str, Found]
    quarantined: Mapping[str, tuple[int, int]]
    """Size and rows by name, as the quarantine table has them."""


def check_table(location: Location, deep: bool = False) -> Checked:
    """Compare the newest version with storage; `deep` reads every row of it."""
    state = read_table(location)
    if state is None:
        raise CommitError(f"{location.uri}: no table there; make one with jobs.embed")
    folder = location
    stored = list_storage(location)
    found = map_threads(lambda name: list(check_part(name, state, stored, folder)), sorted(state.rows))
    faults = [*check_chains(state.parts), *(fault for each in found for fault in each), *check_quarantine(state, stored)]
    faults += check_turning(state, folder)
    if deep:
        broken = {fault.name for fault in faults}
        faults += [Fault(name, what) for name, what in check_rows(state.parts, state.spec, folder, broken)]
    made_by = "jobs.recut" if "parent" in state.info else "jobs.embed"
    return Checked(state.version, len(state.rows), sum(state.rows.values()), deep, made_by, tuple(faults))


def list_storage(location: Location) -> OnStorage:
    """List the table's folder and that of its quarantine."""
    table = location.open()
    parts, rejects = (
        {found.uri.rsplit("/", 1)[-1]: found for found in store.list_folder()}
        for store in (table, Store(table.child(QUARANTINE_FOLDER), location.options))
    )
    return OnStorage(parts, rejects, read_quarantined(location))


def check_part(name: str, state: TableState, stored: OnStorage, folder: Location) -> Iterator[Fault]:
    """Compare one part's file and footer with what the log, its name and its quarantine file say."""
    found, parsed = stored.parts.get(name), PartName.parse(name)
    assert parsed is not None, name
    if found is None:
        yield Fault(name, "not on storage")
        return
    if found.size_bytes != state.sizes[name]:
        yield Fault(name, f"{found.size_bytes:,} bytes on storage, {state.sizes[name]:,} in the log")
    try:
        rows, footer = read_footer(part_file(folder, name))
    except (StorageError, OSError, ValueError) as error:
        yield Fault(name, f"cannot be read ({error})")
        return
    stats = Stats(**footer["stats"])
    if rows != state.rows[name]:
        yield Fault(name, f"{rows:,} rows in the file, {state.rows[name]:,} in the log")
    if footer["space_id"] != state.info["space_id"]:
        yield Fault(name, f"of space {footer['space_id']}, the table is of {state.info['space_id']}")
    if stats.documents != parsed.stop_row - parsed.first_row:
        yield Fault(name, f"{stats.documents:,} documents, its name says {parsed.stop_row - parsed.first_row:,}")
    if stats.quarantined and name not in stored.rejects:
        yield Fault(name, f"{stats.quarantined:,} records were quarantined, but {QUARANTINE_FOLDER} has no file of its name")


def check_turning(state: TableState, folder: Location) -> Iterator[Fault]:
    """See whether queries can still be turned as the vectors were."""
    try:
        read_rotation(state.spec, folder)
    except (StorageError, ModelError) as error:
        yield Fault(f"{ROTATION_FOLDER}/{state.spec.rotation}", str(error))


def check_quarantine(state: TableState, stored: OnStorage) -> Iterator[Fault]:
    """Compare the quarantine table with the files of committed parts."""
    wanted = {name: found for name, found in stored.rejects.items() if name in state.rows}
    for name in sorted(wanted.keys() | stored.quarantined.keys()):
        where = f"{QUARANTINE_FOLDER}/{name}"
        size, _ = stored.quarantined.get(name, (None, 0))
        if name not in wanted:
            yield Fault(where, "in the quarantine table, but of no part of the table" if name in stored.rejects else "not on storage")
        elif size is None:
            yield Fault(where, "not in the quarantine table")
        elif size != wanted[name].size_bytes:
            yield Fault(where, f"{wanted[name].size_bytes:,} bytes on storage, {size:,} in the log")


def check_chains(names: Iterable[PartName]) -> Iterator[Fault]:
    """Find tasks whose parts do not reach from the first row to the last, each row once, at one version."""
    tasks: defaultdict[str, list[PartName]] = defaultdict(list)
    for name in names:
        tasks[name.key].append(name)
    for _, parts in sorted(tasks.items()):
        versions = {part.version for part in parts}
        first = str(min(parts, key=lambda part: part.first_row))
        if len(versions) > 1:
            yield Fault(first, f"its task stands there at {len(versions)} versions")
        elif not (chain := complete_parts(parts)):
            yield Fault(first, f"its task of {len(parts):,} parts does not reach from row 0 to its end")
        elif len(chain) != len(parts):
            yield Fault(first, f"{len(parts) - len(chain):,} parts of its task hold rows that others hold too")


def repair_table(location: Location, checked: Checked) -> int:
    """Take the tasks that have faults out of the table, and broken files off storage, so that the next run makes them anew.

    Gives the number of parts that left; what is only wrong in the quarantine table is mended on the spot.
    """
    state = read_table(location)
    if state is None or state.version != checked.version:
        raise CommitError(f"{location.uri}: the table changed while it was checked; check it again")
    broken = {fault.name for fault in checked.faults}.intersection(state.rows)
    tasks = {name.key for name in state.parts if str(name) in broken}
    remove = tuple(str(name) for name in state.parts if name.key in tasks)
    if remove:
        info = {**state.info, MAINTENANCE_KEY: "repair"}
        commit_table(location, Change((), remove, state.schema, info), state)
        folder = location
        map_threads(lambda name: part_file(folder, name).remove(), sorted(broken))  # first: a part on storage always has its namesake
        map_threads(lambda name: quarantine_file(folder, name).remove(), sorted(broken))
    sync_quarantine(location)
    return len(remove)

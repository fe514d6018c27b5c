"""Sync a store with a table: all rows once, then the difference between two versions.

Each step is recorded in the store before it starts, so that the next load finishes a load that died. Every step is idempotent.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa

from embedder.core.errors import ConfigError, StorageError, VersionGoneError
from embedder.core.quantization import Ranges, read_ranges
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location
from embedder.observe.progress import align
from embedder.stores.fitting import Fitting
from embedder.stores.rows import ROW_ID, read_parts, row_ids_of, split_rows, to_store_rows
from embedder.stores.vector_store import Loaded, VectorStore
from embedder.table.commits import open_delta
from embedder.table.delta import list_committed, read_table
from embedder.table.diff import check_present, read_changes
from embedder.table.run_record import find_info
from embedder.table.seal import parse_spec

GROUP_ROWS = 100_000
"""Rows of a first load between two records: at most these are written again after a crash."""

logger = logging.getLogger("embedder")

Outcome = Literal["loaded", "refreshed", "nothing to do"]


@dataclass(frozen=True, slots=True)
class Version:
    """A table version, with the fields that a load needs."""

    location: Location
    number: int
    table_id: str
    spec: EmbeddingSpec
    schema: pa.Schema
    rows: Mapping[str, int]
    """By part name."""
    ranges: Ranges | None
    """Ranges of int8 vectors."""
    is_newest: bool = False

    @property
    def num_rows(self) -> int:
        """Total rows."""
        return sum(self.rows.values())


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a load."""

    outcome: Outcome
    place: str
    uri: str
    version: int
    previous: int | None
    rows: int
    upserted: int
    deleted: int
    seconds: float
    index: str
    left_out: int
    """Rows that the store cannot hold."""
    altered: tuple[str, ...]
    """Changes of values that this load wrote in another form, with their numbers of rows."""

    def text(self) -> str:
        """Return the report as text."""
        at = f"version {self.version} of {self.uri}, {self.rows:,} rows"
        missing = f"{self.left_out:,} rows that this store cannot hold; the load that met them names them"
        if self.outcome == "nothing to do":
            return f"nothing to do: {self.place} holds {at}; {self.index}" + (f"; left out {missing}" if self.left_out else "")
        rows = [("store", self.place), ("table", at), ("written", f"{self.upserted:,} rows in {self.seconds:.1f} s")]
        if self.previous is not None:
            rows[1] = ("table", f"version {self.previous} → {at}")
            rows.append(("removed", f"{self.deleted:,} rows"))
        rows += [("altered", change) for change in self.altered] + ([("left out", missing)] if self.left_out else [])
        return align([*rows, ("search", self.index)])


def read_version(location: Location, number: int | None = None) -> Version:
    """Read a version; the newest without a number."""
    state = read_table(location)
    if state is None:
        raise StorageError(f"{location.uri}: no table there; make one with jobs.embed")
    number = state.version if number is None else number
    names = list_committed(location, number)
    delta = open_delta(location, number)
    adds = pa.table(delta.get_add_actions(flatten=True))
    rows = dict(zip(adds["path"].to_pylist(), adds["num_records"].to_pylist(), strict=True))
    schema = pa.schema(delta.schema().to_arrow())
    by_name = {each: rows[each] for each in sorted(map(str, names))}
    info = state.info if number == state.version else find_info(location, number)
    if info is None:
        raise VersionGoneError(f"{location.uri}: version {number} lost its run record when the log was cleaned up; load a later version")
    spec, ranges = parse_spec(info["spec"], location.uri), read_ranges(info.get("ranges"))
    return Version(location, number, str(delta.metadata().id), spec, schema, by_name, ranges, number == state.version)


def sync(store: VectorStore, wanted: Version, replaces: bool = False) -> Report:
    """Make a store hold the rows of a version and no others.

    With `replaces`, a store that cannot be synced is loaded anew: another space, table or columns, or a loaded version
    that was vacuumed.
    """
    started = time.monotonic()
    if ROW_ID in wanted.schema.names:
        raise ConfigError(f"{wanted.location.uri}: metadata column {ROW_ID!r} has a name that stores reserve; embed it under another name")
    quantization = wanted.spec.quantization
    if quantization not in store.quantizations:
        known = ", ".join(sorted(store.quantizations))
        raise ConfigError(f"{store.place}: has no type for vectors of quantization {quantization!r}; load a table with {known}")
    loaded = store.loaded()
    if loaded is None and store.exists():
        raise StorageError(f"{store.place}: exists, and jobs.load did not make it; choose another name")
    problem = find_mismatch(store.place, loaded, wanted) if loaded else None
    if problem and not replaces:
        raise ConfigError(f"{problem}; choose another name, or load everything anew with --replace")
    if loaded is None or problem or not can_go_on(loaded, wanted):
        loaded = begin(wanted)
    previous = loaded.version
    did_nothing = loaded.version == wanted.number and loaded.target is None
    try:
        loaded, upserted, deleted, altered = follow(store, loaded, wanted)
    except VersionGoneError as error:
        if not replaces:
            raise VersionGoneError(f"{error}: {store.place} with --replace") from error
        loaded, upserted, deleted, altered = follow(store, begin(wanted), wanted)
    index = store.build_index()
    check_count(store, wanted, len(loaded.left_out))
    outcome: Outcome = "nothing to do" if did_nothing else "loaded" if previous is None else "refreshed"
    seconds = time.monotonic() - started
    rows, left_out = wanted.num_rows, len(loaded.left_out)
    place, uri, number = store.place, wanted.location.uri, wanted.number
    return Report(outcome, place, uri, number, previous, rows, upserted, deleted, seconds, index, left_out, altered)


def begin(wanted: Version) -> Loaded:
    """Return the state of a first load; VersionGoneError if parts of the version are gone."""
    check_present(wanted.location, wanted.rows, wanted.number, wanted.is_newest)
    return Loaded(wanted.table_id, wanted.spec, wanted.schema, wanted.ranges, None, wanted.number)


def can_go_on(loaded: Loaded, wanted: Version) -> bool:
    """Return whether the target of an unfinished first load can still be read."""
    if loaded.version is not None:
        return True
    try:
        begin(at_version(wanted, loaded.target))
    except VersionGoneError:
        return False
    return True


def follow(store: VectorStore, loaded: Loaded, wanted: Version) -> tuple[Loaded, int, int, tuple[str, ...]]:
    """Finish a load in progress, then load the wanted version; return the state, rows written and removed, and altered values."""
    upserted = deleted = 0
    fitting = Fitting(store.place, store.find_unfit, store.find_altered, loaded.left_out)
    if loaded.version is None:
        loaded, upserted = load_all(store, loaded, at_version(wanted, loaded.target), fitting)
    for target in (loaded.target, wanted.number):
        if target is not None and target != loaded.version:
            loaded, upserts, deletes = load_changes(store, loaded, wanted, target, fitting)
            upserted, deleted = upserted + upserts, deleted + deletes
    return loaded, upserted, deleted, fitting.changes()


def at_version(wanted: Version, number: int | None) -> Version:
    """Return another version of the same table."""
    return wanted if number in (None, wanted.number) else read_version(wanted.location, number)


def load_all(store: VectorStore, loaded: Loaded, target: Version, fitting: Fitting) -> tuple[Loaded, int]:
    """Write every row of a version, from where an earlier load stopped; return the rows written."""
    store.record(loaded)
    if not loaded.done:
        store.create(loaded)
    folder = target.location
    names, written = list(target.rows)[loaded.done :], 0
    # a load that died may have written a part of this group
    write: Callable[[Iterator[pa.Table]], None] = store.upsert if loaded.done else store.append
    for group in group_parts(names, target.rows):
        counts = Counter[str]()
        rows = (to_store_rows(rows, target.spec) for rows in read_parts(folder, group, target.schema))
        write(counted(fitting.keep(rows), counts, "written"))
        loaded = replace(loaded, done=loaded.done + len(group), left_out=tuple(sorted(fitting.left_out)))
        store.record(loaded)
        written += counts["written"]
        logger.info("%s: %s of %s rows written", store.place, f"{written:,}", f"{target.num_rows:,}")
        write = store.append
    loaded = replace(loaded, version=target.number, target=None, done=0)
    store.record(loaded)
    return loaded, written


def group_parts(names: Sequence[str], rows: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield groups of parts with about GROUP_ROWS rows."""
    group: list[str] = []
    held = 0
    for name in names:
        group.append(name)
        held += rows[name]
        if held >= GROUP_ROWS:
            yield group
            group, held = [], 0
    if group:
        yield group


def load_changes(store: VectorStore, loaded: Loaded, wanted: Version, target: int, fitting: Fitting) -> tuple[Loaded, int, int]:
    """Write and remove the difference between the loaded version and another; return rows written and removed."""
    changes = read_changes(wanted.location, loaded.version, target)  # raises before the state changes
    loaded = replace(loaded, target=target)
    store.record(loaded)
    counts = Counter[str]()
    rows = (to_store_rows(rows.select(wanted.schema.names), wanted.spec) for rows in split_rows(changes.upserts))
    store.upsert(counted(fitting.keep(rows), counts, "upserted"))
    if fitting.left_out:
        # earlier values of these rows may have fitted
        store.delete(sorted(fitting.left_out))
    for keys in counted(split_rows(changes.deletes), counts, "deleted"):
        row_ids = row_ids_of(keys)
        store.delete(row_ids)
        fitting.left_out.difference_update(row_ids)
    loaded = replace(loaded, version=target, target=None, left_out=tuple(sorted(fitting.left_out)))
    store.record(loaded)
    return loaded, counts["upserted"], counts["deleted"]


def counted(tables: Iterable[pa.Table], counts: Counter[str], name: str) -> Iterator[pa.Table]:
    """Yield tables and count their rows."""
    for table in tables:
        counts[name] += table.num_rows
        yield table


def check_count(store: VectorStore, wanted: Version, left_out: int) -> None:
    """Raise StorageError if the store has other rows than the table without those left out: something else wrote to it."""
    found = store.count()
    if found != wanted.num_rows - left_out:
        less = f", {left_out:,} of them left out" if left_out else ""
        raise StorageError(
            f"{store.place}: {found:,} rows after the load, but {wanted.location.uri} has {wanted.num_rows:,} at version "
            f"{wanted.number}{less}; another writer or a second load changed it; load under another name"
        )


def find_mismatch(place: str, loaded: Loaded, wanted: Version) -> str | None:
    """Return why a store's rows and a table's may not be mixed; None if they may."""
    if loaded.spec.space_id != wanted.spec.space_id:
        changes = "; ".join(loaded.spec.differences(wanted.spec))
        return (
            f"{place}: holds rows of space {loaded.spec.space_id}, and {wanted.location.uri} is of space {wanted.spec.space_id} ({changes})"
        )
    if loaded.table_id != wanted.table_id:
        return f"{place}: holds rows of another table (Delta id {loaded.table_id}, and that of {wanted.location.uri} is {wanted.table_id})"
    if not loaded.schema.equals(wanted.schema):
        mine, theirs = ({f"{field.name} {field.type}" for field in schema} for schema in (loaded.schema, wanted.schema))
        changes = ", ".join([*(f"−{each}" for each in sorted(mine - theirs)), *(f"+{each}" for each in sorted(theirs - mine))])
        return f"{place}: its columns are not those of {wanted.location.uri} ({changes or 'in another order'})"
    return None

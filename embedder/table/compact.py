"""Merges small neighboring parts of a task into one part: identical rows, in one commit that changes no data."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from embedder.core.errors import StorageError
from embedder.core.schema import QUARANTINE
from embedder.core.storage import Location, map_threads
from embedder.core.units import Part, PartName, Stats
from embedder.observe.progress import align
from embedder.table.commits import MAINTENANCE_KEY
from embedder.table.delta import Change, TableState, commit_table, require_table
from embedder.table.log_files import read_checksums
from embedder.table.parts import (
    check_bytes,
    encode_batches,
    encode_parquet,
    group_by_task,
    part_file,
    quarantine_file,
    read_batches,
    read_footer,
    read_metadata,
    read_part,
)
from embedder.table.quarantine import sync_quarantine


@dataclass(frozen=True, slots=True)
class Compacted:
    """Result of a compaction, or the plan of a dry run."""

    parts_before: int
    merges: tuple[tuple[PartName, ...], ...]
    bytes_merged: int
    version: int | None
    """Published; None if there was nothing to merge, or it was a dry run."""

    @property
    def parts_after(self) -> int:
        """Parts of the table afterwards."""
        return self.parts_before - sum(len(names) - 1 for names in self.merges)

    def text(self, dry_run: bool) -> str:
        """Return it as text."""
        merged = f"{sum(map(len, self.merges)):,} small parts ({self.bytes_merged / 1e6:,.2f} MB) into {len(self.merges):,}"
        done = "dry run: nothing was merged" if dry_run else f"version {self.version}, the same rows"
        if not self.merges:
            return align([("compact", f"nothing to merge in {self.parts_before:,} parts")])
        return align([("compact", merged), ("parts", f"{self.parts_before:,} → {self.parts_after:,}, {done}")])


def compact_table(location: Location, target_bytes: int, dry_run: bool = False) -> Compacted:
    """Merge small neighbors and publish all merges at once; if a run commits at the same time, one of the two is refused.

    Holds one merged part in memory. The next compaction adopts the merged parts of one that died.
    """
    state = require_table(location)
    merges = tuple(plan_merges(state.parts, state.sizes, target_bytes))
    names = tuple(str(name) for run in merges for name in run)
    size = sum(state.sizes[name] for name in names)
    if dry_run or not merges:
        return Compacted(len(state.rows), merges, size, None)
    checksums = read_checksums(location)
    merged = tuple(merge_parts(run, state, location, checksums) for run in merges)
    change = Change(merged, names, state.schema, {**state.info, MAINTENANCE_KEY: "compact"}, rearranges=True)
    version = commit_table(location, change, state)
    sync_quarantine(location, rearranges=True)
    return Compacted(len(state.rows), merges, size, version)


def plan_merges(names: Iterable[PartName], sizes: Mapping[str, int], target_bytes: int) -> Iterator[tuple[PartName, ...]]:
    """Yield runs of neighbors of one task and version, each below half the target and together at most the target."""
    for parts in group_by_task(names):
        run: list[PartName] = []
        held = 0
        for part in parts:
            size = sizes[str(part)]
            is_small = size < target_bytes / 2
            follows = run and (run[-1].version, run[-1].stop_row) == (part.version, part.first_row)
            if not (is_small and follows and held + size <= target_bytes):
                if len(run) > 1:
                    yield tuple(run)
                run, held = [], 0
            if is_small:
                run.append(part)
                held += size
        if len(run) > 1:
            yield tuple(run)


def merge_parts(names: Sequence[PartName], state: TableState, table: Location, checksums: Mapping[str, str]) -> Part:
    """Write the rows of these parts as one part, once, its quarantine file first; the footer sums their stats.

    TableDamagedError if a part's bytes do not have the checksum in the log: the merged part would make the damage permanent.
    """
    map_threads(lambda name: check_bytes(part_file(table, str(name)), checksums.get(str(name))), list(names))
    merged = PartName(names[0].key, names[0].version, names[0].first_row, names[-1].stop_row, names[-1].last)
    file = part_file(table, str(merged))
    footers = map_threads(lambda name: read_footer(part_file(table, str(name)))[1], list(names))
    stats = sum((Stats(**footer["stats"]) for footer in footers), Stats())
    if stats.quarantined:
        with_rejects = [name for name, footer in zip(names, footers, strict=True) if footer["stats"]["quarantined"]]
        rejects = pa.concat_tables([rows for name in with_rejects for rows in read_batches(quarantine_file(table, str(name)))])
        quarantine_file(table, str(merged)).write_once(encode_parquet(rejects.select(QUARANTINE.names), {}))
    tables = (rows for name in names for rows in read_batches(part_file(table, str(name))))
    schema = read_metadata(part_file(table, str(names[0]))).schema.to_arrow_schema().remove_metadata()
    file.write_once(encode_batches(tables, schema, {**footers[0], "stats": stats.record(), "name": str(merged)}))
    part = read_part(str(merged), table)
    num_rows = sum(state.rows[str(name)] for name in names)
    if part.rows != num_rows or part.stats != stats:
        raise StorageError(
            f"{file.uri}: holds {part.rows:,} rows where {num_rows:,} were merged, nothing was published; "
            "look at the table with jobs.maintain --check --deep"
        )
    return part

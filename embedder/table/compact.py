"""Small neighbouring parts of one task become one part: the same rows to the bit, in one commit that changes no data."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from embedder.core.errors import CommitError, StorageError
from embedder.core.schema import QUARANTINE
from embedder.core.storage import Location, map_threads
from embedder.core.units import Part, PartName, Stats
from embedder.observe.progress import align
from embedder.table.delta import MAINTENANCE_KEY, Change, TableState, commit_table, read_table, sync_quarantine
from embedder.table.parts import (
    encode_batches,
    encode_parquet,
    part_file,
    quarantine_file,
    read_batches,
    read_footer,
    read_part,
    read_schema,
)


@dataclass(frozen=True, slots=True)
class Compacted:
    """What was merged, or would be."""

    parts_before: int
    merges: tuple[tuple[PartName, ...], ...]
    bytes_merged: int
    version: int | None
    """Published; None if there was nothing to merge, or nothing was done."""

    @property
    def parts_after(self) -> int:
        """Parts of the table afterwards."""
        return self.parts_before - sum(len(names) - 1 for names in self.merges)

    def text(self, dry_run: bool) -> str:
        """Lay it out for a person."""
        merged = f"{sum(map(len, self.merges)):,} small parts ({self.bytes_merged / 1e6:,.2f} MB) into {len(self.merges):,}"
        done = "dry run: nothing was merged" if dry_run else f"version {self.version}, the same rows"
        if not self.merges:
            return align([("compact", f"nothing to merge in {self.parts_before:,} parts")])
        return align([("compact", merged), ("parts", f"{self.parts_before:,} → {self.parts_after:,}, {done}")])


def compact_table(location: Location, target_bytes: int, dry_run: bool = False) -> Compacted:
    """Merge small neighbours and publish all merges at once; of a run at the same time, one commits and the other is told so.

    Holds one merged part in memory. What a compaction that died has merged is taken up by the next one.
    """
    state = read_table(location)
    if state is None:
        raise CommitError(f"{location.uri}: no table there; make one with jobs.embed")
    merges = tuple(plan_merges(state.parts, state.sizes, target_bytes))
    size = sum(state.sizes[str(name)] for names in merges for name in names)
    if dry_run or not merges:
        return Compacted(len(state.rows), merges, size, None)
    folder = location
    merged = tuple(merge_parts(names, state, folder) for names in merges)
    info = {**state.info, MAINTENANCE_KEY: "compact"}
    change = Change(merged, tuple(str(name) for names in merges for name in names), state.schema, info, rearranges=True)
    version = commit_table(location, change, state)
    sync_quarantine(location, rearranges=True)
    return Compacted(len(state.rows), merges, size, version)


def plan_merges(names: Iterable[PartName], sizes: Mapping[str, int], target_bytes: int) -> Iterator[tuple[PartName, ...]]:
    """Choose runs of neighbours of one task, each below half the target and together at most the target."""
    tasks: defaultdict[tuple[str, str], list[PartName]] = defaultdict(list)
    for name in names:
        tasks[name.key, name.version].append(name)
    for _, parts in sorted(tasks.items()):
        yield from _cut_runs(sorted(parts, key=lambda part: (part.first_row, part.stop_row)), sizes, target_bytes)


def _cut_runs(chain: Sequence[PartName], sizes: Mapping[str, int], target_bytes: int) -> Iterator[tuple[PartName, ...]]:
    run: list[PartName] = []
    held = 0
    for part in chain:
        size = sizes[str(part)]
        is_small = size < target_bytes / 2
        if run and not (is_small and part.first_row == run[-1].stop_row and held + size <= target_bytes):
            yield from _merge(run)
            run, held = [], 0
        if is_small:
            run.append(part)
            held += size
    yield from _merge(run)


def _merge(run: Sequence[PartName]) -> Iterator[tuple[PartName, ...]]:
    if len(run) > 1:
        yield tuple(run)


def merge_parts(names: Sequence[PartName], state: TableState, folder: Location) -> Part:
    """Write what these parts hold as one, once, its quarantine file first; footers are kept but for the stats, which are summed."""
    merged = PartName(names[0].key, names[0].version, names[0].first_row, names[-1].stop_row, names[-1].last)
    footers = map_threads(lambda name: read_footer(part_file(folder, str(name)))[1], list(names))
    stats = sum((Stats(**footer["stats"]) for footer in footers), Stats())
    if stats.quarantined:
        with_rejects = [name for name, footer in zip(names, footers, strict=True) if footer["stats"]["quarantined"]]
        rejects = pa.concat_tables([table for name in with_rejects for table in read_batches(quarantine_file(folder, str(name)))])
        quarantine_file(folder, str(merged)).write_once(encode_parquet(rejects.select(QUARANTINE.names), {}))
    tables = (table for name in names for table in read_batches(part_file(folder, str(name))))
    schema = read_schema(part_file(folder, str(names[0])))
    part_file(folder, str(merged)).write_once(encode_batches(tables, schema, {**footers[0], "stats": asdict(stats)}))
    part = read_part(str(merged), folder)
    rows = sum(state.rows[str(name)] for name in names)
    if part.rows != rows or part.stats != stats:
        raise StorageError(
            f"{part_file(folder, str(merged)).uri}: holds {part.rows:,} rows where {rows:,} were merged, nothing was published; "
            "look at the table with jobs.maintain --check --deep"
        )
    return part

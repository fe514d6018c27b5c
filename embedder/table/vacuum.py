"""Storage without what no version needs any more: parts that left, leftovers of runs that died, temporary files, old marks.

Only files of embedder's own naming are ever deleted, and only those that are old by the storage's own clock.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from embedder.core.errors import CommitError, ConfigError
from embedder.core.storage import PROBE_PREFIX, Found, Location, Store, map_threads
from embedder.core.units import PartName
from embedder.observe.progress import align
from embedder.table.attempts import ATTEMPTS_FOLDER
from embedder.table.delta import read_table
from embedder.table.delta_log import read_recent_log
from embedder.table.log_checkpoint import read_quarantined
from embedder.table.parts import QUARANTINE_FOLDER

LEAST_HOURS = 1.0
"""A run's parts are in no version until it commits: an age below its length would delete them from under it."""

LONGEST_LIST = 1000
Kind = Literal["part", "quarantine", "temporary", "attempt"]

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.tmp")
_PROBE = re.compile(re.escape(PROBE_PREFIX) + r"[0-9a-f]{32}")
_MARK = re.compile(r".+\.\d+")


@dataclass(frozen=True, slots=True)
class Stale:
    """A file that no version needs."""

    uri: str
    kind: Kind
    size_bytes: int

    @property
    def name(self) -> str:
        """Its name in its folder."""
        return self.uri.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Vacuumed:
    """What was deleted, or would be."""

    stale: tuple[Stale, ...]
    first_version: int
    """Older versions can no longer be read, or not all of them."""
    dry_run: bool

    def text(self) -> str:
        """Lay it out for a person, the files of a dry run one by one."""
        sizes, counts = Counter[str](), Counter(each.kind for each in self.stale)
        for each in self.stale:
            sizes[each.kind] += each.size_bytes
        listed = [(f"{each.size_bytes:14,}", each.uri) for each in self.stale[:LONGEST_LIST]] if self.dry_run else []
        if self.dry_run and len(self.stale) > LONGEST_LIST:
            listed.append((f"{'…':>14}", f"{len(self.stale) - LONGEST_LIST:,} more"))
        rows = [(f"{kind} files", f"{count:,}, {sizes[kind] / 1e6:,.2f} MB") for kind, count in sorted(counts.items())]
        done = "would be deleted; dry run: nothing was" if self.dry_run else "deleted"
        rows.append(("vacuum", f"{len(self.stale):,} files, {sum(sizes.values()) / 1e6:,.2f} MB {done}"))
        if any(each.kind == "part" for each in self.stale):
            will = "could" if self.dry_run else "can"
            rows.append(("versions", f"from {self.first_version} on stay readable; older ones {will} no longer be read"))
        return "\n".join([*([align(listed)] if listed else []), align(rows)])


def vacuum_table(location: Location, older_than_hours: float, dry_run: bool = False, insist: bool = False) -> Vacuumed:
    """Delete what no version needs that was the newest within the age, and that is itself older; a dry run only lists it.

    A running embed is protected by the age: what it wrote is younger, and it checks before its commit that old leftovers
    which it took up are still there.
    """
    if not (older_than_hours >= LEAST_HOURS or insist):
        raise ConfigError(
            f"--older-than-hours={older_than_hours:g}: parts of a run in progress are in no version yet, and would be deleted from under "
            f"it; give at least {LEAST_HOURS:g}, more than your longest run takes, or add --insist while no run is going on"
        )
    state = read_table(location)
    if state is None:
        raise CommitError(f"{location.uri}: no table there; nothing was deleted")
    cutoff = location.open().check_writable() - 3600 * older_than_hours
    recent = read_recent_log(location, cutoff)
    of_quarantine = read_recent_log(location.child(QUARANTINE_FOLDER), cutoff)
    needed = {*state.rows, *recent.removed, *read_quarantined(location), *of_quarantine.removed}
    stale = plan_vacuum(list_files(location), needed, cutoff)
    vacuumed = Vacuumed(stale, state.version if recent.first_version is None else recent.first_version, dry_run)
    if not dry_run:
        for kinds in (("part",), ("quarantine", "temporary", "attempt")):  # a part on storage always has its namesake
            map_threads(lambda each: Store(each.uri, location.options).remove(), [each for each in stale if each.kind in kinds])
        check_untouched(location, stale)
    return vacuumed


def list_files(location: Location) -> list[tuple[Found, bool]]:
    """List what lies in the table's folder, in the quarantine's, and (True) the marks of attempts."""
    folders = [location, location.child(QUARANTINE_FOLDER)]
    files = [(found, False) for folder in folders for found in folder.open().list_folder()]
    return files + [(found, True) for found in location.child(ATTEMPTS_FOLDER).open().list_folder()]


def plan_vacuum(files: Iterable[tuple[Found, bool]], needed: set[str], cutoff: float) -> tuple[Stale, ...]:
    """Choose what is ours, not needed, and last modified before the cutoff; a file of unknown age is kept."""
    stale = []
    for found, is_mark in files:
        kind = kind_of(found.uri, is_mark)
        if kind and found.modified is not None and found.modified < cutoff and found.uri.rsplit("/", 1)[-1] not in needed:
            stale.append(Stale(found.uri, kind, found.size_bytes))
    return tuple(sorted(stale, key=lambda each: each.uri))


def kind_of(uri: str, is_mark: bool) -> Kind | None:
    """Tell what a file is by its name; None if it is not ours."""
    folder, _, name = uri.rpartition("/")
    temporary = _TEMPORARY.fullmatch(name)
    plain = temporary["name"] if temporary else name
    if is_mark:
        return "attempt" if _MARK.fullmatch(plain) else None
    if PartName.parse(plain) is None and not _PROBE.fullmatch(plain):
        return None
    if temporary or _PROBE.fullmatch(plain):
        return "temporary"
    return "quarantine" if folder.endswith(f"/{QUARANTINE_FOLDER}") else "part"


def check_untouched(location: Location, deleted: Iterable[Stale]) -> None:
    """Find out whether a run published old leftovers in the moment they were deleted."""
    state = read_table(location)
    lost = sorted({each.name for each in deleted if each.kind == "part"}.intersection(state.rows if state else ()))
    if lost:
        raise CommitError(
            f"{location.uri}: a run published {len(lost)} old parts while they were deleted ({lost[0]}); "
            "run jobs.maintain with --check --repair, then jobs.embed, which embeds them anew"
        )

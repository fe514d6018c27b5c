"""Deletes files that no version needs: removed parts, leftovers of runs that died, temporary files, old marks.

Only files that follow embedder's naming are deleted, and only those that are old by the storage's own clock.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from embedder.core.errors import CommitError, ConfigError
from embedder.core.listing import Found
from embedder.core.storage import PROBE_PREFIX, Location, map_threads
from embedder.core.units import PartName
from embedder.observe.progress import align
from embedder.table.attempts import ATTEMPTS_FOLDER
from embedder.table.delta import read_table, require_table
from embedder.table.hash_index import INDEX_FILE, INDEX_FOLDER, choose_files, read_files
from embedder.table.kept_samples import SAMPLE_FILE, SAMPLES_FOLDER
from embedder.table.parts import QUARANTINE_FOLDER, list_by_name
from embedder.table.quarantine import read_quarantined
from embedder.table.run_record import LOG_FOLDER, find_commits, read_actions

LEAST_HOURS = 1.0
"""A run's parts are in no version until it commits: a smaller age would delete them during the run."""

LONGEST_LIST = 1000
Kind = Literal["part", "quarantine", "temporary", "attempt", "index", "sample"]

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
        """File name."""
        return self.uri.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Vacuumed:
    """Result of a vacuum, or the plan of a dry run."""

    stale: tuple[Stale, ...]
    first_version: int
    """Older versions are no longer fully readable."""
    dry_run: bool

    def text(self) -> str:
        """Return it as text; a dry run lists each file."""
        sizes, counts = Counter[str](), Counter(each.kind for each in self.stale)
        for each in self.stale:
            sizes[each.kind] += each.size_bytes
        listed = [(f"{each.size_bytes:14,}", each.uri) for each in self.stale[:LONGEST_LIST]] if self.dry_run else []
        if self.dry_run and len(self.stale) > LONGEST_LIST:
            listed.append((f"{'…':>14}", f"{len(self.stale) - LONGEST_LIST:,} more"))
        rows = [(f"{kind} files", f"{count:,}, {sizes[kind] / 1e6:,.2f} MB") for kind, count in sorted(counts.items())]
        done = "would be deleted; dry run: nothing was" if self.dry_run else "deleted"
        rows.append(("vacuum", f"{len(self.stale):,} files, {sum(sizes.values()) / 1e6:,.2f} MB {done}"))
        if counts["part"]:
            will = "could" if self.dry_run else "can"
            rows.append(("versions", f"from {self.first_version} on stay readable; older ones {will} no longer be read"))
        return "\n".join([*([align(listed)] if listed else []), align(rows)])


def vacuum_table(location: Location, older_than_hours: float, dry_run: bool = False, insist: bool = False) -> Vacuumed:
    """Delete old files that no version needs which was the newest within the age; a dry run only lists them.

    The age protects a running embed: its files are younger, and before its commit it checks that leftovers it adopted still exist.
    """
    if not (older_than_hours >= LEAST_HOURS or insist):
        raise ConfigError(
            f"--older-than-hours={older_than_hours:g}: would delete parts of a run in progress, which are in no version yet; "
            f"set at least {LEAST_HOURS:g}, more than your longest run takes, or add --insist while no run is in progress"
        )
    state = require_table(location)
    cutoff = location.open().check_writable() - 3600 * older_than_hours
    quarantine, marks, index = (location.child(name) for name in (QUARANTINE_FOLDER, ATTEMPTS_FOLDER, INDEX_FOLDER))
    removed, first_version = read_recent_log(location, cutoff)
    needed = {*state.rows, *removed, *read_quarantined(location), *read_recent_log(quarantine, cutoff)[0]}
    needed.update(choose_files(read_files(index), state.rows))
    folders = (location, quarantine, marks, index, location.child(SAMPLES_FOLDER))
    files = [(found, folder is marks) for folder in folders for found in folder.open().list_folder()]
    stale = plan_vacuum(files, needed, cutoff)
    vacuumed = Vacuumed(stale, state.version if first_version is None else first_version, dry_run)
    if not dry_run:
        for kinds in (
            ("part",),
            ("quarantine", "temporary", "attempt", "index", "sample"),
        ):  # a part on storage always has its quarantine file
            map_threads(lambda each: Location(each.uri, location.options).open().remove(), [each for each in stale if each.kind in kinds])
        check_untouched(location, stale)
    return vacuumed


def read_recent_log(location: Location, since: float) -> tuple[set[str], int | None]:
    """Return the files removed since a moment, and the version that was then the newest, or the first that still has a log.

    That version still names these files. Older commits are not opened, and may have been cleaned up.
    """
    commits = find_commits(list_by_name(location.child(LOG_FOLDER)))
    older = {version for version, found in commits.items() if found.modified is not None and found.modified < since}
    recent = [Location(found.uri, location.options) for version, found in commits.items() if version not in older]
    removed = map_threads(lambda commit: [action["path"] for action in read_actions(commit, "remove")], recent)
    return {name for names in removed for name in names}, max(older, default=min(commits, default=None))


def plan_vacuum(files: Iterable[tuple[Found, bool]], needed: set[str], cutoff: float) -> tuple[Stale, ...]:
    """Return the files (True: marks) of ours that are not needed and older than the cutoff; files of unknown age are kept."""
    stale = []
    for found, is_mark in files:
        kind = kind_of(found.uri, is_mark)
        if kind and found.modified is not None and found.modified < cutoff and found.uri.rsplit("/", 1)[-1] not in needed:
            stale.append(Stale(found.uri, kind, found.size_bytes))
    return tuple(sorted(stale, key=lambda each: each.uri))


def kind_of(uri: str, is_mark: bool) -> Kind | None:
    """Return the kind of a file by its name; None if it is not ours."""
    folder, _, name = uri.rpartition("/")
    temporary = _TEMPORARY.fullmatch(name)
    plain = temporary["name"] if temporary else name
    if is_mark:
        return "attempt" if _MARK.fullmatch(plain) else None
    if folder.endswith(f"/{SAMPLES_FOLDER}"):
        return "sample" if SAMPLE_FILE.fullmatch(plain) else None
    if _PROBE.fullmatch(plain):
        return "temporary"
    is_index = folder.endswith(f"/{INDEX_FOLDER}") and INDEX_FILE.fullmatch(plain)
    if PartName.parse(plain) is None and not is_index:
        return None
    return "temporary" if temporary else "index" if is_index else "quarantine" if folder.endswith(f"/{QUARANTINE_FOLDER}") else "part"


def check_untouched(location: Location, deleted: Iterable[Stale]) -> None:
    """Refuse if a run published old leftovers while they were deleted."""
    state = read_table(location)
    lost = sorted({each.name for each in deleted if each.kind == "part"}.intersection(state.rows if state else ()))
    if lost:
        raise CommitError(
            f"{location.uri}: a run published {len(lost)} old parts while they were deleted ({lost[0]}); "
            "run jobs.maintain with --check --repair, then jobs.embed, which embeds them again"
        )

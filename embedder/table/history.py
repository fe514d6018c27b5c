"""Lists a table's versions: the run that published each, its figures and cost, and the changes since the run before it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from embedder.core.errors import CommitError
from embedder.core.fidelity import describe_fidelity
from embedder.core.printable import printable
from embedder.core.spec import digest
from embedder.core.storage import Location
from embedder.table.commits import MAINTENANCE_KEY, Commit, list_commits
from embedder.table.run_record import PARTIAL_KEY
from embedder.table.seal import parse_spec

RUN, PARTIAL, DESCRIBE, FOREIGN = "run", "run so far", "describe", "foreign"
_FIGURES = (
    "run_id", "started", "stats", "reasons", "ignored", "failures", "documents_reused", "parts_added", "parts_adopted", "parts_kept",
    "parts_removed", "rows", "bytes_added", "seconds", "tokens_per_second", "padding_share", "cost_usd", "fidelity",
)  # fmt: skip
_HEADER = ("version", "published", "what", "embedded", "reused", "quarantined", "chunks", "tokens", "rows", "added", "seconds", "cost")


@dataclass(frozen=True, slots=True)
class Event:
    """One version: a run, a kind of maintenance, or another tool's commit."""

    version: int
    published: str
    """UTC."""
    kind: str
    """run; run so far: a commit before a run's end, by output.publish_every; compact, checkpoint or repair; describe: the second commit
    of a replacement; foreign: another tool's."""
    operation: str
    """Delta's name for it."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The figures of the run, up to this commit; empty unless it is a run."""
    space_id: str | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    config_digest: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    """Differences from the run before: space, config, environment."""

    def record(self) -> dict[str, Any]:
        """Return everything as JSON values, without the spec, which the space id identifies."""
        names = ("version", "published", "kind", "operation", "space_id", "config_digest")
        listed = {name: getattr(self, name) for name in names}
        return listed | dict(self.figures) | {"environment": dict(self.environment), "changes": list(self.changes)}


def read_history(location: Location, most: int) -> list[Event]:
    """Read the newest versions, newest first; each run but the oldest one read lists its changes."""
    commits = list_commits(location, most)
    if not any(commit.info for commit in commits) and len(commits) < most:
        raise CommitError(
            f"{location.uri}: a Delta table that embedder did not write (no run record in its log); give one that jobs.embed made"
        )
    events = list(to_events(commits))
    runs = [event for event in events if event.kind in (RUN, PARTIAL)]
    changes = {newer.version: tuple(_differences(older, newer)) for newer, older in pairwise(runs)}
    return [replace(event, changes=changes.get(event.version, ())) for event in events]


def to_events(commits: Iterable[Commit]) -> Iterator[Event]:
    """Yield commits as events, in order: maintenance carries the record of an earlier run, and other tools' commits have none."""
    listed = list(commits)
    for commit, before in zip(listed, [*listed[1:], None], strict=True):
        info = commit.info
        kind = FOREIGN if info is None else info.get(MAINTENANCE_KEY, RUN)
        if info and kind == RUN and before and before.info and info.get("commit_id") == before.info.get("commit_id") is not None:
            kind = DESCRIBE
        event = Event(commit.version, commit.published, kind, commit.operation)
        if info is not None and kind == RUN:
            event = replace(
                event,
                kind=PARTIAL if info.get(PARTIAL_KEY) else RUN,
                figures={name: info[name] for name in _FIGURES if name in info},
                space_id=info.get("space_id"),
                spec=info.get("spec") or {},
                config_digest=digest(info["config"], num_bytes=6) if "config" in info else None,
                environment=info.get("environment", {}),
            )
        yield event


def _differences(older: Event, newer: Event) -> Iterator[str]:
    if older.space_id != newer.space_id:
        fields = parse_spec(older.spec, f"version {older.version}").differences(parse_spec(newer.spec, f"version {newer.version}"))
        yield f"space {older.space_id} → {newer.space_id} ({'; '.join(fields)})"
    if older.config_digest != newer.config_digest:
        yield f"config {older.config_digest} → {newer.config_digest}"
    before, now = older.figures.get("ignored"), newer.figures.get("ignored")  # None: a record of an earlier release
    if before is not None and now is not None and before != now:
        yield f"files ignored: {_count(before)} → {_count(now)}"
    for name in sorted(set(older.environment) | set(newer.environment)):
        before, now = older.environment.get(name), newer.environment.get(name)
        if before != now:
            yield f"{name} {before} → {now}"


def lay_out(events: Sequence[Event]) -> str:
    """Return versions as text: a line each, and below it only what is unusual."""
    rows = [_HEADER, *(_columns(event) for event in events)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row, event in zip(rows, [None, *events], strict=True):
        cells = [printable(cell).rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[1:3] = [cell.ljust(width) for cell, width in zip(row[1:3], widths[1:3], strict=True)]
        lines.append("  ".join(cells).rstrip())
        if event:
            lines += [f"{'':{widths[0]}}  {printable(note)}" for note in _notes(event)]
    oldest = next((event for event in reversed(events) if event.kind in (RUN, PARTIAL)), None)
    if oldest:
        versions = ", ".join(f"{name} {value}" for name, value in oldest.environment.items())
        lines.append(f"version {oldest.version}: space {oldest.space_id}, config {oldest.config_digest}, {versions}")
    return "\n".join(lines)


def _columns(event: Event) -> tuple[str, ...]:
    figures, names = event.figures, (str(event.version), event.published, event.kind)
    if "documents_reused" not in figures:  # not a run, or a recut from before it recorded its figures
        return (*names, *[""] * 9)
    stats, cost = figures["stats"], figures.get("cost_usd")
    counts = (
        stats["documents"] - stats["quarantined"] - stats["reused"],
        figures["documents_reused"] + stats["reused"],
        *(stats[name] for name in ("quarantined", "chunks", "tokens")),
        figures["rows"],
    )
    added, seconds = f"{figures['bytes_added'] / 1e6:,.1f} MB", f"{figures['seconds']:,.1f}"
    return (*names, *(f"{count:,}" for count in counts), added, seconds, "" if cost is None else f"${cost:,.4f}")


def _notes(event: Event) -> Iterator[str]:
    if event.kind == FOREIGN:
        yield f"{event.operation}, by another tool"
    reasons = event.figures.get("reasons") or {}
    if reasons:
        yield f"quarantined: {_count(reasons)}"
    stats = event.figures.get("stats") or {}
    if stats.get("chunks_reused"):
        yield f"reused: {stats['chunks_reused']:,} chunks, {stats['tokens_reused']:,} tokens, beside those embedded"
    if event.figures.get("fidelity"):
        yield f"fidelity: {describe_fidelity(event.figures['fidelity'])}"
    for why in (event.figures.get("failures") or {}).values():
        yield f"failed: {why}"
    for change in event.changes:
        yield f"changed: {change}"


def _count(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items())) or "none"

"""Results of a run → the one commit that publishes them, or a refusal."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from embedder.core.errors import CommitError, StorageError, TableDamagedError
from embedder.core.plan import protected_keys
from embedder.core.redaction import mask_secrets
from embedder.core.units import Part, shard_key
from embedder.run.prepare import RunPlan
from embedder.run.summary import Outcome, Summary
from embedder.table.delta import Change, TableState, commit_table, read_table
from embedder.table.run_record import PARTIAL_KEY

logger = logging.getLogger("embedder")


def choose_change(run_plan: RunPlan, outcome: Outcome) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """Return the parts to add and to remove, so that a shard that could not be read keeps its rows.

    A broken shard of a bucket also keeps the parts that it had when it was large, even if its bucket is published without it.
    """
    plan = run_plan.plan
    failed = plan.read.with_keys(outcome.unread)
    if len(failed) and run_plan.replaces:
        logger.error("%d shards failed: replace is all-or-nothing; nothing was published", len(failed))
        return (), ()
    committed = set(run_plan.table.parts.keys.to_pylist()) if run_plan.table else set()
    protected = protected_keys(failed, run_plan.bucket_bits, committed)
    protected |= {shard_key(uri) for uris in outcome.broken.values() for uri in uris}
    add = tuple(part for part in (*outcome.adopted, *outcome.parts) if part.key not in protected)
    remove = tuple(plan.remove.with_keys(protected, invert=True).names.to_pylist())
    return add, remove


def check_removal(run_plan: RunPlan, rows_left: int, published: str = "nothing was published") -> None:
    """Refuse to publish a table that lost most of its rows: the source is more likely emptied or mistyped than meant."""
    if not allows_removal(run_plan, rows_left):
        rows, most = sum(run_plan.table.rows.values()) if run_plan.table else 0, run_plan.config.output.max_removed_fraction
        raise CommitError(
            f"output.max_removed_fraction={most}: this run would leave {rows_left:,} of {rows:,} rows, {published}; "
            "check source.uri, or insist with --output.max_removed_fraction 1"
        )


def allows_removal(run_plan: RunPlan, rows_left: int) -> bool:
    """Return whether the settings allow to leave so many of the rows that the run began with."""
    rows = sum(run_plan.table.rows.values()) if run_plan.table and run_plan.same_space else 0
    return rows_left >= rows * (1 - run_plan.config.output.max_removed_fraction)


@contextmanager
def missing_parts_explained(run_plan: RunPlan, newest: Callable[[], TableState | None]) -> Iterator[None]:
    """Raise the CommitError of `refuse_moved_table` for a part of the table that is gone, if the table moved on meanwhile."""
    try:
        yield
    except StorageError as error:
        uri = run_plan.config.output.location.open().uri
        if isinstance(error, TableDamagedError) and str(error).startswith(uri):
            refuse_moved_table(run_plan, newest())
        raise


def refuse_moved_table(run_plan: RunPlan, before: TableState | None) -> None:
    """Raise CommitError if the table is no longer the version that the run was planned on or published, whose parts may be gone."""
    now = read_table(run_plan.config.output.location)
    if before and now and now.version != before.version:
        raise CommitError(
            f"{run_plan.config.output.location.uri}: maintenance or another run published version {now.version} while this run went by "
            f"version {before.version}, and may have removed parts that it needs; nothing was lost or published, run again for the rest"
        )


def publish(
    run_plan: RunPlan,
    outcome: Outcome,
    change: tuple[Sequence[Part], Sequence[str]],
    summary: Summary,
    environment: Mapping[str, Any],
    before: TableState | None,
    is_partial: bool = False,
) -> Summary:
    """Commit the parts to add and to remove, with the run's record, on the version `before`; return the summary with the new version."""
    record = summary.record() | {
        "space_id": run_plan.spec.space_id,
        "spec": run_plan.spec.model_dump(),
        "ranges": run_plan.model.ranges.record() if run_plan.model.ranges else None,
        "bucket_bits": run_plan.bucket_bits,
        "probe": outcome.probe or (before.info.get("probe") if before else None),
        "config": mask_secrets(run_plan.config.model_dump(mode="json")),
        "environment": environment,
    }
    record |= {PARTIAL_KEY: True} if is_partial else {}
    add, remove = change
    made = Change(tuple(add), tuple(remove), run_plan.schema, record, run_plan.replaces)
    return replace(summary, version=commit_table(run_plan.config.output.location, made, before))

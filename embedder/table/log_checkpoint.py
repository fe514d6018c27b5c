"""Writes checkpoints of the Delta log that keep the run record, and removes old log files."""

from embedder.core.storage import Location
from embedder.table.commits import MAINTENANCE_KEY, is_delta_table, list_commits, open_delta
from embedder.table.delta import Change, commit_table, require_table
from embedder.table.parts import QUARANTINE_FOLDER
from embedder.table.run_record import LOG_FOLDER


def write_checkpoint(location: Location) -> tuple[int, int]:
    """Write a checkpoint, so that a long log opens fast, and remove log files older than 30 days; return version and files removed.

    The log keeps the commit of the checkpoint, so the run record that planning needs is first carried into it.
    """
    state = require_table(location)
    if list_commits(location, 1)[0].info is None:
        commit_table(location, Change((), (), state.schema, {**state.info, MAINTENANCE_KEY: "checkpoint"}, rearranges=True), state)
    removed = 0
    for folder in filter(is_delta_table, (location, location.child(QUARANTINE_FOLDER))):
        log = folder.child(LOG_FOLDER).open()
        open_delta(folder).create_checkpoint()
        before = len(log.list_folder())
        open_delta(folder).cleanup_metadata()
        removed += before - len(log.list_folder())
    return open_delta(location).version(), removed

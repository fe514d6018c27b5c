"""The Delta log, looked after: checkpoints that keep the run record, and what the quarantine's log says."""

import pyarrow as pa
from deltalake import DeltaTable

from embedder.core.errors import CommitError
from embedder.core.storage import Location, delta_options
from embedder.table.delta import MAINTENANCE_KEY, Change, commit_table, open_delta, read_table
from embedder.table.parts import QUARANTINE_FOLDER
from embedder.table.run_record import INFO_KEY


def write_checkpoint(location: Location) -> tuple[int, int]:
    """Make the table open fast however long its log, and remove log files past their 30 days; give version and files removed.

    The log keeps the checkpointed commit itself, so the run record that planning needs is carried into it first.
    """
    state = read_table(location)
    if state is None:
        raise CommitError(f"{location.uri}: no table there; make one with jobs.embed")
    if not isinstance(open_delta(location).history(1)[0].get(INFO_KEY), dict):
        commit_table(location, Change((), (), state.schema, {**state.info, MAINTENANCE_KEY: "checkpoint"}, rearranges=True), state)
    removed = 0
    for folder in (location, location.child(QUARANTINE_FOLDER)):
        if not is_delta_table(folder):
            continue
        log = folder.child("_delta_log").open()
        open_delta(folder).create_checkpoint()
        before = len(log.list_folder())
        open_delta(folder).cleanup_metadata()
        removed += before - len(log.list_folder())
    return open_delta(location).version(), removed


def is_delta_table(location: Location) -> bool:
    """Return whether a Delta log lies at the location."""
    uri = location.open().uri
    return DeltaTable.is_deltatable(uri, storage_options=delta_options(uri, location.options))


def read_quarantined(location: Location) -> dict[str, tuple[int, int]]:
    """Read size and rows of each file of the quarantine table, by name; {} if there is none yet."""
    quarantine = location.child(QUARANTINE_FOLDER)
    if not is_delta_table(quarantine):
        return {}
    adds = pa.table(open_delta(quarantine).get_add_actions())
    columns = (adds[name].to_pylist() for name in ("path", "size_bytes", "num_records"))
    return {name: (size, rows) for name, size, rows in zip(*columns, strict=True)}

"""The Delta log, looked after: checkpoints that keep the run record, and what the quarantine's log says."""

import pyarrow as pa
from deltalake import DeltaTable

from embedder.core.errors import CommitError
from embedder.core.storage import Options, Store, delta_options
from embedder.table.delta import MAINTENANCE_KEY, Change, commit_table, open_delta, read_table
from embedder.table.parts import QUARANTINE_FOLDER
from embedder.table.run_record import INFO_KEY


def write_checkpoint(uri: str, options: Options) -> tuple[int, int]:
    """Make the table open fast however long its log, and remove log files past their 30 days; give version and files removed.

    The log keeps the checkpointed commit itself, so the run record that planning needs is carried into it first.
    """
    state = read_table(uri, options)
    if state is None:
        raise CommitError(f"{uri}: no table there; make one with jobs.embed")
    if not isinstance(open_delta(uri, options).history(1)[0].get(INFO_KEY), dict):
        commit_table(uri, options, Change((), (), state.schema, {**state.info, MAINTENANCE_KEY: "checkpoint"}, rearranges=True), state)
    removed = 0
    for folder in (uri, Store(uri, options).child(QUARANTINE_FOLDER)):
        location = Store(folder, options).uri
        if not DeltaTable.is_deltatable(location, storage_options=delta_options(location, options)):
            continue
        delta, log = open_delta(folder, options), Store(f"{location}/_delta_log", options)
        delta.create_checkpoint()
        before = len(log.list_folder())
        open_delta(folder, options).cleanup_metadata()
        removed += before - len(log.list_folder())
    return open_delta(uri, options).version(), removed


def read_quarantined(uri: str, options: Options) -> dict[str, tuple[int, int]]:
    """Read size and rows of each file of the quarantine table, by name; {} if there is none yet."""
    location = Store(uri, options).child(QUARANTINE_FOLDER)
    if not DeltaTable.is_deltatable(location, storage_options=delta_options(location, options)):
        return {}
    adds = pa.table(open_delta(location, options).get_add_actions())
    columns = (adds[name].to_pylist() for name in ("path", "size_bytes", "num_records"))
    return {name: (size, rows) for name, size, rows in zip(*columns, strict=True)}

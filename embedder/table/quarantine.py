"""The Delta table of quarantined records: derived from the quarantine files of a table's parts, and rebuilt from them if it is damaged."""

from deltalake import Schema
from deltalake.exceptions import DeltaError
from deltalake.transaction import create_table_with_add_actions

from embedder.core.delta_options import delta_options
from embedder.core.errors import CommitError, TableDamagedError
from embedder.core.retry import is_transient, one_line, with_retries
from embedder.core.schema import QUARANTINE
from embedder.core.storage import Location, map_threads
from embedder.table.commits import is_delta_table, open_delta, read_files, unreadable
from embedder.table.delta import add_action, remove_actions
from embedder.table.parts import QUARANTINE_FOLDER, list_by_name, quarantine_file, read_checksum, read_metadata
from embedder.table.run_record import LOG_FOLDER


def read_quarantined(location: Location) -> dict[str, tuple[int, int]]:
    """Read size and rows of each file of the quarantine table, by name; {} if there is none yet."""
    quarantine = location.child(QUARANTINE_FOLDER)
    try:
        return with_retries(lambda: read_files(open_delta(quarantine)) if is_delta_table(quarantine) else {}, quarantine.uri)
    except (DeltaError, OSError) as error:
        raise unreadable(quarantine, error) from error


def sync_quarantine(location: Location, rearranges: bool = False) -> int:
    """Make the quarantine table hold exactly the quarantine files of the table's parts; return its rows.

    It follows the table's own commit and depends on storage alone, so the next run completes it after a run that died in between.
    """
    try:
        return with_retries(lambda: _sync_quarantine(location, not rearranges), location.uri)
    except (DeltaError, OSError) as error:
        quarantine = location.child(QUARANTINE_FOLDER)
        if not is_transient(error) and isinstance(why := unreadable(quarantine, error), TableDamagedError):
            where = str(why).partition(";")[0]
            raise TableDamagedError(f"{where}; run jobs.maintain with --check --repair, the rest is published") from error
        raise CommitError(
            f"{location.uri}: its quarantine cannot be brought up to date ({one_line(error)}); run again, the rest is published"
        ) from error


def _sync_quarantine(location: Location, data_change: bool) -> int:
    committed, quarantine = read_files(open_delta(location)), location.child(QUARANTINE_FOLDER)
    wanted = {name: found for name, found in list_by_name(quarantine).items() if name in committed}
    schema = Schema.from_arrow(QUARANTINE)
    if not is_delta_table(quarantine):
        uri = quarantine.open().uri
        create_table_with_add_actions(uri, schema, [], mode="ignore", storage_options=delta_options(uri, location.options))
    delta = open_delta(quarantine)
    held = read_files(delta)
    # a file of another size than the log has was written again since
    missing = [name for name, found in wanted.items() if name not in held or held[name][0] != found.size_bytes]
    files = [quarantine_file(location, name) for name in missing]
    described = map_threads(lambda file: (read_metadata(file).num_rows, read_checksum(file)), files)
    adds = [
        add_action(name, wanted[name].size_bytes, num_rows, data_change, checksum)
        for name, (num_rows, checksum) in zip(missing, described, strict=True)
    ]
    sizes = {name: size for name, (size, _) in held.items()}
    removes = remove_actions([name for name in sizes if name not in wanted], sizes, data_change)
    if adds or removes:
        delta.create_write_transaction([*adds, *removes], "append", schema)
        delta.update_incremental()
    return sum(num_rows for _, num_rows in read_files(delta).values())


def remove_log(location: Location) -> None:
    """Delete the log of the quarantine table, so that `sync_quarantine` makes it anew from its files."""
    log = location.child(QUARANTINE_FOLDER).child(LOG_FOLDER)
    for name in sorted(list_by_name(log), reverse=True):
        log.child(name).open().remove()

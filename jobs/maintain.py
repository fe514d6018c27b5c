"""Maintain a table: merge small parts, delete unneeded files, shorten its log, check every file.

python -m jobs.maintain ./out [--compact] [--vacuum [--older-than-hours 168]] [--checkpoint] [--check [--deep] [--repair]] [--dry-run]
"""

from collections.abc import Sequence

from embedder.config.cli import run_job
from embedder.config.load import parse_options
from embedder.config.maintain import MaintainOptions
from embedder.table.check import check_table, mend_log, repair_table
from embedder.table.compact import compact_table
from embedder.table.log_checkpoint import write_checkpoint
from embedder.table.vacuum import vacuum_table


def main(args: Sequence[str]) -> int:
    """Run the actions and print their results; 1 if a check found faults that were not repaired."""
    options = parse_options(MaintainOptions, args, "jobs.maintain")
    table = options.locate()
    if options.compact:
        print(compact_table(table, options.target_bytes, options.dry_run).text(options.dry_run))
    if options.vacuum:
        print(vacuum_table(table, options.older_than_hours, options.dry_run, options.insist).text())
    if options.checkpoint:
        version, removed = write_checkpoint(table)
        print(f"checkpoint  of version {version}, {removed:,} log files removed")
    if not options.check:
        return 0
    repairs = options.repair and not options.dry_run
    mended = mend_log(table) if repairs else []
    if mended:
        print(f"repair  damaged files of the log removed: {', '.join(mended)}")
    checked = check_table(table, options.deep)
    print(checked.text())
    if repairs and (checked.faults or mended):
        num_parts = repair_table(table, checked)
        print(f"repair  {num_parts:,} parts removed from the table" + (f"; run {checked.made_by} to make them again" if num_parts else ""))
        checked = check_table(table, options.deep)
        if checked.faults:
            print(checked.text())
    return 1 if checked.faults else 0


if __name__ == "__main__":
    run_job(main)

"""Look after a table: merge small parts, delete what no version needs, shorten its log, check every file.

python -m jobs.maintain ./out [--compact] [--vacuum [--older_than_hours 168]] [--checkpoint] [--check [--deep] [--repair]] [--dry_run]
"""

from collections.abc import Sequence

import tyro

from embedder.config.cli import run_job
from embedder.config.maintain import MaintainOptions
from embedder.table.check import check_table, repair_table
from embedder.table.compact import compact_table
from embedder.table.log_checkpoint import write_checkpoint
from embedder.table.vacuum import vacuum_table


def main(args: Sequence[str]) -> int:
    """Do what is asked and print what was done; 1 if a check found faults that were not repaired."""
    orders = tyro.cli(
        MaintainOptions, args=args, prog="python -m jobs.maintain", use_underscores=True, config=(tyro.conf.FlagCreatePairsOff,)
    )
    uri, options = orders.locate()
    if orders.compact:
        print(compact_table(uri, options, orders.target_bytes, orders.dry_run).text(orders.dry_run))
    if orders.vacuum:
        print(vacuum_table(uri, options, orders.older_than_hours, orders.dry_run, orders.insist).text())
    if orders.checkpoint:
        version, removed = write_checkpoint(uri, options)
        print(f"checkpoint  of version {version}, {removed:,} files of the log removed")
    if not orders.check:
        return 0
    checked = check_table(uri, options, orders.deep)
    print(checked.text())
    if checked.faults and orders.repair and not orders.dry_run:
        num_parts = repair_table(uri, options, checked)
        print(f"repair  {num_parts:,} parts left the table" + (f"; run {checked.made_by} to make them anew" if num_parts else ""))
        checked = check_table(uri, options)
        if checked.faults:
            print(checked.text())
    return 1 if checked.faults else 0


if __name__ == "__main__":
    run_job(main)

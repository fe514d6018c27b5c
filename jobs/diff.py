"""Compare two versions of a table and count the rows that were added, changed and removed; reads only the parts that differ.

python -m jobs.diff ./out --from-version 3 [--to-version 5] [--rows] [--json]
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from embedder.config.cli import run_job
from embedder.config.load import parse_options
from embedder.core.errors import ConfigError
from embedder.core.storage import Location
from embedder.observe.progress import align
from embedder.table.diff import name_rows, read_changes


@dataclass(frozen=True)
class Diff:
    """Compare two versions of a table."""

    uri: tyro.conf.Positional[str]
    """Folder of the table: a local path, s3://, gs:// or az://."""
    from_version: int
    """The older version."""
    to_version: int | None = None
    """The newer version; default: the newest."""
    rows: bool = False
    """Print a JSON line per row instead: its change, shard, doc_id and chunk."""
    json: bool = False
    """Print the counts as JSON."""


def main(args: Sequence[str]) -> int:
    """Compare and print; 0 also if there is no difference."""
    options = parse_options(Diff, args, "jobs.diff")
    if min(options.from_version, options.to_version or 0) < 0:
        raise ConfigError(f"--from-version {options.from_version} --to-version {options.to_version}: versions count from 0")
    changes = read_changes(Location(options.uri), options.from_version, options.to_version)
    counts: Counter[str] = Counter(came=0, changed=0, left=0)
    for row in name_rows(changes):
        counts[row["change"]] += 1
        if options.rows:
            print(json.dumps(row))
    if options.json and not options.rows:
        print(json.dumps({"from_version": changes.old, "to_version": changes.new, **counts}))
    elif not options.rows:
        print(align([("versions", f"{changes.old} → {changes.new}"), *((name, f"{count:,} rows") for name, count in counts.items())]))
    return 0


if __name__ == "__main__":
    run_job(main)

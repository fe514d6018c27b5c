"""Say which rows came, changed and left between two versions of a table; only the parts that differ are read.

python -m jobs.diff ./out --from_version 3 [--to_version 5] [--rows] [--json]
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from embedder.config.cli import run_job
from embedder.core.errors import ConfigError
from embedder.core.storage import Location
from embedder.observe.progress import align
from embedder.table.diff import name_rows, read_changes


@dataclass(frozen=True)
class Diff:
    """Which versions to compare."""

    uri: tyro.conf.Positional[str]
    """Folder of the table: a local path, s3://, gs:// or az://."""
    from_version: int
    """The older version."""
    to_version: int | None = None
    """The newer one; left out: the newest."""
    rows: bool = False
    """A JSON line for each row instead: whether it came, changed or left, its shard, doc_id and chunk."""
    json: bool = False
    """The counts as JSON."""


def main(args: Sequence[str]) -> int:
    """Compare and print; 0 also when nothing differs."""
    asked = tyro.cli(Diff, args=args, prog="python -m jobs.diff", use_underscores=True)
    if min(asked.from_version, asked.to_version or 0) < 0:
        raise ConfigError(f"--from_version {asked.from_version} --to_version {asked.to_version}: versions count from 0")
    changes = read_changes(Location(asked.uri), asked.from_version, asked.to_version)
    counts: Counter[str] = Counter(came=0, changed=0, left=0)
    for row in name_rows(changes):
        counts[row["change"]] += 1
        if asked.rows:
            print(json.dumps(row))
    if asked.json and not asked.rows:
        print(json.dumps({"from_version": changes.old, "to_version": changes.new, **counts}))
    elif not asked.rows:
        print(align([("versions", f"{changes.old} → {changes.new}"), *((name, f"{count:,} rows") for name, count in counts.items())]))
    return 0


if __name__ == "__main__":
    run_job(main)

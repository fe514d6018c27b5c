"""Show the versions of a table: the work, time and cost of each run, and what changed since the run before it.

python -m jobs.history ./out [--most 20] [--json]
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from embedder.config.cli import run_job
from embedder.config.load import parse_options
from embedder.core.errors import ConfigError
from embedder.core.storage import Location
from embedder.table.history import lay_out, read_history


@dataclass(frozen=True)
class History:
    """Show the versions of a table, newest first."""

    uri: tyro.conf.Positional[str]
    """Folder of the table: a local path, s3://, gs:// or az://."""
    most: int = 20
    """Number of versions to show."""
    json: bool = False
    """Print a JSON line per version."""


def main(args: Sequence[str]) -> int:
    """Read the log and print it, newest version first."""
    options = parse_options(History, args, "jobs.history")
    if options.most < 1:
        raise ConfigError(f"--most {options.most}: at least one version")
    events = read_history(Location(options.uri), options.most)
    print("\n".join(json.dumps(event.record()) for event in events) if options.json else lay_out(events))
    return 0


if __name__ == "__main__":
    run_job(main)

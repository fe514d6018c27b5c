"""Show the versions of a table: what each run did, took and cost, and what changed since the run before it.

python -m jobs.history ./out [--most 20] [--json]
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from embedder.config.cli import run_job
from embedder.core.errors import ConfigError
from embedder.core.storage import Location
from embedder.table.history import lay_out, read_history


@dataclass(frozen=True)
class History:
    """Which table, and how far back."""

    uri: tyro.conf.Positional[str]
    """Folder of the table: a local path, s3://, gs:// or az://."""
    most: int = 20
    """Versions to show, the newest ones."""
    json: bool = False
    """A JSON line for each version."""


def main(args: Sequence[str]) -> int:
    """Read the log and print it, newest first."""
    asked = tyro.cli(History, args=args, prog="python -m jobs.history", use_underscores=True, config=(tyro.conf.FlagCreatePairsOff,))
    if asked.most < 1:
        raise ConfigError(f"--most {asked.most}: at least one version")
    events = read_history(Location(asked.uri), asked.most)
    print("\n".join(json.dumps(event.record()) for event in events) if asked.json else lay_out(events))
    return 0


if __name__ == "__main__":
    run_job(main)

"""Bring a vector store in step with a table: everything once, and from then on what changed.

python -m jobs.load configs/load/lance.yaml [--section.key VALUE …] [--replace] [--print-config] [--json]
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

from embedder.config.cli import run_job
from embedder.config.load import dump_config, load_config
from embedder.observe.logs import start_logging
from embedder.stores.config import LoadConfig
from embedder.stores.load import read_version, sync
from embedder.stores.open import open_store

ACTIONS = ("replace", "print-config", "json")


def main(args: Sequence[str]) -> int:
    """Compare what the store holds with the table, load the difference, and print what was done."""
    start_logging()
    invocation = load_config(LoadConfig, args, ACTIONS, "python -m jobs.load")
    config = invocation.config
    if "print-config" in invocation.actions:
        print(dump_config(config), end="")
        return 0
    wanted = read_version(config.table.location, config.table.version)
    with open_store(config) as store:
        report = sync(store, wanted, "replace" in invocation.actions)
    print(json.dumps(asdict(report)) if "json" in invocation.actions else report.text())
    return 0


if __name__ == "__main__":
    run_job(main)

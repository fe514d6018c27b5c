"""Load a table into a vector store: all of it once, and later only the changes.

python -m jobs.load configs/load/lance.yaml [--section.key VALUE …] [--replace] [--print-config] [--json]
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

from embedder.config.cli import run_job
from embedder.config.load import load_config
from embedder.observe.logs import start_logging
from embedder.stores.config import LoadConfig
from embedder.stores.load import read_version, sync
from embedder.stores.open import open_store

ACTIONS = ("replace", "json")


def main(args: Sequence[str]) -> int:
    """Compare the store with the table, load the difference, and print the result; 1 if rows were left out."""
    start_logging()
    config, actions = load_config(LoadConfig, args, ACTIONS, "jobs.load")
    wanted = read_version(config.table.location, config.table.version)
    with open_store(config) as store:
        report = sync(store, wanted, "replace" in actions)
    print(json.dumps(asdict(report)) if "json" in actions else report.text())
    return 1 if report.left_out else 0


if __name__ == "__main__":
    run_job(main)

"""Recommend depth, size and precision: quality, speed and cost of every combination, on your corpus and this machine.

python -m jobs.sweep configs/sweep/quickstart.yaml [--min-quality 0.97] [--budget-usd 50] [--section.key VALUE …] [--print-config] [--json]
"""

import json
import sys
from collections.abc import Sequence

from rich.console import Console

from embedder.config.cli import run_job
from embedder.config.load import load_config
from embedder.observe.logs import start_logging
from embedder.observe.progress import Display
from embedder.sweep.config import SweepConfig
from embedder.sweep.prepare import prepare_sweep
from embedder.sweep.report import build_record, print_report, write_report
from embedder.sweep.run import run_sweep

SHORT = {"min-quality": "pick.min_quality", "budget-usd": "pick.budget_usd"}


def main(args: Sequence[str]) -> int:
    """Sweep, then write and print the report; return 1 if no setting fits."""
    start_logging()
    config, actions = load_config(SweepConfig, args, ("json",), "jobs.sweep", SHORT)
    plan = prepare_sweep(config)
    with Display() as display:
        result = run_sweep(plan, display.report)
    files = write_report(result)
    if "json" in actions:
        print(json.dumps(build_record(result)))
    else:
        print_report(result, files, Console(width=None if sys.stdout.isatty() else 160, markup=False))
    return 0 if result.chosen else 1


if __name__ == "__main__":
    run_job(main)

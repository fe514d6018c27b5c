"""Measure quality, speed and cost of depths, sizes and precisions on your corpus and this machine, and recommend one.

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
from embedder.sweep.prepare import prepare_study
from embedder.sweep.report import build_record, print_report, write_report
from embedder.sweep.run import run_sweep

SHORT = {"min-quality": "pick.min_quality", "budget-usd": "pick.budget_usd"}


def main(args: Sequence[str]) -> int:
    """Embed the sample once, score and time the grid, write and print the report; 1 if no setting fits."""
    start_logging()
    config, actions = load_config(SweepConfig, args, ("json",), "jobs.sweep", SHORT)
    study = prepare_study(config)
    with Display() as display:
        swept = run_sweep(study, display.report)
    files = write_report(swept)
    if "json" in actions:
        print(json.dumps(build_record(swept)))
    else:
        print_report(swept, files, Console(width=None if sys.stdout.isatty() else 140))
    return 0 if swept.choice.row else 1


if __name__ == "__main__":
    run_job(main)

"""Make a table at a smaller dim or another quantization from a stored one, and keep it up to date; no encoder runs.

python -m jobs.recut CONFIG [--section.key VALUE …] [--print-config]
"""

from collections.abc import Sequence

from embedder.config.cli import run_job
from embedder.config.load import load_config
from embedder.observe.logs import start_logging
from embedder.run.recut import RecutConfig, run_recut


def main(args: Sequence[str]) -> int:
    """Convert the parent's new parts, publish, and print the result."""
    start_logging()
    print(run_recut(load_config(RecutConfig, args, job="jobs.recut").config).text())
    return 0


if __name__ == "__main__":
    run_job(main)

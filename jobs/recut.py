"""Make a table at a smaller dim or another quantization from a stored one, and keep it in step; no encoder runs.

python -m jobs.recut CONFIG [--section.key value …] [--print-config]
"""

from collections.abc import Sequence

from embedder.config.cli import run_job
from embedder.config.load import dump_config, load_config
from embedder.observe.logs import start_logging
from embedder.run.recut import RecutConfig, run_recut


def main(args: Sequence[str]) -> int:
    """Check, cut what the parent has and the table has not, publish, print."""
    start_logging()
    invocation = load_config(RecutConfig, args, ("print-config",), prog="python -m jobs.recut")
    if "print-config" in invocation.actions:
        print(dump_config(invocation.config), end="")
        return 0
    print(run_recut(invocation.config).text())
    return 0


if __name__ == "__main__":
    run_job(main)

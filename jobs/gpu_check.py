"""Check a GPU: parity of every path with a CPU, ceilings, throughput. torch, transformers, numpy, pyarrow and pydantic are enough.

python -m jobs.gpu_check [--steps env,parity] [--seconds 480] [--output gpu_check.json]       (--device cpu: a dry run at tiny sizes)
"""

import argparse
import sys
import time
from pathlib import Path

from embedder.benchmark.check_record import Bench, Record, run_steps
from embedder.benchmark.gpu_check import print_summary, supervise
from embedder.benchmark.gpu_steps import OPTIONAL, STEPS


def main() -> int:
    """Run the check and print a table; 1 if an item failed."""
    asked = argparse.ArgumentParser(
        prog="python -m jobs.gpu_check", description="Parity, ceilings and throughput of a GPU, in one JSON file."
    )
    by_default = ",".join(name for name in STEPS if name not in OPTIONAL)
    asked.add_argument(
        "--steps", default=by_default, help=f"some of {', '.join(STEPS)}; they run in this order, {', '.join(OPTIONAL)} only if named"
    )
    asked.add_argument("--seconds", type=float, default=480, help="steps that would start later are recorded as not run")
    asked.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="written anew after every item")
    asked.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run at tiny sizes")
    asked.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    chosen = asked.parse_args()
    names = chosen.steps.split(",")
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        asked.error(f"--steps {','.join(unknown)}: choose from {', '.join(STEPS)}")
    if chosen.worker:
        bench = Bench(chosen.device, is_tiny=chosen.device == "cpu")
        run_steps(STEPS, [name for name in STEPS if name in names], bench, Record.open(chosen.output), chosen.worker)
        return 0
    deadline = time.time() + chosen.seconds
    flags = ["--worker", str(deadline), "--steps", chosen.steps, "--output", str(chosen.output), "--device", chosen.device]
    record = supervise(chosen.output, [sys.executable, "-m", "jobs.gpu_check", *flags], deadline)
    print_summary(record)
    return 1 if record.failed() or not record.is_finished else 0


if __name__ == "__main__":
    sys.exit(main())

"""Rehearse a schedule: four nightly refreshes of a small corpus that is edited by day, on a real, temporary S3 server.

python -m jobs.rehearse [--config configs/embed/nightly.yaml] [--documents-per-shard 100]
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedder.config.cli import run_job
from embedder.config.embed import EmbedConfig
from embedder.config.load import load_config, parse_options
from embedder.demo.corpus import Document, read_documents
from embedder.demo.nightly_edits import change_corpus, plan_nights
from embedder.demo.s3_server import run_s3_server


@dataclass(frozen=True)
class Rehearsal:
    """Rehearse four nightly refreshes of the documentation of the running Python."""

    config: str = "configs/embed/nightly.yaml"
    """A run from s3://BUCKET/… to the same bucket, which is created and removed with the server."""
    documents_per_shard: int | None = None
    """Use only the first so many; default: all."""


def run(*command: str) -> None:
    """Print a command and run it; exit with its code if it fails."""
    print(f"$ python -m {' '.join(command)}", flush=True)
    if code := subprocess.run([sys.executable, "-m", *command], check=False).returncode:
        sys.exit(code)


def main(args: Sequence[str]) -> int:
    """Start the server, run the nights, and show the table's history."""
    options = parse_options(Rehearsal, args, "jobs.rehearse")
    config = load_config(EmbedConfig, [options.config]).config
    before: Mapping[str, Sequence[Document]] = {}
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder, run_s3_server(Path(folder), config.source.uri.split("/")[2]) as server:
        os.environ.update(server.environment)
        for night in plan_nights(read_documents()[0], options.documents_per_shard):
            change_corpus(config.source.uri, before, night.shards)
            print(f"\n--- {night.name}: {night.edits}")
            run("jobs.embed", options.config)
            before = night.shards
        print("\n--- what was done, version by version")
        run("jobs.history", config.output.uri)
        run("jobs.diff", config.output.uri, "--from-version", "0", "--to-version", "1")
        run("jobs.diff", config.output.uri, "--from-version", "1")
    return 0


if __name__ == "__main__":
    run_job(main)

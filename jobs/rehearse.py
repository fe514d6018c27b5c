"""Rehearse a schedule: four nights of a small corpus that is edited by day, on a real S3 server of its own, each run as cron would.

python -m jobs.rehearse [--config configs/embed/nightly.yaml] [--documents_per_shard 100]
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from embedder.config.cli import run_job
from embedder.config.embed import EmbedConfig
from embedder.config.load import load_config
from embedder.demo.corpus import Document, read_documents
from embedder.demo.nightly_edits import change_corpus, plan_nights
from embedder.demo.s3_server import run_s3_server


@dataclass(frozen=True)
class Rehearsal:
    """What to rehearse with: the documents are the documentation of the Python that runs this."""

    config: str = "configs/embed/nightly.yaml"
    """A run from s3://BUCKET/… to the same bucket; the bucket is made, and goes with the server."""
    documents_per_shard: int | None = None
    """The first so many only; left out: all."""


def run(*command: str) -> None:
    """Show a command and run it, as cron or a person would; ends with its exit code if it fails."""
    print(f"$ python -m {' '.join(command)}", flush=True)
    if code := subprocess.run([sys.executable, "-m", *command], check=False).returncode:
        sys.exit(code)


def main(args: Sequence[str]) -> int:
    """Start the server, go through the nights, and show what the table remembers of them."""
    asked = tyro.cli(Rehearsal, args=args, prog="python -m jobs.rehearse", use_underscores=True)
    config = load_config(EmbedConfig, [asked.config]).config
    before: Mapping[str, Sequence[Document]] = {}
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder, run_s3_server(Path(folder), config.source.uri.split("/")[2]) as server:
        os.environ.update(server.environment)
        for night in plan_nights(read_documents()[0], asked.documents_per_shard):
            change_corpus(config.source.uri, before, night.shards)
            print(f"\n--- {night.name}: {night.edits}")
            run("jobs.embed", asked.config)
            before = night.shards
        print("\n--- what was done, version by version")
        run("jobs.history", config.output.uri)
        run("jobs.diff", config.output.uri, "--from_version", "0", "--to_version", "1")
        run("jobs.diff", config.output.uri, "--from_version", "1")
    return 0


if __name__ == "__main__":
    run_job(main)

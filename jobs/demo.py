"""Write the demo corpus: the documentation of the running Python, as gzip JSONL and parquet shards.

python -m jobs.demo .quickstart
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from embedder.config.cli import run_job
from embedder.config.load import parse_options
from embedder.demo.corpus import write_corpus


@dataclass(frozen=True)
class Demo:
    """Write FOLDER/corpus. The same Python writes the same bytes, and does not rewrite a shard that is already there."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Parent folder of the corpus; created if needed."""


def main(args: Sequence[str]) -> int:
    """Write the shards and print their sizes."""
    folder = parse_options(Demo, args, "jobs.demo").folder / "corpus"
    corpus = write_corpus(folder)
    for name, num_bytes in corpus.shard_bytes.items():
        print(f"{folder / name}  {num_bytes:>9,} bytes")
    missing = f"; {len(corpus.missing_modules)} modules cannot be imported here" if corpus.missing_modules else ""
    print(f"{corpus.documents:,} documents in {len(corpus.shard_bytes)} shards, {sum(corpus.shard_bytes.values()):,} bytes{missing}")
    return 0


if __name__ == "__main__":
    run_job(main)

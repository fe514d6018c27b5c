"""Search a table, or a store that was loaded from one: the quickest proof that the vectors mean something.

python -m jobs.search ./out "split a path into folder and file" [--filter "year > 2000"] [--top 5] [--json]
python -m jobs.search --store configs/load/lance.yaml "split a path into folder and file" [--rescore ./out]
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from embedder.config.cli import run_job
from embedder.core.errors import ConfigError
from embedder.search.code_snippet import write_snippet
from embedder.search.results import read_queries, render, run_queries
from embedder.stores.open import open_target


@dataclass(frozen=True)
class Search:
    """What to look for, and where."""

    words: tyro.conf.Positional[tuple[str, ...]]
    """The table's folder (not with --store), then a question; without one, questions are read from stdin, a line each."""
    store: str | None = None
    """YAML file of jobs.load: search the store that it fills."""
    rescore: str | None = None
    """Table of float vectors of the same rows, by which the best of binary or int8 codes, or of a smaller dim, are ordered."""
    filter: str | None = None
    """Rows to look at, by their columns, e.g. "topic = 'x' and (year > 2000 or tags has 'new')"."""
    top: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 5
    """How many rows to show."""
    json: bool = False
    """A JSON list a question instead of text."""
    recipe: bool = False
    """Print the lines of sentence-transformers that make the same query vectors, and end."""


def main(args: Sequence[str]) -> int:
    """Search and print; 0 also when nothing is near."""
    asked = tyro.cli(Search, args=args, prog="python -m jobs.search", use_underscores=True)
    places, words = (0 if asked.store else 1), list(asked.words)
    if not places <= len(words) <= places + 1:
        raise ConfigError(f"{words}: give the table's folder (or --store CONFIG), and one query in quotes")
    with open_target(None if asked.store else words[0], asked.store, asked.rescore) as target:
        if asked.recipe:
            print(write_snippet(target.spec, target.table))
            return 0
        for results in run_queries(target, words[places:] or read_queries(sys.stdin), asked.top, asked.filter):
            print(render(results, asked.json, sys.stdout.isatty()), flush=True)
    return 0


if __name__ == "__main__":
    run_job(main)

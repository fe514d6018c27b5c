"""Search a table, or a store that was loaded from one.

python -m jobs.search ./out "split a path into folder and file" [--filter "year > 2000"] [--top 5] [--json]
python -m jobs.search --store configs/load/lance.yaml "split a path into folder and file" [--rescore ./out]
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from embedder.config.cli import run_job
from embedder.config.load import parse_options
from embedder.search.code_snippet import write_snippet
from embedder.search.results import read_queries, render, run_queries
from embedder.stores.open import open_target, split_words


@dataclass(frozen=True)
class Search:
    """Search a table or a store."""

    table: tyro.conf.Positional[str | None] = None
    """The table's folder; left out with --store."""
    question: tyro.conf.Positional[str | None] = None
    """Without one, questions are read from stdin, one a line."""
    store: str | None = None
    """YAML file of jobs.load: search the store it loads."""
    rescore: str | None = None
    """Table with float vectors of the same rows, which rescores the best hits of binary or int8 codes or of a smaller dim."""
    model: str | None = None
    """Model, or an API's tokenizer, to load in place of the name in the table's log; needed if that is package:NAME."""
    filter: str | None = None
    """Condition on columns, e.g. "topic = 'x' and (year > 2000 or tags has 'new')"."""
    top: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 5
    """Number of rows to show."""
    json: bool = False
    """Print a JSON list per question."""
    recipe: bool = False
    """Print sentence-transformers code that makes the same query vectors, and exit."""


def main(args: Sequence[str]) -> int:
    """Search and print; 0 also if nothing is found."""
    options = parse_options(Search, args, "jobs.search")
    table, questions = split_words(options.table, options.question, options.store)
    with open_target(table, options.store, options.rescore, options.model) as target:
        if options.recipe:
            print(write_snippet(target.spec, target.table))
            return 0
        for results in run_queries(target, questions or read_queries(sys.stdin), options.top, options.filter):
            print(render(results, options.json, sys.stdout.isatty()), flush=True)
    return 0


if __name__ == "__main__":
    run_job(main)

"""Search a table: the quickest proof that its vectors mean something.

python -m jobs.search ./out "split a path into folder and file" [--top 5] [--json]
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from embedder.search import Hit, search_table
from embedder.settings import run_job

SHOWN = ("text", "content_hash", "shard", "row", "chunk", "num_chunks", "start_char", "end_char", "num_tokens", "doc_id")


@dataclass(frozen=True)
class Query:
    """What to look for, and where."""

    uri: tyro.conf.Positional[str]
    """Folder of the table: a local path, s3://, gs:// or az://."""
    query: tyro.conf.Positional[str]
    """A question or some words."""
    top: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 5
    """How many rows to show."""
    json: bool = False
    """A JSON list instead of text."""


def show(rank: int, hit: Hit) -> str:
    """Lay out one hit: score, id, metadata, and the start of its text."""
    row = hit.row
    place = f" [chunk {row['chunk'] + 1} of {row['num_chunks']}]" if row["num_chunks"] > 1 else ""
    metadata = " · ".join(f"{name} {value}" for name, value in row.items() if name not in SHOWN and value is not None)
    text = textwrap.shorten(row.get("text") or "", 200, placeholder=" …")
    return "\n".join([f"{rank}. {hit.score:.3f}  {row['doc_id']}{place}", *(f"   {each}" for each in (metadata, text) if each)])


def main(args: Sequence[str]) -> int:
    """Search and print; 0 also when nothing is near."""
    query = tyro.cli(Query, args=args, prog="python -m jobs.search", use_underscores=True)
    hits = search_table(query.uri, query.query, query.top)
    if query.json:
        print(json.dumps([{"score": hit.score, **hit.row} for hit in hits], default=str))
    else:
        print("\n".join(show(rank, hit) for rank, hit in enumerate(hits, 1)))
    return 0


if __name__ == "__main__":
    run_job(main)

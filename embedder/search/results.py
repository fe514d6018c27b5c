"""Runs queries: text → the nearest rows, each with the sentence nearest to the query, for a person or as JSON."""

import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np

from embedder.core.errors import ConfigError
from embedder.core.printable import printable
from embedder.core.rotation import read_rotation
from embedder.search.exact import Hit, Target
from embedder.search.query_encoder import QueryEncoder
from embedder.source.filter import Filter, parse_filter

SHOWN = ("text", "content_hash", "shard", "row", "chunk", "num_chunks", "start_char", "end_char", "num_tokens", "doc_id")
"""Columns that are not listed as metadata."""
SHOWN_CHARS = 240
MOST_SENTENCES = 40
"""Sentences of one text compared with the query; a chunk of 512 tokens has about 20."""
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"

_SENTENCE_END = re.compile(r"(?<=[.!?…。！？])\s+|\n+")


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A hit, and the sentence of its text nearest to the query; None if no text is stored."""

    hit: Hit
    highlight: str | None

    def record(self) -> dict[str, Any]:
        """Return it as JSON values; a column that has the name of one of ours is prefixed."""
        record = {"score": self.hit.score, "highlight": self.highlight}
        for name, value in self.hit.row.items():
            free = name
            while free in record:
                free = f"metadata.{free}"
            record[free] = value
        return record

    def text(self, rank: int, bold: bool) -> str:
        """Return it as text: score, id, metadata, and an excerpt around the nearest sentence."""
        row = self.hit.row
        place = f" [chunk {row['chunk'] + 1} of {row['num_chunks']}]" if row["num_chunks"] > 1 else ""
        metadata = printable(" · ".join(f"{name} {value}" for name, value in row.items() if name not in SHOWN and value is not None))
        passage = excerpt(row.get("text") or "", self.highlight or "", bold)
        first = f"{rank}. {self.hit.score:.3f}  {printable(row['doc_id'])}{place}"
        return "\n".join([first, *(f"   {each}" for each in (metadata, passage) if each)])


def run_queries(target: Target, queries: Iterable[str], top: int, condition: str | None) -> Iterator[list[SearchResult]]:
    """Yield the results of one query after the other; wrong settings are refused before the model is loaded."""
    if top < 1:
        raise ConfigError(f"--top {top}: show at least 1 row")
    where = parse_filter(condition, target.schema) if condition else None
    encoder = QueryEncoder(target.spec, rotation_WW=read_rotation(target.spec, target.table))
    for query in queries:
        yield _run_query(target, encoder, query, top, where)


def _run_query(target: Target, encoder: QueryEncoder, query: str, top: int, where: Filter | None) -> list[SearchResult]:
    """Search, then find the nearest sentence of each text with one more pass of the encoder over all of them."""
    query_D = encoder.encode([query])[0]
    hits = target.find(query_D, top, where)
    sentences = [split_sentences(hit.row.get("text") or "") for hit in hits]
    scores = encoder.encode_passages([each for of_hit in sentences for each in of_hit]) @ query_D
    by_hit = np.split(scores, np.cumsum([len(of_hit) for of_hit in sentences], dtype=np.int64))  # and an empty rest
    return [
        SearchResult(hit, of_hit[int(scored.argmax())] if of_hit else None)
        for hit, of_hit, scored in zip(hits, sentences, by_hit, strict=False)
    ]


def read_queries(stream: TextIO) -> Iterator[str]:
    """Read one query a line to the end of the stream; a terminal shows a prompt for each."""
    while True:
        if stream.isatty():
            print("? ", end="", file=sys.stderr, flush=True)
        line = stream.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def split_sentences(text: str) -> list[str]:
    """Split a text at the ends of sentences and lines."""
    return [each.strip() for each in _SENTENCE_END.split(text) if each.strip()][:MOST_SENTENCES]


def excerpt(text: str, sentence: str, bold: bool) -> str:
    """Return a sentence with its context, about SHOWN_CHARS in all, on one line."""
    before, found, after = text.partition(sentence) if sentence else ("", "", text)
    sentence = textwrap.shorten(found, SHOWN_CHARS, placeholder=" …")
    sentence, lead, after = printable(sentence), printable(" ".join(before.split())), printable(" ".join(after.split()))
    if len(lead) > SHOWN_CHARS // 4:
        lead = "… " + lead[-SHOWN_CHARS // 4 :].partition(" ")[2]
    rest = textwrap.shorten(after, max(SHOWN_CHARS - len(lead) - len(sentence), 2), placeholder=" …")
    shown = f"{BOLD}{sentence}{PLAIN}" if bold and sentence else sentence
    return " ".join(each for each in (lead, shown, rest) if each)


def render(results: Sequence[SearchResult], as_json: bool, bold: bool) -> str:
    """Return results as one line of JSON, or as text."""
    if as_json:
        return json.dumps([each.record() for each in results], default=str)
    return "\n".join(each.text(rank, bold) for rank, each in enumerate(results, 1)) or "nothing passes the filter"

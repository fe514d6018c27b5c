"""A question → the rows nearest to it, each with the sentence that answers best, laid out for a person or a machine."""

import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from embedder.core.errors import ConfigError
from embedder.core.rotation import read_rotation
from embedder.search.exact import Hit, Target
from embedder.search.filter import Filter, parse_filter
from embedder.search.query_encoder import QueryEncoder

SHOWN = ("text", "content_hash", "shard", "row", "chunk", "num_chunks", "start_char", "end_char", "num_tokens", "doc_id")
"""Columns that are not listed as metadata."""
SHOWN_CHARS = 240
MOST_SENTENCES = 40
"""Of one text that are compared with the question; a chunk of 512 tokens has about 20."""
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"

_SENTENCE_END = re.compile(r"(?<=[.!?…。！？])\s+|\n+")


@dataclass(frozen=True, slots=True)
class Answer:
    """A hit, and the sentence of its text that is nearest to the question; None where no text is stored."""

    hit: Hit
    highlight: str | None

    def record(self) -> dict[str, Any]:
        """Give it as JSON has it; a column that is named as one of ours is prefixed."""
        record = {"score": self.hit.score, "highlight": self.highlight}
        for name, value in self.hit.row.items():
            free = name
            while free in record:
                free = f"metadata.{free}"
            record[free] = value
        return record

    def text(self, rank: int, emphasised: bool) -> str:
        """Lay it out: score, id, metadata, and the text from the sentence that answers best, or some words before it."""
        row = self.hit.row
        place = f" [chunk {row['chunk'] + 1} of {row['num_chunks']}]" if row["num_chunks"] > 1 else ""
        metadata = " · ".join(f"{name} {value}" for name, value in row.items() if name not in SHOWN and value is not None)
        passage = excerpt(row.get("text") or "", self.highlight or "", emphasised)
        return "\n".join([f"{rank}. {self.hit.score:.3f}  {row['doc_id']}{place}", *(f"   {each}" for each in (metadata, passage) if each)])


def run_queries(target: Target, questions: Iterable[str], top: int, condition: str | None) -> Iterator[list[Answer]]:
    """Answer one question after the other; what is wrong with a setting is said before the model is loaded."""
    if top < 1:
        raise ConfigError(f"--top {top}: show at least 1 row")
    where = parse_filter(condition, target.schema) if condition else None
    encoder = QueryEncoder(target.spec, rotation_WW=read_rotation(target.spec, target.table))
    for question in questions:
        yield answer(target, encoder, question, top, where)


def read_questions(stream: TextIO) -> Iterator[str]:
    """Read questions a line each, to the end of the stream; in a terminal each is asked for."""
    while True:
        if stream.isatty():
            print("? ", end="", file=sys.stderr, flush=True)
        line = stream.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def answer(target: Target, encoder: QueryEncoder, query: str, top: int, where: Filter | None) -> list[Answer]:
    """Search, and find the sentence that answers best in each text: one more pass of the encoder, over all of them."""
    query_D = encoder.encode([query])[0]
    hits = target.find(query_D, top, where)
    sentences = [split_sentences(hit.row.get("text") or "") for hit in hits]
    scores = encoder.encode_passages([each for of_hit in sentences for each in of_hit]) @ query_D
    answers, first = [], 0
    for hit, of_hit in zip(hits, sentences, strict=True):
        best = of_hit[int(scores[first : first + len(of_hit)].argmax())] if of_hit else None
        answers.append(Answer(hit, best))
        first += len(of_hit)
    return answers


def split_sentences(text: str) -> list[str]:
    """Cut a text at the ends of sentences and lines."""
    return [each.strip() for each in _SENTENCE_END.split(text) if each.strip()][:MOST_SENTENCES]


def excerpt(text: str, sentence: str, emphasised: bool) -> str:
    """Show a sentence with what is around it, about SHOWN_CHARS in all, on one line."""
    before, found, after = text.partition(sentence) if sentence else ("", "", text)
    sentence = textwrap.shorten(found, SHOWN_CHARS, placeholder=" …")
    lead = " ".join(before.split())
    if len(lead) > SHOWN_CHARS // 4:
        lead = "… " + lead[-SHOWN_CHARS // 4 :].partition(" ")[2]
    rest = textwrap.shorten(after, max(SHOWN_CHARS - len(lead) - len(sentence), 2), placeholder=" …")
    shown = f"{BOLD}{sentence}{PLAIN}" if emphasised and sentence else sentence
    return " ".join(each for each in (lead, shown, rest) if each)


def render(answers: Sequence[Answer], as_json: bool, emphasised: bool) -> str:
    """Give answers as one line of JSON, or laid out for a person."""
    if as_json:
        return json.dumps([each.record() for each in answers], default=str)
    return "\n".join(each.text(rank, emphasised) for rank, each in enumerate(answers, 1)) or "nothing passes the filter"

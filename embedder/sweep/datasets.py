"""What quality is measured on: a BEIR folder, an STS file, or the corpus itself, whose documents have to be found."""

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from embedder.core.errors import ConfigError, StorageError
from embedder.core.storage import Location, Options, Store
from embedder.sweep.config import QualityConfig

TOP = 100
"""Documents a query is answered with: what recall@100 looks at."""
LEAST_QUERIES = 10
KNOWN_ITEMS = "known items"
_SHOWN = 5
_SENTENCE = re.compile(r"(?P<first>\S.*?[.!?。!?])(?:\s+|(?<=[。!?]))(?P<rest>\S.*)", re.DOTALL)
_MOST_QUERY_CHARS = 400
_LEAST_WORDS = 3


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Queries, documents, and which of them answer which."""

    name: str
    documents: tuple[str, ...]
    document_ids: tuple[str, ...]
    queries: tuple[str, ...]
    query_ids: tuple[str, ...]
    qrels: Mapping[str, Mapping[str, int]]
    """Grades above 0 by document id, by query id."""


@dataclass(frozen=True, slots=True)
class Similarity:
    """Pairs of texts, and how alike people found them."""

    name: str
    firsts: tuple[str, ...]
    seconds: tuple[str, ...]
    scores: tuple[float, ...]


def read_beir(uri: str, quality: QualityConfig, seed: int) -> Retrieval:
    """Read a BEIR folder; title and text are joined by one space. ConfigError holds every problem of the folder."""
    store, options = Store(uri, quality.storage_options), quality.storage_options
    documents = {row["_id"]: _joined(row) for row in _read_jsonl(Location(store.child("corpus.jsonl"), options))}
    queries = {row["_id"]: str(row.get("text") or "").strip() for row in _read_jsonl(Location(store.child("queries.jsonl"), options))}
    qrels = _read_qrels(store, quality.qrels, options)
    where = f"quality.beir={uri!r}"
    unknown = {
        "queries": sorted(set(qrels) - set(queries)),
        "documents": sorted({document for grades in qrels.values() for document in grades} - set(documents)),
    }
    problems = [
        f"{where}: qrels/{quality.qrels}.tsv names {len(ids)} {kind} that are not there ({', '.join(ids[:_SHOWN])}"
        f"{', …' if len(ids) > _SHOWN else ''}); take the files of one download"
        for kind, ids in unknown.items()
        if ids
    ]
    problems += _check_size(where, len(documents), len(qrels))
    if problems:
        raise ConfigError("\n".join(problems))
    kept = _keep_documents(list(documents), {name for grades in qrels.values() for name in grades}, quality.max_documents, seed)
    return Retrieval(
        PurePosixPath(store.path).name,
        tuple(documents[name] for name in kept),
        tuple(kept),
        tuple(queries[name] for name in qrels),
        tuple(qrels),
        qrels,
    )


def read_similarity(location: Location) -> Similarity:
    """Read an STS file: columns sentence1, sentence2, score, or else the first three."""
    where = f"quality.sts={location.uri!r}"
    text = _read_text(location)
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t" if location.uri.endswith(".tsv") else ","))
    if not rows or len(rows[0]) < 3:
        raise ConfigError(f"{where}: a header and at least three columns are needed: two texts and a score")
    names = [name.strip().lower() for name in rows[0]]
    wanted = ("sentence1", "sentence2", "score")
    first, second, score = (names.index(name) for name in wanted) if set(wanted) <= set(names) else (0, 1, 2)
    pairs, problems = [], []
    for number, row in enumerate(rows[1:], 2):
        try:
            value = float(row[score])
            if not math.isfinite(value):
                raise ValueError(value)
            pairs.append((row[first], row[second], value))
        except (ValueError, IndexError):
            problems.append(number)
    if problems:
        shown = ", ".join(map(str, problems[:_SHOWN]))
        raise ConfigError(f"{where}: {len(problems)} rows hold no two texts and a number (rows {shown}); correct or remove them")
    if len(pairs) < LEAST_QUERIES or len({value for *_, value in pairs}) < 2:
        raise ConfigError(f"{where}: {len(pairs)} pairs of {len({value for *_, value in pairs})} different scores; too few to rank")
    firsts, seconds, scores = zip(*pairs, strict=True)
    return Similarity(PurePosixPath(location.uri).stem, firsts, seconds, scores)


def make_known_items(documents: pa.Table, query_column: str | None, num_queries: int, seed: int) -> Retrieval:
    """Ask for documents by their own title or first sentence, which every document of the sample is then without."""
    texts = documents["text"].to_pylist()
    titles = documents[query_column].to_pylist() if query_column else [None] * len(texts)
    split = [_split_query(text, title, query_column is not None) for text, title in zip(texts, titles, strict=True)]
    counts: dict[str, int] = {}
    for query, _ in split:
        counts[query] = counts.get(query, 0) + 1
    asked = [number for number, (query, _) in enumerate(split) if query and counts[query] == 1]
    chosen = sorted(np.random.default_rng(seed).permutation(asked)[:num_queries].tolist()) if asked else []
    what = f"column {query_column!r}" if query_column else "first sentence, and more after it"
    where = "quality.known_item"
    problems = _check_size(where, len(texts), LEAST_QUERIES)
    if len(chosen) < LEAST_QUERIES:
        advice = "name another quality.query_column" if query_column else "set quality.query_column to a title"
        problems.append(f"{where}: {len(chosen)} of {len(texts)} documents have a {what} that no other has; {advice}, or use labels")
    if problems:
        raise ConfigError("\n".join(problems))
    names = tuple(f"{number}" for number in range(len(texts)))
    return Retrieval(
        KNOWN_ITEMS,
        tuple(rest for _, rest in split),
        names,
        tuple(split[number][0] for number in chosen),
        tuple(names[number] for number in chosen),
        {names[number]: {names[number]: 1} for number in chosen},
    )


def _split_query(text: str, title: Any, by_title: bool) -> tuple[str, str]:
    """Give the query, '' if there is none, and the text without it."""
    if by_title:
        query = str(title or "").strip()
        rest = text.strip().removeprefix(query).strip() if query else text
        return (query, rest) if query and rest else ("", text)
    found = _SENTENCE.fullmatch(text.strip())
    if (
        found is None
        or min(len(found["first"].split()), len(found["rest"].split())) < _LEAST_WORDS
        or len(found["first"]) > _MOST_QUERY_CHARS
    ):
        return "", text
    return found["first"], found["rest"]


def _check_size(where: str, num_documents: int, num_queries: int) -> list[str]:
    problems = []
    if num_documents <= TOP:
        problems.append(f"{where}: {num_documents} documents; recall@{TOP} needs more than {TOP}, and should have thousands")
    if num_queries < LEAST_QUERIES:
        problems.append(f"{where}: {num_queries} queries; fewer than {LEAST_QUERIES} say nothing")
    return problems


def _keep_documents(ids: Sequence[str], judged: set[str], most: int | None, seed: int) -> list[str]:
    if most is None or len(ids) <= most:
        return list(ids)
    others = [name for name in ids if name not in judged]
    chosen = set(np.random.default_rng(seed).permutation(others)[: max(most - len(judged), 0)].tolist()) | judged
    return [name for name in ids if name in chosen]


def _joined(row: Mapping[str, Any]) -> str:
    return f"{row.get('title') or ''} {row.get('text') or ''}".strip()


def _read_text(location: Location) -> str:
    try:
        with location.open().open_input() as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{location.uri}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except StorageError as error:
        raise ConfigError(str(error)) from error


def _read_jsonl(location: Location) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_read_text(location).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
                rows.append(row | {"_id": str(row["_id"])})
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{location.uri}:{number}: not an object with an _id ({type(error).__name__}: {error}); correct it"
                ) from error
    return rows


def _read_qrels(store: Store, name: str, options: Options) -> dict[str, dict[str, int]]:
    """Read query, document and grade of each line after the header; queries without a grade above 0 are left out."""
    folder = Store(store.child("qrels"), options)
    found = sorted(PurePosixPath(each.uri).stem for each in folder.list_folder() if each.uri.endswith(".tsv"))
    if name not in found:
        raise ConfigError(f"quality.qrels={name!r}: {folder.uri} has {', '.join(found) or 'no .tsv'}; choose one of them")
    uri = folder.child(f"{name}.tsv")
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(_read_text(Location(uri, options)).split("\n"), 1):
        cells = line.split("\t")
        if not line.strip() or (number == 1 and cells[-1].strip().lower() == "score"):
            continue
        try:
            query, document, grade = cells[0], cells[1], int(cells[2])
        except (ValueError, IndexError) as error:
            raise ConfigError(f"{uri}:{number}: {line!r} is not query, document and grade, tabs between; correct it") from error
        if grade > 0:
            qrels.setdefault(query, {})[document] = grade
    return qrels

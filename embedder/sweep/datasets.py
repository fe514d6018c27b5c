"""Data that quality is measured on: a BEIR folder, an STS file, or known items of the corpus itself."""

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from embedder.core.errors import ConfigError, StorageError
from embedder.core.storage import Location
from embedder.source.formats.json_values import parse_json
from embedder.source.formats.rows import to_id
from embedder.sweep.config import QualityConfig
from embedder.text.known_item import split_sentence

TOP = 100
"""Documents returned for a query, for recall@100."""
LEAST_QUERIES = 10
KNOWN_ITEMS = "known items"
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Queries, documents, and the relevant documents of each query."""

    name: str
    documents: tuple[str, ...]
    document_ids: tuple[str, ...]
    queries: tuple[str, ...]
    query_ids: tuple[str, ...]
    qrels: Mapping[str, Mapping[str, int]]
    """Grades above 0 by document id, by query id."""

    @property
    def sizes(self) -> dict[str, int]:
        """Return the counts that reports show."""
        return {"documents": len(self.documents), "queries": len(self.queries)}


@dataclass(frozen=True, slots=True)
class Similarity:
    """Pairs of texts with human similarity scores."""

    name: str
    firsts: tuple[str, ...]
    seconds: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Return the counts that reports show."""
        return {"pairs": len(self.scores)}


def read_beir(folder: Location, quality: QualityConfig, seed: int) -> Retrieval:
    """Read a BEIR folder, title and text joined by one space; ConfigError holds every problem of its ids."""
    documents = _read_texts(folder, "corpus.jsonl", ("title", "text"))
    queries = _read_texts(folder, "queries.jsonl", ("text",))
    qrels = _read_qrels(folder.child("qrels"), quality.qrels)
    relevant = {document for grades in qrels.values() for document in grades}
    where = f"quality.beir={folder.uri!r}"
    unknown = {"queries": sorted(set(qrels) - set(queries)), "documents": sorted(relevant - set(documents))}
    problems = [
        f"{where}: qrels/{quality.qrels}.tsv names {len(ids)} {kind} that are missing ({_some(ids)}); use the files of one download"
        for kind, ids in unknown.items()
        if ids
    ]
    problems += _check_size(where, len(documents), len(qrels))
    if problems:
        raise ConfigError("\n".join(problems))
    kept = list(documents)
    if quality.max_documents is not None and len(kept) > quality.max_documents:
        others = np.random.default_rng(seed).permutation([name for name in kept if name not in relevant])
        chosen = relevant | set(others[: max(quality.max_documents - len(relevant), 0)].tolist())
        kept = [name for name in kept if name in chosen]
    return Retrieval(
        PurePosixPath(folder.open().path).name,
        tuple(documents[name] for name in kept),
        tuple(kept),
        tuple(queries[name] for name in qrels),
        tuple(qrels),
        qrels,
    )


def read_similarity(file: Location) -> Similarity:
    """Read an STS file: columns sentence1, sentence2, score, or else the first three."""
    where = f"quality.sts={file.uri!r}"
    rows = list(csv.reader(io.StringIO(_read_text(file), newline=""), delimiter="\t" if file.uri.endswith(".tsv") else ","))
    if not rows or len(rows[0]) < 3:
        raise ConfigError(f"{where}: fewer than three columns; add a header, two texts and a score")
    names = [name.strip().lower() for name in rows[0]]
    wanted = ("sentence1", "sentence2", "score")
    first, second, score = (names.index(name) for name in wanted) if set(wanted) <= set(names) else (0, 1, 2)
    pairs: list[tuple[str, str, float]] = []
    damaged: list[int] = []
    for number, row in enumerate(rows[1:], 2):
        try:
            pairs.append((row[first], row[second], float(row[score])))
        except (ValueError, IndexError):
            pairs.append(("", "", math.nan))
        damaged += [number] * (not math.isfinite(pairs[-1][2]))
    if damaged:
        raise ConfigError(f"{where}: {len(damaged)} rows are not two texts and a number (rows {_some(damaged)}); correct or remove them")
    num_scores = len({value for *_, value in pairs})
    if len(pairs) < LEAST_QUERIES or num_scores < 2:
        raise ConfigError(
            f"{where}: {len(pairs)} pairs of {num_scores} different scores; use at least {LEAST_QUERIES} pairs and 2 different scores"
        )
    firsts, seconds, scores = zip(*pairs, strict=True)
    return Similarity(PurePosixPath(file.uri).stem, firsts, seconds, scores)


def make_known_items(documents: pa.Table, query_column: str | None, num_queries: int, seed: int) -> Retrieval:
    """Return queries that are the title or first sentence of a document; all documents are returned without theirs."""
    texts = documents["text"].to_pylist()
    if query_column:
        split = [_split_title(text, title) for text, title in zip(texts, documents[query_column].to_pylist(), strict=True)]
        found, advice = f"{query_column!r} column", "name another quality.query_column"
    else:
        split = [split_sentence(text) for text in texts]
        found, advice = "first sentence followed by more text", "set quality.query_column to a title"
    counts = Counter(query for query, _ in split)
    unique = [number for number, (query, _) in enumerate(split) if query and counts[query] == 1]
    chosen = sorted(np.random.default_rng(seed).permutation(unique)[:num_queries].tolist())
    where = "quality.known_item"
    problems = _check_size(where, len(texts), LEAST_QUERIES)
    if len(chosen) < LEAST_QUERIES:
        problems.append(f"{where}: only {len(chosen)} of {len(texts)} documents have a unique {found}; {advice}, or use labels")
    if problems:
        raise ConfigError("\n".join(problems))
    ids = tuple(map(str, range(len(texts))))
    qrels = {ids[number]: {ids[number]: 1} for number in chosen}
    return Retrieval(KNOWN_ITEMS, tuple(rest for _, rest in split), ids, tuple(split[number][0] for number in chosen), tuple(qrels), qrels)


def _split_title(text: str, title: Any) -> tuple[str, str]:
    """Return the title, or '' if it cannot be a query, and the text without it."""
    query = str(title or "").strip()
    rest = text.strip().removeprefix(query).strip()
    return (query, rest) if query and rest else ("", text)


def _some(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")


def _check_size(where: str, num_documents: int, num_queries: int) -> list[str]:
    documents = f"{where}: {num_documents} documents; recall@{TOP} needs more than {TOP}, preferably thousands"
    queries = f"{where}: {num_queries} queries; use at least {LEAST_QUERIES}"
    return [documents] * (num_documents <= TOP) + [queries] * (num_queries < LEAST_QUERIES)


def _read_text(file: Location) -> str:
    try:
        with file.open().open_input() as data:
            return data.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file.uri}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except StorageError as error:
        raise ConfigError(str(error)) from error


def _read_texts(folder: Location, name: str, keys: Sequence[str]) -> dict[str, str]:
    """Return texts by _id; ConfigError for a line that is not an object with an _id and texts, or that repeats an _id."""
    file = folder.child(name)
    texts: dict[str, str] = {}
    for number, line in enumerate(_read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            name_, parts = to_id(row["_id"]), [row.get(key) or "" for key in keys]
            text = " ".join(parts).strip()
            text.encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f"{file.uri}:{number}: not an object with an _id and texts ({type(error).__name__}: {error}); fix it"
            ) from error
        if name_ in texts:
            raise ConfigError(f"{file.uri}:{number}: _id {name_!r} is there twice; remove one of the two")
        texts[name_] = text
    return texts


def _read_qrels(folder: Location, name: str) -> dict[str, dict[str, int]]:
    """Read query, document and grade of each line after the header; queries without a grade above 0 are left out."""
    found = sorted(PurePosixPath(each.uri).stem for each in folder.open().list_folder() if each.uri.endswith(".tsv"))
    if name not in found:
        raise ConfigError(f"quality.qrels={name!r}: {folder.uri} has {', '.join(found) or 'no .tsv'}; choose one of them")
    file = folder.child(f"{name}.tsv")
    qrels: dict[str, dict[str, int]] = {}
    grades: dict[tuple[str, str], int] = {}
    for number, line in enumerate(_read_text(file).split("\n"), 1):
        cells = line.split("\t")
        if not line.strip() or (number == 1 and cells[-1].strip().lower() == "score"):
            continue
        try:
            query, document, grade = cells[0], cells[1], int(cells[2])
        except (ValueError, IndexError) as error:
            raise ConfigError(f"{file.uri}:{number}: {line!r} is not query, document and grade separated by tabs; correct it") from error
        if grades.setdefault((query, document), grade) != grade:
            raise ConfigError(f"{file.uri}:{number}: {line!r} is graded {grades[query, document]} above; remove one of the two")
        if grade > 0:
            qrels.setdefault(query, {})[document] = grade
    return qrels

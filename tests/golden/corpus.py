"""A small corpus of every format, with records that cannot be embedded. It is generated once and kept in an archive.

The archive keeps the bytes because compressors and parquet writers change theirs between versions.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.golden.models import WORDS

ROW = {"topic": "sea", "year": 1990, "score": 0.5, "flag": True}
LARGE_BYTES = 300_000
"""Enough for a shard to be a task of its own."""


def write_corpus(folder: Path) -> None:
    """Write shards of every format that has columns, some hidden and ignored files among them."""
    (folder / "deep").mkdir(parents=True)
    (folder / "_hidden").mkdir()
    plain = _to_lines([_document(number) for number in range(10)])
    (folder / "a.jsonl").write_bytes(plain + b"\n" + b"".join(line + b"\n" for line in _bad_lines()))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(_to_lines([_document(number) for number in range(10, 14)]), mtime=0))
    zst = pa.Codec("zstd").compress(_to_lines([_document(number) for number in range(16, 18)]), asbytes=True)
    (folder / "deep/c.jsonl.zst").write_bytes(zst)
    (folder / "deep/d.csv").write_bytes(_to_csv([_document(number) for number in range(20, 23)]))
    (folder / "deep/d.csv.gz").write_bytes(gzip.compress(_to_csv([_document(number) for number in range(25, 26)]), mtime=0))
    _write_parquet(folder / "e.parquet", [_document(number) for number in range(28, 33)])
    (folder / "f.ndjson.bz2").write_bytes(bz2.compress(_to_lines([_document(36), _document(37)])))
    (folder / "g.json.xz").write_bytes(lzma.compress(_to_lines([_document(38)])))
    large = [_document(number) | {"unused": "x" * (LARGE_BYTES // 4)} for number in range(40, 44)]
    (folder / "large.jsonl").write_bytes(_to_lines(large))
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "notes.doc").write_bytes(b"ignored: its suffix is unknown")
    (folder / "_hidden/h.jsonl").write_bytes(_to_lines([_document(99)]))


def write_texts(folder: Path) -> None:
    """Write files that are one document each."""
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_text(_sentence(1, 12))
    (folder / "two.md").write_text("# Harbor\n\n" + _sentence(2, 60))
    (folder / "deep/three.html").write_text("<p>Lantern of the <b>harbor</b></p>")
    (folder / "four.txt.gz").write_bytes(gzip.compress(_sentence(4, 20).encode(), mtime=0))
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    (folder / "none.txt").write_bytes(b"")


def write_sample(folder: Path) -> None:
    """Write enough documents for a calibration."""
    folder.mkdir(parents=True)
    (folder / "sample.jsonl").write_bytes(_to_lines([{"text": _sentence(number, 5 + number % 40)} for number in range(150)]))


def write_broken(path: Path) -> None:
    """Write a shard that cannot be read, large enough to be a task of its own."""
    path.write_bytes(b"not gzip" + bytes(LARGE_BYTES))


def _sentence(number: int, words: int) -> str:
    return " ".join(WORDS[(number * 7 + place * place + place // 3) % len(WORDS)] for place in range(words)) + f" {number}."


def _document(number: int) -> dict[str, Any]:
    texts = {3: "Élan, naïve: straße", 4: "快速 🐋 whale", 5: "  bread;\n\n\tbread  "}
    values = {"topic": WORDS[number % 3], "year": 1990 + number, "score": number / 4, "flag": number % 2 == 0}
    nested = {"tags": WORDS[: number % 3], "meta": {"url": f"doc/{number}"}, "info": {"page": number, "lang": "en"}}
    text = texts.get(number, _sentence(number, 40 if number % 8 == 1 else 3 + number % 6))
    when = datetime(2024, 1, 1 + number % 28, 12, tzinfo=UTC).isoformat()
    return {"id": f"d{number}", "title": f"Title {number}", "text": text, "when": when, **values, **nested}


def _bad_lines() -> list[bytes]:
    plain = _document(50)
    bad: list[dict[str, Any]] = [
        plain | {"id": "null", "title": None, "text": None},
        plain | {"id": "empty", "title": " ", "text": "\n"},
        plain | {"id": "number", "text": 7},
        plain | {"id": None},
        plain | {"id": "d1"},
        plain | {"id": "year", "year": "unknown"},
        plain | {"id": "lone", "text": "half \ud83d of a pair"},
    ]
    undecodable = json.dumps(plain | {"id": "latin", "text": "cafe"}).encode().replace(b"cafe", b"caf\xe9")
    return [*(json.dumps(each).encode() for each in bad), undecodable, b'{"id": "cut", "te', b"[1, 2]"]


def _to_lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _to_csv(rows: list[dict[str, Any]]) -> bytes:
    """Write a header, one line a document and a line that has too few fields; lists and objects are left empty."""
    text = io.StringIO()
    names = ["id", "title", "text", "when", *ROW, "tags", "meta.url", "info"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([row["meta"]["url"] if name == "meta.url" else "" if name in ("tags", "info") else row[name] for name in names])
    return text.getvalue().encode() + b"short,line\n"


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    moments = [row | {"when": datetime.fromisoformat(row["when"])} for row in rows]
    pq.write_table(pa.Table.from_pylist([*moments, moments[0] | {"id": "e-null", "title": None, "text": None}]), path, row_group_size=3)
